"""Who there is: workspaces, users, service accounts; and how users come in: sign-ins, identities, tokens by e-mail.

Every row belongs to exactly one workspace. The workspace `default` exists from the first migration.
"""

import uuid
from datetime import datetime
from typing import Literal

from sqlalchemy import CheckConstraint, ForeignKey, Index, Text, UniqueConstraint, text
from sqlalchemy.orm import Mapped, mapped_column

from tidegate.auth.principal import Role
from tidegate.ledger.entry import new_entry_id, utc_now
from tidegate.storage.base import Base
from tidegate.storage.types import Count, LowerCaseText, UtcDateTime

SignInMethod = Literal["password", "single_sign_on"]
Purpose = Literal["invitation", "password_reset", "email_change"]

DEFAULT_WORKSPACE_ID = uuid.UUID("00000000-0000-7000-8000-000000000001")


class Workspace(Base):
    """The tenant."""

    __tablename__ = "workspaces"

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True, default=new_entry_id)
    name: Mapped[str] = mapped_column(Text, unique=True)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=utc_now, server_default=text("CURRENT_TIMESTAMP"))


class User(Base):
    """Someone who signs in. `email` is in lower case; no `password_hash` means that no password opens the account.

    `password_ends_at` is of a password that its user did not choose: from then on it opens no log-in.
    """

    __tablename__ = "users"
    __table_args__ = (CheckConstraint("role IN ('admin', 'member')", name="role_is_known"),)

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True, default=new_entry_id)
    workspace_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("workspaces.id"), index=True)
    email: Mapped[str] = mapped_column(LowerCaseText, unique=True)
    password_hash: Mapped[str | None] = mapped_column(Text)
    password_ends_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    role: Mapped[Role] = mapped_column(Text)
    disabled_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=utc_now, server_default=text("CURRENT_TIMESTAMP"))


class ServiceAccount(Base):
    """An owner of keys that cannot sign in and outlives people. Names need not be unique."""

    __tablename__ = "service_accounts"

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True, default=new_entry_id)
    workspace_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("workspaces.id"), index=True)
    name: Mapped[str] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=utc_now, server_default=text("CURRENT_TIMESTAMP"))


class SignIn(Base):
    """One sign-in of a user at one client, from log-in to log-out: the family of its refresh tokens.

    It ends at `expires_at` at the latest. `ended_because` is `signed_out`, `signed_out_everywhere`, `reused`,
    `password_changed`, `email_changed`, `disabled`, `role_changed` or `second_factor_changed`.
    """

    __tablename__ = "sign_ins"

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True, default=new_entry_id)
    workspace_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("workspaces.id"), index=True)
    user_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("users.id"), index=True)
    method: Mapped[SignInMethod] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=utc_now, server_default=text("CURRENT_TIMESTAMP"))
    expires_at: Mapped[datetime] = mapped_column(UtcDateTime)
    last_used_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    ended_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    ended_because: Mapped[str | None] = mapped_column(Text)
    client_address: Mapped[str | None] = mapped_column(Text)
    user_agent: Mapped[str | None] = mapped_column(Text)


class RefreshToken(Base):
    """One refresh token of a family, by its hash. A used one stays as long as its family, so that reuse is known.

    `successor_id` is the token that its use gave.
    """

    __tablename__ = "refresh_tokens"
    __table_args__ = (Index("ix_refresh_tokens_sign_in_id", "sign_in_id"),)

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True, default=new_entry_id)
    workspace_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("workspaces.id"), index=True)
    sign_in_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("sign_ins.id"))
    token_hash: Mapped[bytes] = mapped_column(unique=True)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=utc_now, server_default=text("CURRENT_TIMESTAMP"))
    expires_at: Mapped[datetime] = mapped_column(UtcDateTime)
    used_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    successor_id: Mapped[uuid.UUID | None]


class MailedToken(Base):
    """A token that was sent by e-mail, by its hash: it is used once, before it expires.

    `user_id` is whose it is, null for an invitation: that has the role it gives and who made it. `email` is the address
    that it was sent to.
    """

    __tablename__ = "mailed_tokens"
    __table_args__ = (
        CheckConstraint("purpose IN ('invitation', 'password_reset', 'email_change')", name="purpose_is_known"),
        CheckConstraint("(user_id IS NULL) = (purpose = 'invitation')", name="invitation_has_no_user"),
    )

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True, default=new_entry_id)
    workspace_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("workspaces.id"), index=True)
    purpose: Mapped[Purpose] = mapped_column(Text)
    user_id: Mapped[uuid.UUID | None] = mapped_column(ForeignKey("users.id"), index=True)
    email: Mapped[str] = mapped_column(LowerCaseText, index=True)
    role: Mapped[Role | None] = mapped_column(Text)
    made_by: Mapped[str | None] = mapped_column(Text)
    token_hash: Mapped[bytes] = mapped_column(unique=True)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=utc_now, server_default=text("CURRENT_TIMESTAMP"))
    expires_at: Mapped[datetime] = mapped_column(UtcDateTime)
    used_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    withdrawn_at: Mapped[datetime | None] = mapped_column(UtcDateTime)


class SecondFactor(Base):
    """A user's second factor: the secret of a TOTP (RFC 6238), encrypted under the key `secret_kid`.

    It counts from `confirmed_at` on. `last_step` is the time step of the code that was used last: none up to it is
    taken again. `wrong_codes` are those since a right one.
    """

    __tablename__ = "second_factors"

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True, default=new_entry_id)
    workspace_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("workspaces.id"), index=True)
    user_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("users.id"), unique=True)
    sealed_secret: Mapped[bytes]
    secret_kid: Mapped[str] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=utc_now, server_default=text("CURRENT_TIMESTAMP"))
    confirmed_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    last_step: Mapped[int] = mapped_column(Count, default=0, server_default=text("0"))
    wrong_codes: Mapped[int] = mapped_column(Count, default=0, server_default=text("0"))


class RecoveryCode(Base):
    """A code that stands for a user's second factor once, by its hash. A used one is deleted."""

    __tablename__ = "recovery_codes"

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True, default=new_entry_id)
    workspace_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("workspaces.id"), index=True)
    user_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("users.id"), index=True)
    code_hash: Mapped[bytes] = mapped_column(unique=True)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=utc_now, server_default=text("CURRENT_TIMESTAMP"))


class Identity(Base):
    """Who a user is at a single sign-on provider: its `subject` at an `issuer` (OpenID Connect Core, 2)."""

    __tablename__ = "identities"
    __table_args__ = (UniqueConstraint("issuer", "subject"),)

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True, default=new_entry_id)
    workspace_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("workspaces.id"), index=True)
    user_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("users.id"), index=True)
    issuer: Mapped[str] = mapped_column(Text)
    subject: Mapped[str] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=utc_now, server_default=text("CURRENT_TIMESTAMP"))

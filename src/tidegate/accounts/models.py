"""Who there is: workspaces, users and service accounts.

Every row belongs to exactly one workspace. The workspace `default` exists from the first migration.
"""

import uuid
from datetime import datetime

from sqlalchemy import CheckConstraint, ForeignKey, Text, text
from sqlalchemy.orm import Mapped, mapped_column

from tidegate.auth.principal import Role
from tidegate.ledger.entry import new_entry_id, utc_now
from tidegate.storage.base import Base
from tidegate.storage.types import LowerCaseText, UtcDateTime

DEFAULT_WORKSPACE_ID = uuid.UUID("00000000-0000-7000-8000-000000000001")


class Workspace(Base):
    """The tenant."""

    __tablename__ = "workspaces"

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True, default=new_entry_id)
    name: Mapped[str] = mapped_column(Text, unique=True)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=utc_now, server_default=text("CURRENT_TIMESTAMP"))


class User(Base):
    """Someone who signs in. `email` is in lower case; no `password_hash` means that no password opens the account."""

    __tablename__ = "users"
    __table_args__ = (CheckConstraint("role IN ('admin', 'member')", name="role_is_known"),)

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True, default=new_entry_id)
    workspace_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("workspaces.id"), index=True)
    email: Mapped[str] = mapped_column(LowerCaseText, unique=True)
    password_hash: Mapped[str | None] = mapped_column(Text)
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

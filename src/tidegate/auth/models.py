"""API keys as they are stored: a prefix to find one by, a hash to judge it by, never the secret."""

import uuid
from datetime import datetime

from sqlalchemy import CheckConstraint, ForeignKey, SmallInteger, Text, false, text
from sqlalchemy.orm import Mapped, mapped_column

from tidegate.auth.principal import Scope
from tidegate.ledger.entry import new_entry_id, utc_now
from tidegate.storage.base import Base
from tidegate.storage.types import JsonDocument, UtcDateTime


class ApiKey(Base):
    """A key of a user or of a service account: exactly one of them owns it.

    `hash_scheme` and `pepper_kid` say how `secret_hash` was made, so that keys of another scheme can stand beside ours.
    `models` are names, groups or patterns; null admits every model. `queue_weight` is its share of an upstream's queue
    beside other keys. `allowed_addresses` are addresses and CIDRs that it may be used from; null is from anywhere.
    """

    __tablename__ = "api_keys"
    __table_args__ = (
        CheckConstraint("(owner_user_id IS NULL) <> (owner_service_account_id IS NULL)", name="owner_is_one"),
        CheckConstraint("queue_weight BETWEEN 1 AND 100", name="queue_weight_is_in_range"),
    )

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True, default=new_entry_id)
    workspace_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("workspaces.id"), index=True)
    name: Mapped[str] = mapped_column(Text)
    prefix: Mapped[str] = mapped_column(Text, unique=True)
    secret_hash: Mapped[bytes]
    hash_scheme: Mapped[str] = mapped_column(Text)
    pepper_kid: Mapped[str | None] = mapped_column(Text)
    owner_user_id: Mapped[uuid.UUID | None] = mapped_column(ForeignKey("users.id"), index=True)
    owner_service_account_id: Mapped[uuid.UUID | None] = mapped_column(ForeignKey("service_accounts.id"), index=True)
    scopes: Mapped[list[Scope]] = mapped_column(JsonDocument)
    models: Mapped[list[str] | None] = mapped_column(JsonDocument)
    trusts_attribution: Mapped[bool] = mapped_column(default=False, server_default=false())
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=utc_now, server_default=text("CURRENT_TIMESTAMP"))
    expires_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    revoked_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    last_used_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    queue_weight: Mapped[int] = mapped_column(SmallInteger, default=1, server_default=text("1"))
    allowed_addresses: Mapped[list[str] | None] = mapped_column(JsonDocument)


class RetiringSecret(Base):
    """A secret that a key had before its rotation, and that opens it beside the new one until `ends_at`."""

    __tablename__ = "retiring_secrets"

    prefix: Mapped[str] = mapped_column(Text, primary_key=True)
    workspace_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("workspaces.id"), index=True)
    key_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("api_keys.id"), index=True)
    secret_hash: Mapped[bytes]
    hash_scheme: Mapped[str] = mapped_column(Text)
    pepper_kid: Mapped[str | None] = mapped_column(Text)
    ends_at: Mapped[datetime] = mapped_column(UtcDateTime)

"""The ledger's rows: terminal entries, their attempts, and the counts of what was refused before a reservation.

Entries and attempts are append-only, and have the fields of `Entry` and `Attempt` under the same names. They refer to
keys, users and workspaces without foreign keys: the ledger outlives what it names.
"""

import uuid
from datetime import datetime
from decimal import Decimal

from sqlalchemy import ForeignKey, Index, SmallInteger, Text
from sqlalchemy.orm import Mapped, mapped_column

from tidegate.ledger.entry import Outcome, UsageSource
from tidegate.storage.base import Base
from tidegate.storage.types import Count, JsonDocument, Usd, UtcDateTime

# The nil UUID stands where a refused caller had no key, so that refusals have one primary key on every database.
NO_KEY_ID = uuid.UUID(int=0)


class LedgerEntry(Base):
    """One terminal entry."""

    __tablename__ = "ledger_entries"
    __table_args__ = (
        Index(None, "workspace_id", "entry_id"),
        Index(None, "workspace_id", "started_at"),
        Index(None, "key_id", "started_at"),
        Index(None, "request_id"),
    )

    entry_id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    schema: Mapped[int] = mapped_column(SmallInteger)
    workspace_id: Mapped[uuid.UUID]
    key_id: Mapped[uuid.UUID | None]
    user_id: Mapped[uuid.UUID | None]
    request_id: Mapped[str] = mapped_column(Text)
    end_user: Mapped[str | None] = mapped_column(Text)
    session_id: Mapped[str | None] = mapped_column(Text)
    tags: Mapped[dict[str, str]] = mapped_column(JsonDocument)
    protocol: Mapped[str] = mapped_column(Text)
    model: Mapped[str] = mapped_column(Text)
    upstream: Mapped[str | None] = mapped_column(Text)
    streamed: Mapped[bool]
    outcome: Mapped[Outcome] = mapped_column(Text)
    status: Mapped[int | None] = mapped_column(SmallInteger)
    error_code: Mapped[str | None] = mapped_column(Text)
    finish_reason: Mapped[str | None] = mapped_column(Text)
    cache: Mapped[str | None] = mapped_column(Text)
    input_tokens: Mapped[int] = mapped_column(Count)
    cached_input_tokens: Mapped[int] = mapped_column(Count)
    cache_write_tokens: Mapped[int] = mapped_column(Count)
    cache_write_1h_tokens: Mapped[int] = mapped_column(Count)
    output_tokens: Mapped[int] = mapped_column(Count)
    reasoning_tokens: Mapped[int] = mapped_column(Count)
    units: Mapped[dict[str, int]] = mapped_column(JsonDocument)
    usage_source: Mapped[UsageSource] = mapped_column(Text)
    reserved_cost: Mapped[Decimal | None] = mapped_column(Usd)
    cost: Mapped[Decimal | None] = mapped_column(Usd)
    price_version: Mapped[str | None] = mapped_column(Text)
    client_address: Mapped[str | None] = mapped_column(Text)
    user_agent: Mapped[str | None] = mapped_column(Text)
    queue_ms: Mapped[int | None] = mapped_column(Count)
    ttft_ms: Mapped[int | None] = mapped_column(Count)
    duration_ms: Mapped[int] = mapped_column(Count)
    started_at: Mapped[datetime] = mapped_column(UtcDateTime)
    ended_at: Mapped[datetime] = mapped_column(UtcDateTime)


class LedgerAttempt(Base):
    """One attempt of an entry, by its number."""

    __tablename__ = "ledger_attempts"

    entry_id: Mapped[uuid.UUID] = mapped_column(
        ForeignKey("ledger_entries.entry_id", ondelete="CASCADE"), primary_key=True
    )
    n: Mapped[int] = mapped_column(SmallInteger, primary_key=True, autoincrement=False)
    workspace_id: Mapped[uuid.UUID]
    upstream: Mapped[str] = mapped_column(Text)
    model: Mapped[str] = mapped_column(Text)
    upstream_request_id: Mapped[str | None] = mapped_column(Text)
    outcome: Mapped[Outcome] = mapped_column(Text)
    status: Mapped[int | None] = mapped_column(SmallInteger)
    input_tokens: Mapped[int] = mapped_column(Count)
    cached_input_tokens: Mapped[int] = mapped_column(Count)
    cache_write_tokens: Mapped[int] = mapped_column(Count)
    cache_write_1h_tokens: Mapped[int] = mapped_column(Count)
    output_tokens: Mapped[int] = mapped_column(Count)
    reasoning_tokens: Mapped[int] = mapped_column(Count)
    usage_source: Mapped[UsageSource] = mapped_column(Text)
    cost: Mapped[Decimal | None] = mapped_column(Usd)
    price_version: Mapped[str | None] = mapped_column(Text)
    started_at: Mapped[datetime] = mapped_column(UtcDateTime)
    ended_at: Mapped[datetime] = mapped_column(UtcDateTime)


class Refusal(Base):
    """How often a key was refused with a code in one minute (its start), before anything was reserved."""

    __tablename__ = "refusals"

    workspace_id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    key_id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    code: Mapped[str] = mapped_column(Text, primary_key=True)
    minute: Mapped[datetime] = mapped_column(UtcDateTime, primary_key=True)
    count: Mapped[int] = mapped_column(Count)

"""Limits as rows, and what a workspace says of the limits of keys that its members make.

A subject is text and refers to nothing: a limit outlives the key that it was for. Rows of the scopes `deployment` and
`upstream` belong to the workspace `default` and apply to every workspace.
"""

import uuid
from datetime import datetime

from sqlalchemy import CheckConstraint, ForeignKey, Index, Text, UniqueConstraint, text
from sqlalchemy.orm import Mapped, mapped_column

from tidegate.ledger.entry import new_entry_id, utc_now
from tidegate.limits.values import Action, LimitScope, Meter, Overrun, Window
from tidegate.storage.base import Base
from tidegate.storage.types import Count, UtcDateTime

# `window` is a word of SQL.
_METER = "meter IN ('requests', 'tokens', 'cost', 'concurrency')"
_WINDOW = "\"window\" IN ('minute', 'hour', 'day', 'week', 'month', 'total')"
_CONCURRENCY = "(meter = 'concurrency') = (\"window\" IS NULL)"


class LimitRow(Base):
    """One limit; its columns are the fields of `Limit`. `amount` is a whole number, of nano-USD for cost."""

    __tablename__ = "limits"
    __table_args__ = (
        CheckConstraint(
            "scope IN ('deployment', 'workspace', 'user', 'key', 'end_user', 'tag', 'upstream')", name="scope_is_known"
        ),
        CheckConstraint(_METER, name="meter_is_known"),
        CheckConstraint(_WINDOW, name="window_is_known"),
        CheckConstraint(_CONCURRENCY, name="concurrency_has_no_window"),
        CheckConstraint("amount > 0", name="amount_is_positive"),
        CheckConstraint("action IN ('refuse', 'alert')", name="action_is_known"),
        CheckConstraint("on_overrun IN ('finish', 'cut')", name="on_overrun_is_known"),
        Index(None, "workspace_id", "scope", "subject"),
    )

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True, default=new_entry_id)
    workspace_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("workspaces.id"))
    scope: Mapped[LimitScope] = mapped_column(Text)
    subject: Mapped[str | None] = mapped_column(Text)
    model: Mapped[str | None] = mapped_column(Text)
    meter: Mapped[Meter] = mapped_column(Text)
    window: Mapped[Window | None] = mapped_column(Text)
    zone: Mapped[str | None] = mapped_column(Text)
    # Not `Usd`: on SQLite that holds 9.2 million at most, and tokens are counted by the billion.
    amount: Mapped[int] = mapped_column(Count)
    action: Mapped[Action] = mapped_column(Text, default="refuse", server_default=text("'refuse'"))
    on_overrun: Mapped[Overrun] = mapped_column(Text, default="finish", server_default=text("'finish'"))
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=utc_now, server_default=text("CURRENT_TIMESTAMP"))


class KeyPolicy(Base):
    """What a key that a member makes gets of one meter and window where it asks for none, and the most it may ask for.

    Amounts are as a limit's. At least one of the two is there.
    """

    __tablename__ = "key_policies"
    __table_args__ = (
        CheckConstraint(_METER, name="meter_is_known"),
        CheckConstraint(_WINDOW, name="window_is_known"),
        CheckConstraint(_CONCURRENCY, name="concurrency_has_no_window"),
        CheckConstraint("default_amount > 0", name="default_amount_is_positive"),
        CheckConstraint("most_amount > 0", name="most_amount_is_positive"),
        CheckConstraint("default_amount IS NOT NULL OR most_amount IS NOT NULL", name="says_something"),
        CheckConstraint("default_amount <= most_amount", name="default_amount_is_allowed"),
        UniqueConstraint("workspace_id", "meter", "window"),
        # Nulls are never equal to each other, so the constraint above lets any number of them in.
        Index(
            "uq_key_policies_workspace_id_concurrency",
            "workspace_id",
            unique=True,
            sqlite_where=text('"window" IS NULL'),
            postgresql_where=text('"window" IS NULL'),
        ),
    )

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True, default=new_entry_id)
    workspace_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("workspaces.id"))
    meter: Mapped[Meter] = mapped_column(Text)
    window: Mapped[Window | None] = mapped_column(Text)
    default_amount: Mapped[int | None] = mapped_column(Count)
    most_amount: Mapped[int | None] = mapped_column(Count)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=utc_now, server_default=text("CURRENT_TIMESTAMP"))

"""The audit trail as it is stored: one row an event, added and never changed.

The database itself refuses to change or delete a row (a trigger of the migration), so a defect of ours cannot either.
"""

import uuid
from datetime import datetime
from typing import Any

from sqlalchemy import ForeignKey, Index, Text, text
from sqlalchemy.orm import Mapped, mapped_column

from tidegate.ledger.entry import new_entry_id, utc_now
from tidegate.storage.base import Base
from tidegate.storage.types import JsonDocument, UtcDateTime


class AuditEvent(Base):
    """Who did what to whom, from where, when.

    `workspace_id` is the workspace that it happened in: `default` where there is none, as for a log-in with an address
    that nobody has. `actor` and `subject` are what people call them (an e-mail, a key's prefix), as they were then:
    the ids may outlive their rows, so they are no foreign keys. `details` never hold a secret.
    """

    __tablename__ = "audit_events"
    __table_args__ = (
        Index("ix_audit_events_workspace_id_id", "workspace_id", "id"),
        Index("ix_audit_events_action_id", "action", "id"),
    )

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True, default=new_entry_id)
    workspace_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("workspaces.id"))
    at: Mapped[datetime] = mapped_column(UtcDateTime, default=utc_now, server_default=text("CURRENT_TIMESTAMP"))
    action: Mapped[str] = mapped_column(Text)
    outcome: Mapped[str] = mapped_column(Text)
    actor_kind: Mapped[str] = mapped_column(Text)
    actor_id: Mapped[uuid.UUID | None]
    actor: Mapped[str | None] = mapped_column(Text)
    subject_kind: Mapped[str | None] = mapped_column(Text)
    subject_id: Mapped[str | None] = mapped_column(Text)
    subject: Mapped[str | None] = mapped_column(Text)
    client_address: Mapped[str | None] = mapped_column(Text)
    user_agent: Mapped[str | None] = mapped_column(Text)
    request_id: Mapped[str | None] = mapped_column(Text)
    details: Mapped[dict[str, Any]] = mapped_column(JsonDocument, default=dict)

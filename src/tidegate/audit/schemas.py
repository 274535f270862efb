"""The audit trail as `/api/audit` shows it."""

import uuid
from datetime import datetime
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field

from tidegate.audit.models import AuditEvent
from tidegate.audit.trail import ActorKind, Outcome
from tidegate.ledger.schemas import SearchText, Since

# An action, or the beginning of several, which ends with its dot.
ActionPattern = Annotated[str, Field(pattern=r"^[a-z_]+\.[a-z_]*$", max_length=64, examples=["key.revoked", "key."])]


class AuditQuery(BaseModel):
    """Which events to list. `since` is included, `until` is not; `after` is the last answer's `next`.

    `action` is an action, or what several begin with: `key.` is all of keys. `actor` is what they are called (an
    e-mail, a key's prefix, a system user), their id, or their kind. `since` and `until` are a length of time such as
    `7d`, a date, or a moment with its zone.
    """

    model_config = ConfigDict(extra="forbid")

    action: ActionPattern | None = None
    actor: SearchText | None = None
    subject_id: SearchText | None = None
    request_id: SearchText | None = None
    since: Since | None = None
    until: Since | None = None
    workspace_id: uuid.UUID | None = None
    limit: Annotated[int, Field(ge=1, le=1000)] = 200
    after: uuid.UUID | None = None


class ActorView(BaseModel):
    """Who acted: a signed-in user, an API key, a command, the gateway itself (`system`), or `nobody` who is known."""

    kind: ActorKind
    id: uuid.UUID | None
    name: str | None


class SubjectView(BaseModel):
    """What was acted on, as it was called then."""

    kind: str
    id: str | None
    name: str | None


class EventView(BaseModel):
    """One event. `details` are what changed, from what to what; never a secret."""

    id: uuid.UUID
    at: datetime
    workspace_id: uuid.UUID
    action: str
    outcome: Outcome
    actor: ActorView
    subject: SubjectView | None
    client_address: str | None
    user_agent: str | None
    request_id: str | None
    details: dict[str, Any]

    @classmethod
    def of(cls, row: AuditEvent) -> Self:
        subject = None
        if row.subject_kind is not None:
            subject = {"kind": row.subject_kind, "id": row.subject_id, "name": row.subject}
        given = {"actor": {"kind": row.actor_kind, "id": row.actor_id, "name": row.actor}, "subject": subject}
        return cls.model_validate(given | {name: getattr(row, name) for name in cls.model_fields if name not in given})


class AuditPage(BaseModel):
    """Events, newest first. `next` asks for the page after this one; null on the last."""

    data: list[EventView]
    next: uuid.UUID | None

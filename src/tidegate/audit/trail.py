"""Writing the audit trail: in the transaction of the change itself, so that neither stands without the other.

A feature says what it did where it does it:

    async with database.transaction() as session:
        row.revoked_at = utc_now()
        note(session, actor, Event("key.revoked", workspace_id=row.workspace_id, subject=of_key(row)))

What was refused and changed nothing (a log-in with a wrong password) is written alone, by `write`.
"""

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from sqlalchemy.ext.asyncio import AsyncSession

from tidegate.accounts.models import DEFAULT_WORKSPACE_ID
from tidegate.audit.models import AuditEvent
from tidegate.storage.database import Database

ActorKind = Literal["user", "key", "command", "system", "nobody"]
Outcome = Literal["done", "refused"]

Action = Literal[
    "account.signed_in",
    "account.sign_in_refused",
    "account.signed_out",
    "account.signed_out_everywhere",
    "account.refresh_token_reused",
    "account.password_forgotten",
    "account.password_reset",
    "account.password_changed",
    "account.email_change_asked",
    "account.email_changed",
    "account.second_factor_begun",
    "account.second_factor_on",
    "account.second_factor_off",
    "account.second_factor_reset",
    "account.recovery_code_used",
    "account.recovery_codes_replaced",
    "account.proof_refused",
    "user.invited",
    "user.invitation_withdrawn",
    "user.created",
    "user.changed",
    "user.disabled",
    "user.enabled",
    "workspace.created",
    "workspace.changed",
    "key.created",
    "key.changed",
    "key.rotated",
    "key.revoked",
    "key.secret_ended",
    "limit.created",
    "limit.changed",
    "limit.deleted",
    "key_policies.replaced",
    "settings.reloaded",
]


@dataclass(frozen=True, slots=True)
class Actor:
    """Who acts, and from where. `name` is an e-mail, a key's prefix or the command's system user."""

    kind: ActorKind
    id: uuid.UUID | None = None
    name: str | None = None
    client_address: str | None = None
    user_agent: str | None = None
    request_id: str | None = None


# For what tests and programs do without anybody asking.
SYSTEM: Final = Actor("system")


@dataclass(frozen=True, slots=True)
class Subject:
    """What was acted on: `kind` (`user`, `key`, `limit`, `workspace`, …), its id and what people call it."""

    kind: str
    id: uuid.UUID | str | None = None
    name: str | None = None


@dataclass(frozen=True, slots=True)
class Event:
    """What happened; without a `workspace_id`, in the workspace `default`.

    `details` are JSON, of names and values that are no secret: of a change, the fields that differ (`differences`).
    """

    action: Action
    workspace_id: uuid.UUID | None = None
    subject: Subject | None = None
    outcome: Outcome = "done"
    details: Mapping[str, Any] = field(default_factory=dict)


def note(session: AsyncSession, actor: Actor, event: Event) -> None:
    """Adds the event to a transaction that is under way."""
    session.add(_row(actor, event))


async def write(database: Database, actor: Actor, event: Event) -> None:
    """The event in a transaction of its own."""
    async with database.transaction() as session:
        session.add(_row(actor, event))


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What a change changed, field by field. Both have the same fields.

    >>> differences({"name": "a", "role": "member"}, {"name": "a", "role": "admin"})
    {'role': {'from': 'member', 'to': 'admin'}}
    """
    return {name: {"from": old, "to": after[name]} for name, old in before.items() if old != after[name]}


def _row(actor: Actor, event: Event) -> AuditEvent:
    subject = event.subject or Subject("nothing")
    return AuditEvent(
        workspace_id=event.workspace_id or DEFAULT_WORKSPACE_ID,
        action=event.action,
        outcome=event.outcome,
        actor_kind=actor.kind,
        actor_id=actor.id,
        actor=actor.name,
        subject_kind=None if event.subject is None else subject.kind,
        subject_id=None if subject.id is None else str(subject.id),
        subject=subject.name,
        client_address=actor.client_address,
        user_agent=actor.user_agent,
        request_id=actor.request_id,
        details=dict(event.details),
    )

"""API keys in the audit trail: how one is named, and what is said of it. Never a secret nor its hash."""

from collections.abc import Sequence

from sqlalchemy.ext.asyncio import AsyncSession

from tidegate.accounts.models import ServiceAccount, User
from tidegate.audit.trail import Actor, Event, Subject, note
from tidegate.auth.api_keys import KEY_MARK
from tidegate.auth.models import ApiKey
from tidegate.limits.models import LimitRow
from tidegate.limits.schemas import LimitView


def of_key(row: ApiKey) -> Subject:
    """A key as the audit trail names it."""
    return Subject("key", row.id, KEY_MARK + row.prefix)


def note_created(
    session: AsyncSession, actor: Actor, row: ApiKey, owner: User | ServiceAccount, limits: Sequence[LimitRow] = ()
) -> None:
    """Writes down a key that was just added; `row` is flushed."""
    details = {
        "owner": owner.email if isinstance(owner, User) else f"service account {owner.name}",
        "scopes": list(row.scopes),
        **changeable(row),
        "queue_weight": row.queue_weight,
        "limits": {view.label: view.amount for view in map(LimitView.of, limits)},
    }
    note(session, actor, Event("key.created", row.workspace_id, of_key(row), details=details))


def changeable(row: ApiKey) -> dict[str, object]:
    """What of a key may change, as the audit trail writes it."""
    return {
        "name": row.name,
        "models": row.models,
        "expires_at": None if row.expires_at is None else row.expires_at.isoformat(timespec="seconds"),
        "allowed_addresses": row.allowed_addresses,
        "trusts_attribution": row.trusts_attribution,
    }

"""The secrets of an API key: its own, and those that it had before and that go on beside it for a while.

Whoever changes them has locked the key's row. What is done is in the audit trail by the same transaction.
"""

import uuid
from collections.abc import Collection
from datetime import timedelta
from typing import Final

from sqlalchemy import delete, select
from sqlalchemy.ext.asyncio import AsyncSession

from tidegate.accounts.api_keys.events import of_key
from tidegate.audit.trail import Actor, Event, note
from tidegate.auth.api_keys import KEY_MARK, generate_key, hash_key, prefix_of
from tidegate.auth.keyring import Keyring
from tidegate.auth.models import ApiKey, RetiringSecret
from tidegate.errors import Conflict, NotFound
from tidegate.ledger.entry import utc_now

AT_ONCE: Final = timedelta(0)
LONGEST_OVERLAP: Final = timedelta(days=7)
MOST_RETIRING: Final = 5


async def renew(
    session: AsyncSession, row: ApiKey, peppers: Keyring, actor: Actor, overlap: timedelta = AT_ONCE
) -> str:
    """Gives a key a new prefix and secret, and returns the secret. `row` is locked.

    With an overlap the old secret goes on for so long, and those that retire already go on as they were to; without
    one all of them end. Raises `Conflict` for a revoked key, or where `MOST_RETIRING` retire already.
    """
    require_not_revoked(row)
    now, old, generated = utc_now(), row.prefix, generate_key()
    details: dict[str, object] = {"prefix": {"from": KEY_MARK + old, "to": KEY_MARK + generated.prefix}}
    ends = RetiringSecret.key_id == row.id
    if overlap:
        await session.execute(delete(RetiringSecret).where(ends, RetiringSecret.ends_at <= now))
        if len((await session.scalars(select(RetiringSecret.prefix).where(ends))).all()) >= MOST_RETIRING:
            raise Conflict(
                f"The API key {KEY_MARK}{old} has {MOST_RETIRING} old secrets that still work: end one of them, or "
                "rotate without an overlap, which ends them all."
            )
        session.add(
            RetiringSecret(
                prefix=old,
                workspace_id=row.workspace_id,
                key_id=row.id,
                secret_hash=row.secret_hash,
                hash_scheme=row.hash_scheme,
                pepper_kid=row.pepper_kid,
                ends_at=now + overlap,
            )
        )
        details["old_secret_ends_at"] = (now + overlap).isoformat(timespec="seconds")
    elif ended := await _end_all_retiring(session, row):
        details["ended"] = ended
    stored = hash_key(generated.secret, peppers)
    row.prefix = generated.prefix
    row.secret_hash = stored.secret_hash
    row.hash_scheme = stored.hash_scheme
    row.pepper_kid = stored.pepper_kid
    note(session, actor, Event("key.rotated", row.workspace_id, of_key(row), details=details))
    return generated.secret


async def revoke_key(session: AsyncSession, row: ApiKey, actor: Actor) -> None:
    """Ends a key with all its secrets. `row` is locked. Twice is once."""
    if row.revoked_at is not None:
        return
    row.revoked_at = utc_now()
    ended = await _end_all_retiring(session, row)
    details = {"ended": ended} if ended else {}
    note(session, actor, Event("key.revoked", row.workspace_id, of_key(row), details=details))


async def end_retiring(session: AsyncSession, row: ApiKey, prefix: str, actor: Actor) -> None:
    """Ends one secret of a key that retires. `row` is locked. Raises `NotFound`."""
    bare = bare_prefix(prefix)
    theirs = (RetiringSecret.key_id == row.id, RetiringSecret.prefix == bare, RetiringSecret.ends_at > utc_now())
    ended = await session.scalar(delete(RetiringSecret).where(*theirs).returning(RetiringSecret.prefix))
    if ended is None:
        raise NotFound(f"The API key {KEY_MARK}{row.prefix} has no old secret {KEY_MARK}{bare} that still works.")
    event = Event("key.secret_ended", row.workspace_id, of_key(row), details={"ended": [KEY_MARK + bare]})
    note(session, actor, event)


async def retiring_of(
    session: AsyncSession, key_ids: Collection[uuid.UUID] | None = None
) -> dict[uuid.UUID, list[RetiringSecret]]:
    """The secrets of these keys, or (None) of all, that still work beside the key's own, the first to end first."""
    query = select(RetiringSecret).where(RetiringSecret.ends_at > utc_now())
    if key_ids is not None:
        query = query.where(RetiringSecret.key_id.in_(key_ids))
    found: dict[uuid.UUID, list[RetiringSecret]] = {}
    for secret in await session.scalars(query.order_by(RetiringSecret.ends_at, RetiringSecret.prefix)):
        found.setdefault(secret.key_id, []).append(secret)
    return found


async def _end_all_retiring(session: AsyncSession, row: ApiKey) -> list[str]:
    """Deletes them, and returns the prefixes of those that still worked."""
    ended = delete(RetiringSecret).where(RetiringSecret.key_id == row.id)
    now = utc_now()
    rows = await session.execute(ended.returning(RetiringSecret.prefix, RetiringSecret.ends_at))
    return sorted(KEY_MARK + prefix for prefix, ends_at in rows if ends_at > now)


def require_not_revoked(row: ApiKey) -> None:
    """Raises `Conflict` for a revoked key."""
    if row.revoked_at is not None:
        raise Conflict(f"The API key tg_{row.prefix} was revoked and stays so: create another.")


def bare_prefix(text: str) -> str:
    """The prefix of a secret that is named by it, with or without `tg_`, or that is given whole."""
    return prefix_of(text) or text.removeprefix(KEY_MARK)

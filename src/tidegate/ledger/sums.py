"""What the ledger says was used of a limit: the truth that a store's counters are a projection of."""

import math
import time
import uuid
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from sqlalchemy import ColumnElement, Select, func, select

from tidegate.admission.budgets import LedgerSum
from tidegate.auth.models import ApiKey
from tidegate.ledger.models import LedgerAttempt, LedgerEntry
from tidegate.limits.matching import covers
from tidegate.limits.values import Limit, nano_usd
from tidegate.storage.database import Database

# An entry that ended before this is in the sum.
SEEN_S = 120
# What the store is told of an entry's end may be so much later than what the ledger says: so much more is named.
_TOLD_WITHIN_S = 10
# Fewer than `MOST_UNSETTLED`, which says why.
_MOST_SEEN = 20_000


class DatabaseSums:
    """Implements `admission.budgets.Sums`.

    >>> await DatabaseSums(database).of(limit, None, starts, ends)
    LedgerSum(used=1250000000, seen=(…), seen_since_ms=1800000000000)

    Of `most_seen` entries that ended since, the last are named, and `seen_since_ms` is as much later.
    """

    def __init__(
        self,
        database: Database,
        groups_of: Callable[[str], tuple[str, ...]] = lambda _: (),
        *,
        most_seen: int = _MOST_SEEN,
    ) -> None:
        self._database = database
        self._groups_of = groups_of
        self._most_seen = most_seen

    async def of(self, limit: Limit, subject: str | None, starts: int, ends: int) -> LedgerSum:
        table: Any = LedgerAttempt if limit.scope == "upstream" else LedgerEntry
        where = [*_scope(limit, subject), *_window(table, starts, ends)]
        since_s = time.time() - SEEN_S
        name = LedgerEntry.model
        sums: Select[Any] = select(name, *_measures(limit, table)).where(*where).group_by(name)
        lately: Select[Any] = (
            select(table.entry_id, table.ended_at)
            .where(*where, table.ended_at >= datetime.fromtimestamp(since_s - _TOLD_WITHIN_S, UTC))
            .order_by(table.ended_at.desc())
            .limit(self._most_seen)
        )
        if table is LedgerAttempt:
            joined = LedgerEntry.entry_id == LedgerAttempt.entry_id
            sums = sums.select_from(LedgerAttempt).join(LedgerEntry, joined)
            lately = lately.add_columns(LedgerAttempt.n)
        async with self._database.session() as session:
            # The entries first: one that is entered between the two is in the sum alone, which errs to the safe side.
            seen = (await session.execute(lately)).all()
            rows = (await session.execute(sums)).all()
        used = sum(_used(limit, row) for row in rows if covers(limit, row[0], self._groups_of(row[0])))
        if len(seen) == self._most_seen:
            # Some of those that ended with the oldest may be missing, so from the next millisecond on.
            since_s = max(since_s, seen[-1].ended_at.timestamp() + 0.001)
        return LedgerSum(used, tuple(_entry(row) for row in seen), math.ceil(since_s * 1000))


def _measures(limit: Limit, table: Any) -> Sequence[ColumnElement[Any]]:
    if limit.meter == "requests":
        return (func.count(),)
    if limit.meter == "cost":
        return (func.sum(table.cost),)
    return (
        func.sum(
            table.input_tokens
            + table.cached_input_tokens
            + table.cache_write_tokens
            + table.cache_write_1h_tokens
            + table.output_tokens
            + table.reasoning_tokens
        ),
    )


def _used(limit: Limit, row: Sequence[Any]) -> int:
    if limit.meter == "cost":
        return nano_usd(row[1] or Decimal(0))
    return int(row[1] or 0)


def _window(table: Any, starts: int, ends: int) -> list[ColumnElement[bool]]:
    if not ends:
        return []
    return [
        table.started_at >= datetime.fromtimestamp(starts, UTC),
        table.started_at < datetime.fromtimestamp(ends, UTC),
    ]


def _scope(limit: Limit, subject: str | None) -> list[ColumnElement[bool]]:
    # What never reached an upstream (refused, hung up in the queue) was given back whole; a cached answer is a request.
    reached = LedgerEntry.upstream.is_not(None) | (LedgerEntry.cache == "hit")
    # What an untrusted caller names met no limit, and must not be counted against whom it named.
    trusted = LedgerEntry.key_id.in_(select(ApiKey.id).where(ApiKey.trusts_attribution))
    match limit.scope:
        case "deployment":
            return [reached]
        case "upstream":
            return [LedgerAttempt.upstream == subject]
        case "workspace":
            return [reached, LedgerEntry.workspace_id == limit.workspace_id]
        case "user":
            return [reached, LedgerEntry.user_id == uuid.UUID(subject)]
        case "key":
            return [reached, LedgerEntry.key_id == uuid.UUID(subject)]
        case "end_user":
            return [reached, trusted, LedgerEntry.workspace_id == limit.workspace_id, LedgerEntry.end_user == subject]
        case "tag":
            name, _, value = (subject or "").partition("=")
            return [
                reached,
                trusted,
                LedgerEntry.workspace_id == limit.workspace_id,
                LedgerEntry.tags[name].as_string() == value,
            ]


def _entry(row: Sequence[Any]) -> str:
    entry: str = row[0].hex
    return f"{entry}.{row[2]}" if len(row) > 2 else entry

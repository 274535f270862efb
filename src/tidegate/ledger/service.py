"""Reads the ledger for a caller, who sees what is theirs and no more.

An admin sees every workspace, a member their own. A key with scope `usage` or `manage` sees its workspace, whoever owns
it; any other key sees its own requests, and no totals.

Totals are kept for ten seconds, under the workspace of the caller: what an admin sees of others is kept as theirs.
"""

import uuid
from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import ColumnElement, RowMapping, false, select, true
from sqlalchemy.ext.asyncio import AsyncSession

from tidegate.auth.principal import Principal
from tidegate.errors import NotFound, PermissionDenied
from tidegate.ledger.entry import utc_now
from tidegate.ledger.models import LedgerAttempt, LedgerEntry
from tidegate.ledger.reports import UsageTotals, since_moment, usage_totals
from tidegate.ledger.schemas import RequestEntry, RequestPage, RequestQuery, UsageQuery
from tidegate.storage.database import Database
from tidegate.storage.read_through import CacheKey, ReadThrough

_ENTRIES = LedgerEntry.__table__
_ATTEMPTS = LedgerAttempt.__table__
USAGE_TTL_S = 10.0
_EQUALLY_NAMED = ("request_id", "key_id", "user_id", "model", "upstream", "outcome", "end_user", "session_id")


class LedgerReader:
    """The ledger as one caller may see it."""

    def __init__(self, session: AsyncSession, caller: Principal) -> None:
        self._session = session
        self._visible = visible_to(caller)

    async def page(self, query: RequestQuery) -> RequestPage:
        """The newest entries that match, whole."""
        # One more than asked for tells whether there is a next page.
        statement = (
            select(_ENTRIES)
            .where(self._visible, *_conditions(query))
            .order_by(LedgerEntry.entry_id.desc())
            .limit(query.limit + 1)
        )
        rows = (await self._session.execute(statement)).mappings().all()
        shown = rows[: query.limit]
        entries = await self._whole(shown)
        return RequestPage(data=entries, next=entries[-1].entry_id if len(rows) > len(shown) else None)

    async def get(self, entry_id: uuid.UUID) -> RequestEntry:
        """Raises `NotFound`, also for what this caller may not see."""
        statement = select(_ENTRIES).where(self._visible, LedgerEntry.entry_id == entry_id)
        rows = (await self._session.execute(statement)).mappings().all()
        if not rows:
            raise NotFound(f"There is no request {entry_id} in the ledger that you may see.")
        return (await self._whole(rows))[0]

    async def _whole(self, rows: Sequence[RowMapping]) -> list[RequestEntry]:
        ids = [row["entry_id"] for row in rows]
        attempts: dict[uuid.UUID, list[RowMapping]] = {entry_id: [] for entry_id in ids}
        statement = select(_ATTEMPTS).where(LedgerAttempt.entry_id.in_(ids)).order_by(LedgerAttempt.n)
        for attempt in (await self._session.execute(statement)).mappings() if ids else ():
            attempts[attempt["entry_id"]].append(attempt)
        return [RequestEntry.model_validate({**row, "attempts": attempts[row["entry_id"]]}) for row in rows]


class UsageReader:
    """The ledger's totals as one caller may see them.

    >>> totals = await UsageReader(database, cache, caller).totals(UsageQuery(by="model", since="7d"))
    """

    def __init__(self, database: Database, cache: ReadThrough, caller: Principal) -> None:
        self._database = database
        self._cache = cache
        self._caller = caller

    async def totals(self, query: UsageQuery) -> UsageTotals:
        """Raises `PermissionDenied` where the caller may see no totals, or none of that workspace."""
        workspace_id = reported_workspace(self._caller, query.workspace_id)

        async def load() -> UsageTotals:
            # Not the request's session: others wait for this load, and it outlives who asked first.
            async with self._database.session() as session:
                return await usage_totals(session, query.by, since_moment(query.since, utc_now()), workspace_id)

        name = f"{query.by} {query.since} {workspace_id or 'all'}"
        key = CacheKey(self._caller.workspace_id, "usage", name)
        return await self._cache.get(key, load, kind=UsageTotals, ttl_s=USAGE_TTL_S)


def reported_workspace(caller: Principal, wanted: uuid.UUID | None) -> uuid.UUID | None:
    """The workspace whose totals this caller is shown, None for all. Raises `PermissionDenied`."""
    if not caller.scopes & {"usage", "manage"}:
        what = "API key" if caller.key_id is not None else "account"
        raise PermissionDenied(f"This {what} has neither the scope 'usage' nor 'manage', one of which totals need.")
    if caller.is_signed_in_admin:
        return wanted
    if wanted not in (None, caller.workspace_id):
        raise PermissionDenied("These credentials show the totals of their own workspace alone.")
    return caller.workspace_id


def visible_to(caller: Principal) -> ColumnElement[bool]:
    """Which entries this caller may see."""
    theirs = LedgerEntry.workspace_id == caller.workspace_id
    if caller.key_id is not None:
        if caller.scopes & {"usage", "manage"}:
            return theirs
        return theirs & (LedgerEntry.key_id == caller.key_id)
    if caller.role == "admin":
        return true()
    return theirs if caller.role == "member" else false()


def _conditions(query: RequestQuery) -> Iterable[ColumnElement[Any]]:
    for name in _EQUALLY_NAMED:
        wanted = getattr(query, name)
        if wanted is not None:
            yield _ENTRIES.c[name] == wanted
    if query.since is not None:
        yield LedgerEntry.started_at >= query.since
    if query.until is not None:
        yield LedgerEntry.started_at < query.until
    if query.after is not None:
        yield LedgerEntry.entry_id < query.after

"""Reads the ledger for a caller, who sees what is theirs and no more.

An admin sees every workspace, a member their own. A key with scope `usage` or `manage` sees its workspace, whoever owns
it; any other key sees its own requests.
"""

import uuid
from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import ColumnElement, RowMapping, false, select, true
from sqlalchemy.ext.asyncio import AsyncSession

from tidegate.auth.principal import Principal
from tidegate.errors import NotFound
from tidegate.ledger.models import LedgerAttempt, LedgerEntry
from tidegate.ledger.schemas import RequestEntry, RequestPage, RequestQuery

_ENTRIES = LedgerEntry.__table__
_ATTEMPTS = LedgerAttempt.__table__
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

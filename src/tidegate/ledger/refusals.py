"""Requests that were refused before anything was reserved: counted by key, code and minute, not entered.

Counted in memory and written every few seconds, so that a flood of refusals costs the database a row a minute. They
are not money: what a process counted in its last seconds before it was killed is lost.
"""

import asyncio
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Protocol

import anyio

from tidegate.auth.principal import Principal
from tidegate.ledger.store import RefusalCount
from tidegate.telemetry.logging import get_logger

_WRITE_EVERY_S = 5.0
_WRITE_WITHIN_S = 5.0
_MOST_KINDS = 10_000

log = get_logger(__name__)


class RefusalStore(Protocol):
    async def add_refusals(self, refusals: Iterable[RefusalCount]) -> None:
        """Adds to the counts. Raises where the database does not answer."""
        ...


class Refusals:
    """This process's counts that are not written yet, at most `_MOST_KINDS` of them.

    >>> async with Refusals.running(store) as refusals:
    ...     refusals.count(principal, "model_not_found")
    """

    def __init__(self, store: RefusalStore) -> None:
        self._store = store
        self._counts: Counter[tuple[uuid.UUID, uuid.UUID | None, str, datetime]] = Counter()

    def count(self, principal: Principal, code: str) -> None:
        """One refusal, now."""
        minute = datetime.now(UTC).replace(second=0, microsecond=0)
        kind = (principal.workspace_id, principal.key_id, code, minute)
        if kind in self._counts or len(self._counts) < _MOST_KINDS:
            self._counts[kind] += 1

    @classmethod
    @asynccontextmanager
    async def running(cls, store: RefusalStore) -> AsyncIterator["Refusals"]:
        """Counts that are written every few seconds, and once more at the end."""
        refusals = cls(store)
        task = asyncio.create_task(refusals._run())
        try:
            yield refusals
        finally:
            task.cancel()
            await asyncio.wait([task])
            await refusals.write()

    async def write(self) -> None:
        """Writes what is counted; keeps it where the database does not take it."""
        counts, self._counts = self._counts, Counter()
        if not counts:
            return
        rows = [RefusalCount(*kind, count=count) for kind, count in counts.items()]
        try:
            with anyio.fail_after(_WRITE_WITHIN_S):
                await self._store.add_refusals(rows)
        except BaseException as error:
            # Counted again also where the write was cancelled: the last one, at the end, is another.
            for kind, count in counts.items():
                if kind in self._counts or len(self._counts) < _MOST_KINDS:
                    self._counts[kind] += count
            if not isinstance(error, Exception):
                raise
            log.warning("refusals_not_written", reason=f"{type(error).__name__}: {error}", kinds=len(counts))

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(_WRITE_EVERY_S)
            await self.write()

"""A request's place in the ledger, from its open record to its one terminal entry.

`Ledger.reserve` writes the open record; the reservation gathers attempts; `settle` writes the terminal entry, once,
whoever calls it and however often. No database is touched here: the journal is, and `drain.py` follows it.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from datetime import datetime
from pathlib import Path

from tidegate.ledger.drain import Drain, EntryStore
from tidegate.ledger.entry import Attempt, Ending, Entry, OpenEntry, Outcome, Usage, close_entry, utc_now
from tidegate.ledger.journal import AttemptBegun, Journal, Progress, attempt_row
from tidegate.ledger.recovery import recover
from tidegate.routing.catalogue import PlannedAttempt
from tidegate.telemetry.logging import get_logger

_PROGRESS_EVERY_S = 2.0
_RECOVER_EVERY_S = 5.0
# A dead journal may be large, and each try reads it anew.
_MOST_RECOVER_BACK_OFF_S = 60.0

Recover = Callable[[Path, EntryStore, datetime], Awaitable[int]]
Recovered = Callable[[Sequence[Entry]], Awaitable[None]]

log = get_logger(__name__)


class Reservation:
    """One accepted request. `output_tokens` is what was received so far, for the journal's progress records."""

    def __init__(self, opened: OpenEntry, journal: Journal) -> None:
        self.opened = opened
        self.output_tokens = 0
        self.entry: Entry | None = None
        self._journal = journal
        self._attempts: list[Attempt] = []
        self._begun: AttemptBegun | None = None
        self._recorded_output_tokens = 0

    @property
    def attempt_count(self) -> int:
        return len(self._attempts)

    def begin_attempt(self, planned: PlannedAttempt, *, input_tokens: int, started_at: datetime) -> None:
        """Writes that this upstream is about to be called. `input_tokens` is an estimate, for the case of a crash."""
        self._begun = AttemptBegun(
            entry_id=self.opened.entry_id,
            n=len(self._attempts) + 1,
            upstream=planned.upstream.name,
            model=planned.model,
            price=planned.price,
            input_tokens=input_tokens,
            started_at=started_at,
            ended=self._attempts,
        )
        self.output_tokens = self._recorded_output_tokens = 0
        self._journal.begin_attempt(self._begun)

    def end_attempt(
        self,
        *,
        outcome: Outcome,
        usage: Usage,
        status: int | None,
        upstream_request_id: str | None,
        ended_at: datetime,
    ) -> Attempt:
        """Makes the begun attempt a row, and returns it."""
        assert self._begun is not None, "an attempt ends that never began"
        row = attempt_row(
            self._begun,
            outcome=outcome,
            usage=usage,
            ended_at=ended_at,
            status=status,
            upstream_request_id=upstream_request_id,
        )
        self._attempts.append(row)
        self._begun = None
        return row

    def note_progress(self) -> None:
        """Writes how far the stream is, where it is further than the last time."""
        if self.output_tokens != self._recorded_output_tokens:
            self._recorded_output_tokens = self.output_tokens
            self._journal.progress(Progress(self.opened.entry_id, self.output_tokens))

    def settle(self, ending: Ending) -> Entry:
        """The terminal entry. Never raises for the disk's sake; the second call changes nothing."""
        if self.entry is None:
            self.entry = close_entry(self.opened, self._attempts, ending)
            self._journal.settle(self.entry)
        return self.entry


async def nobody_waits(entries: Sequence[Entry]) -> None:
    """Hears of recovered entries, and has nothing to do with them."""


class _DeadEntries:
    """An `EntryStore` for what dead writers left: it is inserted, then told."""

    def __init__(self, store: EntryStore, recovered: Recovered) -> None:
        self._store = store
        self._recovered = recovered

    async def insert(self, entries: Sequence[Entry]) -> None:
        await self._store.insert(entries)
        await self._recovered(entries)


class Ledger:
    """This process's side of the ledger: its journal, and the tasks that follow it.

    >>> async with Ledger.running(settings.data_dir / "journal", store) as ledger:
    ...     with ledger.reserve(opened) as reservation: ...
    """

    def __init__(
        self,
        root: Path,
        store: EntryStore,
        *,
        recovering: Recover = recover,
        recovered: Recovered = nobody_waits,
    ) -> None:
        self._root = root
        self._store = store
        self._dead = _DeadEntries(store, recovered)
        self._recovering = recovering
        self._journal = Journal.create(root)
        self._drain = Drain(self._journal, store)
        self._live: dict[int, Reservation] = {}

    @property
    def open_entries(self) -> int:
        return self._journal.open_entries

    @property
    def waiting_entries(self) -> int:
        """Terminal entries of this process that are in the journal and not in the database yet."""
        return self._drain.waiting

    @property
    def oldest_waiting_at(self) -> datetime | None:
        """When the oldest of them became terminal, UTC."""
        return self._drain.waiting_since

    @property
    def is_behind(self) -> bool:
        """Whether the database did not take the last batch: entries wait in the journal."""
        return self._drain.behind

    @property
    def lag_s(self) -> float:
        """For how long the database lacks something that the journal has; 0 where it lacks nothing."""
        return self._drain.lag_s

    @contextmanager
    def reserve(self, opened: OpenEntry) -> Iterator[Reservation]:
        """A reservation, open within the context. Who leaves it must have settled it. Raises `Unavailable`."""
        self._journal.open(opened)
        reservation = Reservation(opened, self._journal)
        self._live[id(reservation)] = reservation
        try:
            yield reservation
        finally:
            del self._live[id(reservation)]
            self._drain.wake()

    @classmethod
    @asynccontextmanager
    async def running(
        cls, root: Path, store: EntryStore, *, recovered: Recovered = nobody_waits, finish_within_s: float = 5.0
    ) -> AsyncIterator["Ledger"]:
        """The ledger with its tasks; at the end the journal is drained before it is left.

        `recovered` hears of dead writers' entries, once they are in the database.
        """
        ledger = cls(root, store, recovered=recovered)
        tasks = [asyncio.create_task(task) for task in (ledger._drain.run(), ledger._progress(), ledger._recover())]
        try:
            yield ledger
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            drained = await ledger._drain.finish(finish_within_s)
            if not drained:
                log.warning("journal_left", journal=str(ledger._journal.directory), reason="the database is behind")
            ledger._journal.close(drained=drained)

    async def _progress(self) -> None:
        while True:
            await asyncio.sleep(_PROGRESS_EVERY_S)
            for reservation in list(self._live.values()):
                reservation.note_progress()

    async def _recover(self) -> None:
        pause_s = _RECOVER_EVERY_S
        failed = False
        while True:
            try:
                interrupted = await self._recovering(self._root, self._dead, utc_now())
                pause_s, failed = _RECOVER_EVERY_S, False
                if interrupted:
                    log.warning("journal_recovered", interrupted=interrupted)
            except Exception as error:  # noqa: BLE001 - an edge: the next round tries again, nothing is lost meanwhile
                if not failed:
                    log.warning("journal_recovery_failed", reason=f"{type(error).__name__}: {error}")
                pause_s = min(2 * pause_s, _MOST_RECOVER_BACK_OFF_S) if failed else pause_s
                failed = True
            await asyncio.sleep(pause_s)

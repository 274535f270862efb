"""From the journal to the database, in batches, and again until the database has them.

The database may be gone for hours: the journal grows on disk, memory does not. Inserting is idempotent by entry id, so
a batch that was half known to have arrived is sent again whole.
"""

import asyncio
import time
from collections.abc import Sequence
from datetime import datetime
from typing import Protocol

import anyio

from tidegate.ledger.entry import Entry
from tidegate.ledger.journal import Journal, Reading, Settled, read_records, segment_path
from tidegate.telemetry.logging import get_logger

_COALESCE_S = 0.1
_IDLE_S = 1.0
_MOST_BACK_OFF_S = 5.0
_BATCH_BYTES = 1024 * 1024
_BATCH_WITHIN_S = 30.0

log = get_logger(__name__)


class EntryStore(Protocol):
    async def insert(self, entries: Sequence[Entry]) -> None:
        """Writes entries, each once whatever is repeated. Raises where the database does not answer."""
        ...


class Drain:
    """Moves a journal's terminal entries to a store.

    `behind` says that the store did not take the last batch, `unreadable_lines` how many lines of the journal were
    passed by because they are no record.
    """

    def __init__(self, journal: Journal, store: EntryStore) -> None:
        self._journal = journal
        self._store = store
        self._segment = 1
        self._offset = 0
        self._wake = asyncio.Event()
        self._moved = 0
        self._moving_first_at: datetime | None = None
        self.behind = False
        self.unreadable_lines = 0
        # What was written before this is in the store.
        self._complete_to = time.monotonic()

    @property
    def lag_s(self) -> float:
        """For how long the store lacks something that is in the journal; 0 where it lacks nothing."""
        return 0.0 if self._is_caught_up() else max(0.0, time.monotonic() - self._complete_to)

    @property
    def waiting(self) -> int:
        """Terminal entries of the journal that the store does not have yet."""
        return max(0, self._journal.settled - self._moved)

    @property
    def waiting_since(self) -> datetime | None:
        """When the oldest of them became terminal."""
        return (self._moving_first_at or self._journal.settled_first_at) if self.waiting else None

    def wake(self) -> None:
        """There is something new."""
        self._wake.set()

    async def run(self) -> None:
        """Until cancelled."""
        back_off_s = _COALESCE_S
        while True:
            with anyio.move_on_after(_IDLE_S):
                await self._wake.wait()
            self._wake.clear()
            # Many requests end in this time and share one insert; an entry is read within a second of its end.
            await asyncio.sleep(_COALESCE_S)
            if await self._try_once():
                back_off_s = _COALESCE_S
            else:
                await asyncio.sleep(back_off_s)
                back_off_s = min(2 * back_off_s, _MOST_BACK_OFF_S)
                self._wake.set()

    async def finish(self, within_s: float) -> bool:
        """Moves what is left; True where the store has everything that was settled."""
        with anyio.move_on_after(within_s):
            while not self._is_caught_up():
                if not await self._try_once():
                    await asyncio.sleep(_COALESCE_S)
        return self._is_caught_up()

    async def _try_once(self) -> bool:
        try:
            began = time.monotonic()
            await self._move()
            self._complete_to = began
        except Exception as error:  # noqa: BLE001 - an edge: whatever the database's driver raises, the entries wait
            if not self.behind:
                log.warning(
                    "ledger_behind", reason=f"{type(error).__name__}: {error}", journal=str(self._journal.directory)
                )
            self.behind = True
            return False
        if self.behind:
            log.info("ledger_caught_up")
        self.behind = False
        return True

    async def _move(self) -> None:
        self._moving_first_at = self._moving_first_at or self._journal.settled_first_at
        self._journal.settled_first_at = None
        # As far as it is written now: while requests come there is always more, and a round has to end.
        target = self._journal.position
        while (self._segment, self._offset) < target:
            with anyio.fail_after(_BATCH_WITHIN_S):
                has_more = await self._move_batch()
            if has_more:
                continue
            if self._segment >= target[0]:
                break
            self._segment += 1
            self._offset = 0
        if unwritten := self._journal.take_unwritten():
            with anyio.fail_after(_BATCH_WITHIN_S):
                await self._insert_unwritten(unwritten)
            self._moved += len(unwritten)
        self._moving_first_at = None
        if self._is_caught_up():
            # What a bad block of the disk spoiled waits for nobody.
            self._moved = self._journal.settled
        if not self._journal.has_unwritten:
            # Of an entry that only memory holds, the open record is all that would survive us.
            for segment in self._journal.removable(before=self._segment):
                self._journal.remove(segment)

    async def _move_batch(self) -> bool:
        """Whether there was anything to read."""
        reading = await asyncio.to_thread(self._read)
        entries = [record.entry for record in reading.records if isinstance(record, Settled)]
        if entries:
            self._moving_first_at = entries[0].ended_at
            await self._store.insert(entries)
            self._moved += len(entries)
        has_more = reading.offset != self._offset
        self._offset = reading.offset
        # Only now: a batch that the store did not take is read again.
        self._note_unreadable(reading)
        return has_more

    async def _insert_unwritten(self, entries: list[Entry]) -> None:
        try:
            await self._store.insert(entries)
        except BaseException:
            for entry in entries:
                self._journal.settle(entry)
            raise

    def _read(self) -> Reading:
        return read_records(segment_path(self._journal.directory, self._segment), self._offset, _BATCH_BYTES)

    def _note_unreadable(self, reading: Reading) -> None:
        self.unreadable_lines += len(reading.unreadable)
        file = segment_path(self._journal.directory, self._segment)
        for offset in reading.unreadable:
            log.error("journal_line_unreadable", file=str(file), offset=offset)

    def _is_caught_up(self) -> bool:
        return (self._segment, self._offset) == self._journal.position and not self._journal.has_unwritten

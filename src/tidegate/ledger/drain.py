"""From the journal to the database, in batches, and again until the database has them.

The database may be gone for hours: the journal grows on disk, memory does not. Inserting is idempotent by entry id, so
a batch that was half known to have arrived is sent again whole.
"""

import asyncio
from collections.abc import Sequence
from typing import Protocol

import anyio

from tidegate.ledger.entry import Entry
from tidegate.ledger.journal import Journal, Reading, Settled, read_records, segment_path
from tidegate.telemetry.logging import get_logger

_COALESCE_S = 0.1
_IDLE_S = 1.0
_MOST_BACK_OFF_S = 5.0
_BATCH_BYTES = 1024 * 1024
_INSERT_WITHIN_S = 30.0

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
        self.behind = False
        self.unreadable_lines = 0

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
            with anyio.fail_after(_INSERT_WITHIN_S):
                await self._move()
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
        while True:
            # Asked before reading: what is written while we read must not be taken for the end of a closed segment.
            written = self._journal.position[0]
            reading = await asyncio.to_thread(self._read)
            entries = [record.entry for record in reading.records if isinstance(record, Settled)]
            if entries:
                await self._store.insert(entries)
            has_more = reading.offset != self._offset
            self._offset = reading.offset
            # Only now: a batch that the store did not take is read again.
            self._note_unreadable(reading)
            if has_more:
                continue
            if self._segment >= written:
                break
            self._segment += 1
            self._offset = 0
        if unwritten := self._journal.take_unwritten():
            await self._insert_unwritten(unwritten)
        if not self._journal.has_unwritten:
            # Of an entry that only memory holds, the open record is all that would survive us.
            for segment in self._journal.removable(before=self._segment):
                self._journal.remove(segment)

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

"""From the journal to a store: everything once, whatever the store does, and nothing kept in memory meanwhile."""

import asyncio
import gc
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.ledger_entries import NOON
from tests.support.waiting import eventually
from tests.unit.samples import Store, an_open_entry, begun, die, ended
from tidegate.errors import Unavailable
from tidegate.ledger.drain import Drain
from tidegate.ledger.entry import Entry, OpenEntry, Outcome
from tidegate.ledger.journal import AttemptBegun, Journal, Progress, Reading, segment_path
from tidegate.ledger.recovery import recover


def settle_one(journal: Journal) -> Entry:
    opened = an_open_entry()
    journal.open(opened)
    terminal = ended(opened)
    journal.settle(terminal)
    return terminal


def segment_files(journal: Journal) -> list[str]:
    return sorted(path.stem for path in journal.directory.glob("*.jsonl"))


async def test_what_is_settled_arrives_and_only_that(tmp_path: Path) -> None:
    journal, store = Journal.create(tmp_path), Store()
    journal.open(an_open_entry())
    terminals = [settle_one(journal) for _ in range(5)]
    assert await Drain(journal, store).finish(10)
    assert list(store.entries.values()) == terminals
    journal.close(drained=True)
    assert journal.directory.exists(), "one is open still"


async def test_it_runs_behind_the_road_when_it_is_woken(tmp_path: Path) -> None:
    journal, store = Journal.create(tmp_path, segment_bytes=1000), Store()
    drain = Drain(journal, store)
    running = asyncio.create_task(drain.run())
    try:
        for _ in range(3):
            terminals = [settle_one(journal) for _ in range(10)]
            drain.wake()
            await eventually(lambda: all(entry.entry_id in store.entries for entry in terminals))  # noqa: B023 - awaited here
        await eventually(lambda: len(segment_files(journal)) == 1)
    finally:
        running.cancel()
        await asyncio.wait([running])
    assert set(store.arrivals.values()) == {1}
    journal.close(drained=True)


async def test_a_store_that_fails_for_a_while_gets_everything_once_it_is_back(tmp_path: Path) -> None:
    journal, store = Journal.create(tmp_path, segment_bytes=1000), Store()
    drain = Drain(journal, store)
    store.reason = Unavailable("The database does not answer.")
    running = asyncio.create_task(drain.run())
    try:
        terminals = [settle_one(journal) for _ in range(20)]
        drain.wake()
        await eventually(lambda: store.refusals >= 2)
        assert drain.behind
        assert len(segment_files(journal)) > 5, "nothing goes that the store does not have"
        terminals += [settle_one(journal) for _ in range(20)]
        store.reason = None
        await eventually(lambda: len(store.entries) == 40)
        await eventually(lambda: not drain.behind)
        await eventually(lambda: len(segment_files(journal)) == 1)
    finally:
        running.cancel()
        await asyncio.wait([running])
    assert list(store.entries.values()) == terminals
    assert set(store.arrivals.values()) == {1}
    journal.close(drained=True)
    assert not journal.directory.exists()


@pytest.mark.parametrize("reason", [TimeoutError(), ValueError("no"), ExceptionGroup("g", [OSError()])])
async def test_whatever_a_driver_raises_the_entries_wait(tmp_path: Path, reason: Exception) -> None:
    journal, store = Journal.create(tmp_path), Store()
    drain = Drain(journal, store)
    terminal = settle_one(journal)
    store.reason = reason
    assert not await drain.finish(0.05)
    assert drain.behind
    store.reason = None
    assert await drain.finish(10)
    assert store.entries == {terminal.entry_id: terminal}
    journal.close(drained=True)


async def test_an_unreadable_line_stops_nothing_and_is_told_of_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    journal, store = Journal.create(tmp_path, segment_bytes=10), Store()
    drain = Drain(journal, store)
    # Segments 1, 3, … are open records, 2, 4, … terminal ones.
    terminals = [settle_one(journal) for _ in range(3)]
    spoilt = segment_path(journal.directory, 4)
    spoilt.write_bytes(b"\x00" * (spoilt.stat().st_size - 1) + b"\n")
    store.reason = Unavailable("gone")
    assert not await drain.finish(0.05)
    store.reason = None
    assert await drain.finish(10)
    assert list(store.entries) == [terminals[0].entry_id, terminals[2].entry_id]
    assert not drain.behind
    assert drain.unreadable_lines == 1
    assert sum("journal_line_unreadable" in record.getMessage() for record in caplog.records) == 1
    journal.close(drained=True)


async def test_memory_holds_no_entries_that_wait(tmp_path: Path) -> None:
    journal, store = Journal.create(tmp_path), Store()
    drain = Drain(journal, store)
    store.reason = Unavailable("gone")
    # What other tests left behind is not looked at: there may be millions of it.
    gc.collect()
    gc.freeze()
    try:
        for _ in range(500):
            settle_one(journal)
        assert not await drain.finish(0.05)
        gc.collect()
        assert sum(isinstance(held, Entry) for held in gc.get_objects()) < 20
    finally:
        gc.unfreeze()
    assert not journal.has_unwritten
    store.reason = None
    assert await drain.finish(10)
    assert len(store.entries) == 500
    journal.close(drained=True)


async def test_a_store_that_hangs_is_given_up_at_the_bound_and_asked_again(tmp_path: Path) -> None:
    class Hanging(Store):
        hangs = True

        async def insert(self, entries: object) -> None:
            if self.hangs:
                await asyncio.Event().wait()
            await super().insert(entries)  # type: ignore[arg-type]

    journal, store = Journal.create(tmp_path), Hanging()
    drain = Drain(journal, store)
    terminal = settle_one(journal)
    assert not await drain.finish(0.05)
    store.hangs = False
    assert await drain.finish(10)
    assert store.arrivals == {terminal.entry_id: 1}
    journal.close(drained=True)


async def test_a_move_that_is_cancelled_in_the_middle_loses_nothing(tmp_path: Path) -> None:
    for steps in range(12):
        journal, store = Journal.create(tmp_path, segment_bytes=500), Store()
        drain = Drain(journal, store)
        terminals = [settle_one(journal) for _ in range(6)]
        moving = asyncio.create_task(drain.finish(10))
        for _ in range(steps):
            await asyncio.sleep(0)
        moving.cancel()
        await asyncio.wait([moving])
        assert await drain.finish(10)
        assert list(store.entries.values()) == terminals
        journal.close(drained=True)
        assert not journal.directory.exists()


class Raced(Drain):
    """A drain whose segment is written to and closed just after it was read to its end."""

    def __init__(self, journal: Journal, store: Store) -> None:
        super().__init__(journal, store)
        self.meanwhile: list[Entry] = []
        self._loop = asyncio.get_running_loop()

    def _read(self) -> Reading:
        reading = super()._read()
        if reading.offset == self._journal.position[1] and not self.meanwhile:
            # In the loop, and before it hears of what was read.
            self._loop.call_soon_threadsafe(self._write)
        return reading

    def _write(self) -> None:
        segment = self._journal.position[0]
        while self._journal.position[0] == segment:
            self.meanwhile.append(settle_one(self._journal))


async def test_what_is_written_while_it_reads_is_not_passed_by(tmp_path: Path) -> None:
    journal, store = Journal.create(tmp_path, segment_bytes=3000), Store()
    before = settle_one(journal)
    drain = Raced(journal, store)
    assert await drain.finish(30)
    assert await drain.finish(30)
    assert len(drain.meanwhile) > 1
    assert list(store.entries.values()) == [before, *drain.meanwhile]
    journal.close(drained=True)


class Interrupting(Store):
    """A store in whose midst something happens, when this entry comes."""

    def __init__(self, entry_id: uuid.UUID, meanwhile: Callable[[], None]) -> None:
        super().__init__()
        self._entry_id = entry_id
        self._meanwhile = meanwhile

    async def insert(self, entries: Sequence[Entry]) -> None:
        is_new = self._entry_id not in self.entries
        await super().insert(entries)
        if is_new and self._entry_id in self.entries:
            self._meanwhile()


@pytest.mark.parametrize("store_fails", [True, False])
async def test_an_open_record_stays_while_its_terminal_entry_is_in_memory_alone(
    tmp_path: Path, store_fails: bool
) -> None:
    journal = Journal.create(tmp_path, segment_bytes=10)
    first, second = an_open_entry(), an_open_entry()
    journal.open(first)
    journal.open(second)
    settle_one(journal)
    # The next segment cannot be made: nothing more can be written.
    segment_path(journal.directory, journal.position[0] + 1).touch()
    store = Interrupting(first.entry_id, lambda: journal.settle(ended(second)))
    drain = Drain(journal, store)
    journal.settle(ended(first))
    assert journal.has_unwritten
    if store_fails:
        store.reason = Unavailable("gone")
    await drain._try_once()
    assert journal.has_unwritten
    die(journal)
    store.reason = None
    left_open = await recover(tmp_path, store, NOON)
    assert left_open == 2
    # What the store has already stays as it is; whatever else was only in memory is interrupted, and not lost.
    assert {first.entry_id, second.entry_id} <= set(store.entries)
    assert store.entries[first.entry_id].outcome == ("interrupted" if store_fails else "completed")


class Model:
    """What was told to a journal, and so what must stand in the store in the end."""

    def __init__(self, journal: Journal) -> None:
        self.journal = journal
        self.open: list[OpenEntry] = []
        self.begun: dict[object, list[AttemptBegun]] = {}
        self.output: dict[object, int] = {}
        self.expected: dict[object, Outcome] = {}

    def begin(self) -> None:
        self.open.append(an_open_entry())
        self.journal.open(self.open[-1])
        self.expected[self.open[-1].entry_id] = "interrupted"

    def attempt(self, pick: int) -> None:
        if self.open:
            entry_id = self.open[pick % len(self.open)].entry_id
            made = self.begun.setdefault(entry_id, [])
            made.append(begun(entry_id, len(made) + 1, input_tokens=pick))
            self.journal.begin_attempt(made[-1])

    def progress(self, pick: int) -> None:
        if self.open:
            entry_id = self.open[pick % len(self.open)].entry_id
            self.output[entry_id] = pick
            self.journal.progress(Progress(entry_id, pick))

    def settle(self, pick: int) -> None:
        if self.open:
            opened = self.open.pop(pick % len(self.open))
            self.journal.settle(ended(opened))
            self.expected[opened.entry_id] = "completed"

    def check(self, store: Store) -> None:
        assert {entry_id: entry.outcome for entry_id, entry in store.entries.items()} == self.expected
        for opened in self.open:
            entry = store.entries[opened.entry_id]
            made = self.begun.get(opened.entry_id, [])
            assert len(entry.attempts) == bool(made), "all that were begun but the last had ended rows: here none"
            assert entry.upstream == (made[-1].upstream if made else None)
            assert entry.input_tokens == (made[-1].input_tokens if made else 0)
            assert entry.output_tokens == (self.output.get(opened.entry_id, 0) if made else 0)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["begin", "begin", "attempt", "progress", "settle", "settle", "drain", "fail"]),
            st.integers(0, 50),
        ),
        max_size=40,
    ),
    st.sampled_from([1, 600, 2000]),
)
async def test_after_a_death_at_any_point_every_entry_ends_once_and_rightly(
    steps: list[tuple[str, int]], segment_bytes: int
) -> None:
    with TemporaryDirectory() as folder:
        root = Path(folder)
        journal, store = Journal.create(root, segment_bytes=segment_bytes), Store()
        model, drain = Model(journal), Drain(journal, store)
        for step, pick in steps:
            if step == "drain":
                store.reason = None
                assert await drain.finish(30)
            elif step == "fail":
                store.reason = Unavailable("gone")
                await drain._try_once()
            elif step == "begin":
                model.begin()
            else:
                getattr(model, step)(pick)
        die(journal)
        store.reason = None
        assert await recover(root, store, NOON) == len(model.open)
        model.check(store)
        assert list(root.iterdir()) == []

"""What a dead writer left open is settled once, by whoever gets its lock; what lives is left alone."""

import asyncio
import fcntl
import gc
import os
from collections.abc import Sequence
from datetime import timedelta
from decimal import Decimal
from pathlib import Path

import pytest

from tests.support.ledger_entries import NOON, an_attempt
from tests.support.waiting import eventually
from tests.unit.samples import Store, a_price, an_open_entry, begun, die, ended
from tidegate.errors import Unavailable
from tidegate.ledger.entry import Entry
from tidegate.ledger.journal import Journal, Progress, segment_path
from tidegate.ledger.recovery import recover


class Slow(Store):
    """A store that takes its entries when the gate opens."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0
        self.gate = asyncio.Event()

    async def insert(self, entries: Sequence[Entry]) -> None:
        self.asked += 1
        await self.gate.wait()
        await super().insert(entries)


def dead_journal(root: Path, *, left_open: int = 1, settled: int = 0) -> Journal:
    journal = Journal.create(root)
    for n in range(left_open + settled):
        opened = an_open_entry()
        journal.open(opened)
        if n >= left_open:
            journal.settle(ended(opened))
    die(journal)
    return journal


async def test_what_was_left_open_becomes_interrupted(tmp_path: Path) -> None:
    journal, store = Journal.create(tmp_path), Store()
    opened = an_open_entry(streamed=True, reserved_cost=Decimal(1), tags={"a": "b"})
    journal.open(opened)
    failed = an_attempt(1, outcome="upstream_failed", upstream="up1", cost=Decimal(0))
    journal.begin_attempt(begun(opened.entry_id, 1, input_tokens=5))
    journal.begin_attempt(begun(opened.entry_id, 2, input_tokens=10, price=a_price("1000000"), ended=[failed]))
    for output in (3, 7):
        journal.progress(Progress(opened.entry_id, output))
    die(journal)
    assert await recover(tmp_path, store, NOON) == 1
    [entry] = store.entries.values()
    for name in type(opened).__struct_fields__:
        assert getattr(entry, name) == getattr(opened, name)
    assert (entry.outcome, entry.status, entry.error_code, entry.upstream) == (
        "interrupted",
        None,
        "internal_error",
        "up2",
    )
    assert (entry.input_tokens, entry.output_tokens, entry.usage_source) == (10, 7, "estimated")
    assert entry.cost == Decimal(17)
    assert [(a.n, a.outcome, a.upstream, a.status) for a in entry.attempts] == [
        (1, "upstream_failed", "up1", None),
        (2, "interrupted", "up2", None),
    ]
    assert (entry.ended_at, entry.attempts[-1].ended_at) == (NOON, NOON)
    assert list(tmp_path.iterdir()) == []


async def test_an_entry_ends_no_sooner_than_it_began_though_the_clock_was_set_back(tmp_path: Path) -> None:
    journal, store = Journal.create(tmp_path), Store()
    opened = an_open_entry()
    journal.open(opened)
    journal.begin_attempt(begun(opened.entry_id))
    die(journal)
    await recover(tmp_path, store, NOON - timedelta(hours=2))
    [entry] = store.entries.values()
    assert entry.ended_at >= entry.started_at
    assert all(attempt.ended_at >= attempt.started_at for attempt in entry.attempts)


async def test_what_never_reached_an_upstream_used_nothing(tmp_path: Path) -> None:
    store = Store()
    dead_journal(tmp_path)
    await recover(tmp_path, store, NOON)
    [entry] = store.entries.values()
    assert (entry.usage_source, entry.upstream, entry.attempts, entry.cost) == ("none", None, [], None)


async def test_an_unpriced_attempt_is_left_unpriced(tmp_path: Path) -> None:
    journal, store = Journal.create(tmp_path), Store()
    opened = an_open_entry()
    journal.open(opened)
    journal.begin_attempt(begun(opened.entry_id, price=None))
    die(journal)
    await recover(tmp_path, store, NOON)
    assert store.entries[opened.entry_id].cost is None


async def test_what_was_settled_but_not_drained_is_taken_as_it_is(tmp_path: Path) -> None:
    store = Store()
    dead_journal(tmp_path, left_open=2, settled=3)
    assert await recover(tmp_path, store, NOON) == 2
    outcomes = sorted(entry.outcome for entry in store.entries.values())
    assert outcomes == ["completed"] * 3 + ["interrupted"] * 2


async def test_a_torn_last_line_and_an_unreadable_one_are_left_out(tmp_path: Path) -> None:
    journal, store = Journal.create(tmp_path), Store()
    opened = [an_open_entry() for _ in range(3)]
    for entry in opened:
        journal.open(entry)
    die(journal)
    path = segment_path(journal.directory, 1)
    first, _, third = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(first + b'{"record":"nonsense"}\n\xff\n\n' + third[:-20])
    assert await recover(tmp_path, store, NOON) == 1
    assert list(store.entries) == [opened[0].entry_id]


async def test_a_living_journal_is_never_touched(tmp_path: Path) -> None:
    living, store = Journal.create(tmp_path), Store()
    living.open(an_open_entry())
    before = segment_path(living.directory, 1).read_bytes()
    dead_journal(tmp_path)
    assert await recover(tmp_path, store, NOON) == 1
    assert len(store.entries) == 1
    assert [path.name for path in tmp_path.iterdir()] == [living.directory.name]
    assert segment_path(living.directory, 1).read_bytes() == before
    living.open(an_open_entry())
    die(living)
    assert await recover(tmp_path, store, NOON) == 2


async def test_two_at_once_settle_once(tmp_path: Path) -> None:
    store = Slow()
    for _ in range(3):
        dead_journal(tmp_path, left_open=2)
    tasks = [asyncio.create_task(recover(tmp_path, store, NOON)) for _ in range(4)]
    await eventually(lambda: store.asked == 3)
    store.gate.set()
    assert sum(await asyncio.gather(*tasks)) == 6
    assert sorted(store.arrivals.values()) == [1] * 6
    assert list(tmp_path.iterdir()) == []


async def test_one_that_another_removed_between_sight_and_lock_is_left_alone(tmp_path: Path) -> None:
    journal, store = dead_journal(tmp_path), Store()
    lock = os.open(journal.directory / "lock", os.O_RDWR)
    fcntl.flock(lock, fcntl.LOCK_EX)
    assert await recover(tmp_path, store, NOON) == 0
    assert journal.directory.exists()
    (journal.directory / "lock").unlink()
    os.close(lock)
    assert await recover(tmp_path, store, NOON) == 0
    assert store.entries == {}


@pytest.mark.parametrize("reason", [Unavailable("gone"), OSError("gone")])
async def test_where_the_store_fails_the_journal_is_left_for_the_next(tmp_path: Path, reason: Exception) -> None:
    journal, store = dead_journal(tmp_path), Store()
    store.reason = reason
    with pytest.raises(type(reason)):
        await recover(tmp_path, store, NOON)
    assert journal.directory.exists()
    store.reason = None
    assert await recover(tmp_path, store, NOON) == 1


async def test_what_is_no_journal_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "0-notes.txt").write_text("mine")
    (tmp_path / "1-folder").mkdir()
    (tmp_path / ".being-made").mkdir()
    dead_journal(tmp_path)
    store = Store()
    assert await recover(tmp_path, store, NOON) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == [".being-made", "0-notes.txt", "1-folder"]
    assert await recover(tmp_path / "none", store, NOON) == 0


async def test_many_entries_go_in_bounded_batches(tmp_path: Path) -> None:
    class Counting(Store):
        largest = 0

        async def insert(self, entries: Sequence[Entry]) -> None:
            self.largest = max(self.largest, len(entries))
            await super().insert(entries)

    store = Counting()
    dead_journal(tmp_path, left_open=600, settled=600)
    assert await recover(tmp_path, store, NOON) == 600
    assert len(store.entries) == 1200
    assert store.largest <= 500


async def test_a_large_journal_is_not_held_in_memory(tmp_path: Path) -> None:
    class Watching(Store):
        held = 0

        async def insert(self, entries: Sequence[Entry]) -> None:
            self.arrivals.update(entry.entry_id for entry in entries)
            # Once: to look costs a third of a second.
            if not self.held and len(self.arrivals) >= 1000:
                self.held = sum(isinstance(held, Entry) for held in gc.get_objects())

    journal, store = Journal.create(tmp_path, segment_bytes=100_000), Watching()
    for n in range(3000):
        opened = an_open_entry()
        journal.open(opened)
        if n % 1000:
            journal.settle(ended(opened))
    die(journal)
    assert await recover(tmp_path, store, NOON) == 3
    assert len(store.arrivals) == 3000
    assert set(store.arrivals.values()) == {1}
    # What one segment holds, and a few of the rest of the suite.
    assert 0 < store.held < 500


async def test_an_unreadable_line_costs_only_itself(tmp_path: Path) -> None:
    journal, store = Journal.create(tmp_path, segment_bytes=10), Store()
    opened = [an_open_entry() for _ in range(3)]
    for entry in opened:
        journal.open(entry)
    journal.settle(ended(opened[0]))
    die(journal)
    segment_path(journal.directory, 2).write_bytes(b'{"record":"\xff"}\n')
    assert await recover(tmp_path, store, NOON) == 1
    assert [store.entries[entry.entry_id].outcome for entry in (opened[0], opened[2])] == ["completed", "interrupted"]


async def test_what_died_before_it_was_a_journal_is_removed_after_a_minute(tmp_path: Path) -> None:
    names = [f".{n:020d}-{n}" for n in range(4)]
    bare, unlocked, locked, fresh = (tmp_path / name for name in names)
    for directory in (bare, unlocked, locked, fresh, tmp_path / ".mine-1"):
        directory.mkdir()
    for directory in (unlocked, locked, fresh):
        (directory / "lock").touch()
    for directory in (bare, unlocked, locked, tmp_path / ".mine-1"):
        os.utime(directory, (0, 0))
    held = os.open(locked / "lock", os.O_RDWR)
    fcntl.flock(held, fcntl.LOCK_EX)
    assert await recover(tmp_path, Store(), NOON) == 0
    os.close(held)
    assert {path.name for path in tmp_path.iterdir()} == {locked.name, fresh.name, ".mine-1"}

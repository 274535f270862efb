"""A request's place in the ledger: open before a call, terminal once, drained by its process or the next."""

import asyncio
import itertools
from decimal import Decimal
from pathlib import Path

import pytest

from tests.support.ledger_entries import NOON
from tests.support.waiting import eventually
from tests.unit.samples import Store, a_plan, an_open_entry, die
from tests.unit.virtual_time import in_virtual_time, now
from tidegate.errors import Unavailable
from tidegate.ledger.entry import NO_USAGE, Ending, Tokens, Usage
from tidegate.ledger.journal import AttemptBegun, Opened, Progress, Record, Settled, read_records, segment_path
from tidegate.ledger.reservation import Ledger

COMPLETED = Ending(outcome="completed", status=200, ended_at=NOON)
PRICE = {"input": "1000000", "output": "1000000"}


def records(ledger: Ledger) -> list[Record]:
    return read_records(segment_path(ledger._journal.directory, 1), 0, 2**20)[0]


def test_the_journal_says_everything_before_it_is_done(tmp_path: Path) -> None:
    ledger, plan, opened = Ledger(tmp_path, Store()), a_plan("one/x", "two/y", price=PRICE), an_open_entry()
    with ledger.reserve(opened) as reservation:
        assert records(ledger) == [Opened(opened)]
        assert ledger.open_entries == 1
        reservation.begin_attempt(plan.attempts[0], input_tokens=5, started_at=NOON)
        assert isinstance(records(ledger)[-1], AttemptBegun)
        usage = Usage(Tokens(input=5), "estimated")
        reservation.end_attempt(
            outcome="upstream_failed", usage=usage, status=500, upstream_request_id=None, ended_at=NOON
        )
        reservation.begin_attempt(plan.attempts[1], input_tokens=6, started_at=NOON)
        second = records(ledger)[-1]
        assert isinstance(second, AttemptBegun)
        assert (second.n, second.upstream, second.model, second.input_tokens) == (2, "two", "y", 6)
        [first] = second.ended
        assert (first.n, first.outcome, first.cost) == (1, "upstream_failed", Decimal(5))
        usage = Usage(Tokens(input=1, cached_input=2, output=3, reasoning=4), "provider")
        reservation.end_attempt(outcome="completed", usage=usage, status=200, upstream_request_id="req", ended_at=NOON)
        entry = reservation.settle(COMPLETED)
    assert records(ledger)[-1] == Settled(entry)
    assert ledger.open_entries == 0
    assert (entry.input_tokens, entry.cached_input_tokens, entry.output_tokens, entry.reasoning_tokens) == (6, 2, 3, 4)
    assert (entry.cost, entry.usage_source, entry.price_version) == (Decimal(15), "estimated", "configured")
    assert [attempt.n for attempt in entry.attempts] == [1, 2]
    assert entry.attempts[1].upstream_request_id == "req"


def test_settling_again_changes_nothing(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, Store())
    with ledger.reserve(an_open_entry()) as reservation:
        first = reservation.settle(COMPLETED)
        assert reservation.settle(Ending(outcome="interrupted", status=None, ended_at=NOON)) is first
    assert sum(isinstance(record, Settled) for record in records(ledger)) == 1


def test_progress_is_written_where_there_is_some(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, Store())
    with ledger.reserve(an_open_entry()) as reservation:
        for output_tokens in (0, 3, 3, 7):
            reservation.output_tokens = output_tokens
            reservation.note_progress()
        noted = [record.output_tokens for record in records(ledger) if isinstance(record, Progress)]
        assert noted == [3, 7]
        reservation.settle(COMPLETED)


def test_an_attempt_without_usage_is_a_row_all_the_same(tmp_path: Path) -> None:
    ledger, plan = Ledger(tmp_path, Store()), a_plan()
    with ledger.reserve(an_open_entry()) as reservation:
        reservation.begin_attempt(plan.attempts[0], input_tokens=5, started_at=NOON)
        reservation.end_attempt(
            outcome="upstream_failed", usage=NO_USAGE, status=None, upstream_request_id=None, ended_at=NOON
        )
        assert reservation.attempt_count == 1
        entry = reservation.settle(COMPLETED)
    assert (entry.attempts[0].usage_source, entry.input_tokens, entry.usage_source) == ("none", 0, "none")


async def test_an_entry_arrives_soon_and_the_journal_goes_with_its_process(tmp_path: Path) -> None:
    store = Store()
    async with Ledger.running(tmp_path, store) as ledger:
        with ledger.reserve(an_open_entry()) as reservation:
            entry = reservation.settle(COMPLETED)
        await eventually(lambda: store.entries)
        assert not ledger.is_behind
        with ledger.reserve(an_open_entry()) as reservation:
            last = reservation.settle(COMPLETED)
    assert list(store.entries.values()) == [entry, last]
    assert list(tmp_path.iterdir()) == []


async def test_a_journal_that_could_not_be_drained_is_left_and_the_next_process_takes_it(tmp_path: Path) -> None:
    store = Store()
    store.reason = Unavailable("gone")
    async with Ledger.running(tmp_path, store, finish_within_s=0.1) as ledger:
        with ledger.reserve(an_open_entry()) as reservation:
            entry = reservation.settle(COMPLETED)
        await eventually(lambda: ledger.is_behind)
    [left] = tmp_path.iterdir()
    store.reason = None
    async with Ledger.running(tmp_path, store):
        await eventually(lambda: not left.exists())
    assert store.entries == {entry.entry_id: entry}


async def test_at_its_start_a_process_settles_what_a_dead_one_left_and_leaves_a_living_one_alone(
    tmp_path: Path,
) -> None:
    store, dead, living = Store(), Ledger(tmp_path, Store()), Ledger(tmp_path, Store())
    opened, other = an_open_entry(), an_open_entry()
    dead._journal.open(opened)
    living._journal.open(other)
    die(dead._journal)
    async with Ledger.running(tmp_path, store):
        await eventually(lambda: store.entries)
        await eventually(lambda: not dead._journal.directory.exists())
    assert [(entry.entry_id, entry.outcome) for entry in store.entries.values()] == [(opened.entry_id, "interrupted")]
    assert living._journal.directory.exists()
    die(living._journal)


async def test_an_entry_that_is_open_when_the_process_leaves_is_left_for_the_next(tmp_path: Path) -> None:
    store, opened = Store(), an_open_entry()
    async with Ledger.running(tmp_path, store) as ledger:
        ledger._journal.open(opened)
    assert len(list(tmp_path.iterdir())) == 1
    async with Ledger.running(tmp_path, store):
        await eventually(lambda: opened.entry_id in store.entries)
        # Its own journal: the dead one's directory is removed in a thread.
        await eventually(lambda: len(list(tmp_path.iterdir())) == 1)
    assert list(tmp_path.iterdir()) == []


def test_recovery_that_fails_is_tried_ever_less_often_to_once_a_minute(tmp_path: Path) -> None:
    tried: list[float] = []

    async def recovering(*_: object) -> int:
        tried.append(now())
        if len(tried) != 8:
            raise Unavailable("gone")
        return 0

    @in_virtual_time
    async def run() -> None:
        ledger = Ledger(tmp_path, Store(), recovering=recovering)
        task = asyncio.create_task(ledger._recover())
        await asyncio.sleep(300)
        task.cancel()
        await asyncio.wait([task])
        die(ledger._journal)

    run()
    pauses = [later - earlier for earlier, later in itertools.pairwise(tried)]
    assert pauses[:10] == [5, 10, 20, 40, 60, 60, 60, 5, 5, 10]


def test_a_root_that_cannot_be_written_stops_the_start(tmp_path: Path) -> None:
    (tmp_path / "journal").write_text("a file")
    with pytest.raises(OSError, match="journal"):
        Ledger(tmp_path / "journal", Store())

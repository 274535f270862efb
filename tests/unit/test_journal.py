"""The journal: what was written survives its writer, and no segment goes that is still needed."""

import json
import os
import subprocess
import sys
import uuid
from contextlib import ExitStack
from datetime import timedelta
from decimal import Decimal
from pathlib import Path

import pytest

from tests.support.ledger_entries import NOON, a_full_entry, an_entry
from tests.unit.samples import Store, a_price, an_open_entry, begun, ended
from tidegate.errors import Unavailable
from tidegate.ledger.entry import Tokens, Usage
from tidegate.ledger.journal import (
    AttemptBegun,
    Journal,
    Opened,
    Progress,
    Record,
    Settled,
    attempt_row,
    read_records,
    segment_path,
)
from tidegate.ledger.recovery import recover

REPOSITORY = Path(__file__).parents[2]


def segments(journal: Journal) -> list[int]:
    return sorted(int(path.stem) for path in journal.directory.glob("*.jsonl"))


def records(journal: Journal) -> list[Record]:
    return [
        record
        for segment in segments(journal)
        for record in read_records(segment_path(journal.directory, segment), 0, 2**20)[0]
    ]


def writer(mode: str, root: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.unit.journal_writer", mode, str(root)],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_records_come_back_as_they_were_written(tmp_path: Path) -> None:
    journal = Journal.create(tmp_path)
    opened = an_open_entry(end_user="Zoë\n\u2028\x00", tags={"a": "b"}, reserved_cost=Decimal("0.000000000001"))
    attempt = begun(opened.entry_id, started_at=NOON + timedelta(microseconds=1))
    terminal = a_full_entry(entry_id=opened.entry_id)
    journal.open(opened)
    journal.begin_attempt(attempt)
    journal.progress(Progress(opened.entry_id, 5))
    journal.settle(terminal)
    assert records(journal) == [Opened(opened), attempt, Progress(opened.entry_id, 5), Settled(terminal)]
    journal.close(drained=True)


def test_an_unpriced_attempt_comes_back_unpriced_and_a_free_one_free(tmp_path: Path) -> None:
    journal = Journal.create(tmp_path)
    usage = Usage(Tokens(input=5), "provider")
    for price in (None, a_price("0")):
        journal.begin_attempt(begun(uuid.uuid4(), price=price))
    rows = [
        attempt_row(record, outcome="completed", usage=usage, ended_at=NOON)
        for record in records(journal)
        if isinstance(record, AttemptBegun)
    ]
    assert [(row.cost, row.price_version) for row in rows] == [(None, None), (Decimal(0), "configured")]
    journal.close(drained=True)


def test_a_record_is_in_the_kernel_when_the_call_returns(tmp_path: Path) -> None:
    journal = Journal.create(tmp_path)
    for n in range(1, 4):
        journal.open(an_open_entry())
        path = segment_path(journal.directory, 1)
        assert len(path.read_bytes().splitlines()) == n
        assert journal.position == (1, path.stat().st_size)
        assert path.stat().st_mode & 0o777 == 0o600
    assert journal.open_entries == 3
    journal.close(drained=False)


def test_segments_follow_each_other_and_none_is_larger_than_its_bound(tmp_path: Path) -> None:
    journal = Journal.create(tmp_path, segment_bytes=1000)
    opened = [an_open_entry() for _ in range(20)]
    for entry in opened:
        journal.open(entry)
    assert len(segments(journal)) > 5
    assert segments(journal) == list(range(1, journal.position[0] + 1))
    for segment in segments(journal):
        assert 0 < segment_path(journal.directory, segment).stat().st_size <= 1000
    assert [record.entry for record in records(journal) if isinstance(record, Opened)] == opened
    journal.close(drained=False)


def test_a_record_larger_than_a_segment_has_one_of_its_own(tmp_path: Path) -> None:
    journal = Journal.create(tmp_path, segment_bytes=10)
    for _ in range(2):
        journal.open(an_open_entry())
    assert segments(journal) == [1, 2]
    journal.close(drained=False)


def test_a_segment_is_needed_while_an_entry_of_it_or_of_an_earlier_one_is_open(tmp_path: Path) -> None:
    journal = Journal.create(tmp_path, segment_bytes=10)
    first, second = an_open_entry(), an_open_entry()
    journal.open(first)  # 1
    journal.open(second)  # 2
    journal.begin_attempt(begun(first.entry_id))  # 3: all that says that an upstream was called for the first
    journal.settle(ended(second))  # 4
    journal.progress(Progress(first.entry_id, 1))  # 5
    assert journal.removable(before=5) == []
    journal.settle(ended(first))  # 6
    assert journal.removable(before=5) == [1, 2, 3, 4]
    assert journal.removable(before=3) == [1, 2]
    assert journal.removable(before=100) == [1, 2, 3, 4, 5], "the one that is written stays"
    for segment in journal.removable(before=3):
        journal.remove(segment)
    assert segments(journal) == [3, 4, 5, 6]
    assert journal.removable(before=100) == [3, 4, 5]
    journal.close(drained=False)


@pytest.mark.parametrize("drained", [True, False])
@pytest.mark.parametrize("leaves_open", [True, False])
def test_it_goes_only_where_nothing_in_it_is_needed(tmp_path: Path, drained: bool, leaves_open: bool) -> None:
    journal = Journal.create(tmp_path)
    opened = an_open_entry()
    journal.open(opened)
    if not leaves_open:
        journal.settle(ended(opened))
    journal.close(drained=drained)
    assert journal.directory.exists() == (leaves_open or not drained)


def test_two_journals_are_two_directories_seen_only_when_they_are_locked(tmp_path: Path) -> None:
    one, two = Journal.create(tmp_path / "a" / "b"), Journal.create(tmp_path / "a" / "b")
    assert one.directory != two.directory
    assert {path.name for path in (tmp_path / "a" / "b").iterdir()} == {one.directory.name, two.directory.name}
    one.close(drained=True)
    two.close(drained=True)


def test_settling_twice_and_what_was_never_open_breaks_no_count(tmp_path: Path) -> None:
    journal = Journal.create(tmp_path, segment_bytes=10)
    opened = an_open_entry()
    journal.open(opened)
    for _ in range(2):
        journal.settle(ended(opened))
    journal.settle(an_entry())
    assert journal.open_entries == 0
    assert journal.removable(before=100) == [1, 2, 3]
    journal.close(drained=True)


def test_reading_stops_before_an_unfinished_line_and_goes_on_behind_it(tmp_path: Path) -> None:
    journal = Journal.create(tmp_path)
    for _ in range(2):
        journal.open(an_open_entry())
    whole = segment_path(journal.directory, 1).read_bytes()
    path = tmp_path / "read.jsonl"
    for length in (0, 1, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        begun_with, offset, _ = read_records(path, 0, 2**20)
        assert offset == whole[:length].rfind(b"\n") + 1
        path.write_bytes(whole)
        rest, end, _ = read_records(path, offset, 2**20)
        assert begun_with + rest == records(journal)
        assert end == len(whole)
    assert read_records(tmp_path / "none.jsonl", 7, 2**20) == ([], 7, [])
    journal.close(drained=False)


@pytest.mark.parametrize("most_bytes", [1, 100, 1000])
def test_reading_in_small_pieces_reads_everything(tmp_path: Path, most_bytes: int) -> None:
    journal = Journal.create(tmp_path)
    for n in range(5):
        journal.open(an_open_entry(end_user="x" * 200 * n))
    path, offset, found = segment_path(journal.directory, 1), 0, []
    while (read := read_records(path, offset, most_bytes))[0]:
        found += read[0]
        offset = read[1]
    assert found == records(journal)
    journal.close(drained=False)


async def test_what_was_said_to_be_written_survives_a_kill_in_the_middle(tmp_path: Path) -> None:
    with writer("killed", tmp_path) as child:
        assert child.stdout is not None
        lines = [child.stdout.readline() for _ in range(600)]
        child.kill()
        lines += child.stdout.readlines()
    # The last line may have been cut by the kill, and is no promise then.
    told = [tuple(line.split()) for line in lines if line.endswith("\n")]
    opened, started, finished = (
        {uuid.UUID(entry_id) for what, entry_id in told if what == word} for word in ("opened", "begun", "settled")
    )
    [directory] = tmp_path.iterdir()
    assert len(list(directory.glob("*.jsonl"))) > 1
    store = Store()
    interrupted = await recover(tmp_path, store, NOON)
    left_open = [entry for entry in store.entries.values() if entry.outcome == "interrupted"]
    settled = [entry for entry in store.entries.values() if entry.outcome != "interrupted"]
    assert len(left_open) == interrupted
    assert finished <= {entry.entry_id for entry in settled}
    assert opened - finished <= {entry.entry_id for entry in (*settled, *left_open)}
    assert len(settled) + len(left_open) <= len(opened) + 1
    assert set(store.arrivals.values()) == {1}, "each ends once"
    for entry in left_open:
        assert entry.outcome == "interrupted"
        assert entry.attempts or entry.entry_id not in started


@pytest.mark.parametrize(
    "spoilt", [b"", b"\x00" * 50, b"not json", b'{"record":"settled"}', b'{"record":"\xff"}', b"[" * 5000, b"a\rb"]
)
def test_a_line_that_is_no_record_is_passed_by_and_told_of(tmp_path: Path, spoilt: bytes) -> None:
    journal = Journal.create(tmp_path)
    one, two = an_open_entry(), an_open_entry()
    journal.open(one)
    begins = journal.position[1]
    journal.open(two)
    path = segment_path(journal.directory, 1)
    whole = path.read_bytes()
    path.write_bytes(whole[:begins] + spoilt + b"\n" + whole[begins:])
    reading = read_records(path, 0, 2**20)
    assert reading.records == [Opened(one), Opened(two)]
    assert reading.unreadable == [begins]
    assert reading.offset == path.stat().st_size
    journal.close(drained=False)


@pytest.mark.parametrize("segment_bytes", [10, 2**20])
def test_after_its_end_nothing_is_written_to_whoever_has_its_descriptors_now(
    tmp_path: Path, segment_bytes: int, caplog: pytest.LogCaptureFixture
) -> None:
    journal = Journal.create(tmp_path / "journal", segment_bytes=segment_bytes)
    opened = an_open_entry()
    journal.open(opened)
    journal.close(drained=False)
    before = sorted(journal.directory.iterdir())
    with ExitStack() as stack:
        # They take the numbers that the journal let go of.
        others = [stack.enter_context((tmp_path / f"other-{n}").open("wb")) for n in range(4)]
        with pytest.raises(Unavailable, match="it is closed"):
            journal.open(an_open_entry())
        with pytest.raises(Unavailable):
            journal.begin_attempt(begun(opened.entry_id))
        journal.progress(Progress(opened.entry_id, 1))
        journal.settle(ended(opened))
        assert [os.fstat(other.fileno()).st_size for other in others] == [0] * 4
    assert sorted(journal.directory.iterdir()) == before
    assert [entry.entry_id for entry in journal.take_unwritten()] == [opened.entry_id]
    assert str(opened.entry_id) in caplog.text


def test_a_full_disk_refuses_what_begins_and_loses_nothing_that_ends(tmp_path: Path) -> None:
    with writer("full", tmp_path) as child:
        assert child.stdout is not None
        # Log lines go before it.
        told = json.loads(child.stdout.read().splitlines()[-1])
    assert child.returncode == 0
    status, code, message = told["refusal"]
    assert (status, code) == (503, "unavailable")
    assert message.startswith("The journal cannot be written: ")
    assert told["attempt_refused"]
    assert told["kept"]
    # No line was left torn by the write that was cut.
    assert set(told["lines"]) <= {"opened", "settled", "progress"}
    assert told["gave_up"]
    assert told["caught_up"]
    assert set(told["stored"]) == set(told["opened"])
    assert len(told["opened"]) > 5
    assert told["open_at_the_end"] == 0
    assert told["journals"] == []

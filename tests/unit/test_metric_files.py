"""Numbers outlive their process, and are counted once whatever is killed when."""

import fcntl
import mmap
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tidegate.telemetry.metrics import cells, folding
from tidegate.telemetry.metrics.cells import CHUNK_BYTES, CellFile
from tidegate.telemetry.metrics.folding import Busy, fold, read_sums, start_empty

COUNT = b'c["count"]'
OTHER_COUNT = b'c["other","label"]'
SUMMED = b'+["gauge"]'
GREATEST = b'^["gauge"]'


class Worker:
    """A process's file, as far as others see it."""

    def __init__(self, directory: Path) -> None:
        self.file = CellFile.create(directory)
        self._known: dict[bytes, tuple[memoryview[float], int]] = {}

    def count(self, key: bytes, amount: float = 1) -> None:
        if key not in self._known:
            self._known[key] = self.file.cells(key, 1)
        view, at = self._known[key]
        view[at] += amount

    def die(self) -> None:
        """As the kernel sees it: the lock is free, the file stays."""
        self.file.close()


def total(directory: Path, key: bytes = COUNT) -> float:
    return read_sums(directory).get((key, 1), [0.0])[0]


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir() if path.suffix == cells.SUFFIX)


def test_what_is_counted_is_read_at_once_and_over_all_processes(tmp_path: Path) -> None:
    one, other = Worker(tmp_path), Worker(tmp_path)
    one.count(COUNT, 2)
    other.count(COUNT, 3)
    one.count(OTHER_COUNT)
    assert (total(tmp_path), total(tmp_path, OTHER_COUNT)) == (5, 1)
    one.count(COUNT)
    assert total(tmp_path) == 6


def test_gauges_are_summed_or_the_greatest_and_vanish_with_their_process(tmp_path: Path) -> None:
    one, other = Worker(tmp_path), Worker(tmp_path)
    for worker, value in ((one, 2), (other, 5)):
        worker.count(SUMMED, value)
        worker.count(GREATEST, value)
    assert (total(tmp_path, SUMMED), total(tmp_path, GREATEST)) == (7, 5)
    other.die()
    assert (total(tmp_path, SUMMED), total(tmp_path, GREATEST)) == (2, 2)
    assert fold(tmp_path) == 1
    assert (total(tmp_path, SUMMED), total(tmp_path, GREATEST)) == (2, 2)


def test_a_gauge_that_is_no_number_says_nothing_and_spoils_no_sum(tmp_path: Path) -> None:
    one, other = Worker(tmp_path), Worker(tmp_path)
    one.count(SUMMED, float("nan"))
    other.count(SUMMED, 3)
    assert total(tmp_path, SUMMED) == 3
    other.die()
    assert (SUMMED, 1) not in read_sums(tmp_path)


def test_a_file_of_a_living_process_is_never_folded_and_a_dead_ones_is_removed(tmp_path: Path) -> None:
    living, dead = Worker(tmp_path), Worker(tmp_path)
    living.count(COUNT)
    dead.count(COUNT, 10)
    dead.die()
    assert fold(tmp_path) == 1
    assert names(tmp_path) == [living.file.path.name]
    living.count(COUNT)
    assert total(tmp_path) == 12


def test_more_series_than_a_chunk_holds_are_all_read(tmp_path: Path) -> None:
    worker = Worker(tmp_path)
    keys = [f'c["count","{n:0>200}"]'.encode() for n in range(CHUNK_BYTES // 100)]
    for key in keys:
        worker.count(key)
    assert worker.file.path.stat().st_size > CHUNK_BYTES
    assert {key for key, _ in read_sums(tmp_path)} == set(keys)
    worker.die()
    fold(tmp_path)
    assert {key: values for (key, _), values in read_sums(tmp_path).items()} == {key: [1.0] for key in keys}


def test_series_of_one_name_and_different_buckets_are_not_mixed(tmp_path: Path) -> None:
    one, other = Worker(tmp_path), Worker(tmp_path)
    one.file.cells(COUNT, 3)
    other.file.cells(COUNT, 5)
    other.die()
    fold(tmp_path)
    assert sorted(count for _, count in read_sums(tmp_path)) == [3, 5]


def test_without_a_place_to_write_counting_goes_on_unseen(tmp_path: Path) -> None:
    taken = tmp_path / "metrics"
    taken.write_text("a file where the directory should be")
    worker = Worker(taken)
    worker.count(COUNT)
    assert worker.file.is_full
    worker.die()


def test_a_full_file_counts_on_unseen(tmp_path: Path) -> None:
    worker = Worker(tmp_path)
    worker.count(COUNT)
    worker.file._mapped = cells.MOST_CHUNKS
    for n in range(CHUNK_BYTES // 100):
        worker.count(f'c["count","{n:0>200}"]'.encode())
    assert worker.file.is_full
    assert worker.file.path.stat().st_size == CHUNK_BYTES
    worker.count(COUNT)
    assert total(tmp_path) == 2


def test_a_start_forgets_what_was_counted_before(tmp_path: Path) -> None:
    directory = tmp_path / "var" / "metrics"
    start_empty(directory)
    worker = Worker(directory)
    worker.count(COUNT)
    worker.die()
    fold(directory)
    Worker(directory).count(COUNT)
    (directory / "1-left.new").touch()
    start_empty(directory)
    assert total(directory) == 0
    assert [path.name for path in directory.iterdir() if path.name != "lock"] == []


def test_who_folds_does_not_wait_for_readers_nor_readers_for_ever(tmp_path: Path) -> None:
    worker = Worker(tmp_path)
    worker.count(COUNT)
    worker.die()
    with folding._held(tmp_path, fcntl.LOCK_SH, within_s=0):
        assert fold(tmp_path) == 0
        assert total(tmp_path) == 1
    with folding._held(tmp_path, fcntl.LOCK_EX, within_s=0):
        busy = folding._held(tmp_path, fcntl.LOCK_SH, within_s=0.01)
        with pytest.raises(Busy), busy:
            pass
    assert fold(tmp_path) == 1


def test_a_fold_that_is_killed_at_any_line_neither_loses_nor_doubles(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.unit.fold_killer", str(tmp_path)],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 50


steps = st.lists(
    st.one_of(
        st.tuples(st.just("start"), st.just(0), st.just(0)),
        st.tuples(st.just("count"), st.integers(0, 5), st.integers(1, 100)),
        st.tuples(st.just("die"), st.integers(0, 5), st.just(0)),
        st.tuples(st.just("fold"), st.just(0), st.just(0)),
        st.tuples(st.just("fold, killed"), st.integers(0, 5), st.just(0)),
    ),
    max_size=40,
)


def fold_without_removing(directory: Path, kept: int) -> None:
    """A fold that was killed when it had `kept` files still to remove: of those that it folded itself."""
    before = {path: path.read_bytes() for path in directory.iterdir() if path.suffix == cells.SUFFIX}
    fold(directory)
    held = folding._Folded.read(directory).holds
    removed = [path for path in before if not path.exists() and path.name in held]
    for path in removed[:kept]:
        path.write_bytes(before[path])


@settings(deadline=None, max_examples=150)
@given(steps=steps)
def test_sums_are_what_was_counted_whatever_the_order_of_folds_deaths_and_scrapes(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int, int]]
) -> None:
    directory = tmp_path_factory.mktemp("metrics")
    start_empty(directory)
    workers: list[Worker] = []
    expected = 0
    for what, which, amount in steps:
        if what == "start":
            workers.append(Worker(directory))
        elif what == "fold":
            fold(directory)
        elif what == "fold, killed":
            fold_without_removing(directory, which)
        elif workers and what == "count":
            workers[which % len(workers)].count(COUNT, amount)
            expected += amount
        elif workers:
            workers.pop(which % len(workers)).die()
        assert total(directory) == expected
    for worker in workers:
        worker.die()
    fold(directory)
    assert (total(directory), names(directory)) == (expected, [])


def test_a_scrape_beside_deaths_and_folds_never_falls(tmp_path: Path) -> None:
    start_empty(tmp_path)
    done = threading.Event()
    seen: list[float] = []
    faults: list[BaseException] = []

    def scrape() -> None:
        try:
            while not done.is_set():
                seen.append(total(tmp_path))
        except BaseException as error:  # noqa: BLE001 - a thread's faults are told by the test
            faults.append(error)

    reader = threading.Thread(target=scrape)
    reader.start()
    try:
        for _ in range(150):
            worker = Worker(tmp_path)
            worker.count(COUNT)
            worker.die()
            fold(tmp_path)
    finally:
        done.set()
        reader.join()
    assert faults == []
    assert seen == sorted(seen)
    fold(tmp_path)
    assert (total(tmp_path), names(tmp_path)) == (150, [])


def test_a_chunk_begins_where_a_mapping_may() -> None:
    assert CHUNK_BYTES % mmap.ALLOCATIONGRANULARITY == 0
    assert os.sysconf("SC_PAGE_SIZE") <= CHUNK_BYTES

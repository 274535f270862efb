"""The root's keeping of metrics: emptied at start, folded while it runs, and never worth a refused start."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.support.waiting import eventually
from tidegate.server.metric_keeper import MetricKeeper
from tidegate.telemetry.metrics.cells import SUFFIX, CellFile
from tidegate.telemetry.metrics.folding import read_sums

KEY = b'c["count"]'


def count(directory: Path, amount: float = 1) -> CellFile:
    file = CellFile.create(directory)
    cells, at = file.cells(KEY, 1)
    cells[at] += amount
    return file


def files(directory: Path) -> list[str]:
    return [path.name for path in directory.iterdir() if path.suffix == SUFFIX]


@asynccontextmanager
async def running(keeper: MetricKeeper) -> AsyncIterator[None]:
    task = asyncio.create_task(keeper.run())
    try:
        yield
        assert not task.done(), task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_who_ended_is_folded_and_who_lives_is_left(tmp_path: Path) -> None:
    directory = tmp_path / "metrics"
    keeper = MetricKeeper(directory, every_s=0.01)
    keeper.begin()
    dead, living = count(directory, 2), count(directory, 3)
    dead.close()
    async with running(keeper):
        await eventually(lambda: files(directory) == [living.path.name])
        assert read_sums(directory)[KEY, 1] == [5]
        living.close()
        await eventually(lambda: files(directory) == [])
    assert read_sums(directory)[KEY, 1] == [5]


def test_a_root_begins_at_nothing(tmp_path: Path) -> None:
    count(tmp_path).close()
    MetricKeeper(tmp_path).begin()
    assert read_sums(tmp_path) == {}


async def test_what_cannot_be_kept_is_said_once_and_stops_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    directory = tmp_path / "metrics"
    directory.write_text("no directory")
    keeper = MetricKeeper(directory, every_s=0.001)
    keeper.begin()
    assert "metrics_not_kept" in caplog.text
    async with running(keeper):
        await eventually(lambda: "metrics_not_folded" in caplog.text)
        # It goes on, and folds again once it can.
        directory.unlink()
        directory.mkdir()
        count(directory).close()
        await eventually(lambda: files(directory) == [])
    assert caplog.text.count("metrics_not_folded") == 1


@pytest.mark.parametrize("broken", ["{not json", "7", '[["a list"]]'])
async def test_an_accumulator_that_is_broken_is_left_for_a_person(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, broken: str
) -> None:
    keeper = MetricKeeper(tmp_path, every_s=0.001)
    (tmp_path / "folded").write_text(f"{broken}\n")
    count(tmp_path).close()
    async with running(keeper):
        await eventually(lambda: "metrics_not_folded" in caplog.text)
        assert len(files(tmp_path)) == 1

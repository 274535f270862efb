"""What a process shows of itself is worth no refused start, and its file is let go whatever became of the start."""

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tidegate.lifespan.road import Road
from tidegate.lifespan.sight import open_sight
from tidegate.lifespan.stores import Stores
from tidegate.settings import Settings
from tidegate.telemetry.health import HealthBoard
from tidegate.telemetry.loop_lag import LoopLag
from tidegate.telemetry.metrics.exposition import Exposition
from tidegate.telemetry.metrics.folding import DIRECTORY, fold


class Unseen:
    """Something of which nothing can be told."""

    def __getattr__(self, name: str) -> Any:
        raise OSError(24, "Too many open files")


def opened(data_dir: Path, road: object) -> Any:
    settings, stores = SimpleNamespace(data_dir=data_dir), Unseen()
    health, lag = HealthBoard(version="0.1.0"), LoopLag()
    return open_sight(cast("Settings", settings), cast("Stores", stores), cast("Road", road), health, lag)


async def test_what_cannot_be_seen_stops_no_start(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    catalogue = SimpleNamespace(version="one")
    gateway = SimpleNamespace(serving=SimpleNamespace(catalogue=catalogue), ledger=Unseen(), drain=Unseen())
    async with opened(tmp_path, SimpleNamespace(gateway=gateway)) as state:
        exposition: Exposition = state["exposition"]
        assert b'tidegate_catalogue_info{version="one"} 1.0' in await exposition.text()
    assert caplog.text.count("metrics_not_updated") == 1


async def test_a_start_that_fails_lets_go_of_its_file(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="open files"):
        async with opened(tmp_path, Unseen()):
            raise AssertionError
    assert fold(tmp_path / DIRECTORY) == 1


async def test_an_end_that_is_cancelled_lets_go_of_its_file(tmp_path: Path) -> None:
    gateway = SimpleNamespace(serving=Unseen(), ledger=Unseen(), drain=Unseen())
    is_open = asyncio.Event()

    async def serve() -> None:
        async with opened(tmp_path, SimpleNamespace(gateway=gateway)):
            is_open.set()
            await asyncio.Event().wait()

    serving = asyncio.create_task(serve())
    await is_open.wait()
    serving.cancel()
    await asyncio.sleep(0)
    serving.cancel()
    await asyncio.wait([serving])
    assert fold(tmp_path / DIRECTORY) == 1

"""The disk of the journal full, under load: a small file system of its own.

What is to hold (docs/operations/faults.md): what was accepted ends rightly and is entered; what comes is refused with
503 before any upstream is called; once there is room everything goes on by itself.
"""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import select

from tests.support.behaviours import Completion
from tests.support.caller import Caller, catalogue_of
from tests.support.limited import LimitedGateway
from tests.support.mixed_load import MixedLoad
from tests.support.server import GatewayPlan, answers
from tests.support.upstream import ScriptedUpstream
from tests.support.waiting import eventually
from tidegate.ledger.models import LedgerEntry


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "none", str(folder)], capture_output=True, text=True, check=False
    )
    if made.returncode:
        told = f"no file system can be mounted here, which takes root: {made.stderr.strip()}"
        if os.environ.get("CI"):
            pytest.fail(told)
        pytest.skip(told)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True, timeout=30)


@pytest.fixture
def redis(redis_url: str, redis_prefix: str) -> tuple[str, str]:
    """Its address, and a prefix of this test alone."""
    return redis_url, redis_prefix


async def test_a_full_disk_refuses_new_requests_and_loses_none_that_was_accepted(
    tmp_path: Path, upstream: ScriptedUpstream, small_disk: Path, postgres_url: str, redis: tuple[str, str]
) -> None:
    upstream.default = Completion(deltas=["word "] * 15, gap_s=0.1)
    upstream.by_model["short"] = Completion()
    plain = {"base_url": upstream.base_url, "count": "deltas"}
    plan = GatewayPlan(
        environment="production",
        catalogue=catalogue_of({"plain": plain}, {"m": "plain/m", "short": "plain/short"}),
        workers=2,
        database_url=postgres_url,
        redis_url=redis[0],
        redis_prefix=redis[1],
        variables={"TIDEGATE_DATA_DIR": str(small_disk)},
    )
    async with LimitedGateway.running(tmp_path, plan) as gateway:
        key = await gateway.key()
        caller = Caller(gateway.process.base_url, key.secret)
        async with MixedLoad([caller], streams=4, short=2, short_model="short", pause_s=0.1) as load:
            await load.goes_on(6)
            _fill(small_disk / "ballast")
            asked_before = len(upstream.requests)

            async def is_refused() -> bool:
                return (await caller.chat("refused", model="short", stream=False)).status == 503

            await eventually(is_refused, within_s=20)
            assert await answers(gateway.process.base_url, "/health/live") == 200
            assert await answers(gateway.process.base_url, "/health/ready") == 200
            told = [await caller.chat("refused", model="short", stream=False) for _ in range(4)]
            refused = next(reply for reply in told if reply.status == 503)
            assert refused.error["code"] == "unavailable"
            assert "journal cannot be written: No space left" in refused.error["message"]
            assert refused.head.headers["retry-after"] == "1"
            # Everything that ran when the disk filled up has ended by now.
            await load.goes_on(3)
            (small_disk / "ballast").unlink()

            async def is_served() -> bool:
                return (await caller.chat("served", model="short", stream=False)).status == 200

            await eventually(is_served, within_s=20)
            await load.goes_on(3)
        assert len(upstream.requests) > asked_before
        assert set(load.statuses()) == {200, 503}
        assert {one.code for one in load.asked if one.status == 503} == {"unavailable"}
        assert [one for one in load.not_whole() if one.status != 503] == []
        served = {one.label for one in load.asked if one.status == 200}
        await _all_are_entered(gateway, served)


async def _all_are_entered(gateway: LimitedGateway, labels: set[str]) -> None:
    async def all_there() -> bool:
        async with gateway.database.session() as session:
            rows = (await session.execute(select(LedgerEntry.request_id, LedgerEntry.outcome))).all()
        entered = [label for label, _ in rows if label in labels]
        assert len(entered) == len(set(entered))
        return set(entered) == labels and {outcome for label, outcome in rows if label in labels} == {"completed"}

    await eventually(all_there, within_s=30, poll_s=0.2)


def _fill(ballast: Path) -> None:
    """To the last byte."""
    with ballast.open("wb", buffering=0) as file:
        for piece in (65536, 4096, 512, 1):
            try:
                while file.write(b"\0" * piece):
                    pass
            except OSError:
                continue


def test_filling_a_disk_fills_it(small_disk: Path) -> None:
    _fill(small_disk / "ballast")
    with pytest.raises(OSError, match="No space left"):
        (small_disk / "more").write_bytes(b"\0" * 8192)

"""PostgreSQL stopped, crashed, frozen and slowed under load, with a production gateway of two workers on Redis.

What is to hold (docs/operations/faults.md): callers see nothing of it, every replica stays ready, /health says what is
down, and each request's entry is in the ledger once the database is back.
"""

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import asyncpg  # type: ignore[import-untyped]
import pytest

from tests.support.behaviours import Completion
from tests.support.caller import Caller, catalogue_of
from tests.support.door import Door
from tests.support.limited import LimitedGateway
from tests.support.mixed_load import MixedLoad
from tests.support.own_postgres import OwnPostgres
from tests.support.server import GatewayPlan, answers
from tests.support.services import LOOPBACK, ServiceUnavailable, create_database
from tests.support.upstream import ScriptedUpstream
from tests.support.waiting import NeverHappened, eventually

WORKERS = 2
# So long the database is away: longer than a statement's and a health check's bounds.
AWAY_S = 2.5
# A request that waited for the database would take longer than one may.
MAY_TAKE_S = 2.5


@dataclass
class Scene:
    gateway: LimitedGateway
    postgres: OwnPostgres
    door: Door
    load: MixedLoad

    @property
    def base_url(self) -> str:
        return self.gateway.process.base_url

    async def stays_ready(self, seconds: float) -> None:
        """Asks what a load balancer asks, as often as it does."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            assert await answers(self.base_url, "/health/ready") == 200
            await asyncio.sleep(0.1)

    async def everything_is_entered(self, *, within_s: float = 60) -> float:
        """How long it took until the ledger held an entry of every request that was answered, in seconds."""
        began = time.monotonic()
        labels = {one.label for one in self.load.asked}

        async def all_there() -> bool:
            connection = await asyncpg.connect(f"postgresql://postgres@{LOOPBACK}:{self.postgres.port}/{self._name}")
            try:
                rows = await connection.fetch("SELECT request_id, outcome FROM ledger_entries")
            finally:
                await connection.close()
            entered = [row["request_id"] for row in rows if row["request_id"] in labels]
            assert len(entered) == len(set(entered)), "a request has two entries"
            assert {row["outcome"] for row in rows} <= {"completed"}
            missing.intersection_update(labels - set(entered))
            return not missing

        missing = set(labels)
        try:
            await eventually(all_there, within_s=within_s, poll_s=0.2)
        except NeverHappened:
            lost = [one for one in self.load.asked if one.label in missing]
            raise AssertionError(f"{len(lost)} of {len(labels)} have no entry: {lost[:5]}") from None
        return time.monotonic() - began

    @property
    def _name(self) -> str:
        url = self.gateway.process.plan.database_url
        assert url is not None
        return url.rpartition("/")[2]


@pytest.fixture(scope="module")
def postgres() -> Iterator[OwnPostgres]:
    try:
        with OwnPostgres.started() as server:
            yield server
    except ServiceUnavailable as reason:
        pytest.skip(str(reason))


@asynccontextmanager
async def a_scene(
    tmp_path: Path, upstream: ScriptedUpstream, postgres: OwnPostgres, redis: tuple[str, str]
) -> AsyncIterator[Scene]:
    upstream.default = Completion(deltas=["word "] * 10, gap_s=0.05)
    upstream.by_model["short"] = Completion()
    direct = await asyncio.to_thread(create_database, postgres.service)
    async with Door(postgres.port) as door:
        door.release()
        plain = {"base_url": upstream.base_url, "count": "deltas"}
        plan = GatewayPlan(
            environment="production",
            catalogue=catalogue_of({"plain": plain}, {"m": "plain/m", "short": "plain/short"}),
            workers=WORKERS,
            database_url=direct.replace(f":{postgres.port}/", f":{door.port}/"),
            redis_url=redis[0],
            redis_prefix=redis[1],
        )
        async with LimitedGateway.running(tmp_path, plan) as gateway:
            callers = [Caller(gateway.process.base_url, (await gateway.key()).secret) for _ in range(3)]
            async with MixedLoad(callers, streams=6, short=3, short_model="short", pause_s=0.1) as load:
                # Every key is known to every worker.
                await load.goes_on(10)
                yield Scene(gateway, postgres, door, load)


async def _stopped(scene: Scene) -> None:
    await asyncio.to_thread(scene.postgres.stop)
    await scene.stays_ready(AWAY_S)
    await asyncio.to_thread(scene.postgres.start)


async def _crashed(scene: Scene) -> None:
    await asyncio.to_thread(scene.postgres.crash)
    await scene.stays_ready(AWAY_S)
    await asyncio.to_thread(scene.postgres.start)


async def _restarted(scene: Scene) -> None:
    await asyncio.to_thread(scene.postgres.stop)
    await asyncio.to_thread(scene.postgres.start)
    await scene.stays_ready(1)


async def _frozen(scene: Scene) -> None:
    scene.door.hold()
    await scene.stays_ready(AWAY_S)
    scene.door.release()


async def _slow(scene: Scene) -> None:
    scene.door.delay_s = 0.5
    await scene.stays_ready(AWAY_S)
    scene.door.delay_s = 0.0


FAULTS: dict[str, Callable[[Scene], Awaitable[None]]] = {
    "stopped": _stopped,
    "crashed": _crashed,
    "restarted": _restarted,
    "frozen": _frozen,
    "slow": _slow,
}


async def test_postgresql_may_go_away_in_every_way_and_no_caller_sees_it(
    tmp_path: Path, upstream: ScriptedUpstream, postgres: OwnPostgres, redis_url: str, redis_prefix: str
) -> None:
    async with a_scene(tmp_path, upstream, postgres, (redis_url, redis_prefix)) as scene:
        for name, fault in FAULTS.items():
            began = time.monotonic()
            await fault(scene)
            took_s = time.monotonic() - began
            await scene.load.goes_on()
            entered_s = await scene.everything_is_entered()
            seen = scene.load.since(began)
            worst = max(one.took_s for one in seen)
            sys.stdout.write(
                f"PostgreSQL {name} for {took_s:.1f} s: {dict(scene.load.statuses(began))}, slowest {worst:.2f} s,"
                f" entries complete after {entered_s:.1f} s\n"
            )
            assert scene.load.not_whole(began) == [], name
            assert worst < MAY_TAKE_S, name
    lines = scene.gateway.process.lines()
    assert [line for line in lines if line["level"] in ("error", "critical")] == []


async def test_who_is_not_known_yet_is_told_that_the_database_is_away_and_health_says_so(
    tmp_path: Path, upstream: ScriptedUpstream, postgres: OwnPostgres, redis_url: str, redis_prefix: str
) -> None:
    async with a_scene(tmp_path, upstream, postgres, (redis_url, redis_prefix)) as scene:
        stranger = Caller(scene.base_url, (await scene.gateway.key()).secret)
        await asyncio.to_thread(scene.postgres.stop)

        async def is_unwell() -> bool:
            return await answers(scene.base_url, "/health") == 503

        await eventually(is_unwell, within_s=20)
        began = time.monotonic()
        reply = await stranger.chat("stranger", stream=False)
        assert (reply.status, reply.error["code"]) == (503, "unavailable")
        assert int(reply.head.headers["retry-after"]) >= 1
        assert time.monotonic() - began < MAY_TAKE_S
        assert await answers(scene.base_url, "/health/live") == 200
        assert await answers(scene.base_url, "/health/ready") == 200
        await asyncio.to_thread(scene.postgres.start)

        async def is_served() -> bool:
            return (await stranger.chat("stranger", stream=False)).status == 200

        await eventually(is_served, within_s=20)
        await scene.load.goes_on()
    assert scene.load.not_whole() == []

"""How many connections a start takes of the database and of Redis; what callers are told when all are in use."""

import asyncio
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import redis as redis_client
from pydantic import SecretStr
from sqlalchemy import text

from tests.support.own_redis import OwnRedis
from tests.support.road import open_road
from tests.support.server import ADMIN_EMAIL, ADMIN_PASSWORD, free_port
from tests.support.services import ServiceUnavailable
from tests.support.stand_in import ECHO
from tidegate.server.pools import BESIDE_REDIS_POOL, Pool
from tidegate.server.refusal import StartRefused
from tidegate.server.shares import pool_of_worker
from tidegate.settings import Settings
from tidegate.settings.groups import DatabaseSettings, RedisSettings
from tidegate.storage.database import Database
from tidegate.storage.redis import MOST_CONNECTIONS

PREFIX = "tgtest-shares"
_IN_ALL = 10


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[OwnRedis]:
    try:
        with OwnRedis.started(tmp_path / "redis") as server:
            yield server
    except ServiceUnavailable as reason:
        pytest.skip(str(reason))


def settings_of(folder: Path, redis_url: str | None, *, replicas: int = 1, database: str | None = None) -> Settings:
    return Settings.model_construct(
        environment="production",
        data_dir=folder,
        database=DatabaseSettings(url=None if database is None else SecretStr(database), max_replicas=replicas),
        redis=RedisSettings(url=None if redis_url is None else SecretStr(redis_url)),
    )


async def share(settings: Settings, url: str, *, workers: int) -> Pool | None:
    database = await Database.open(url)
    try:
        return await pool_of_worker(database, settings, workers)
    finally:
        await database.aclose()


async def told(
    settings: Settings, url: str, caplog: pytest.LogCaptureFixture, *, workers: int = 1
) -> tuple[Pool | None, dict[str, str]]:
    """The share, and the line that tells of it."""
    caplog.set_level("INFO")
    pool = await share(settings, url, workers=workers)
    lines = [record.msg for record in caplog.records if "connections_shared" in str(record.msg)]
    assert len(lines) <= 1
    return pool, dict(lines[0]) if lines and isinstance(lines[0], dict) else {}


async def test_redis_is_asked_how_many_it_lets_in(
    own_redis: OwnRedis, sqlite_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with redis_client.Redis.from_url(own_redis.url) as client:
        client.config_set("maxclients", 100)
    pool, line = await told(settings_of(tmp_path, own_redis.url), sqlite_url, caplog, workers=3)
    assert pool == Pool(redis=9)
    assert line["redis"] == "1 replicas x 3 workers x (9 + 6) x 2 = 90 of 100 (maxclients) - 8 (for commands)"


async def test_every_sum_that_cannot_be_met_is_told_at_once(
    own_redis: OwnRedis, postgres_url: str, tmp_path: Path
) -> None:
    with redis_client.Redis.from_url(own_redis.url) as client:
        client.config_set("maxclients", 100)
    settings = settings_of(tmp_path, own_redis.url, replicas=1000, database=postgres_url)
    with pytest.raises(StartRefused) as refused:
        await share(settings, postgres_url, workers=9)
    assert [fault.partition(" allows")[0] for fault in refused.value.faults] == ["the database", "Redis"]


async def test_a_redis_that_may_not_be_asked_is_no_fault(
    own_redis: OwnRedis, sqlite_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with redis_client.Redis.from_url(own_redis.url) as client:
        client.acl_setuser("default", enabled=True, nopass=True, categories=["+@all"], commands=["-info", "-config"])
    pool, line = await told(settings_of(tmp_path, own_redis.url), sqlite_url, caplog)
    assert pool == Pool(redis=MOST_CONNECTIONS)
    assert line["redis"] == "it does not tell its maxclients"


async def test_a_redis_that_is_away_is_no_fault(
    sqlite_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    url = f"redis://127.0.0.1:{free_port()}/0"
    pool, line = await told(settings_of(tmp_path, url), sqlite_url, caplog)
    assert pool == Pool(redis=MOST_CONNECTIONS)
    assert line["redis"] == "not asked for maxclients (ConnectionError)"


async def test_nothing_is_said_where_nothing_is_shared_nor_outside_of_production(
    redis_url: str, sqlite_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert await told(settings_of(tmp_path, None), sqlite_url, caplog) == (None, {})
    settings = settings_of(tmp_path, redis_url).model_copy(update={"environment": "development"})
    pool, line = await told(settings, sqlite_url, caplog)
    assert (pool, line) == (Pool(redis=MOST_CONNECTIONS), {})


async def test_a_worker_holds_no_more_connections_to_redis_than_the_sum_counts(
    own_redis: OwnRedis, tmp_path: Path
) -> None:
    redis = RedisSettings(url=SecretStr(own_redis.url), key_prefix=PREFIX)
    async with open_road(tmp_path, ECHO, redis=redis) as road:
        most = 0
        with redis_client.Redis.from_url(own_redis.url) as watching:

            async def work(number: int) -> None:
                nonlocal most
                assert (await road.caller.chat(f"r-{number}", model="echo")).status == 200
                await road.caller.entries()
                body = {"email": ADMIN_EMAIL, "password": ADMIN_PASSWORD}
                await road.caller.call("POST", "/auth/login", json=body)
                clients = await asyncio.to_thread(watching.client_list)
                most = max(most, sum(client["name"].startswith(PREFIX) for client in clients))

            await asyncio.gather(*(work(number) for number in range(40)))
        assert BESIDE_REDIS_POOL - 3 <= most <= MOST_CONNECTIONS + BESIDE_REDIS_POOL


async def test_who_comes_when_every_connection_is_in_use_waits_and_gets_a_503(tmp_path: Path) -> None:
    async with open_road(tmp_path, ECHO) as road:
        # Who called before is known, and so are the limits.
        assert (await road.caller.chat("before", model="echo")).is_done
        async with AsyncExitStack() as held:
            for _ in range(_IN_ALL):
                session = await held.enter_async_context(road.database.session())
                await session.execute(text("SELECT 1"))
            reply = await road.caller.call("GET", "/api/requests")
            assert (reply.status, reply.error["code"]) == (503, "unavailable")
            assert reply.head.headers["retry-after"] == "1"
            # The road goes on by what it knows.
            assert (await road.caller.chat("meanwhile", model="echo")).is_done
        assert (await road.caller.entry("meanwhile"))["outcome"] == "completed"
        assert (await road.caller.call("GET", "/api/requests")).status == 200

"""The fixtures' own promises: a database and a key prefix of one's own, from whatever source there is."""

import subprocess
import sys

import psutil
import redis.asyncio
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from tests.support import services
from tests.support.services import ROOT, Service
from tests.support.waiting import eventually


async def test_every_test_has_an_empty_database(database_url: str) -> None:
    engine = create_async_engine(database_url, poolclass=NullPool)
    async with engine.begin() as connection:
        await connection.execute(text("CREATE TABLE seen (n INTEGER)"))
        await connection.execute(text("INSERT INTO seen VALUES (1)"))
        assert (await connection.execute(text("SELECT count(*) FROM seen"))).scalar() == 1
    await engine.dispose()


async def test_another_test_does_not_see_its_tables(database_url: str) -> None:
    await test_every_test_has_an_empty_database(database_url)


async def test_redis_keys_stand_under_a_prefix_of_the_test(redis_url: str, redis_prefix: str) -> None:
    async with redis.asyncio.Redis.from_url(redis_url) as client:
        assert [key async for key in client.scan_iter(match=f"*{redis_prefix}*")] == []
        key = f"{redis_prefix}:{{d}}:n".encode()
        await client.set(key, 1)
        assert [key async for key in client.scan_iter(match=f"*{redis_prefix}*")] == [key]
        services.delete_keys(redis_url, redis_prefix)
        assert [key async for key in client.scan_iter(match=f"*{redis_prefix}*")] == []


def test_what_a_killed_run_left_is_dropped_and_what_lives_is_not(postgres_service: Service, postgres_url: str) -> None:
    ended = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    abandoned = services.create_database(postgres_service, owner=int(ended.stdout))
    services.drop_abandoned_databases(postgres_service)
    assert not services.database_exists(postgres_service, abandoned)
    assert services.database_exists(postgres_service, postgres_url)
    services.drop_database(postgres_service, postgres_url)
    assert not services.database_exists(postgres_service, postgres_url)


async def test_a_kept_server_ends_with_its_starter() -> None:
    server = "import time; time.sleep(600)"
    command = [sys.executable, "-m", "tests.support.keeper", "-", sys.executable, "-c", server]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL) as keeper:
        assert keeper.stdin is not None
        (kept,) = await eventually(lambda: psutil.Process(keeper.pid).children())
        # As the system does for a starter that was killed.
        keeper.stdin.close()
        await eventually(lambda: not kept.is_running(), within_s=30)
        await eventually(lambda: keeper.poll() is not None, within_s=30)

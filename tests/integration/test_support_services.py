"""The fixtures' own promises: a database and a key prefix of one's own, from whatever source there is."""

import asyncio
import subprocess
import sys
from contextlib import ExitStack

import asyncpg  # type: ignore[import-untyped]
import psutil
import pytest
import redis.asyncio
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from tests.support import services
from tests.support.databases import Databases, lending
from tests.support.schema import bring_to_head
from tests.support.services import ROOT, Service
from tests.support.waiting import eventually
from tidegate.storage.migrate import migrate


async def test_every_test_has_an_empty_database(database_url: str) -> None:
    engine = create_async_engine(database_url, poolclass=NullPool)
    async with engine.begin() as connection:
        await connection.execute(text("CREATE TABLE seen (n INTEGER)"))
        await connection.execute(text("INSERT INTO seen VALUES (1)"))
        assert (await connection.execute(text("SELECT count(*) FROM seen"))).scalar() == 1
    await engine.dispose()


async def test_another_test_does_not_see_its_tables(database_url: str) -> None:
    await test_every_test_has_an_empty_database(database_url)


@pytest.mark.parametrize(
    "left",
    [
        "CREATE TABLE seen (n INTEGER)",
        "CREATE FUNCTION seen() RETURNS integer LANGUAGE sql AS 'SELECT 1'",
        "CREATE SCHEMA elsewhere",
        "ALTER DATABASE {name} SET search_path TO elsewhere",
    ],
)
def test_a_database_that_is_lent_again_is_as_a_new_one(postgres_service: Service, left: str) -> None:
    with lending(postgres_service) as databases:
        with databases.lent() as url:
            empty = asyncio.run(_what_is_in(url))
            asyncio.run(_run_in(url, left.format(name=url.rpartition("/")[2])))
            assert asyncio.run(_what_is_in(url)) != empty
        with databases.lent() as url:
            assert asyncio.run(_what_is_in(url)) == empty


def test_a_connection_that_a_test_forgot_is_closed_before_the_next_test(postgres_service: Service) -> None:
    with lending(postgres_service) as databases, asyncio.Runner() as runner:
        with databases.lent() as url:
            forgotten = runner.run(_connected(url))
        with databases.lent() as again:
            assert again == url
            with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError, OSError)):
                runner.run(forgotten.fetchval("SELECT 1"))


def test_a_migration_that_is_repeated_makes_what_a_migration_makes(postgres_databases: Databases) -> None:
    with ExitStack() as stack:
        first, repeated, migrated = (stack.enter_context(postgres_databases.lent()) for _ in range(3))
        for url in (first, repeated):
            asyncio.run(bring_to_head(url))
        asyncio.run(migrate(migrated))
        made = asyncio.run(_what_is_in(repeated))
        assert made == asyncio.run(_what_is_in(migrated))
        assert len(made) > 100
        assert asyncio.run(migrate(repeated)) == []


async def _connected(url: str) -> "asyncpg.Connection":
    return await asyncpg.connect(url.replace("+asyncpg", ""))


async def _run_in(url: str, statement: str) -> None:
    connection = await _connected(url)
    await connection.execute(statement)
    await connection.close()


async def _what_is_in(url: str) -> list[str]:
    """Schemas, columns, constraints, indexes, triggers, functions, settings, and how many rows each table has."""
    connection = await _connected(url)
    of_ours = "NOT IN ('pg_catalog', 'information_schema', 'pg_toast')"
    tables = await connection.fetch(
        "SELECT relname FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace"
    )
    found: list[str] = []
    for query in (
        f"SELECT nspname, nspacl FROM pg_namespace WHERE nspname {of_ours}",
        f"SELECT * FROM information_schema.columns WHERE table_schema {of_ours}",
        "SELECT conrelid::regclass, conname, pg_get_constraintdef(oid) FROM pg_constraint WHERE conrelid > 16383",
        f"SELECT indexdef FROM pg_indexes WHERE schemaname {of_ours}",
        "SELECT pg_get_triggerdef(oid) FROM pg_trigger WHERE NOT tgisinternal",
        "SELECT pg_get_functiondef(oid) FROM pg_proc WHERE pronamespace = 'public'::regnamespace",
        "SELECT setconfig FROM pg_db_role_setting, pg_database WHERE oid = setdatabase AND datname=current_database()",
        *(f"SELECT '{table[0]}', count(*) FROM public.{table[0]}" for table in tables),
    ):
        found += [str(tuple(row)) for row in await connection.fetch(query)]
    await connection.close()
    return sorted(line.replace(url.rpartition("/")[2], "it") for line in found)


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

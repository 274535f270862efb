"""A migration among others who use the database: it lets them pass, names who is in its way, dies without a trace."""

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from alembic import command
from sqlalchemy import Connection, text
from sqlalchemy.engine import make_url

from tests.support.waiting import eventually
from tidegate.storage import migrate as migration
from tidegate.storage.database import Database
from tidegate.storage.migrate import MigrationFailed, migrate, pending

_WAITS = (
    "SELECT count(*) FROM pg_locks JOIN pg_database ON pg_database.oid = pg_locks.database"
    " WHERE NOT granted AND datname = current_database()"
)


@pytest.fixture
async def in_use(postgres_url: str) -> AsyncIterator[Database]:
    """A database at the first revision, whose next ones change a table that is there."""

    def upgrade(connection: Connection) -> None:
        command.upgrade(migration._configuration(connection), "0001")

    await migration._on(make_url(postgres_url), upgrade)
    database = await Database.open(postgres_url)
    yield database
    await database.aclose()


@asynccontextmanager
async def long_reading(database: Database) -> AsyncIterator[int]:
    """A transaction that reads from a table and does not end; the number of its session."""
    async with database.session() as session:
        await session.execute(text("SELECT count(*) FROM api_keys"))
        pid = await session.scalar(text("SELECT pg_backend_pid()"))
        assert pid is not None
        yield pid


async def waits(database: Database) -> bool:
    async with database.session() as session:
        return bool(await session.scalar(text(_WAITS)))


async def test_a_migration_that_waits_for_a_table_lets_others_pass_and_names_who_holds_it(
    in_use: Database, postgres_url: str
) -> None:
    behind = await pending(postgres_url)
    async with long_reading(in_use) as pid:
        migrating = asyncio.create_task(migrate(postgres_url, lock_timeout_s=4))
        await eventually(lambda: waits(in_use), poll_s=0.01)
        async with in_use.session() as session:
            assert await session.scalar(text("SELECT count(*) FROM api_keys")) == 0
        assert not migrating.done()
        await eventually(lambda: waits(in_use), poll_s=0.01, what="a further try")
        with pytest.raises(MigrationFailed, match=rf"by process {pid} \(user .*, idle in transaction, for \d+ s\)"):
            await migrating
        assert await pending(postgres_url) == behind
    assert await migrate(postgres_url) == behind


async def test_a_migration_goes_on_once_the_table_is_free(in_use: Database, postgres_url: str) -> None:
    behind = await pending(postgres_url)
    async with long_reading(in_use):
        migrating = asyncio.create_task(migrate(postgres_url))
        await eventually(lambda: waits(in_use), poll_s=0.01)
    assert await migrating == behind


async def test_a_migration_that_waits_for_another_names_it(in_use: Database, postgres_url: str) -> None:
    async with in_use.transaction() as session:
        await session.execute(text(f"SELECT pg_advisory_xact_lock({migration._ADVISORY_LOCK})"))
        pid = await session.scalar(text("SELECT pg_backend_pid()"))
        with pytest.raises(MigrationFailed, match=f"by process {pid} "):
            await migrate(postgres_url, lock_timeout_s=1.5)


async def test_a_migration_that_is_killed_in_the_middle_leaves_nothing(in_use: Database, postgres_url: str) -> None:
    behind = await pending(postgres_url)
    environment = {**os.environ, "TIDEGATE_DATABASE__URL": postgres_url, "TIDEGATE_ENVIRONMENT": "production"}
    async with long_reading(in_use) as reader:
        # It has made the tables of the second revision when it comes to change the one that is read.
        running = subprocess.Popen(
            [sys.executable, "-P", "-m", "tidegate.cli.main", "migrate"], env=environment, stderr=subprocess.DEVNULL
        )
        try:
            await eventually(lambda: waits(in_use), poll_s=0.01, within_s=30)
        finally:
            running.kill()
            running.wait(10)
        await eventually(lambda: alone(in_use, reader), within_s=30)
        async with in_use.session() as session:
            assert await session.scalar(text("SELECT to_regclass('limits')")) is None
            assert await session.scalar(text("SELECT version_num FROM alembic_version")) == "0001"
    assert await migrate(postgres_url) == behind


async def alone(database: Database, reader: int) -> bool:
    """Whether nobody but us, and who reads, is in the midst of a transaction there."""
    query = (
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND xact_start IS NOT NULL"
        " AND pid NOT IN (pg_backend_pid(), :reader)"
    )
    async with database.session() as session:
        return not await session.scalar(text(query), {"reader": reader})

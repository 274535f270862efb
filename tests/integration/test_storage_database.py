"""Sessions: what is committed, what is given back, and what a caller is told when the database is down."""

import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest
from sqlalchemy import AsyncAdaptedQueuePool, func, select, text, update
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession

from tests.support.schema import bring_to_head
from tests.support.sqlite_threads import no_sqlite_threads
from tests.support.waiting import eventually
from tidegate.accounts.models import DEFAULT_WORKSPACE_ID, User, Workspace
from tidegate.errors import Unavailable
from tidegate.storage.database import Database, create_engine


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    await bring_to_head(database_url)
    database = await Database.open(database_url, pool_size=2, max_overflow=0)
    yield database
    await database.aclose()


async def names(database: Database) -> list[str]:
    async with database.session() as session:
        return list(await session.scalars(select(Workspace.name).order_by(Workspace.name)))


def checked_out(database: Database) -> int:
    pool = database.engine.pool
    assert isinstance(pool, AsyncAdaptedQueuePool)
    return pool.checkedout()


async def test_a_transaction_commits_at_its_end(database: Database) -> None:
    async with database.transaction() as session:
        session.add(Workspace(name="research"))
    assert await names(database) == ["default", "research"]
    assert checked_out(database) == 0


async def test_a_transaction_that_raises_leaves_nothing(database: Database) -> None:
    async def fail() -> None:
        async with database.transaction() as session:
            session.add(Workspace(name="research"))
            await session.flush()
            raise LookupError

    with pytest.raises(LookupError):
        await fail()
    assert await names(database) == ["default"]
    assert checked_out(database) == 0


async def test_a_session_keeps_only_what_was_committed(database: Database) -> None:
    async with database.session() as session:
        session.add(Workspace(name="research"))
        await session.flush()
    assert await names(database) == ["default"]


@pytest.mark.parametrize("opened", ["session", "transaction"])
async def test_a_task_that_is_cancelled_gives_its_connection_back(database: Database, opened: str) -> None:
    inside = anyio.Event()

    async def hold() -> None:
        async with database.transaction() if opened == "transaction" else database.session() as session:
            await session.execute(text("SELECT 1"))
            inside.set()
            await anyio.sleep_forever()

    async with anyio.create_task_group() as group:
        group.start_soon(hold)
        with anyio.fail_after(10):
            await inside.wait()
        assert checked_out(database) == 1
        group.cancel_scope.cancel()
    assert checked_out(database) == 0


async def test_a_task_that_is_cancelled_between_statements_does_not_cost_a_connection(postgres_url: str) -> None:
    database = await Database.open(postgres_url, pool_size=1, max_overflow=0)
    pids: list[int | None] = []

    async def ask_and_be_cancelled() -> None:
        with anyio.CancelScope() as scope:
            async with database.session() as session:
                pids.append(await session.scalar(text("SELECT pg_backend_pid()")))
                scope.cancel()
                await anyio.sleep_forever()

    try:
        for _ in range(3):
            await ask_and_be_cancelled()
        assert len(pids) == 3
        assert len(set(pids)) == 1
    finally:
        await database.aclose()


async def test_a_statement_that_is_cancelled_gives_its_connection_back(postgres_url: str) -> None:
    database = await Database.open(postgres_url, pool_size=1, max_overflow=0)
    observer = await Database.open(postgres_url)

    async def sleep() -> None:
        async with database.session() as session:
            await session.execute(text("SELECT pg_sleep(300)"))

    async def sleeps() -> bool:
        query = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep%' AND state = 'active'"
        async with observer.session() as session:
            return bool(await session.scalar(text(query)))

    try:
        async with anyio.create_task_group() as group:
            group.start_soon(sleep)
            await eventually(sleeps)
            group.cancel_scope.cancel()
        assert checked_out(database) == 0
        await database.ping()
    finally:
        await observer.aclose()
        await database.aclose()


async def test_writers_on_sqlite_wait_for_each_other(sqlite_url: str) -> None:
    """Two that read first and write then would else fail: the second's snapshot is old."""
    await bring_to_head(sqlite_url)
    database = await Database.open(sqlite_url, pool_size=5, max_overflow=0)

    async def add_one() -> None:
        async with database.transaction() as session:
            name = await session.scalar(select(Workspace.name).where(Workspace.id == DEFAULT_WORKSPACE_ID))
            assert name is not None
            await session.execute(update(Workspace).values(name=name + "x"))

    try:
        async with anyio.create_task_group() as group:
            for _ in range(20):
                group.start_soon(add_one)
        assert await names(database) == ["default" + 20 * "x"]
    finally:
        await database.aclose()


async def test_sqlite_reads_beside_a_writer_and_checks_references(sqlite_url: str) -> None:
    await bring_to_head(sqlite_url)
    database = await Database.open(sqlite_url)
    try:
        async with database.transaction() as writer:
            writer.add(Workspace(name="research"))
            await writer.flush()
            assert await names(database) == ["default"]
        async with database.session() as session:
            pragmas = [await session.scalar(text(f"PRAGMA {name}")) for name in ("journal_mode", "synchronous")]
        assert pragmas == ["wal", 1]
        async with database.transaction() as session:
            session.add(User(workspace_id=uuid.uuid4(), email="a@b.c", role="member"))
            with pytest.raises(DBAPIError, match="FOREIGN KEY"):
                await session.flush()
            await session.rollback()
    finally:
        await database.aclose()


async def test_postgresql_sees_who_is_connected_and_bounds_what_runs(postgres_url: str) -> None:
    """The server's bound is for a statement whose task was cancelled: its connection is dropped, not its work."""
    database = await Database.open(postgres_url)
    try:
        async with database.session() as session:
            names = ("application_name", "statement_timeout")
            assert [await session.scalar(select(func.current_setting(name))) for name in names] == ["tidegate", "15s"]
    finally:
        await database.aclose()


async def test_ping_is_quiet_where_the_database_answers(database: Database) -> None:
    await database.ping()
    assert checked_out(database) == 0


@pytest.mark.parametrize(
    "url",
    ["postgresql+asyncpg://postgres@127.0.0.1:1/nothing", "sqlite+aiosqlite:////nonexistent/tidegate.db"],
    ids=["postgresql", "sqlite"],
)
async def test_a_database_that_is_down_is_unavailable_when_used_not_when_opened(url: str) -> None:
    database = await Database.open(url)
    try:
        with pytest.raises(Unavailable) as caught:
            await database.ping()
        assert caught.value.__cause__ is not None
    finally:
        await database.aclose()
        await no_sqlite_threads()


async def test_a_database_that_does_not_exist_is_unavailable(postgres_url: str) -> None:
    database = await Database.open(postgres_url + "_gone")
    try:
        with pytest.raises(Unavailable):
            await database.ping()
    finally:
        await database.aclose()


async def test_a_connection_that_the_server_closed_is_replaced_unseen(postgres_url: str) -> None:
    database = await Database.open(postgres_url, pool_size=1, max_overflow=0)
    other = await Database.open(postgres_url)
    try:
        async with database.session() as session:
            pid = await session.scalar(text("SELECT pg_backend_pid()"))
        async with other.session() as session:
            await session.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": pid})
        await database.ping()
    finally:
        await other.aclose()
        await database.aclose()


async def test_a_connection_that_is_lost_in_use_is_unavailable(postgres_url: str) -> None:
    database = await Database.open(postgres_url)
    other = await Database.open(postgres_url)

    async def lose() -> None:
        async with database.session() as session:
            pid = await session.scalar(text("SELECT pg_backend_pid()"))
            async with other.session() as killer:
                await killer.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": pid})
            await session.scalar(text("SELECT 1"))

    try:
        with pytest.raises(Unavailable):
            await lose()
        await database.ping()
    finally:
        await other.aclose()
        await database.aclose()


async def test_a_locked_sqlite_is_unavailable(tmp_path: Path) -> None:
    url = make_url(f"sqlite+aiosqlite:///{tmp_path / 'locked.db'}")
    database = Database(create_engine(url, busy_timeout_s=0.05))

    async def write(session: AsyncSession) -> None:
        await session.execute(text("CREATE TABLE IF NOT EXISTS t (x INTEGER)"))

    async def write_too() -> None:
        async with database.transaction() as session:
            await write(session)

    try:
        async with database.transaction() as session:
            await write(session)
            with pytest.raises(Unavailable):
                await write_too()
    finally:
        await database.aclose()


async def test_a_wrong_statement_is_not_called_an_outage(database: Database) -> None:
    async def ask() -> None:
        async with database.session() as session:
            await session.execute(text("SELECT * FROM nowhere"))

    with pytest.raises(DBAPIError):
        await ask()
    assert checked_out(database) == 0


async def test_an_error_does_not_tell_what_was_sent(database: Database) -> None:
    async def ask() -> None:
        async with database.session() as session:
            await session.execute(text("SELECT * FROM nowhere WHERE email = :email"), {"email": "ada@example.com"})

    with pytest.raises(DBAPIError) as caught:
        await ask()
    assert "ada@example.com" not in str(caught.value)

"""The end of a connection to SQLite: bounded, whoever else ended it meanwhile."""

import asyncio
from pathlib import Path

from tidegate.storage.database import Database
from tidegate.storage.sqlite import StoppedOnce, connect

WITHIN_S = 20


async def test_a_close_that_is_cancelled_ends_though_the_thread_was_stopped_before(tmp_path: Path) -> None:
    connection = await connect(str(tmp_path / "a.db"))
    closing = asyncio.create_task(connection.close())
    await asyncio.sleep(0)
    # As SQLAlchemy does where the task that waits for the close is cancelled.
    connection.stop()
    closing.cancel()
    done, _ = await asyncio.wait({closing}, timeout=WITHIN_S)
    assert done == {closing}


async def test_a_close_ends_where_it_is_not_cancelled_too(tmp_path: Path) -> None:
    connection = await connect(str(tmp_path / "a.db"))
    cursor = await connection.execute("SELECT 1")
    assert await cursor.fetchone() == (1,)
    async with asyncio.timeout(WITHIN_S):
        await connection.close()
        await connection.close()
    assert not connection._thread.is_alive() or connection._thread.daemon


async def test_the_database_uses_such_connections(tmp_path: Path) -> None:
    database = await Database.open(f"sqlite+aiosqlite:///{tmp_path / 'a.db'}")
    try:
        async with database.session() as session:
            raw = await (await session.connection()).get_raw_connection()
            assert isinstance(raw.driver_connection, StoppedOnce)
    finally:
        await database.aclose()

"""The database of this process: one engine, its pool, and the sessions that are opened from it.

A session is short: none is held across an await of an upstream. Leaving one gives its connection back in every case,
also where the task was cancelled. On SQLite a transaction that writes takes the write lock when it begins, so that it
waits for another writer instead of failing half-way.

A database that is down, full or overloaded is `Unavailable` to whoever uses a session; other faults are the driver's
own errors.

Behind PgBouncer in transaction mode each transaction may run on another server connection. So nothing is kept on one:
no prepared statement outlives its execution, no setting its transaction, and no statement runs outside of one.
"""

import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import Any, Literal, Self, TypeVar

import anyio
import orjson
from sqlalchemy import Connection, event, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import DBAPIError, InterfaceError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.pool import ConnectionPoolEntry

from tidegate.errors import Unavailable
from tidegate.storage.database_login import DatabaseLogin
from tidegate.storage.sqlite import connect

CONNECT_TIMEOUT_S = 5.0
COMMAND_TIMEOUT_S = 15.0
POOL_TIMEOUT_S = 5.0
CLOSE_TIMEOUT_S = 5.0
SQLITE_BUSY_TIMEOUT_S = 5.0
# An execution option: the statement that begins a transaction on SQLite.
SQLITE_BEGIN = "tidegate_sqlite_begin"
APPLICATION = "tidegate"
# An execution option of an engine behind a pooler.
_POOLED = "tidegate_pooled"
# PostgreSQL's classes of conditions (appendix A of its manual) that say nothing of the statement: connection,
# authorization, no such database, resources, intervention of an operator or of a timeout; and a lock not got.
_OUTAGES_POSTGRESQL = ("08", "28", "3D", "53", "57", "55P03")
_OUTAGES_SQLITE = {
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_CANTOPEN,
}


Pooler = Literal["transaction"] | None
"""What stands before PostgreSQL: `transaction` is PgBouncer in that mode."""


class Database:
    """One engine and its sessions.

    >>> database = await Database.open("sqlite+aiosqlite:///var/tidegate.db")
    >>> async with database.transaction() as session:
    ...     session.add(Workspace(name="research"))
    """

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._writing = engine.execution_options(**{SQLITE_BEGIN: "BEGIN IMMEDIATE"})
        self._is_pooled = engine.get_execution_options().get(_POOLED, False)
        self._autocommitting = engine if self._is_pooled else engine.execution_options(isolation_level="AUTOCOMMIT")

    @classmethod
    async def open(
        cls,
        url: str,
        *,
        pool_size: int = 5,
        max_overflow: int = 5,
        login: DatabaseLogin | None = None,
        pooler: Pooler = None,
    ) -> Self:
        """An engine for this URL. It connects when first used: a database that is down does not stop the start."""
        pool = {"pool_size": pool_size, "max_overflow": max_overflow}
        return cls(create_engine(make_url(url), login=login, pooler=pooler, **pool))

    @property
    def engine(self) -> AsyncEngine:
        return self._engine

    @property
    def dialect_name(self) -> str:
        """`postgresql` or `sqlite`."""
        return self._engine.dialect.name

    @asynccontextmanager
    async def session(self) -> AsyncIterator[AsyncSession]:
        """A session for reading; what it changed and did not commit is rolled back."""
        async with _closing(AsyncSession(self._engine, expire_on_commit=False)) as session:
            yield session

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncSession]:
        """A session for writing: commits at the end of the block, rolls back where the block raises."""
        async with _closing(AsyncSession(self._writing, expire_on_commit=False)) as session:
            yield session
            await session.commit()

    @asynccontextmanager
    async def single_statements(self) -> AsyncIterator[AsyncConnection]:
        """A connection on which each statement is a transaction of its own: it saves two round trips.

        Behind a pooler they are one transaction, which commits at the end of the block.
        """
        with _outages_named():
            connection = await self._autocommitting.connect()
        async with _closing(connection):
            yield connection
            if self._is_pooled:
                await connection.commit()

    async def ping(self) -> None:
        """One round trip. Raises `Unavailable`; the caller sets the deadline."""
        async with self.session() as session:
            await session.execute(text("SELECT 1"))

    async def aclose(self) -> None:
        """Closes the pool's connections."""
        await self._engine.dispose()


def create_engine(
    url: URL,
    *,
    command_timeout_s: float | None = COMMAND_TIMEOUT_S,
    busy_timeout_s: float = SQLITE_BUSY_TIMEOUT_S,
    login: DatabaseLogin | None = None,
    pooler: Pooler = None,
    **pool: Any,
) -> AsyncEngine:
    """An engine with this project's timeouts; `pool` goes to SQLAlchemy."""
    shared: dict[str, Any] = {"json_serializer": _to_json, "json_deserializer": orjson.loads, **pool}
    # What an error's text may hold ends in a log: rows, hashes and addresses do not.
    shared["hide_parameters"] = True
    if "poolclass" not in pool:
        shared.setdefault("pool_timeout", POOL_TIMEOUT_S)
    if url.get_backend_name() != "sqlite":
        # A connection may have died with a server that was restarted; a file's connection does not.
        shared["pool_pre_ping"] = "poolclass" not in pool
        arguments: dict[str, Any] = {"timeout": CONNECT_TIMEOUT_S, "command_timeout": command_timeout_s}
        if login is not None:
            arguments["async_creator_fn"] = login.connect
        # The server's own bound ends what a cancelled task left running there.
        statement_timeout_ms = round((command_timeout_s or 0) * 1000)
        connected = _pooled if pooler else _connected
        return connected(url, arguments, statement_timeout_ms, shared)
    engine = create_async_engine(url, connect_args={"timeout": busy_timeout_s, "async_creator_fn": connect}, **shared)
    event.listen(engine.sync_engine, "connect", _prepare_sqlite)
    event.listen(engine.sync_engine, "begin", _begin_sqlite)
    return engine


def _connected(url: URL, arguments: dict[str, Any], statement_timeout_ms: int, shared: dict[str, Any]) -> AsyncEngine:
    settings = {"application_name": APPLICATION, "statement_timeout": str(statement_timeout_ms)}
    return create_async_engine(url, connect_args={**arguments, "server_settings": settings}, **shared)


def _pooled(url: URL, arguments: dict[str, Any], statement_timeout_ms: int, shared: dict[str, Any]) -> AsyncEngine:
    arguments = {
        **arguments,
        # PgBouncer refuses a connection that brings a setting which it does not track.
        "server_settings": {"application_name": APPLICATION},
        # Where nothing is cached, asyncpg sends a statement that has no name again, in one message with its execution.
        "statement_cache_size": 0,
        "prepared_statement_cache_size": 0,
        "prepared_statement_name_func": _no_name,
    }
    engine = create_async_engine(url, connect_args=arguments, execution_options={_POOLED: True}, **shared)
    event.listen(engine.sync_engine, "begin", partial(_bound_statements, statement_timeout_ms))
    return engine


def _no_name() -> str:
    return ""


def _bound_statements(timeout_ms: int, connection: Connection) -> None:
    connection.exec_driver_sql(f"SET LOCAL statement_timeout = {timeout_ms}")


_Closable = TypeVar("_Closable", AsyncSession, AsyncConnection)


@asynccontextmanager
async def _closing(opened: _Closable) -> AsyncIterator[_Closable]:
    with _outages_named():
        try:
            yield opened
        finally:
            with anyio.move_on_after(CLOSE_TIMEOUT_S, shield=True):
                await opened.close()


@contextmanager
def _outages_named() -> Iterator[None]:
    try:
        yield
    # While it connects a driver raises OSError itself: refused, no such host, no answer in time.
    except (OSError, PoolTimeout, DBAPIError) as error:
        if isinstance(error, DBAPIError) and not _is_outage(error):
            raise
        raise Unavailable(
            "The database cannot be used now: try again in a few seconds.", headers={"Retry-After": "1"}
        ) from error


def _is_outage(error: DBAPIError) -> bool:
    if error.connection_invalidated or isinstance(error, InterfaceError):
        return True
    if isinstance(error.orig, sqlite3.Error):
        return getattr(error.orig, "sqlite_errorcode", 0) & 0xFF in _OUTAGES_SQLITE
    return (getattr(error.orig, "sqlstate", None) or "").startswith(_OUTAGES_POSTGRESQL)


def _to_json(value: object) -> str:
    return orjson.dumps(value).decode()


def _prepare_sqlite(connection: Any, record: ConnectionPoolEntry) -> None:
    del record
    # The driver's own transactions begin late and without the write lock: _begin_sqlite begins them instead.
    connection.isolation_level = None
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "foreign_keys=ON", "synchronous=NORMAL"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    connection.exec_driver_sql(connection.get_execution_options().get(SQLITE_BEGIN, "BEGIN"))

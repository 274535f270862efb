"""A connection to SQLite whose end cannot wait for ever.

aiosqlite's `close` waits for the word of its thread. Where SQLAlchemy gave up on a cancelled `close` and stopped that
thread already, the word never comes: the task that closes waits for good, through its own cancellation, and the loop
with it. So a connection is stopped once, and who asks again waits for that.
"""

import asyncio
import sqlite3
from functools import partial
from typing import Any

import aiosqlite

_ROWS_AT_ONCE = 64


class StoppedOnce(aiosqlite.Connection):
    """aiosqlite's own, but for a second `stop`, which is the first."""

    _stopping: "asyncio.Future[None] | None" = None
    _is_stopped = False

    def stop(self) -> "asyncio.Future[None] | None":
        if not self._is_stopped:
            self._is_stopped = True
            self._stopping = super().stop()
        return self._stopping


def connect(database: str, **arguments: Any) -> StoppedOnce:
    """To be awaited, as `aiosqlite.connect`; `arguments` are those of `sqlite3.connect`. For SQLAlchemy's
    `async_creator_fn`.
    """
    connection = StoppedOnce(partial(sqlite3.connect, database, **arguments), _ROWS_AT_ONCE)
    # A process that ends waits for no connection that somebody left open.
    connection._thread.daemon = True  # noqa: SLF001 - as SQLAlchemy does; there is no other way to say it
    return connection

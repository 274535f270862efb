"""Who holds the lock that a migration waits for, so that the message of one that gives up can name them.

It looks by a connection of its own, since the waiting one is busy, and a lock that was not got in time leaves no trace.
What others run is not told: a statement may hold what nobody else should read.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
from sqlalchemy import RowMapping, text
from sqlalchemy.engine import URL
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import NullPool

from tidegate.storage.database import create_engine
from tidegate.storage.database_login import DatabaseLogin

_LOOK_EVERY_S = 0.3
_LOOK_WITHIN_S = 2.0
_CLOSE_WITHIN_S = 5.0
_HOLDERS = text(
    "SELECT pid, usename, application_name, host(client_addr) AS address, state,"
    " extract(epoch FROM now() - xact_start)::int AS age_s"
    " FROM pg_stat_activity WHERE pid = ANY(pg_blocking_pids(:waiting)) ORDER BY xact_start LIMIT 5"
)


class LockHolders:
    """Those in the way of one session of PostgreSQL. On SQLite, which knows no such thing, nobody.

    >>> holders = LockHolders(location)
    >>> async with holders.watched():
    ...     holders.waiting = pid_of_the_session
    ...     ...
    >>> holders.told
    'process 4242 (user app, application psql, idle in transaction, for 63 s)'
    """

    def __init__(self, location: URL, login: DatabaseLogin | None = None) -> None:
        self.waiting: int | None = None
        self.told = ""
        self._location = location
        self._login = login

    @asynccontextmanager
    async def watched(self) -> AsyncIterator[None]:
        """Looks three times a second until the block ends; `told` keeps what was seen last."""
        if self._location.get_backend_name() == "sqlite":
            yield
            return
        watching = asyncio.create_task(self._watch())
        try:
            yield
        finally:
            watching.cancel()
            with anyio.CancelScope(shield=True):
                await asyncio.wait([watching], timeout=_CLOSE_WITHIN_S)

    async def _watch(self) -> None:
        limits: dict[str, Any] = {"command_timeout_s": _LOOK_WITHIN_S, "poolclass": NullPool}
        engine = create_engine(self._location, login=self._login, pooler="transaction", **limits)
        while True:
            await asyncio.sleep(_LOOK_EVERY_S)
            if self.waiting is None:
                continue
            # It only words a message.
            try:
                async with engine.connect() as connection:
                    found = await connection.execute(_HOLDERS, {"waiting": self.waiting})
                    holders = found.mappings().all()
            except (OSError, SQLAlchemyError):
                continue
            if holders:
                self.told = ", ".join(_described(holder) for holder in holders)


def _described(holder: RowMapping) -> str:
    # What a role may not see of another's session is null.
    known = [
        f"user {holder['usename']}" if holder["usename"] else "",
        f"application {holder['application_name']}" if holder["application_name"] else "",
        f"from {holder['address']}" if holder["address"] else "",
        holder["state"] or "",
        f"for {holder['age_s']} s" if holder["age_s"] is not None else "",
    ]
    return f"process {holder['pid']} ({', '.join(part for part in known if part)})"

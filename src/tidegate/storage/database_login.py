"""As whom a connection to PostgreSQL is made, where the URL does not say it: by a certificate, or a password file.

Both may change at any time, so both are looked at for each connection. Whoever changes a password changes it in two
places: a log-in that falls in between is tried once more where the file says something else by then, and what was
refused waits a second before it is tried again.
"""

import asyncio
import time
from typing import Any

import asyncpg  # type: ignore[import-untyped]

from tidegate.settings.groups import DatabaseSettings
from tidegate.storage.password_file import PasswordFile
from tidegate.storage.tls import ConnectTls, database_tls
from tidegate.telemetry.logging import get_logger

log = get_logger(__name__)


# What was refused is not shown again for so long: each try costs the server a process, and some count them.
PAUSE_S = 1.0
# PgBouncer has its own class for whatever it refuses.
_REFUSALS = (asyncpg.InvalidAuthorizationSpecificationError, asyncpg.ProtocolViolationError)


class LogInRefused(OSError):
    """The server refused what there is to show a moment ago, and was not asked again."""


class DatabaseLogin:
    """How a connection is opened.

    >>> engine = create_engine(url, login=database_login(settings.database))
    """

    def __init__(self, tls: ConnectTls = None, password: PasswordFile | None = None) -> None:
        self._tls = tls
        self._password = password
        # One line until a log-in succeeds again.
        self._is_told = False
        self._refused: dict[str, Any] | None = None
        self._refused_until = 0.0

    async def connect(self, *args: Any, **given: Any) -> Any:
        """A connection of asyncpg's, whose arguments these are; for SQLAlchemy's `async_creator_fn`.

        Their `timeout` bounds all of it. Raises what asyncpg raises, and `OSError` where a file cannot be used, or
        where nothing is there but what was just refused.
        """
        async with asyncio.timeout(given.get("timeout")):
            shown = await self._shown()
            if shown == self._refused and time.monotonic() < self._refused_until:
                raise LogInRefused("PostgreSQL refused this log-in a moment ago")
            try:
                try:
                    connection = await asyncpg.connect(*args, **{**given, **shown})
                except _REFUSALS as refusal:
                    newer = await self._shown()
                    if newer == shown or not _is_of_log_in(refusal):
                        raise
                    shown = newer
                    connection = await asyncpg.connect(*args, **{**given, **shown})
            except _REFUSALS as refusal:
                if not _is_of_log_in(refusal):
                    raise
                self._refused, self._refused_until = shown, time.monotonic() + PAUSE_S
                if not self._is_told:
                    self._is_told = True
                    log.warning("database_refuses_log_in", sqlstate=refusal.sqlstate, reason=str(refusal))
                raise
        self._is_told, self._refused = False, None
        return connection

    async def _shown(self) -> dict[str, Any]:
        """What there is to show now, as asyncpg takes it; the URL says the rest."""
        shown: dict[str, Any] = {}
        if self._tls is not None:
            shown["ssl"] = self._tls and await self._tls.current()
        if self._password is not None:
            shown["password"] = await self._password.read()
        return shown


def _is_of_log_in(refusal: asyncpg.PostgresError) -> bool:
    """Or that PgBouncer is full, or knows no such database."""
    is_bouncers = isinstance(refusal, asyncpg.ProtocolViolationError)
    return not is_bouncers or "authentication failed" in str(refusal)


def database_login(chosen: DatabaseSettings) -> DatabaseLogin:
    """What `Database.open`, and a migration, take from the settings."""
    path = chosen.password_file
    return DatabaseLogin(
        database_tls(chosen), None if path is None else PasswordFile(path, "TIDEGATE_DATABASE__PASSWORD_FILE")
    )

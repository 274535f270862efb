"""As whom a connection to PostgreSQL is made, where the URL does not say it: by a certificate, or a password file.

Both may change at any time, so both are looked at for each connection. Whoever changes a password changes it in two
places: a log-in that falls in between is tried once more where the file says something else by then.
"""

from typing import Any

import asyncpg  # type: ignore[import-untyped]

from tidegate.settings.groups import DatabaseSettings
from tidegate.storage.password_file import PasswordFile
from tidegate.storage.tls import ConnectTls, database_tls
from tidegate.telemetry.logging import get_logger

log = get_logger(__name__)


class DatabaseLogin:
    """How a connection is opened.

    >>> engine = create_engine(url, login=database_login(settings.database))
    """

    def __init__(self, tls: ConnectTls = None, password: PasswordFile | None = None) -> None:
        self._tls = tls
        self._password = password
        # One line until a log-in succeeds again.
        self._is_told = False

    async def connect(self, *args: Any, **given: Any) -> Any:
        """A connection of asyncpg's, whose arguments these are; for SQLAlchemy's `async_creator_fn`.

        Raises what asyncpg raises, and `OSError` where a file cannot be used.
        """
        if self._tls is not None:
            given["ssl"] = self._tls and await self._tls.current()
        try:
            connection = await self._logged_in(args, given)
        except asyncpg.InvalidAuthorizationSpecificationError as refusal:
            if not self._is_told:
                self._is_told = True
                log.warning("database_refuses_log_in", sqlstate=refusal.sqlstate, reason=str(refusal))
            raise
        self._is_told = False
        return connection

    async def _logged_in(self, args: tuple[Any, ...], given: dict[str, Any]) -> Any:
        if self._password is None:
            return await asyncpg.connect(*args, **given)
        password = await self._password.read()
        try:
            return await asyncpg.connect(*args, **{**given, "password": password})
        except asyncpg.InvalidAuthorizationSpecificationError:
            newer = await self._password.read()
            if newer == password:
                raise
        return await asyncpg.connect(*args, **{**given, "password": newer})


def database_login(chosen: DatabaseSettings) -> DatabaseLogin:
    """What `Database.open`, and a migration, take from the settings."""
    path = chosen.password_file
    return DatabaseLogin(
        database_tls(chosen), None if path is None else PasswordFile(path, "TIDEGATE_DATABASE__PASSWORD_FILE")
    )

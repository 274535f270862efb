"""The database as a command needs it: open, and at head."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tidegate.settings import Settings, SettingsError
from tidegate.storage.database import Database
from tidegate.storage.database_login import database_login
from tidegate.storage.migrate import migrate, require_head


@asynccontextmanager
async def open_database(settings: Settings) -> AsyncIterator[Database]:
    """A database at head. SQLite outside production is brought there; any other that is behind is refused.

    Raises `SchemaBehind`, and whatever the driver raises where the database does not answer.
    """
    migrates_itself = settings.on_sqlite and not settings.in_production
    if migrates_itself:
        _make_directory(settings)
        await migrate(settings.database_url)
    login = database_login(settings.database)
    pooler = settings.database.pooler
    database = await Database.open(settings.database_url, pool_size=1, max_overflow=1, login=login, pooler=pooler)
    try:
        if not migrates_itself:
            await require_head(database)
        yield database
    finally:
        await database.aclose()


def _make_directory(settings: Settings) -> None:
    try:
        settings.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        fault = f"TIDEGATE_DATA_DIR: {settings.data_dir} cannot be written: {error.strerror or error}"
        raise SettingsError([fault]) from None

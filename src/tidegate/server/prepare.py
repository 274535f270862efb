"""The prepare step: what is done once before workers start, in a process of its own.

The schema is brought to head (development and test on SQLite) or checked, the first admin and key are made, and the
workers' pool is computed. What is generated goes to the root by pipes alone, never by argv, environment or log.
"""

from dataclasses import asdict

from sqlalchemy import text

from tidegate.accounts.bootstrap import Bootstrapped, bootstrap
from tidegate.auth.keyring import Keyrings
from tidegate.server.fork import Prepared
from tidegate.server.pools import Pool, pool_for
from tidegate.settings import Settings
from tidegate.storage.database import Database
from tidegate.storage.migrate import migrate, require_head


async def prepare(settings: Settings, workers: int) -> Prepared:
    """Raises what `cli.failures` knows how to say, and `StartRefused` where the pool cannot fit."""
    keyrings = Keyrings.load(settings)
    if settings.on_sqlite and not settings.in_production:
        await migrate(settings.database_url)
    database = await Database.open(settings.database_url)
    try:
        await require_head(database)
        pool = await _pool(database, settings, workers)
        made = await bootstrap(database, settings, keyrings)
    finally:
        await database.aclose()
    return Prepared(pool=pool, made=_shown(made))


async def _pool(database: Database, settings: Settings, workers: int) -> Pool | None:
    if database.dialect_name != "postgresql":
        return None
    query = text(
        "SELECT current_setting('max_connections')::int, current_setting('superuser_reserved_connections')::int"
        " + coalesce(current_setting('reserved_connections', true)::int, 0)"
    )
    async with database.session() as session:
        max_connections, reserved = (await session.execute(query)).one()
    return pool_for(settings, workers=workers, max_connections=max_connections, reserved=reserved)


def _shown(made: Bootstrapped) -> dict[str, str] | None:
    return {name: str(value) for name, value in asdict(made).items() if value is not None} or None

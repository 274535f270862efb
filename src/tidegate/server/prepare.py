"""The prepare step: what is done once before workers start, in a process of its own.

The schema is brought to head (development and test on SQLite) or checked, the first admin and key are made, and the
workers' pool is computed. What is generated goes to the root by pipes alone, never by argv, environment or log.
"""

from dataclasses import asdict

from sqlalchemy.exc import DBAPIError

from tidegate.accounts.bootstrap import Bootstrapped, bootstrap
from tidegate.auth.keyring import Keyrings
from tidegate.server.fork import Prepared
from tidegate.server.refusal import StartRefused
from tidegate.server.shares import pool_of_worker
from tidegate.settings import Settings
from tidegate.storage.database import Database
from tidegate.storage.database_login import database_login
from tidegate.storage.migrate import migrate, require_head
from tidegate.storage.rights import may_change_tables
from tidegate.telemetry.logging import get_logger

log = get_logger(__name__)


async def prepare(settings: Settings, workers: int) -> Prepared:
    """Raises what `cli.failures` knows how to say, and `StartRefused` where the pool cannot fit."""
    keyrings = Keyrings.load(settings)
    if settings.on_sqlite and not settings.in_production:
        await migrate(settings.database_url)
    login, pooler = database_login(settings.database), settings.database.pooler
    database = await Database.open(settings.database_url, login=login, pooler=pooler)
    try:
        await _require_head(database)
        if settings.in_production and await may_change_tables(database):
            log.warning(
                "the database's role may change tables, and take away the audit trail's triggers: keep it for "
                "`tidegate migrate`, and give `tidegate serve` one that reads and writes rows alone"
            )
        pool = await pool_of_worker(database, settings, workers)
        made = await bootstrap(database, settings, keyrings)
    finally:
        await database.aclose()
    return Prepared(pool=pool, made=_shown(made))


async def _require_head(database: Database) -> None:
    try:
        await require_head(database)
    except DBAPIError as error:
        if "unsupported startup parameter" not in str(error.orig):
            raise
        raise StartRefused(
            "TIDEGATE_DATABASE__URL: PgBouncer answers there; set TIDEGATE_DATABASE__POOLER=transaction"
        ) from None


def _shown(made: Bootstrapped) -> dict[str, str] | None:
    return {name: str(value) for name, value in asdict(made).items() if value is not None} or None

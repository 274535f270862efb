"""The prepare step: what is done once before workers start, in a process of its own.

The schema is brought to head (development and test on SQLite) or checked, the first admin and key are made, and the
workers' pool is computed. It is a fork of the server's process, taken when that has imported everything and runs
nothing yet: a fresh interpreter would spend a second of CPU on importing SQLAlchemy again.

What it generated goes up by pipes alone, never by argv, environment or log.
"""

import asyncio
import logging
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, NoReturn, Self

import orjson
from setproctitle import setproctitle
from sqlalchemy import text

from tidegate.accounts.bootstrap import Bootstrapped, bootstrap
from tidegate.auth.keyring import Keyrings
from tidegate.cli.failures import failure_lines
from tidegate.server.lifeline import terminate_self, watch_in_thread
from tidegate.server.pools import Pool, pool_for
from tidegate.server.refusal import EXIT_REFUSED, StartRefused, print_faults
from tidegate.settings import Settings
from tidegate.storage.database import Database
from tidegate.storage.migrate import migrate, require_head
from tidegate.telemetry.logging import configure_logging

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Prepared:
    """`pool` is for the workers (None on SQLite, which needs no arithmetic), `made` for the root's banner."""

    pool: Pool | None = None
    made: dict[str, Any] | None = None

    def to_json(self) -> bytes:
        return orjson.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: bytes) -> Self:
        fields = orjson.loads(text)
        pool = fields["pool"]
        return cls(pool=Pool(**pool) if pool else None, made=fields["made"])


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


def prepare_in_fork(settings: Settings, workers: int, step: Callable[[Settings, int], Any] = prepare) -> Prepared:
    """Runs the step in a fork of this process, which must run neither threads nor an event loop.

    Raises `StartRefused`: without a fault where the fork has printed each.
    """
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        _run(settings, workers, step, writing)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        answer = pipe.read()
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code == EXIT_REFUSED:
        raise StartRefused
    if code != 0:
        raise StartRefused(f"the prepare step ended with code {code}")
    return Prepared.from_json(answer)


def _run(settings: Settings, workers: int, step: Callable[[Settings, int], Any], writing: int) -> NoReturn:
    code = 1
    try:
        setproctitle("tidegate: prepare")
        configure_logging(settings, process="prepare")
        watch_in_thread(terminate_self)
        prepared: Prepared = asyncio.run(step(settings, workers))
        os.write(writing, prepared.to_json())
        code = 0
    except Exception as error:
        # The edge of a process: what nobody foresaw is logged as everything else is.
        faults = error.faults if isinstance(error, StartRefused) else failure_lines(error)
        if faults is None:
            logger.exception("the prepare step failed")
        else:
            print_faults(faults, as_json=settings.in_production)
            code = EXIT_REFUSED
    finally:
        # The parent's exit hooks are not this fork's.
        os._exit(code)


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


def _shown(made: Bootstrapped) -> dict[str, Any] | None:
    shown = {name: value for name, value in asdict(made).items() if value is not None}
    return orjson.loads(orjson.dumps(shown, default=str)) if shown else None

"""Empty PostgreSQL databases that are lent to one test after the other: to empty one costs a tenth of making it.

    with lending(service) as databases, databases.lent() as url:
        ...  # postgresql+asyncpg://…

One that cannot be made as new again, or that the test dropped, is not lent a second time.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

import asyncpg  # type: ignore[import-untyped]

from tests.support import services
from tests.support.services import LOOPBACK, Service

_LET_GO = """
SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid()
"""
# As PostgreSQL makes it since version 14; an older one refuses, and its databases are lent once.
_EMPTY = """
DROP SCHEMA public CASCADE;
CREATE SCHEMA public AUTHORIZATION pg_database_owner;
GRANT USAGE ON SCHEMA public TO PUBLIC
"""
# What no drop of a schema takes along.
_LEFT = """
SELECT (SELECT count(*) FROM pg_namespace WHERE nspname !~ '^pg_' AND nspname NOT IN ('public', 'information_schema'))
     + (SELECT count(*) FROM pg_extension WHERE extname <> 'plpgsql')
     + (SELECT count(*) FROM pg_largeobject_metadata) + (SELECT count(*) FROM pg_event_trigger)
     + (SELECT count(*) FROM pg_db_role_setting s JOIN pg_database d ON d.oid = s.setdatabase
        WHERE d.datname = current_database())
"""


class Databases:
    """`close` drops those that nobody has."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._free: list[str] = []

    @contextmanager
    def lent(self) -> Iterator[str]:
        url = self._free.pop() if self._free else services.create_database(self._service)
        try:
            yield url
        finally:
            if asyncio.run(_is_emptied(self._service.port, url.rpartition("/")[2])):
                self._free.append(url)
            else:
                services.drop_database(self._service, url)

    def close(self) -> None:
        for url in self._free:
            services.drop_database(self._service, url)


@contextmanager
def lending(service: Service) -> Iterator[Databases]:
    databases = Databases(service)
    try:
        yield databases
    finally:
        databases.close()


async def _is_emptied(port: int, name: str) -> bool:
    try:
        connection = await asyncpg.connect(host=LOOPBACK, port=port, user="postgres", database=name, timeout=10)
    except asyncpg.InvalidCatalogNameError:
        return False
    try:
        await connection.execute(_LET_GO)
        await connection.execute(_EMPTY)
        return not await connection.fetchval(_LEFT)
    except asyncpg.PostgresError:
        return False
    finally:
        await connection.close()

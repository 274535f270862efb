"""What the database, Redis and the ledger answer this process, for `tidegate check`: over its own connections.

Each is asked within a bound, and one that does not answer is a fact too (`error`), not an exception.
"""

import asyncio
import time
from collections.abc import Awaitable
from typing import Any

from sqlalchemy import Result, select, text

from tidegate.ledger.models import LedgerEntry
from tidegate.storage.cluster_client import ClusterClient
from tidegate.storage.database import Database
from tidegate.storage.migrate import standing_of
from tidegate.storage.redis import RedisClient

_WITHIN_S = 2.0
_LATEST = 50

_CONNECTIONS = text(
    "SELECT current_setting('max_connections')::int AS allowed,"
    " current_setting('superuser_reserved_connections')::int"
    " + coalesce(current_setting('reserved_connections', true)::int, 0) AS reserved,"
    " (SELECT count(*) FROM pg_stat_activity WHERE application_name = 'tidegate' AND datname = current_database())"
    " AS in_use, extract(epoch FROM clock_timestamp())::float8 AS clock"
)


async def facts_of_database(database: Database) -> dict[str, Any]:
    dialect = database.engine.dialect
    kind = {"dialect": dialect.name, "driver": dialect.driver, "is_async": dialect.is_async}
    return kind | await _within(_asked_database(database))


async def facts_of_redis(redis: RedisClient | None) -> dict[str, Any]:
    if redis is None:
        return {"configured": False}
    return {"configured": True} | await _within(_asked_redis(redis))


async def facts_of_ledger(database: Database, request_id: str | None) -> dict[str, Any]:
    """The newest entries and those of one request, without whose they are."""
    return await _within(_asked_ledger(database, request_id))


async def _within(asked: Awaitable[dict[str, Any]]) -> dict[str, Any]:
    try:
        async with asyncio.timeout(_WITHIN_S):
            return await asked
    except Exception as error:  # noqa: BLE001 - an edge: whatever a driver raises is a fact about what it was asked for
        # Its own words may hold a URL or an address.
        return {"error": type(error).__name__}


async def _asked_database(database: Database) -> dict[str, Any]:
    standing = await standing_of(database)
    told: dict[str, Any] = {"revision": standing.revision, "missing": standing.missing, "newer": standing.newer}
    if database.dialect_name != "postgresql":
        return told
    async with database.session() as session:
        before = time.time()
        row = (await session.execute(_CONNECTIONS)).one()
        now = (before + time.time()) / 2
    connections = {"max_connections": row.allowed, "reserved": row.reserved, "in_use": row.in_use}
    return told | connections | {"clock_ahead_s": round(row.clock - now, 3)}


async def _asked_redis(redis: RedisClient) -> dict[str, Any]:
    """Of a cluster, all masters together: the clock that is furthest off, and every policy."""
    before = time.time()
    clocks = await redis.of_each("TIME") if isinstance(redis, ClusterClient) else [await redis.time()]
    now = (before + time.time()) / 2
    ahead: list[float] = [int(seconds) + int(microseconds) / 1e6 - now for seconds, microseconds in clocks]
    servers = await _told_by_each(redis, "server")
    policies = {each.get("maxmemory_policy") for each in await _told_by_each(redis, "memory")}
    furthest: float = max(ahead, key=abs)
    return {
        "run_id": "+".join(sorted(str(each.get("run_id")) for each in servers)),
        "clock_ahead_s": round(furthest, 3),
        # None where it does not tell, as managed ones may.
        "policy": None if policies <= {None} else ",".join(sorted(str(policy) for policy in policies)),
    }


async def _told_by_each(redis: RedisClient, section: str) -> list[dict[str, Any]]:
    if isinstance(redis, ClusterClient):
        return [dict(told) for told in await redis.info_of_each(section)]
    return [await redis.info(section)]


async def _asked_ledger(database: Database, request_id: str | None) -> dict[str, Any]:
    entry = LedgerEntry
    about = (entry.request_id, entry.outcome, entry.status, entry.streamed)
    columns = (*about, entry.ttft_ms, entry.duration_ms, entry.ended_at)
    # By its key, which is ordered in time: nothing else is indexed over all workspaces.
    newest = select(*columns).order_by(entry.entry_id.desc()).limit(_LATEST)
    async with database.session() as session:
        told = {"latest": _rows(await session.execute(newest))}
        if request_id is not None:
            of_one = select(*columns).where(entry.request_id == request_id).limit(_LATEST)
            told["of_request"] = _rows(await session.execute(of_one))
    return told


def _rows(result: Result[Any]) -> list[dict[str, Any]]:
    return [dict(row) for row in result.mappings()]

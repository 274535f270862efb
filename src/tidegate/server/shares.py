"""Asks the database and Redis how many connections they allow, and says what each worker gets of them.

It is one line of the log, in production at `info`. A Redis that is away, or that does not let itself be asked as
managed ones may, is no fault: the pools are then the largest, and the line says why.
"""

import asyncio
import logging

from redis.exceptions import RedisError, ResponseError
from sqlalchemy import text

from tidegate.server.pools import Pool, Share, cluster_share, database_share, pooled_share, redis_share, split
from tidegate.server.refusal import StartRefused
from tidegate.settings import Settings
from tidegate.storage.cluster_client import ClusterClient
from tidegate.storage.database import Database
from tidegate.storage.redis import MOST_CONNECTIONS, RedisClient, close_redis, open_redis
from tidegate.telemetry.logging import get_logger

_REDIS_WITHIN_S = 2.0

log = get_logger(__name__)


async def pool_of_worker(database: Database, settings: Settings, workers: int) -> Pool | None:
    """One worker's share; None where there is nothing to share: SQLite and no Redis.

    Raises `StartRefused` with every sum that cannot be met, and what the database's driver raises.
    """
    pool = Pool()
    told: dict[str, str] = {}
    faults: list[str] = []
    try:
        if (share := await _of_database(database, settings, workers)) is not None:
            size, overflow = split(share.connections)
            pool, told["database"] = Pool(size, overflow), share.arithmetic
    except StartRefused as refusal:
        faults += refusal.faults
    try:
        if (share := await _of_redis(settings, workers)) is not None:
            pool, told["redis"] = Pool(pool.size, pool.overflow, share.connections), share.arithmetic
    except StartRefused as refusal:
        faults += refusal.faults
    if faults:
        raise StartRefused(*faults)
    if not told:
        return None
    log.log(logging.INFO if settings.in_production else logging.DEBUG, "connections_shared", **told)
    return pool


async def _of_database(database: Database, settings: Settings, workers: int) -> Share | None:
    if database.dialect_name != "postgresql":
        return None
    if settings.database.pooler is not None:
        return pooled_share(settings, workers=workers)
    query = text(
        "SELECT current_setting('max_connections')::int, current_setting('superuser_reserved_connections')::int"
        " + coalesce(current_setting('reserved_connections', true)::int, 0)"
    )
    async with database.session() as session:
        max_connections, reserved = (await session.execute(query)).one()
    return database_share(settings, workers=workers, max_connections=max_connections, reserved=reserved)


async def _of_redis(settings: Settings, workers: int) -> Share | None:
    client = open_redis(settings)
    if client is None:
        return None
    try:
        async with asyncio.timeout(_REDIS_WITHIN_S):
            max_clients = await max_clients_of(client)
    except (RedisError, OSError, TimeoutError) as error:
        return Share(MOST_CONNECTIONS, f"not asked for maxclients ({type(error).__name__})")
    finally:
        await close_redis(client)
    if max_clients is None:
        return Share(MOST_CONNECTIONS, "it does not tell its maxclients")
    shared = cluster_share if settings.redis.cluster else redis_share
    return shared(settings, workers=workers, max_clients=max_clients)


async def max_clients_of(client: RedisClient) -> int | None:
    """Redis' `maxclients`, of a cluster's masters the least; None where it answers neither INFO nor CONFIG with it."""
    if isinstance(client, ClusterClient):
        least = [int(each["maxclients"]) for each in await client.info_of_each("clients") if "maxclients" in each]
        return min(least, default=None)
    for ask in (lambda: client.info("clients"), lambda: client.config_get("maxclients")):
        try:
            answer = await ask()
        except ResponseError:
            # No permission, or a command that was renamed.
            continue
        if (told := answer.get("maxclients")) is not None:
            return int(told)
    return None

"""What a process keeps elsewhere: database, Redis, and word of changes from other processes."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from tidegate.lifespan.surroundings import Surroundings
from tidegate.settings import Settings
from tidegate.storage.changes import Changes
from tidegate.storage.database import Database
from tidegate.storage.database_login import database_login
from tidegate.storage.read_through import ReadThrough
from tidegate.storage.redis import RedisClient, close_redis, open_redis


@dataclass(frozen=True, slots=True)
class Stores:
    """`redis` is None where the stores are in the process."""

    database: Database
    redis: RedisClient | None
    changes: Changes
    read_through: ReadThrough


@asynccontextmanager
async def open_stores(settings: Settings, surroundings: Surroundings) -> AsyncIterator[Stores]:
    async with AsyncExitStack() as stack:
        database = await Database.open(
            settings.database_url,
            pool_size=surroundings.pool_size,
            max_overflow=surroundings.max_overflow,
            login=database_login(settings.database),
            pooler=settings.database.pooler,
        )
        stack.push_async_callback(database.aclose)
        redis = open_redis(settings, max_connections=surroundings.redis_connections)
        if redis is not None:
            stack.push_async_callback(close_redis, redis)
        changes = await stack.enter_async_context(Changes.running(settings))
        read_through = ReadThrough(redis, settings.redis.key_prefix, changes)
        stack.push_async_callback(read_through.aclose)
        yield Stores(database, redis, changes, read_through)

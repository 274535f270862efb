"""Processes that read through one Redis, and what they read: a version that counts up, in loads that a test holds."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import msgspec
from pydantic import SecretStr

from tests.support.waiting import eventually
from tidegate.settings import Settings
from tidegate.settings.groups import RedisSettings
from tidegate.storage.changes import Changes
from tidegate.storage.read_through import CacheKey, ReadBounds, ReadThrough
from tidegate.storage.redis import close_redis, open_redis

WORKSPACE = uuid.uuid4()
KEY = CacheKey(WORKSPACE, "usage", "7d")
LONG_S = 60.0
# A busy machine must not be taken for a Redis that is slow.
PATIENT = ReadBounds(redis_s=LONG_S)
UNREMEMBERED = ReadBounds(redis_s=LONG_S, memory_s=0.0)


class Report(msgspec.Struct, frozen=True):
    version: int


class Source:
    """What is dear to make: a version that counts up, and loads that a test holds."""

    def __init__(self) -> None:
        self.version = 1
        self.began = 0
        self.error: Exception | None = None
        self.gate = asyncio.Event()
        self.gate.set()

    async def load(self) -> Report:
        self.began += 1
        read = Report(self.version)
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        return read


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


class Deployment:
    """Processes that share one Redis, each with connections of its own."""

    def __init__(self, url: str, prefix: str, stack: AsyncExitStack) -> None:
        self.settings = Settings(environment="test", redis=RedisSettings(url=SecretStr(url), key_prefix=prefix))
        self._stack = stack

    async def process(self, bounds: ReadBounds = PATIENT, *, hears: bool = False, **more: Any) -> ReadThrough:
        redis = open_redis(self.settings)
        assert redis is not None
        self._stack.push_async_callback(close_redis, redis)
        changes = None
        if hears:
            changes = await self._stack.enter_async_context(Changes.running(self.settings))
            await eventually(lambda: changes.is_live)
        cache = ReadThrough(redis, self.settings.redis.key_prefix, changes, bounds=bounds, **more)
        self._stack.push_async_callback(cache.aclose)
        return cache


async def read(cache: ReadThrough, source: Source, *, key: CacheKey = KEY, ttl_s: float = LONG_S) -> int:
    return (await cache.get(key, source.load, kind=Report, ttl_s=ttl_s)).version


@asynccontextmanager
async def deployed(url: str, prefix: str) -> AsyncIterator[Deployment]:
    async with AsyncExitStack() as stack:
        yield Deployment(url, prefix, stack)

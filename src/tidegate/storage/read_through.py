"""What is dear to make and may be a little old, read through two memories: this process's, then Redis.

Invariants:
- A key begins with its workspace, which is its hash tag in Redis: nothing is shared between workspaces.
- A miss is loaded once: callers of one process share one load, which a cancelled caller does not end; processes share a
  lock in Redis, for which they wait at most `wait_s` before they load all the same.
- From 80 % of its time on a value is loaded again by one process in the background; no caller waits for that.
- Every workspace and topic has a generation, a random token. A value is valid in the generation in which its load
  began: it lands in Redis only where that still stands, in one step, and is read only there. `forget` ends the
  generation, so that a load that began before it never lands after it. A Redis that was emptied has no generations.
- After `forget` returned this process hands out nothing older. Others do so once they heard of it, at the latest after
  `memory_s`: that is how long this process's memory keeps what Redis has. Where Redis could not be told, this process
  goes by it for that topic no more until it could; others may read the older value for the rest of its `ttl_s`.
- Redis slow or gone costs a caller at most 50 ms, and the next ones none: it is then passed by for a second. What is
  asked for is then loaded, and kept for `memory_s`. A caller sees the errors of its own load, and no other.
- Memory is bounded: by entries, and by the size of one. What is larger is handed on and not kept.

Without Redis this process's memory keeps a value for its whole time.
"""

import asyncio
import hashlib
import secrets
import time
import uuid
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar, cast

import msgspec
from redis.commands.core import AsyncScript
from redis.exceptions import RedisError

from tidegate.storage.changes import Changes
from tidegate.storage.cluster_client import ClusterScript
from tidegate.storage.redis import RedisClient, workspace_tag
from tidegate.storage.redis import key as redis_key
from tidegate.telemetry.logging import get_logger

log = get_logger(__name__)

T = TypeVar("T")
Load = Callable[[], Awaitable[T]]
Script = AsyncScript | ClusterScript

LONGEST_TTL_S: Final = 300.0
_GENERATION_MS: Final = 86_400_000
_LOST: Final = (RedisError, OSError, TimeoutError)

# KEYS: value, generation, lock. ARGV: a token of the caller's, ms of a generation, ms from which a value is early, ms
# of the lock. Returns the generation, the value or nothing, the value's ms, and whether the caller holds the lock.
_LOOK = """
local generation = redis.call('GET', KEYS[2])
if not generation then
  generation = ARGV[1]
  redis.call('SET', KEYS[2], generation, 'PX', ARGV[2])
end
local kept = redis.call('GET', KEYS[1])
if kept and string.sub(kept, 1, #generation) ~= generation then
  kept = false
end
local left, is_locked = kept and redis.call('PTTL', KEYS[1]) or 0, 0
if left <= tonumber(ARGV[3]) then
  if redis.call('SET', KEYS[3], ARGV[1], 'NX', 'PX', ARGV[4]) then
    is_locked = 1
  end
end
return {generation, kept and string.sub(kept, #generation + 1), left, is_locked}
"""
# KEYS: value, generation, lock. ARGV: the token, the generation of the look, the value (empty: none), its ms.
_LAND = """
if redis.call('GET', KEYS[3]) == ARGV[1] then
  redis.call('DEL', KEYS[3])
end
if ARGV[3] == '' or redis.call('GET', KEYS[2]) ~= ARGV[2] then
  return 0
end
redis.call('SET', KEYS[1], ARGV[2] .. ARGV[3], 'PX', ARGV[4])
return 1
"""


@dataclass(frozen=True, slots=True)
class ReadBounds:
    """How much is kept and waited for; seconds and bytes."""

    entries: int = 512
    largest_bytes: int = 256 * 1024
    memory_s: float = 1.0
    early: float = 0.8
    redis_s: float = 0.05
    retry_s: float = 1.0
    lock_s: float = 5.0
    wait_s: float = 2.0
    poll_s: float = 0.02
    # Topics that Redis could not be told to forget.
    unforgotten: int = 1_000


@dataclass(frozen=True, slots=True)
class CacheKey:
    """What is read. `topic` is what `forget` forgets together; it has no colon. `name` tells the rest apart."""

    workspace_id: uuid.UUID
    topic: str
    name: str

    @property
    def group(self) -> "Group":
        return self.workspace_id, self.topic


Group = tuple[uuid.UUID, str]


@dataclass(frozen=True, slots=True)
class _Asked(Generic[T]):
    key: CacheKey
    load: Load[T]
    kind: type[T]
    ttl_s: float


@dataclass(frozen=True, slots=True)
class _Kept:
    value: Any
    early_at: float
    until: float


@dataclass(frozen=True, slots=True)
class _Look:
    """What Redis has: the value's bytes and for how long, and the token of the lock where it is ours to load."""

    generation: bytes
    encoded: bytes | None
    left_s: float
    token: str | None


class ReadThrough:
    """Reads through the two memories. `loads` counts for metrics and tests.

    >>> cache = ReadThrough(redis, settings.redis.key_prefix, changes)
    >>> rows = await cache.get(CacheKey(workspace_id, "usage", "7d"), load, kind=list[UsageRow], ttl_s=10)
    """

    def __init__(
        self,
        redis: RedisClient | None,
        prefix: str,
        changes: Changes | None = None,
        *,
        bounds: ReadBounds | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.loads = 0
        self._redis = redis
        self._prefix = prefix
        self._changes = changes
        self._bounds = bounds or ReadBounds()
        self._clock = clock
        self._memory: dict[CacheKey, _Kept] = {}
        self._flights: dict[CacheKey, asyncio.Task[Any]] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        # Counted up whenever anything is forgotten: what began before lands in no memory of this process.
        self._epoch = 0
        self._unforgotten: set[Group] = set()
        self._redis_answers = True
        self._retry_at = 0.0
        self._avoid_until = 0.0
        self._look_script = None if redis is None else redis.register_script(_LOOK)
        self._land_script = None if redis is None else redis.register_script(_LAND)
        if changes is not None:
            changes.listen("read:", self._hear)

    @property
    def is_shared(self) -> bool:
        """Whether there is a second memory, which every process reads."""
        return self._redis is not None

    async def get(self, key: CacheKey, load: Load[T], *, kind: type[T], ttl_s: float) -> T:
        """What is known of `key`, for at most `ttl_s`, else what `load` gives, which is a `kind` that msgspec encodes.

        Raises what `load` raises, which sets its own deadline.
        """
        asked = _Asked(key, load, kind, min(ttl_s, LONGEST_TTL_S))
        kept = self._memory.get(key)
        now = self._clock()
        if kept is not None and now < kept.until:
            if now >= kept.early_at and key not in self._flights:
                self._fly(asked)
            return cast("T", kept.value)
        flight = self._flights.get(key) or self._fly(asked)
        await asyncio.wait({flight})
        return cast("T", flight.result())

    async def forget(self, workspace_id: uuid.UUID, topic: str) -> None:
        """Makes what was read of this topic invalid, in every process: to be called after the commit. Never raises."""
        group = workspace_id, topic
        self._drop(group)
        if self._redis is None:
            return
        await self._forget_in_redis(group)
        if self._changes is not None:
            await self._changes.tell(f"read:{workspace_id}:{topic}")

    async def aclose(self) -> None:
        """Ends what runs in the background, before Redis and the database are closed."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _fly(self, asked: _Asked[T]) -> asyncio.Task[T]:
        flight = self._in_background(self._read(asked))
        self._flights[asked.key] = flight

        def landed(_: asyncio.Task[T]) -> None:
            # What was forgotten meanwhile has another flight there, or none.
            if self._flights.get(asked.key) is flight:
                del self._flights[asked.key]

        flight.add_done_callback(landed)
        return flight

    def _in_background(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        # Who waits for it sees the error; for an early load nobody does.
        if not task.cancelled() and (error := task.exception()) is not None:
            log.info("a value was not loaded", error=type(error).__name__)

    async def _read(self, asked: _Asked[T]) -> T:
        epoch = self._epoch
        look = await self._look(asked)
        if look is not None and look.encoded is None and look.token is None:
            look = await self._wait_for_another(asked, look)
        if look is None or look.encoded is None:
            return await self._load(asked, look, epoch)
        try:
            value = msgspec.msgpack.decode(look.encoded, type=asked.kind)
        except msgspec.DecodeError:
            # Another version of this program wrote it.
            return await self._load(asked, look, epoch)
        if look.token is not None:
            self._in_background(self._load(asked, look, epoch))
        self._keep(asked, value, epoch, seconds=min(self._bounds.memory_s, look.left_s))
        return value

    async def _wait_for_another(self, asked: _Asked[T], look: _Look) -> _Look | None:
        """What Redis has once another process has loaded, failed, or taken longer than is waited for."""
        until = self._clock() + self._bounds.wait_s
        latest: _Look | None = look
        while latest is not None and latest.encoded is None and latest.token is None and self._clock() < until:
            await asyncio.sleep(self._bounds.poll_s)
            latest = await self._look(asked)
        return latest

    async def _load(self, asked: _Asked[T], look: _Look | None, epoch: int) -> T:
        self.loads += 1
        encoded = b""
        try:
            value = await asked.load()
            encoded = msgspec.msgpack.encode(value)
            if len(encoded) > self._bounds.largest_bytes:
                encoded = b""
        finally:
            if look is not None:
                # Also where there is nothing to land: others wait for the lock.
                await self._land(asked, look, encoded)
        if encoded:
            seconds = asked.ttl_s if self._redis is None else min(self._bounds.memory_s, asked.ttl_s)
            self._keep(asked, value, epoch, seconds=seconds)
        return value

    def _keep(self, asked: _Asked[Any], value: object, epoch: int, *, seconds: float) -> None:
        if epoch != self._epoch:
            return
        now = self._clock()
        # Where Redis has it, Redis says when it is early.
        early_s = seconds * self._bounds.early if self._redis is None else seconds
        self._memory.pop(asked.key, None)
        self._memory[asked.key] = _Kept(value, now + early_s, now + seconds)
        if len(self._memory) > self._bounds.entries:
            del self._memory[next(iter(self._memory))]

    def _hear(self, topic: str | None) -> None:
        if topic is None:
            self._epoch += 1
            self._memory.clear()
            self._flights.clear()
            return
        _, workspace_id, name = topic.split(":", 2)
        self._drop((uuid.UUID(workspace_id), name))

    def _drop(self, group: Group) -> None:
        self._epoch += 1
        for kept in (self._memory, self._flights):
            for key in [key for key in kept if key.group == group]:
                # A flight goes on for those who asked before, and nobody joins it.
                del kept[key]

    async def _look(self, asked: _Asked[Any]) -> _Look | None:
        """None where Redis is not to be had."""
        group = asked.key.group
        if group in self._unforgotten and not await self._forget_in_redis(group):
            return None
        token = secrets.token_hex(8)
        early_ms = round(asked.ttl_s * (1 - self._bounds.early) * 1000)
        arguments = (token, _GENERATION_MS, early_ms, round(self._bounds.lock_s * 1000))
        answer = await self._call(self._look_script, self._keys(asked.key), arguments)
        if answer is None:
            return None
        generation, encoded, left_ms, is_locked = answer
        return _Look(generation, encoded, left_ms / 1000, token if is_locked else None)

    async def _land(self, asked: _Asked[Any], look: _Look, encoded: bytes) -> None:
        arguments = (look.token or "-", look.generation, encoded, round(asked.ttl_s * 1000))
        await self._call(self._land_script, self._keys(asked.key), arguments)

    async def _forget_in_redis(self, group: Group) -> bool:
        """Ends the generation. Where that fails this process reads nothing of the topic there until it succeeds."""
        self._unforgotten.add(group)
        redis = self._redis
        generation = self._key(group)
        if redis is not None and await self._bounded(lambda: redis.delete(generation)) is not None:
            self._unforgotten.discard(group)
            return True
        self._unforgotten.add(group)
        if len(self._unforgotten) > self._bounds.unforgotten:
            # Nothing that is there now outlives this.
            self._unforgotten.clear()
            self._avoid_until = self._clock() + LONGEST_TTL_S
        return False

    async def _call(self, script: Script | None, keys: Sequence[str], arguments: Sequence[Any]) -> Any:
        if script is None:
            return None
        return await self._bounded(lambda: script(keys=keys, args=arguments))

    async def _bounded(self, asking: Callable[[], Awaitable[Any]]) -> Any:
        """What Redis answers within its bound; None where it does not, or is passed by."""
        now = self._clock()
        if now < self._retry_at or now < self._avoid_until:
            return None
        if not self._redis_answers:
            # This caller tries; until it knows, the others pass Redis by.
            self._retry_at = now + self._bounds.redis_s + self._bounds.retry_s
        try:
            async with asyncio.timeout(self._bounds.redis_s):
                answer = await asking()
        except _LOST as error:
            self._retry_at = self._clock() + self._bounds.retry_s
            if self._redis_answers:
                self._redis_answers = False
                log.warning("Redis does not answer for cached values: they are loaded", error=type(error).__name__)
            return None
        if not self._redis_answers:
            self._redis_answers = True
            self._retry_at = 0.0
            log.warning("Redis answers for cached values again")
        return answer

    def _keys(self, key: CacheKey) -> tuple[str, str, str]:
        """Of the value, of its generation, of its lock."""
        name = hashlib.blake2b(key.name.encode(), digest_size=16).hexdigest()
        value = self._key(key.group, name)
        return value, self._key(key.group), f"{value}:lock"

    def _key(self, group: Group, *parts: str) -> str:
        workspace_id, topic = group
        return redis_key(self._prefix, workspace_tag(workspace_id), "read", topic, *parts)

"""Where cached answers are kept: in Redis where one is configured, else in this process.

Invariants:
- A key begins with its workspace; in Redis that is its hash tag. Nothing is found by another workspace.
- An answer is found for as long as its keeper asked, and by nobody who asks for a younger one.
- Memory is bounded: in this process by bytes, the least recently used going first; in Redis by bytes a workspace, what
  would end soonest going first. What limits and budgets are kept by may live in the same Redis.
- Redis slow or gone is a miss, and nothing is kept: never an error.
"""

import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

import msgspec

from tidegate.storage.bounded_redis import BoundedRedis
from tidegate.storage.redis import RedisClient, workspace_tag
from tidegate.storage.redis import key as redis_key

MOST_BYTES_IN_PROCESS: Final = 64 * 1024 * 1024
MOST_BYTES_A_WORKSPACE: Final = 64 * 1024 * 1024
# What an answer takes beside its body: its key, its objects, its places in the indexes.
_BESIDE_BYTES: Final = 512
# Of one step in Redis, so that it stays far below a millisecond.
_MOST_DROPPED: Final = 100
_INDEX_MS: Final = 25 * 3600 * 1000

# KEYS: the answer, the workspace's index (zset: name -> end in ms) and its sizes (hash: name -> bytes, '' -> all).
# ARGV: name, the answer, its ms, most bytes, most dropped in one step, ms of the index, bytes beside a body.
_KEEP = """
local call = redis.call
local base = string.sub(KEYS[1], 1, #KEYS[1] - #ARGV[1])
local clock = call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local function drop(name)
  call('DEL', base .. name)
  call('ZREM', KEYS[2], name)
  local size = call('HGET', KEYS[3], name)
  if size then
    call('HDEL', KEYS[3], name)
    call('HINCRBY', KEYS[3], '', -size)
  end
end
if call('EXISTS', KEYS[2]) == 0 then
  call('DEL', KEYS[3])
end
drop(ARGV[1])
local size, most, left = #ARGV[2] + ARGV[7], tonumber(ARGV[4]), tonumber(ARGV[5])
for _, name in ipairs(call('ZRANGEBYSCORE', KEYS[2], '-inf', now, 'LIMIT', 0, left)) do
  drop(name)
  left = left - 1
end
while tonumber(call('HGET', KEYS[3], '') or 0) + size > most do
  local first = call('ZRANGE', KEYS[2], 0, 0)[1]
  if not first or left <= 0 then
    return 0
  end
  drop(first)
  left = left - 1
end
call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
call('ZADD', KEYS[2], now + ARGV[3], ARGV[1])
call('HSET', KEYS[3], ARGV[1], size)
call('HINCRBY', KEYS[3], '', size)
call('PEXPIRE', KEYS[2], ARGV[6])
call('PEXPIRE', KEYS[3], ARGV[6])
return 1
"""


@dataclass(frozen=True, slots=True)
class AnswerKey:
    """What is asked, of whose. `digest` is hexadecimal."""

    workspace_id: uuid.UUID
    digest: str


class KeptAnswer(msgspec.Struct, frozen=True, array_like=True):
    """A whole answer as OpenAI gives it, and what it came to when an upstream gave it.

    Tokens are all classes of input and of output; `cost` is nano-USD, None where it was unpriced. `made_at` is Unix
    time in seconds.
    """

    body: bytes
    finish_reason: str
    input_tokens: int
    output_tokens: int
    cost: int | None
    made_at: float

    def is_fresh(self, ttl_s: float, now: float) -> bool:
        return now - self.made_at < ttl_s


class KeptAnswers(Protocol):
    async def find(self, key: AnswerKey, ttl_s: float) -> KeptAnswer | None:
        """The answer that is kept and no older than `ttl_s`. None also where the store cannot be asked."""
        ...

    async def keep(self, key: AnswerKey, answer: KeptAnswer, ttl_s: float) -> None:
        """Keeps an answer for `ttl_s` from when it was made, if it can."""
        ...


class MemoryAnswers:
    """Implements `KeptAnswers` in this process.

    >>> answers = MemoryAnswers()
    >>> await answers.keep(key, answer, 60)
    """

    def __init__(self, *, most_bytes: int = MOST_BYTES_IN_PROCESS, clock: Callable[[], float] = time.time) -> None:
        self.used_bytes = 0
        self._most_bytes = most_bytes
        self._clock = clock
        # From the least to the most recently used; with each its end.
        self._kept: dict[AnswerKey, tuple[KeptAnswer, float]] = {}

    async def find(self, key: AnswerKey, ttl_s: float) -> KeptAnswer | None:
        kept = self._kept.get(key)
        if kept is None:
            return None
        answer, until = kept
        now = self._clock()
        if now >= until:
            self._drop(key)
            return None
        if not answer.is_fresh(ttl_s, now):
            return None
        del self._kept[key]
        self._kept[key] = kept
        return answer

    async def keep(self, key: AnswerKey, answer: KeptAnswer, ttl_s: float) -> None:
        self._drop(key)
        self._kept[key] = answer, answer.made_at + ttl_s
        self.used_bytes += _size(answer)
        while self.used_bytes > self._most_bytes:
            self._drop(next(iter(self._kept)))

    def _drop(self, key: AnswerKey) -> None:
        kept = self._kept.pop(key, None)
        if kept is not None:
            self.used_bytes -= _size(kept[0])


class RedisAnswers:
    """Implements `KeptAnswers` in Redis, for all processes of the deployment. `prefix` is of every key."""

    def __init__(
        self,
        redis: RedisClient,
        prefix: str,
        *,
        bounded: BoundedRedis | None = None,
        most_bytes: int = MOST_BYTES_A_WORKSPACE,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._redis = redis
        self._prefix = prefix
        self._bounded = bounded or BoundedRedis("cached answers")
        self._most_bytes = most_bytes
        self._clock = clock
        self._script = redis.register_script(_KEEP)

    async def find(self, key: AnswerKey, ttl_s: float) -> KeptAnswer | None:
        name = self._key(key.workspace_id, "answer", key.digest)
        encoded = await self._bounded.ask(lambda: self._redis.get(name))
        if encoded is None:
            return None
        try:
            answer = msgspec.msgpack.decode(encoded, type=KeptAnswer)
        except msgspec.DecodeError:
            # Another version of this program wrote it.
            return None
        return answer if answer.is_fresh(ttl_s, self._clock()) else None

    async def keep(self, key: AnswerKey, answer: KeptAnswer, ttl_s: float) -> None:
        left_ms = round((answer.made_at + ttl_s - self._clock()) * 1000)
        if left_ms <= 0:
            return
        encoded = msgspec.msgpack.encode(answer)
        workspace_id = key.workspace_id
        keys = [
            self._key(workspace_id, "answer", key.digest),
            self._key(workspace_id, "answers"),
            self._key(workspace_id, "answer-sizes"),
        ]
        bounds = [left_ms, self._most_bytes, _MOST_DROPPED, _INDEX_MS, _BESIDE_BYTES]
        await self._bounded.ask(lambda: self._script(keys=keys, args=[key.digest, encoded, *bounds]))

    def _key(self, workspace_id: uuid.UUID, *parts: str) -> str:
        return redis_key(self._prefix, workspace_tag(workspace_id), *parts)


def _size(answer: KeptAnswer) -> int:
    return len(answer.body) + _BESIDE_BYTES

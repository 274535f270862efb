"""Both stores of the gate side by side, on one clock that stands still until it is moved.

`TwinStores` does each step in both and holds that they answer the same. `model_of_gate.py` says what the answer must
be.
"""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar, cast

import redis
from hypothesis import strategies as st

from tidegate.admission.memory_store import MemoryStore
from tidegate.admission.redis_store import RedisStore, script_source
from tidegate.admission.store import Alert, Asked, Check, Held, Presence, Reply, Seat, Seeding, Spent
from tidegate.storage.pipeline import PipelinedRedis, Taker

T = TypeVar("T")
START_MS = 1_800_000_000_000
TAG = "w:1"
# What no counter counts, and what comes to Redis as another number.
UNCOUNTABLE = st.sampled_from([-(2**70), -(2**63), -1, 2**53 - 1, 2**53, 2**63 - 1, 2**63, 2**64, 2**70])


SEAT = Seat(2, 3, "flow")
SLOTS = Check("slots", "held", "concurrency", 4, 1)
MINUTE = Check("minute", "sliding", "requests", 60, 1)
TOKENS = Check("tokens", "sliding", "tokens", 1000, 100)
TOTAL = Check("total", "calendar", "cost", 1000, 100, alerts=True)
SEEDING = Seeding("total", 0, 0, 1000, 300)


def mostly(usual: st.SearchStrategy[int]) -> st.SearchStrategy[int]:
    """What is usual, and now and then what no counter counts."""
    return st.one_of(*[usual] * 7, UNCOUNTABLE)


class Clock:
    """Milliseconds that pass when they are told to."""

    def __init__(self) -> None:
        self.now_ms = START_MS

    def __call__(self) -> int:
        return self.now_ms

    def passes(self, ms: int) -> None:
        self.now_ms += ms


class DirectPipe:
    """Stands in for `PipelinedRedis`: asks at once, on a blocking connection. `run_id` is the test's to change."""

    def __init__(self, client: "redis.Redis") -> None:
        self.run_id = "run-1"
        self.client = client
        self._sha = client.script_load(script_source())

    def script(self, name: str, keys: Sequence[str], args: Sequence[str | bytes | int]) -> "asyncio.Future[Any]":
        answer = asyncio.get_running_loop().create_future()
        answer.set_result(self.client.evalsha(self._sha, len(keys), *keys, *args))
        return answer

    def hand_script(self, taker: Taker, name: str, key: str, op: str, payload: bytes) -> None:
        taker.set_result(self.script(name, [key], [op, payload, self.run_id]).result())


def direct_store(pipe: DirectPipe, prefix: str, clock: Callable[[], int], alerts: list[Alert]) -> RedisStore:
    return RedisStore(
        cast("PipelinedRedis", pipe),
        prefix,
        told=lambda worker, tag, entry: None,
        alerted=lambda tag, told: alerts.extend(told),
        clock_ms=clock,
    )


class TwinStores:
    """Steps on one tag of both stores. What was granted since it was last asked for is in `granted`."""

    def __init__(self, client: "redis.Redis", prefix: str) -> None:
        self.clock = Clock()
        self.granted: list[tuple[str, str]] = []
        self.pipe = DirectPipe(client)
        self._prefix = prefix
        self._runs = 1
        self._alerts: list[Alert] = []
        self._loop = asyncio.new_event_loop()
        self.redis = direct_store(self.pipe, prefix, self.clock, self._alerts)
        self.memory = self._new_memory()

    def close(self) -> None:
        self.forget()
        self._loop.close()

    def forget(self) -> None:
        """Both lose all that they know, as a Redis that was restarted empty."""
        keys = list(self.pipe.client.scan_iter(f"{self._prefix}:*", count=1000))
        if keys:
            self.pipe.client.delete(*keys)
        self._runs += 1
        self.pipe.run_id = f"run-{self._runs}"
        self.memory = self._new_memory()

    def take(self, worker: str, asked: Asked) -> Reply:
        return self._same(self.memory.take(TAG, worker, asked), self.redis.take(TAG, worker, asked))

    def top_up(self, worker: str, entry: str, more: Spent) -> Reply:
        return self._same(self.memory.top_up(TAG, worker, entry, more), self.redis.top_up(TAG, worker, entry, more))

    def release(self, worker: str, entry: str, spent: Spent, checks: tuple[Check, ...] = ()) -> tuple[Alert, ...]:
        return self._told(
            lambda: self.memory.released(TAG, worker, entry, spent, checks),
            lambda: self.redis.release(TAG, worker, entry, spent, checks),
        )

    def recover(self, worker: str, entry: str, spent: Spent, checks: tuple[Check, ...] = ()) -> tuple[Alert, ...]:
        return self._told(
            lambda: self.memory.recovered(TAG, worker, entry, spent, checks),
            lambda: self.redis.recover(TAG, worker, entry, spent, checks),
        )

    def claim(self, worker: str, entry: str) -> bool:
        return self._same(self.memory.claim(TAG, worker, entry), self.redis.claim(TAG, worker, entry))

    def attend(self, worker: str, waiting: tuple[str, ...] = ()) -> Presence:
        return self._same(self.memory.attend(TAG, worker, waiting), self.redis.attend(TAG, worker, waiting))

    def declare(self, worker: str, held: tuple[Held, ...], pending: tuple[str, ...] = ()) -> Presence:
        return self._same(
            self.memory.declare(TAG, worker, held, pending), self.redis.declare(TAG, worker, held, pending)
        )

    def seed(self, seeding: Seeding) -> bool:
        return self._same(self.memory.seed(TAG, seeding), self.redis.seed(TAG, seeding))

    def place(self, worker: str, entry: str) -> int:
        return self._same(self.memory.place(TAG, worker, entry), self.redis.place(TAG, worker, entry))

    def used(self, checks: tuple[Check, ...]) -> tuple[int, ...]:
        """What the checks' counters say; they take nothing and refuse nothing."""
        looking = tuple(
            Check(c.counter, c.kind, c.meter, c.amount, 0, False, False, c.width_s, c.starts, c.ends) for c in checks
        )
        reply = self.take("looker", Asked("look", looking))
        self.release("looker", "look", Spent(undo=True))
        return reply.used

    def in_use(self) -> int:
        in_redis = self.pipe.client.hget(f"{self._prefix}:{{{TAG}}}:t", "n")
        assert int(cast("bytes", in_redis) or 0) == self.memory.in_use(TAG)
        return self.memory.in_use(TAG)

    def _new_memory(self) -> MemoryStore:
        return MemoryStore(self.clock, told=lambda worker, tag, entry: self.granted.append((worker, entry)))

    def _told(self, memory: Callable[[], tuple[Alert, ...]], store: Callable[[], None]) -> tuple[Alert, ...]:
        async def in_redis() -> tuple[Alert, ...]:
            self._alerts.clear()
            store()
            await asyncio.sleep(0)
            return tuple(self._alerts)

        async def in_memory() -> tuple[Alert, ...]:
            return memory()

        return self._same(in_memory(), in_redis())

    def _same(self, in_memory: Coroutine[Any, Any, T], in_redis: Coroutine[Any, Any, T]) -> T:
        async def both() -> tuple[T, T]:
            return await in_memory, await in_redis

        memory, store = self._loop.run_until_complete(both())
        assert memory == store, f"memory says {memory}, Redis says {store}"
        return memory


def take(stores: TwinStores, worker: str, entry: str, *checks: Check, seat: Seat | None = None) -> str:
    """Takes in both; the seat's state where one is asked for and had, else what the stores said."""
    reply = stores.take(worker, Asked(entry, checks, seat))
    return reply.seat if seat is not None and reply.said == "taken" else reply.said

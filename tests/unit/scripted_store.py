"""A shared store of the gate that does as it is told: it answers, late or never, or is gone.

It keeps its state in memory, and does each step when it is asked for, as Redis does: only answers are held up.
"""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Literal, TypeVar, cast

from tidegate.admission.desk import Desk
from tidegate.admission.memory_store import MemoryStore
from tidegate.admission.redis_store import RedisStore
from tidegate.admission.store import Asked, Check, Held, Presence, Reply, Seat, Seeding, Spent
from tidegate.storage.pipeline import StoreGone

T = TypeVar("T")
TAG = "w:1"
START_S = 1_800_000_000

# `silent` does a step and loses its answer; `deaf` does nothing and never answers; `held` answers when it is let.
Mood = Literal["answers", "silent", "deaf", "held", "gone"]


class ScriptedStore:
    """Stands in for `RedisStore`. `steps` are the names of what it was asked for, in order."""

    def __init__(self) -> None:
        self.mood: Mood = "answers"
        self.gate = asyncio.Event()
        self.steps: list[str] = []
        self.now_ms = START_S * 1000
        self.desk: Desk | None = None
        self.memory = MemoryStore(lambda: self.now_ms, told=self._told)

    async def take(self, tag: str, worker: str, asked: Asked) -> Reply:
        return await self._answered("take", lambda: self.memory.take(tag, worker, asked))

    async def top_up(self, tag: str, worker: str, entry: str, more: Spent) -> Reply:
        return await self._answered("top_up", lambda: self.memory.top_up(tag, worker, entry, more))

    def release(self, tag: str, worker: str, entry: str, spent: Spent, checks: tuple[Check, ...] = ()) -> None:
        self.steps.append("release")
        if self.mood == "gone":
            assert self.desk is not None
            self.desk.note_lost(tag, entry, spent, checks)
        elif self.mood != "deaf":
            self.memory.release(tag, worker, entry, spent, checks)

    def recover(self, tag: str, worker: str, entry: str, spent: Spent, checks: tuple[Check, ...] = ()) -> None:
        self.memory.recover(tag, worker, entry, spent, checks)

    async def claim(self, tag: str, worker: str, entry: str) -> bool:
        return await self._answered("claim", lambda: self.memory.claim(tag, worker, entry))

    async def attend(self, tag: str, worker: str, waiting: tuple[str, ...]) -> Presence:
        return await self._answered("attend", lambda: self.memory.attend(tag, worker, waiting))

    async def declare(self, tag: str, worker: str, held: tuple[Held, ...], pending: tuple[str, ...]) -> Presence:
        return await self._answered("declare", lambda: self.memory.declare(tag, worker, held, pending))

    async def seed(self, tag: str, seeding: Seeding) -> bool:
        return await self._answered("seed", lambda: self.memory.seed(tag, seeding))

    async def place(self, tag: str, worker: str, entry: str) -> int:
        return await self._answered("place", lambda: self.memory.place(tag, worker, entry))

    def forgets(self) -> None:
        """It was restarted, empty."""
        self.memory = MemoryStore(lambda: self.now_ms, told=self._told)

    async def entries(self, worker: str = "w1", tag: str = TAG) -> int:
        """How many entries it holds of a worker."""
        return (await self.memory.attend(tag, worker, ())).entries

    async def used(self, check: Check, tag: str = TAG) -> int:
        """What a check's counter says."""
        reply = await self.memory.take(tag, "looker", Asked("look", (_looking(check),)))
        self.memory.release(tag, "looker", "look", Spent(undo=True))
        return reply.used[0]

    async def _answered(self, name: str, step: Callable[[], Coroutine[Any, Any, T]]) -> T:
        self.steps.append(name)
        mood = self.mood
        if mood == "gone":
            raise StoreGone("gone")
        if mood == "deaf":
            await asyncio.get_running_loop().create_future()
        answer = await step()
        if mood == "silent":
            await asyncio.get_running_loop().create_future()
        if mood == "held":
            await self.gate.wait()
        return answer

    def _told(self, worker: str, tag: str, entry: str) -> None:
        """As Redis tells of what another's step granted."""
        if self.desk is not None:
            self.desk.granted(worker, tag, entry, "granted")


def a_desk(shared: ScriptedStore, *, workers: int = 2, worker: str = "w1", **options: Any) -> Desk:
    desk = Desk(worker, **options)
    desk.shared = cast("RedisStore", shared)
    desk.workers = workers
    if shared.desk is None:
        shared.desk = desk
    return desk


def rate(amount: int, *, counter: str = "rate") -> Check:
    return Check(counter, "sliding", "requests", amount, 1)


def slots(amount: int, *, counter: str = "slots") -> Check:
    return Check(counter, "held", "concurrency", amount, 1)


def budget(amount: int, take: int, *, counter: str = "budget") -> Check:
    return Check(counter, "calendar", "cost", amount, take, alerts=True)


def a_seat(capacity: int, *, queue_length: int = 100) -> Seat:
    return Seat(capacity, queue_length, flow="key")


def _looking(check: Check) -> Check:
    return Check(
        check.counter, check.kind, check.meter, check.amount, 0, False, False, check.width_s, check.starts, check.ends
    )


def seeding(amount: int, used: int, *, counter: str = "budget") -> Seeding:
    return Seeding(counter, 0, 0, amount, used)

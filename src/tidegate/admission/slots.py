"""The slots of an upstream, as an attempt asks for them.

`Slots` is one upstream's concurrency. A slot is held by a `Lease` and given back in one place, by leaving the lease's
context, however the request ended. Waiting is fair between keys, bounded in length and by a deadline.
"""

import asyncio
import math
import time
import uuid
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol

import msgspec

from tidegate.admission.checks import Reserve
from tidegate.admission.steps import Steps
from tidegate.admission.store import UNDO, Asked, Seat, Spent
from tidegate.errors import Overloaded, Unavailable
from tidegate.limits.values import Matched
from tidegate.storage.redis import upstream_tag


def _nothing_spent() -> Spent:
    return UNDO


class SlotAsk(msgspec.Struct):
    """An attempt that wants a slot. `flow` is whose turn it is when several wait: a key, else a user.

    `limits` are the upstream's own, besides its slots. `spent` says at the end what the attempt came to; `UNDO` where
    it never reached the upstream. `place`, set while it waits, asks for its place in the queue.
    """

    entry_id: uuid.UUID
    n: int = 1
    flow: str = ""
    weight: int = 1
    reserve: Reserve = Reserve()
    limits: tuple[Matched, ...] = ()
    spent: Callable[[], Spent] = _nothing_spent
    place: Callable[[], Awaitable[int]] | None = None


class Lease(msgspec.Struct, frozen=True):
    """One slot of one upstream, held. `base_url` and `api_key` are set where the slot says where to call."""

    upstream: str
    waited_s: float
    base_url: str | None = None
    api_key: str | None = None

    def __repr__(self) -> str:
        """Without the key."""
        return f"Lease(upstream={self.upstream!r}, waited_s={self.waited_s!r}, base_url={self.base_url!r})"


class Slots(Protocol):
    def hold(self, ask: SlotAsk, *, deadline_s: float | None) -> AbstractAsyncContextManager[Lease]:
        """Waits for a slot for at most `deadline_s` (None: the queue's own deadline), holds it, gives it back at exit.

        Raises `Overloaded` where the queue is full or the deadline passed, `RateLimitExceeded` where a limit of the
        upstream is reached, `Unavailable` where what it guards is down. Cancelled while waiting, it leaves at once.
        """
        ...

    @property
    def in_use(self) -> int:
        """Slots that are held now, as this process knows."""
        ...

    @property
    def waiting(self) -> int:
        """Requests that wait now, as this process knows."""
        ...


@dataclass(frozen=True, slots=True)
class Capacity:
    """An upstream's slots and its queue, of the whole deployment."""

    slots: int
    queue_length: int
    queue_deadline_s: float


class StoreSlots:
    """Implements `Slots` over the gate's store.

    >>> slots = StoreSlots(steps, "openai", Capacity(slots=64, queue_length=1000, queue_deadline_s=10))
    >>> async with slots.hold(ask, deadline_s=None) as lease: ...
    """

    def __init__(self, steps: Steps, upstream: str, capacity: Capacity) -> None:
        self._steps = steps
        self._upstream = upstream
        self._tag = upstream_tag(upstream)
        self._capacity = capacity

    @property
    def capacity(self) -> Capacity:
        return self._capacity

    @property
    def in_use(self) -> int:
        return self._steps.desk.standing(self._tag)[0]

    @property
    def waiting(self) -> int:
        return self._steps.desk.standing(self._tag)[1]

    def resize(self, capacity: Capacity) -> bool:
        """Gives out so many from now on, also to who waits already. Nothing that is held is taken back.

        Returns whether that is another size: then the store is to be told, by `announce`.
        """
        if capacity == self._capacity:
            return False
        self._capacity = capacity
        for holding in self._steps.desk.holdings.get(self._tag, {}).values():
            if (seat := holding.asked.seat) is not None:
                # What is declared to a store that lost its memory would bring the old size back.
                resized = msgspec.structs.replace(seat, capacity=capacity.slots, queue_length=capacity.queue_length)
                holding.asked = msgspec.structs.replace(holding.asked, seat=resized)
        return True

    async def announce(self) -> None:
        """Tells the store the size, by asking for a slot without a wait and giving it back: else who waits would be
        let in by the old one until the next request comes. Never raises for a store that is away: requests tell it.
        """
        entry = f"resize.{uuid.uuid4().hex}"
        try:
            await self._steps.take(self._tag, entry, (), Reserve(), Seat(self._capacity.slots, 0))
        except Unavailable:
            return
        finally:
            self.leave(entry, UNDO)

    def hold(self, ask: SlotAsk, *, deadline_s: float | None) -> "_Held":
        return _Held(self, ask, self._capacity.queue_deadline_s if deadline_s is None else deadline_s)

    async def sit(self, ask: SlotAsk, entry: str, deadline_s: float) -> Lease:
        """Holds a slot, until `leave`. Raises as `hold` does, and has then given back what it had."""
        steps, desk, tag = self._steps, self._steps.desk, self._tag
        began, waited_s = time.perf_counter(), 0.0
        ends_at = asyncio.get_running_loop().time() + deadline_s
        try:
            while True:
                # In each round: who lost its ticket may find it resized.
                capacity = self._capacity
                seat = Seat(capacity.slots, capacity.queue_length, ask.flow, ask.weight, ask.reserve.tokens or 1)
                if ask.limits:
                    reply = (await steps.take(tag, entry, ask.limits, ask.reserve, seat)).reply
                else:
                    # Nothing to judge: it is the desk's alone.
                    asked = Asked(entry, (), seat)
                    reply = desk.take_here(tag, asked) if desk.shared is None else await desk.take(tag, asked)
                if reply.seat == "held":
                    return Lease(self._upstream, waited_s)
                if reply.said == "full":
                    refusal = queue_is_full(self._upstream, capacity.queue_length, reply.retry_ms)
                    break
                is_held = await self._wait(ask, entry, ends_at)
                waited_s = time.perf_counter() - began
                if is_held:
                    return Lease(self._upstream, waited_s)
                if is_held is None:
                    refusal = no_slot_in_time(self._upstream, deadline_s, reply.retry_ms)
                    break
                # Its ticket was lost, with its store or for want of an answer in time: it takes another.
                self.leave(entry, UNDO)
        except BaseException:
            self.leave(entry, UNDO)
            raise
        self.leave(entry, UNDO)
        raise refusal

    def leave(self, entry: str, spent: Spent) -> None:
        """Gives back what an entry has here: its slot, its place in the queue, or nothing."""
        self._steps.desk.release(self._tag, entry, spent)

    async def _wait(self, ask: SlotAsk, entry: str, ends_at: float) -> bool | None:
        """Waits in the queue. True with the slot held, False where the ticket was lost, None where it is too late."""
        desk = self._steps.desk
        ask.place = lambda: desk.place(self._tag, entry)
        try:
            async with asyncio.timeout_at(ends_at):
                return await desk.turn(self._tag, entry) == "held"
        except TimeoutError:
            return None
        finally:
            ask.place = None


class _Held:
    """One slot from entering to leaving. A class: a generator costs a request 5 µs more."""

    __slots__ = ("_ask", "_deadline_s", "_entry", "_slots")

    def __init__(self, slots: StoreSlots, ask: SlotAsk, deadline_s: float) -> None:
        self._slots = slots
        self._ask = ask
        self._deadline_s = deadline_s
        self._entry = f"{ask.entry_id.hex}.{ask.n}"

    def __aenter__(self) -> Coroutine[None, None, Lease]:
        # No coroutine of its own: it would have nothing to do but to wait for this one.
        return self._slots.sit(self._ask, self._entry, self._deadline_s)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        spent = UNDO
        try:
            spent = self._ask.spent()
        finally:
            # Whatever the figures are, or were to be: the slot is given back.
            self._slots.leave(self._entry, spent)


def queue_is_full(upstream: str, length: int, retry_ms: int = 1000) -> Overloaded:
    """The refusal of who would be one too many in an upstream's queue."""
    return _overloaded(f"The queue for the upstream {upstream!r} is full ({length} wait). Try again later.", retry_ms)


def no_slot_in_time(upstream: str, deadline_s: float, retry_ms: int = 1000) -> Overloaded:
    """The refusal of who waited to the deadline."""
    return _overloaded(f"No slot of the upstream {upstream!r} became free within {deadline_s:g} s.", retry_ms)


def _overloaded(message: str, retry_ms: int) -> Overloaded:
    retry_ms = max(1000, retry_ms)
    return Overloaded(
        message, headers={"Retry-After": str(math.ceil(retry_ms / 1000)), "retry-after-ms": str(retry_ms)}
    )

"""The slots of one upstream: never over the limit, none ever lost, first in first out, whoever is cancelled when."""

import asyncio
import random
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.waiting import eventually
from tests.unit.virtual_time import in_virtual_time, now
from tidegate.admission.desk import Desk
from tidegate.admission.slots import Capacity, SlotAsk, StoreSlots
from tidegate.admission.steps import Steps
from tidegate.admission.store import Check
from tidegate.errors import Overloaded
from tidegate.limits.values import Matched

LONG_S = 600.0


class NothingToSeed:
    async def seed(self, tag: str, matched: Matched, check: Check) -> bool:
        raise AssertionError("an upstream's slots have no budget")


def some_slots(limit: int = 1, queue_length: int = 1000, queue_deadline_s: float = LONG_S) -> StoreSlots:
    steps = Steps(Desk("worker"), NothingToSeed())
    return StoreSlots(steps, "scripted", Capacity(limit, queue_length, queue_deadline_s))


def ask() -> SlotAsk:
    """Of one key: so the line is first in, first out."""
    return SlotAsk(uuid.uuid4(), flow="key")


@dataclass
class Holders:
    """Tasks that each hold a slot until they are let go."""

    slots: StoreSlots
    admitted: list[int] = field(default_factory=list)
    waited: list[int] = field(default_factory=list)
    holding: set[int] = field(default_factory=set)
    most: int = 0
    tasks: list[asyncio.Task[None]] = field(default_factory=list)
    gates: list[asyncio.Event] = field(default_factory=list)

    def start(self, deadline_s: float | None = None) -> int:
        number = len(self.tasks)
        self.gates.append(asyncio.Event())
        self.tasks.append(asyncio.create_task(self._hold(number, deadline_s)))
        return number

    async def _hold(self, number: int, deadline_s: float | None) -> None:
        async with self.slots.hold(ask(), deadline_s=deadline_s) as lease:
            assert lease.upstream == "scripted"
            self.admitted.append(number)
            if lease.waited_s:
                self.waited.append(number)
            else:
                assert not self.slots.waiting, "it passed the queue"
            self.holding.add(number)
            self.most = max(self.most, len(self.holding))
            try:
                await self.gates[number].wait()
            finally:
                self.holding.discard(number)

    async def settle(self, turns: int = 10) -> None:
        """Lets everything that can go on go on."""
        for _ in range(turns):
            await asyncio.sleep(0)

    async def end(self) -> list[BaseException | None]:
        for gate in self.gates:
            gate.set()
        return await asyncio.wait_for(asyncio.gather(*self.tasks, return_exceptions=True), 30)


async def test_up_to_the_limit_nobody_waits() -> None:
    holders = Holders(some_slots(limit=3))
    for _ in range(5):
        holders.start()
    await holders.settle()
    assert (holders.slots.in_use, holders.slots.waiting, holders.holding) == (3, 2, {0, 1, 2})
    assert await holders.end() == [None] * 5
    assert (holders.slots.in_use, holders.slots.waiting, holders.most) == (0, 0, 3)


async def test_the_queue_is_first_in_first_out_and_a_newcomer_does_not_pass_it() -> None:
    holders = Holders(some_slots(limit=1))
    for _ in range(4):
        holders.start()
        await holders.settle()
    holders.gates[0].set()
    holders.start()
    await holders.settle()
    assert holders.admitted == [0, 1]
    await holders.end()
    assert holders.admitted == [0, 1, 2, 3, 4]


async def test_a_full_queue_refuses_at_once() -> None:
    holders = Holders(some_slots(limit=1, queue_length=2))
    for _ in range(3):
        holders.start()
    await holders.settle()
    with pytest.raises(Overloaded, match=r"The queue for the upstream 'scripted' is full \(2 wait\)") as caught:
        async with holders.slots.hold(ask(), deadline_s=None):
            pass
    assert (caught.value.http_status, caught.value.headers) == (503, {"Retry-After": "2", "retry-after-ms": "1500"})
    assert (holders.slots.in_use, holders.slots.waiting) == (1, 2)
    assert await holders.end() == [None] * 3


async def test_without_a_queue_there_is_a_slot_now_or_never() -> None:
    slots = some_slots(limit=1, queue_length=0)
    async with slots.hold(ask(), deadline_s=None):
        with pytest.raises(Overloaded):
            async with slots.hold(ask(), deadline_s=None):
                pass
    async with slots.hold(ask(), deadline_s=None):
        assert slots.in_use == 1


@pytest.mark.parametrize(("own_s", "given_s", "at"), [(10, None, 10), (10, 3, 3), (10, 20, 20), (10, 0, 0)])
@in_virtual_time
async def test_the_deadline_passes_with_its_own_words(own_s: float, given_s: float | None, at: float) -> None:
    slots = some_slots(limit=1, queue_deadline_s=own_s)
    async with slots.hold(ask(), deadline_s=None):
        with pytest.raises(Overloaded) as caught:
            async with slots.hold(ask(), deadline_s=given_s):
                pass
        assert caught.value.message == f"No slot of the upstream 'scripted' became free within {at} s."
        assert (caught.value.http_status, caught.value.headers) == (503, {"Retry-After": "2", "retry-after-ms": "2000"})
        assert (slots.in_use, slots.waiting, now()) == (1, 0, at)
    assert slots.in_use == 0


@in_virtual_time
async def test_a_slot_that_comes_in_the_turn_of_the_deadline_is_had_or_passed_on() -> None:
    for release_s in (9.9999999, 10, 10.0000001):
        holders = Holders(some_slots(limit=1, queue_deadline_s=10))
        holders.start()
        await holders.settle()
        holders.start()
        asyncio.get_running_loop().call_later(release_s, holders.gates[0].set)
        await asyncio.sleep(20)
        assert holders.slots.waiting == 0
        assert holders.slots.in_use == len(holders.holding)
        assert len(holders.holding) == (not holders.tasks[1].done())
        results = await holders.end()
        assert holders.slots.in_use == 0
        assert results[1] is None or isinstance(results[1], Overloaded)


async def test_what_was_waited_is_told() -> None:
    slots = some_slots(limit=1)
    waited: list[float] = []

    async def wait() -> None:
        async with slots.hold(ask(), deadline_s=None) as lease:
            waited.append(lease.waited_s)

    async with slots.hold(ask(), deadline_s=None) as first:
        assert first.waited_s == 0
        task = asyncio.create_task(wait())
        await eventually(lambda: slots.waiting)
        began = time.perf_counter()
        await eventually(lambda: time.perf_counter() - began > 0.03)
    await task
    assert 0.03 < waited[0] <= time.perf_counter() - began + 1


async def test_an_error_in_the_work_gives_the_slot_back() -> None:
    slots = some_slots(limit=1)
    with pytest.raises(ZeroDivisionError):
        async with slots.hold(ask(), deadline_s=None):
            raise ZeroDivisionError
    assert slots.in_use == 0


async def test_one_cancelled_in_the_queue_leaves_it_in_the_same_turn() -> None:
    holders = Holders(some_slots(limit=1))
    for _ in range(3):
        holders.start()
    await holders.settle()
    holders.tasks[1].cancel()
    await holders.settle(turns=2)
    assert holders.slots.waiting == 1
    await holders.end()
    assert holders.admitted == [0, 2]


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
async def test_a_slot_given_back_as_its_waiter_is_cancelled_goes_to_the_next(order: tuple[int, int]) -> None:
    holders = Holders(some_slots(limit=1))
    for _ in range(3):
        holders.start()
    await holders.settle()
    # Both in one turn of the loop: one holds the slot, the other is the first that waits for it.
    for number in order:
        holders.tasks[number].cancel()
    await holders.settle()
    assert holders.tasks[1].cancelled()
    assert holders.holding == {2}
    holders.gates[2].set()
    await holders.settle()
    assert (holders.slots.in_use, holders.slots.waiting) == (0, 0)


async def test_a_slot_given_to_one_that_is_cancelled_before_it_runs_goes_to_the_next() -> None:
    holders = Holders(some_slots(limit=1))
    for _ in range(3):
        holders.start()
    await holders.settle()
    holders.tasks[0].cancel()
    while 0 in holders.holding:
        await asyncio.sleep(0)
    holders.tasks[1].cancel()
    await holders.settle()
    assert holders.tasks[1].cancelled()
    assert holders.admitted in ([0, 2], [0, 1, 2])
    assert holders.holding == {2}
    await holders.end()
    assert (holders.slots.in_use, holders.slots.waiting) == (0, 0)


async def test_a_cancellation_is_a_cancellation_and_never_a_refusal() -> None:
    holders = Holders(some_slots(limit=1))
    for _ in range(20):
        holders.start()
    await holders.settle()
    for task in holders.tasks:
        task.cancel()
    results = await holders.end()
    assert all(isinstance(result, asyncio.CancelledError) for result in results), results
    assert (holders.slots.in_use, holders.slots.waiting) == (0, 0)


steps = st.lists(
    st.tuples(
        st.sampled_from(["start", "start", "start", "brief", "let go", "let go", "cancel", "cancel", "turn"]),
        st.integers(0, 30),
    ),
    max_size=60,
)


@settings(deadline=None, max_examples=150)
@given(steps, st.integers(1, 3), st.integers(0, 6))
async def test_whatever_is_cancelled_when_no_slot_is_lost_and_none_is_granted_twice(
    plan: list[tuple[str, int]], limit: int, queue_length: int
) -> None:
    holders = Holders(some_slots(limit=limit, queue_length=queue_length))

    def among(those: Callable[[], list[int]], pick: int) -> int | None:
        return those()[pick % len(those())] if those() else None

    for step, pick in plan:
        alive = [number for number, task in enumerate(holders.tasks) if not task.done()]
        match step:
            case "start":
                holders.start()
            case "brief":
                holders.start(deadline_s=0)
            case "let go":
                holding = among(lambda: sorted(holders.holding), pick)
                if holding is not None:
                    holders.gates[holding].set()
            case "cancel" if alive:
                holders.tasks[alive[pick % len(alive)]].cancel()
            case "turn":
                await holders.settle(turns=pick % 4)
        assert len(holders.holding) <= holders.slots.in_use <= limit
        assert holders.slots.waiting <= queue_length
    await holders.settle()
    # Nothing is idle while somebody waits.
    assert len(holders.holding) == holders.slots.in_use
    assert holders.slots.in_use == limit or not holders.slots.waiting
    results = await holders.end()
    assert all(result is None or isinstance(result, asyncio.CancelledError | Overloaded) for result in results), results
    assert holders.most <= limit
    assert (holders.slots.in_use, holders.slots.waiting) == (0, 0)
    assert holders.waited == sorted(holders.waited)
    async with asyncio.timeout(30):
        for _ in range(limit):
            await holders.slots.hold(ask(), deadline_s=0).__aenter__()


@in_virtual_time
async def test_many_tasks_with_short_holds_and_short_deadlines_leave_everything_free() -> None:
    slots, chance = some_slots(limit=4, queue_length=50), random.Random(7)
    in_use = most = served = refused = 0

    async def one() -> None:
        nonlocal in_use, most, served, refused
        try:
            async with slots.hold(ask(), deadline_s=chance.choice([0.001, 0.01, LONG_S])):
                in_use += 1
                most = max(most, in_use)
                try:
                    await asyncio.sleep(chance.random() / 1000)
                    served += 1
                finally:
                    in_use -= 1
        except Overloaded:
            refused += 1

    tasks = []
    for _ in range(400):
        tasks.append(asyncio.create_task(one()))
        if chance.random() < 0.3:
            chance.choice(tasks).cancel()
        if chance.random() < 0.5:
            await asyncio.sleep(0)
    results = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 60)
    cancelled = sum(isinstance(result, asyncio.CancelledError) for result in results)
    assert served + refused + cancelled == 400
    assert (slots.in_use, slots.waiting, in_use) == (0, 0, 0)
    assert most <= 4
    assert served > 0

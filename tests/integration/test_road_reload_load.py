"""Reloads while requests run: slots and their number, as the upstream itself counts it, and what is left behind."""

import asyncio
import gc
import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

import pytest
from pydantic import SecretStr

from tests.support import services
from tests.support.behaviours import Completion, stalled
from tests.support.caller import catalogue_of, reply_of
from tests.support.client import RawClient
from tests.support.road import Road, open_road
from tests.support.services import Service
from tests.support.upstream import ScriptedUpstream
from tests.support.waiting import eventually
from tests.support.wire import Gate
from tidegate.admission.slots import StoreSlots
from tidegate.inference.serving import Serving
from tidegate.routing.breaker import Breaker
from tidegate.routing.catalogue import Catalogue
from tidegate.settings.groups import RedisSettings
from tidegate.upstream.openai import OpenAIProvider, UpstreamClient

KINDS = (Serving, Catalogue, StoreSlots, Breaker, OpenAIProvider, UpstreamClient)


@pytest.fixture
async def upstream() -> AsyncIterator[ScriptedUpstream]:
    async with ScriptedUpstream() as server:
        yield server


def of_size(upstream: ScriptedUpstream, slots: int, *, price: str = "1") -> str:
    queue = {"length": 1000, "deadline_s": 30}
    one = {"base_url": upstream.base_url, "max_concurrency": slots, "queue": queue, "breaker": "off"}
    return catalogue_of({"one": one}, {"m": {"attempts": ["one/m"], "price": {"input": price, "output": price}}})


@pytest.fixture(params=["memory", "redis"])
async def road(request: pytest.FixtureRequest, upstream: ScriptedUpstream, tmp_path: Path) -> AsyncIterator[Road]:
    """One of four slots."""
    if request.param == "memory":
        async with open_road(tmp_path, of_size(upstream, 4)) as opened:
            yield opened
            await opened.at_rest()
        return
    service: Service = request.getfixturevalue("redis_service")
    url, prefix = services.redis_url(service), f"reload-{uuid.uuid4().hex[:12]}"
    try:
        redis = RedisSettings(url=SecretStr(url), key_prefix=prefix)
        async with open_road(tmp_path, of_size(upstream, 4), redis=redis) as opened:
            # A busy machine must not be taken for a Redis that is slow.
            opened.state["admission"].desk.answer_within_s = 30
            yield opened
            await opened.at_rest()
    finally:
        services.delete_keys(url, prefix)


class Crowd:
    """Requests of which each holds its slot until it is let go."""

    def __init__(self, road: Road, upstream: ScriptedUpstream, stack: AsyncExitStack) -> None:
        self._road, self._upstream, self._stack = road, upstream, stack
        self._gates: list[Gate] = []
        self._clients: list[RawClient] = []
        self._let_go = 0

    async def come(self, count: int) -> None:
        slots = self._road.gateway.serving.slots["one"]
        for _ in range(count):
            gate, client = Gate(), await self._stack.enter_async_context(self._road.client())
            self._gates.append(gate)
            self._clients.append(client)
            self._upstream.enqueue(stalled(after=1, at=gate))
            known = slots.in_use + slots.waiting
            await self._road.caller.ask(client, f"crowd-{len(self._clients)}", model="m")
            await eventually(partial(self._has_come, known + 1))
        await self.seen()

    def _has_come(self, count: int) -> bool:
        slots = self._road.gateway.serving.slots["one"]
        return slots.in_use + slots.waiting == count

    async def seen(self) -> None:
        """Waits until the upstream knows of all who hold a slot."""
        slots = self._road.gateway.serving.slots["one"]
        await eventually(lambda: self._upstream.in_flight == slots.in_use)

    async def let_one_go(self) -> None:
        """The upstream's oldest: behaviours are given out in the order in which requests come there."""
        client = self._clients[self._let_go]
        self._gates[self._let_go].open()
        self._let_go += 1
        assert (await reply_of(client)).is_done
        await self.seen()

    async def let_all_go(self) -> None:
        for gate in self._gates:
            gate.open()
        for client in self._clients[self._let_go :]:
            assert (await reply_of(client)).is_done


async def test_fewer_slots_hold_for_who_comes_next_and_for_who_waits(road: Road, upstream: ScriptedUpstream) -> None:
    slots = road.gateway.serving.slots["one"]
    async with AsyncExitStack() as stack:
        crowd = Crowd(road, upstream, stack)
        await crowd.come(8)
        assert (slots.in_use, slots.waiting, upstream.in_flight) == (4, 4, 4)
        await road.reload(of_size(upstream, 2))
        # Nobody who holds one loses it, and nobody comes in for the next two who leave: no request tells the store.
        for left in (3, 2):
            await crowd.let_one_go()
            assert (slots.in_use, slots.waiting, upstream.in_flight) == (left, 4, left)
        await crowd.let_one_go()
        await eventually(lambda: (slots.in_use, slots.waiting, upstream.in_flight) == (2, 3, 2))
        await crowd.come(1)
        assert (slots.in_use, slots.waiting, upstream.in_flight) == (2, 4, 2)
        await crowd.let_all_go()


async def test_more_slots_let_in_who_waits_at_once(road: Road, upstream: ScriptedUpstream) -> None:
    slots = road.gateway.serving.slots["one"]
    async with AsyncExitStack() as stack:
        crowd = Crowd(road, upstream, stack)
        await crowd.come(9)
        await road.reload(of_size(upstream, 7))
        await eventually(lambda: (slots.in_use, slots.waiting, upstream.in_flight) == (7, 2, 7))
        await crowd.come(1)
        assert (slots.in_use, slots.waiting, upstream.in_flight) == (7, 3, 7)
        await road.reload(of_size(upstream, 20))
        await eventually(lambda: (slots.in_use, slots.waiting, upstream.in_flight) == (10, 0, 10))
        await crowd.let_all_go()


async def test_under_load_the_newest_number_is_never_passed(road: Road, upstream: ScriptedUpstream) -> None:
    upstream.default = Completion(deltas=("a", "b"), gap_s=0.002)
    is_over = asyncio.Event()
    slots = road.gateway.serving.slots["one"]

    def holds_at_most(size: int) -> bool:
        return slots.in_use <= size

    async def keeps_asking(number: int) -> int:
        asked = 0
        while not is_over.is_set():
            reply = await road.caller.chat(f"load-{number}-{asked}", model="m")
            assert reply.is_done, reply.body
            asked += 1
        return asked

    async with asyncio.TaskGroup() as group:
        callers = [group.create_task(keeps_asking(number)) for number in range(12)]
        for size in (2, 6, 1, 5, 3, 8, 2):
            await road.reload(of_size(upstream, size))
            # Who came in before may still be there, or on the way; once they have left, the new number is the most.
            await eventually(partial(holds_at_most, size))
            upstream.peak_in_flight = 0
            seen = len(upstream.requests)
            await upstream.received(seen + 30, within_s=30)
            assert upstream.peak_in_flight <= size
            assert upstream.peak_in_flight == size, "it does not use what it has"
        is_over.set()
    assert all(caller.result() for caller in callers)


async def test_two_hundred_reloads_under_load_leave_nothing_behind(
    road: Road, upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    del tmp_path
    is_over = asyncio.Event()

    async def keeps_asking(number: int) -> None:
        while not is_over.is_set():
            assert (await road.caller.chat(f"among-{number}", model="m")).is_done

    async def reload(times: int) -> None:
        for n in range(times):
            await road.reload(of_size(upstream, 3 + n % 3, price=str(n % 7)) + others(upstream, n))

    # What is made once, on the first of its kind, is no leak.
    await reload(20)
    await road.reload(of_size(upstream, 4))
    before = alive()
    async with asyncio.TaskGroup() as group:
        for number in range(4):
            group.create_task(keeps_asking(number))
        await reload(200)
        is_over.set()
    await road.at_rest()
    await road.reload(of_size(upstream, 4))
    assert alive() == before
    assert list(road.root.process.report()["slots"]) == ["one"]


def others(upstream: ScriptedUpstream, n: int) -> str:
    """Upstreams that come and go, of a name that is not seen again."""
    return f'[upstreams.u{n}]\nprovider = "openai"\nbase_url = "{upstream.base_url}/{n}"\n'


def alive() -> dict[str, int]:
    gc.collect()
    objects = gc.get_objects()
    return {kind.__name__: sum(type(one) is kind for one in objects) for kind in KINDS}

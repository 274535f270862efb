"""Slots and the queue before them: refusals, order, and that no race loses a slot."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from functools import partial
from typing import Self

import pytest

from tests.support.behaviours import Completion, stalled
from tests.support.caller import Json, Reply, catalogue_of, reply_of
from tests.support.client import RawClient
from tests.support.road import Road, open_road
from tests.support.upstream import ScriptedUpstream
from tests.support.waiting import eventually
from tests.support.wire import Gate


@pytest.fixture(scope="module")
async def upstream() -> AsyncIterator[ScriptedUpstream]:
    async with ScriptedUpstream() as server:
        yield server


@pytest.fixture(scope="module")
async def road(upstream: ScriptedUpstream, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Road]:
    one = {"base_url": upstream.base_url, "breaker": "off", "max_concurrency": 1}
    upstreams = {
        "one": one,
        "full": {**one, "queue": {"length": 1, "deadline_s": 20}},
        "brief": {**one, "queue": {"length": 10, "deadline_s": 0.1}},
    }
    models = {name: f"{name}/m" for name in upstreams}
    async with open_road(tmp_path_factory.mktemp("road"), catalogue_of(upstreams, models)) as opened:
        yield opened


@pytest.fixture(autouse=True)
async def _nothing_is_held(road: Road) -> AsyncIterator[None]:
    yield
    await road.at_rest()


class Held:
    """A slot that is held until `release`."""

    def __init__(self, road: Road, upstream: ScriptedUpstream, model: str) -> None:
        self._road, self._upstream, self._model = road, upstream, model
        self._gate = Gate()
        self._client = road.client()

    async def __aenter__(self) -> Self:
        await self._client.__aenter__()
        self._upstream.enqueue(stalled(after=1, at=self._gate))
        await self._road.caller.ask(self._client, f"holds-{self._model}", model=self._model)
        await self._client.head()
        return self

    async def release(self) -> None:
        self._gate.open()
        assert (await self._client.body()).endswith(b"[DONE]\n\n")

    async def __aexit__(self, *_: object) -> None:
        await self._client.__aexit__(None, None, None)


def refused(reply: Reply, entry: Json) -> None:
    assert reply.status == 503
    assert (reply.error["code"], reply.error["type"]) == ("overloaded", "overloaded_error")
    assert int(reply.head.headers["retry-after"]) >= 1
    assert (entry["outcome"], entry["status"], entry["error_code"]) == ("rejected", 503, "overloaded")
    assert (entry["attempts"], entry["usage_source"], entry["upstream"]) == ([], "none", None)


@pytest.mark.parametrize("streamed", [True, False], ids=["streamed", "whole"])
async def test_a_full_queue_refuses_at_once(streamed: bool, road: Road, upstream: ScriptedUpstream) -> None:
    async with Held(road, upstream, "full") as held, road.client() as waiter:
        await road.caller.ask(waiter, f"waits-{streamed}", model="full")
        await eventually(lambda: road.gateway.serving.slots["full"].waiting == 1)
        reply = await road.caller.chat(f"too-many-{streamed}", model="full", stream=streamed)
        refused(reply, await road.caller.entry(f"too-many-{streamed}"))
        assert "queue for the upstream 'full' is full" in reply.error["message"]
        await held.release()
        assert (await reply_of(waiter)).is_done


@pytest.mark.parametrize("streamed", [True, False], ids=["streamed", "whole"])
async def test_a_wait_ends_at_the_queues_deadline(streamed: bool, road: Road, upstream: ScriptedUpstream) -> None:
    before = len(upstream.requests)
    async with Held(road, upstream, "brief") as held:
        reply = await road.caller.chat(f"brief-{streamed}", model="brief", stream=streamed)
        entry = await road.caller.entry(f"brief-{streamed}")
        refused(reply, entry)
        assert "No slot of the upstream 'brief' became free within 0.1 s" in reply.error["message"]
        assert entry["queue_ms"] >= 100
        await held.release()
    assert len(upstream.requests) == before + 1


async def test_a_wait_ends_at_the_callers_deadline(road: Road, upstream: ScriptedUpstream) -> None:
    async with Held(road, upstream, "one") as held:
        reply = await road.caller.chat("hurried", model="one", headers={"x-tidegate-deadline-ms": "500"})
        refused(reply, await road.caller.entry("hurried"))
        await held.release()


async def test_who_came_first_is_served_first(road: Road, upstream: ScriptedUpstream) -> None:
    before = len(upstream.requests)

    def waits(count: int) -> bool:
        return road.gateway.serving.slots["one"].waiting == count

    async with AsyncExitStack() as stack, Held(road, upstream, "one") as held:
        waiters: list[RawClient] = []
        for n in range(6):
            waiters.append(await stack.enter_async_context(road.client()))
            await road.caller.ask(waiters[n], f"fifo-{n}", model="one")
            await eventually(partial(waits, n + 1))
        waiters[2].hang_up()
        await eventually(lambda: road.gateway.serving.slots["one"].waiting == 5)
        await held.release()
        for n in (0, 1, 3, 4, 5):
            assert (await reply_of(waiters[n])).is_done
    order = [request.headers["x-request-id"] for request in upstream.requests[before + 1 :]]
    assert order == ["fifo-0", "fifo-1", "fifo-3", "fifo-4", "fifo-5"]
    assert upstream.peak_in_flight == 1


async def test_hang_ups_that_race_with_a_freed_slot_lose_nothing(road: Road, upstream: ScriptedUpstream) -> None:
    slots = road.gateway.serving.slots["one"]
    async with AsyncExitStack() as stack, Held(road, upstream, "one") as held:
        waiters = [await stack.enter_async_context(road.client()) for _ in range(20)]
        for n, waiter in enumerate(waiters):
            await road.caller.ask(waiter, f"race-{n}", model="one")
        await eventually(lambda: slots.waiting == 20)
        releasing = asyncio.create_task(held.release())
        for waiter in waiters[::2]:
            waiter.reset()
            await asyncio.sleep(0)
        for waiter in waiters[1::2]:
            assert (await reply_of(waiter)).is_done
        await releasing
    await road.at_rest()
    entries = [await road.caller.entry(f"race-{n}") for n in range(20)]
    assert [entry["outcome"] for entry in entries[1::2]] == ["completed"] * 10
    assert {entry["outcome"] for entry in entries[::2]} <= {"client_disconnected", "completed"}
    assert all(entry["error_code"] is None for entry in entries)


async def test_a_gateway_that_leaves_refuses_new_requests_and_ends_the_running(
    road: Road, upstream: ScriptedUpstream
) -> None:
    async with Held(road, upstream, "one") as held:
        road.leaving.draining = True
        try:
            reply = await road.caller.chat("too-late", model="one")
            assert (reply.status, reply.error["code"]) == (503, "draining")
            ready = await road.caller.call("GET", "/health/ready")
            assert ready.status == 503
            await held.release()
        finally:
            road.leaving.draining = False
    assert await road.caller.entries("too-late") == []


async def test_many_at_once_never_pass_the_slots(road: Road, upstream: ScriptedUpstream) -> None:
    upstream.default = Completion(gap_s=0.001)
    replies = await asyncio.gather(*(road.caller.chat(f"many-{n}", model="one") for n in range(30)))
    assert all(reply.is_done for reply in replies)
    assert upstream.peak_in_flight == 1

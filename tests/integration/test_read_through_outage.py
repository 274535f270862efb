"""Reading through a Redis that is slow, gone or back: never an error, and a bounded wait."""

import asyncio
import logging
from collections.abc import AsyncIterator

import pytest

from tests.integration.cached_reads import (
    KEY,
    UNREMEMBERED,
    WORKSPACE,
    Clock,
    Deployment,
    Source,
    deployed,
    read,
)
from tests.support.door import Door
from tests.support.services import Service
from tests.support.waiting import eventually
from tidegate.storage.read_through import CacheKey, ReadBounds


@pytest.fixture
async def door(redis_service: Service) -> AsyncIterator[Door]:
    async with Door(redis_service.port) as door:
        yield door


@pytest.fixture
async def behind_door(door: Door, redis_prefix: str) -> AsyncIterator[Deployment]:
    async with deployed(f"redis://127.0.0.1:{door.port}/0", redis_prefix) as deployment:
        yield deployment


@pytest.mark.parametrize("how", ["held", "shut"])
async def test_a_redis_that_is_slow_or_gone_costs_one_caller_its_bound_and_the_next_nothing(
    behind_door: Deployment, door: Door, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    clock, source = Clock(), Source()
    cache = await behind_door.process(ReadBounds(memory_s=0.0), clock=clock)
    if how == "held":
        door.hold()
    else:
        await door.shut()
    with caplog.at_level(logging.WARNING, "tidegate.storage.read_through"):
        # Far below what the client itself would wait for an answer.
        assert await asyncio.wait_for(read(cache, source), 0.9) == 1
        passed = door.passed
        for n in range(20):
            assert await read(cache, source, key=CacheKey(WORKSPACE, "usage", str(n))) == 1
        assert door.passed == passed
        assert len(caplog.records) == 1
        clock.now += 1.0
        door.release()
        if how == "shut":
            await door.open()

        async def is_shared() -> bool:
            clock.now += 1.0
            began = source.began
            await read(cache, source)
            return source.began == began

        await eventually(is_shared)
        assert len(caplog.records) == 2


async def test_redis_lost_in_the_middle_of_a_load_is_no_error(behind_door: Deployment, door: Door) -> None:
    cache, source = await behind_door.process(UNREMEMBERED), Source()
    source.gate.clear()
    reading = asyncio.create_task(read(cache, source))
    await eventually(lambda: source.began)
    await door.shut()
    source.gate.set()
    assert await reading == 1
    await door.open()


async def test_a_change_that_redis_was_not_told_of_is_made_up_for_before_it_is_read_again(
    behind_door: Deployment, door: Door
) -> None:
    clock, source = Clock(), Source()
    cache = await behind_door.process(UNREMEMBERED, clock=clock)
    await read(cache, source)
    await door.shut()
    source.version = 2
    await cache.forget(WORKSPACE, KEY.topic)
    assert await read(cache, source) == 2
    await door.open()
    # Redis has the older value still, and the other topics of this process are read there.
    clock.now += 10
    assert await read(cache, source) == 2
    began = source.began
    assert await read(cache, source) == 2
    assert source.began == began

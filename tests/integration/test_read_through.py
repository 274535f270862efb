"""Reading through this process's memory and Redis: one load a miss, and nothing old after a change."""

import asyncio
import logging
import random
import uuid
from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis

from tests.integration.cached_reads import (
    KEY,
    LONG_S,
    UNREMEMBERED,
    WORKSPACE,
    Clock,
    Deployment,
    Report,
    Source,
    deployed,
    read,
)
from tests.support.subscriptions import kill_subscriptions
from tests.support.waiting import eventually
from tidegate.storage.read_through import CacheKey, ReadBounds, ReadThrough
from tidegate.storage.redis import workspace_tag


@pytest.fixture
async def deployment(redis_url: str, redis_prefix: str) -> AsyncIterator[Deployment]:
    async with deployed(redis_url, redis_prefix) as deployment:
        yield deployment


async def test_what_one_process_loaded_another_reads(deployment: Deployment) -> None:
    one, other, source = await deployment.process(), await deployment.process(), Source()
    assert [await read(cache, source) for cache in (one, one, other, other)] == [1, 1, 1, 1]
    assert source.began == 1


async def test_every_key_begins_with_its_workspace_and_shares_nothing(
    deployment: Deployment, redis_url: str, redis_prefix: str
) -> None:
    cache, source = await deployment.process(UNREMEMBERED), Source()
    elsewhere = CacheKey(uuid.uuid4(), KEY.topic, KEY.name)
    await read(cache, source)
    source.version = 2
    assert await read(cache, source, key=elsewhere) == 2
    client = Redis.from_url(redis_url)
    try:
        keys = [key.decode() async for key in client.scan_iter(f"{redis_prefix}:*")]
    finally:
        await client.aclose()
    tags = {f"{redis_prefix}:{{{workspace_tag(key.workspace_id)}}}:read:usage" for key in (KEY, elsewhere)}
    # A value and a generation each; the locks are given back.
    assert len(keys) == 4
    assert all(any(key.startswith(tag) for tag in tags) for key in keys)


async def test_a_miss_is_loaded_once_over_callers_and_processes(deployment: Deployment) -> None:
    caches = [await deployment.process(ReadBounds(redis_s=LONG_S, wait_s=LONG_S, lock_s=LONG_S)) for _ in range(2)]
    source = Source()
    source.gate.clear()
    asking = [asyncio.create_task(read(cache, source)) for cache in caches for _ in range(50)]
    await eventually(lambda: source.began)
    source.gate.set()
    assert await asyncio.gather(*asking) == [1] * 100
    assert source.began == sum(cache.loads for cache in caches) == 1


async def test_a_caller_that_leaves_takes_the_load_from_nobody(deployment: Deployment) -> None:
    cache, source = await deployment.process(), Source()
    source.gate.clear()
    leader = asyncio.create_task(read(cache, source))
    await eventually(lambda: source.began)
    follower = asyncio.create_task(read(cache, source))
    leader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leader
    source.gate.set()
    assert await follower == 1
    assert source.began == 1


async def test_a_process_that_loads_too_long_is_not_waited_for(deployment: Deployment) -> None:
    slow, source, quick = Source(), Source(), ReadBounds(redis_s=LONG_S, wait_s=0.05)
    holder, other = await deployment.process(), await deployment.process(quick)
    slow.gate.clear()
    stuck = asyncio.create_task(read(holder, slow))
    await eventually(lambda: slow.began)
    assert await read(other, source) == 1
    slow.gate.set()
    await stuck


async def test_a_load_that_fails_is_its_callers_error_and_holds_no_other_process_up(deployment: Deployment) -> None:
    # Nobody waits out the lock: whoever waits longer than it takes to see it given back would hang.
    bounds = ReadBounds(redis_s=LONG_S, wait_s=LONG_S, lock_s=LONG_S)
    failing, other = await deployment.process(bounds), await deployment.process(bounds)
    broken, source = Source(), Source()
    broken.error = ConnectionRefusedError()
    broken.gate.clear()
    asking = [asyncio.create_task(read(failing, broken)) for _ in range(3)]
    await eventually(lambda: broken.began)
    waiting = asyncio.create_task(read(other, source))
    broken.gate.set()
    assert [type(each) for each in await asyncio.gather(*asking, return_exceptions=True)] == [
        ConnectionRefusedError
    ] * 3
    assert await asyncio.wait_for(waiting, LONG_S / 2) == 1
    assert broken.began == 1


@pytest.mark.parametrize("same_process", [True, False])
async def test_a_load_that_began_before_a_change_never_lands_after_it(
    deployment: Deployment, same_process: bool
) -> None:
    loading = await deployment.process()
    changing = loading if same_process else await deployment.process()
    source, slow = Source(), Source()
    slow.gate.clear()
    older = asyncio.create_task(read(loading, slow))
    await eventually(lambda: slow.began)
    source.version = 2
    await changing.forget(WORKSPACE, KEY.topic)
    assert await read(changing, source) == 2
    slow.gate.set()
    assert await older == 1
    # Nor does it displace what is newer.
    assert [await read(cache, source) for cache in (changing, await deployment.process())] == [2, 2]
    assert (slow.began, source.began) == (1, 1)


async def test_a_redis_that_was_emptied_takes_no_load_that_began_before(
    deployment: Deployment, redis_url: str, redis_prefix: str
) -> None:
    cache, source = await deployment.process(UNREMEMBERED), Source()
    source.gate.clear()
    older = asyncio.create_task(read(cache, source))
    await eventually(lambda: source.began)
    client = Redis.from_url(redis_url)
    try:
        for key in [key async for key in client.scan_iter(f"{redis_prefix}:*")]:
            await client.delete(key)
    finally:
        await client.aclose()
    source.version = 2
    source.gate.set()
    await older
    assert await read(cache, source) == 2


async def test_what_one_process_forgets_the_others_forget(deployment: Deployment) -> None:
    bounds = ReadBounds(redis_s=LONG_S, memory_s=LONG_S)
    one, other = [await deployment.process(bounds, hears=True) for _ in range(2)]
    source, unrelated = Source(), Source()
    kept = CacheKey(WORKSPACE, "models", "all")
    for cache in (one, other):
        await read(cache, source)
        await read(cache, unrelated, key=kept)
    source.version = unrelated.version = 2
    await one.forget(WORKSPACE, KEY.topic)
    assert await read(one, source) == 2

    async def is_newer() -> bool:
        return await read(other, source) == 2

    await eventually(is_newer)
    assert [await read(cache, unrelated, key=kept) for cache in (one, other)] == [1, 1]


async def test_after_a_gap_nothing_is_used_by_memory(deployment: Deployment, redis_url: str, redis_prefix: str) -> None:
    other, source = await deployment.process(), Source()
    hearing = await deployment.process(ReadBounds(redis_s=LONG_S, memory_s=LONG_S), hears=True)
    await read(hearing, source)
    source.version = 2
    # It has nothing to tell with: as where what it told was lost.
    await other.forget(WORKSPACE, KEY.topic)
    assert await read(hearing, source) == 1
    assert await kill_subscriptions(redis_url, redis_prefix) == 1

    async def is_newer() -> bool:
        return await read(hearing, source) == 2

    await eventually(is_newer)


@pytest.mark.parametrize("seed", range(5))
async def test_after_a_change_no_read_returns_what_was_before_it(deployment: Deployment, seed: int) -> None:
    """Readers, loads and changes in random order: whoever asks after `forget` returned gets that version or a later."""
    chance = random.Random(seed)
    bounds = ReadBounds(redis_s=LONG_S, memory_s=0.0, early=chance.choice([0.0, 0.8]), poll_s=0.001, wait_s=LONG_S)
    processes = [await deployment.process(bounds) for _ in range(2)]
    # Its own memory too must have nothing older, once it has forgotten.
    changing = await deployment.process(ReadBounds(redis_s=LONG_S, memory_s=LONG_S, poll_s=0.001, wait_s=LONG_S))
    version, promised, reads = 1, 1, 0

    async def load() -> Report:
        found = Report(version)
        for _ in range(chance.randrange(40)):
            await asyncio.sleep(0)
        return found

    async def reader(cache: ReadThrough) -> None:
        nonlocal reads
        while not is_over:
            least = promised
            report = await cache.get(KEY, load, kind=Report, ttl_s=LONG_S)
            assert report.version >= least
            reads += 1
            for _ in range(chance.randrange(3)):
                await asyncio.sleep(0)

    is_over = False
    async with asyncio.TaskGroup() as group:
        for cache in [*processes, *processes, changing]:
            group.create_task(reader(cache))
        for _ in range(150):
            version += 1
            await changing.forget(WORKSPACE, KEY.topic)
            promised = version
            for _ in range(chance.randrange(30)):
                await asyncio.sleep(0)
        is_over = True
    assert reads > 150


async def test_what_is_early_is_loaded_by_one_process_and_nobody_waits(deployment: Deployment) -> None:
    # Early from the beginning on: a look never waits for Redis's clock.
    bounds = ReadBounds(redis_s=LONG_S, memory_s=0.0, early=0.0, lock_s=LONG_S)
    one, other, source = await deployment.process(bounds), await deployment.process(bounds), Source()
    await read(one, source)
    source.version = 2
    source.gate.clear()
    assert [await read(cache, source) for cache in (one, other, one, other)] == [1, 1, 1, 1]
    await eventually(lambda: source.began == 2)
    source.gate.set()

    async def is_newer() -> bool:
        return await read(other, source) == 2

    await eventually(is_newer)


async def test_without_redis_memory_keeps_it_and_asks_early(caplog: pytest.LogCaptureFixture) -> None:
    clock, source = Clock(), Source()
    cache = ReadThrough(None, "tidegate", clock=clock)
    await read(cache, source, ttl_s=10)
    source.version = 2
    clock.now += 7.9
    assert await read(cache, source, ttl_s=10) == 1
    assert source.began == 1
    clock.now += 0.1
    source.error = ConnectionRefusedError()
    with caplog.at_level(logging.INFO, "tidegate.storage.read_through"):
        assert await read(cache, source, ttl_s=10) == 1
        await eventually(lambda: caplog.records)
    # It may fail: what is known is known until its end.
    source.error = None
    assert await read(cache, source, ttl_s=10) == 1
    await eventually(lambda: source.began == 3 and not cache._flights)
    assert await read(cache, source, ttl_s=10) == 2
    clock.now += 10
    await read(cache, source, ttl_s=10)
    assert source.began == 4
    await cache.forget(WORKSPACE, KEY.topic)
    await read(cache, source, ttl_s=10)
    assert source.began == 5
    await cache.aclose()


async def test_memory_is_bounded_and_what_is_large_is_not_kept(deployment: Deployment) -> None:
    local = ReadThrough(None, "tidegate", bounds=ReadBounds(entries=3))
    shared = await deployment.process(ReadBounds(redis_s=LONG_S, largest_bytes=100))
    source = Source()
    for n in range(10):
        await read(local, source, key=CacheKey(WORKSPACE, "usage", str(n)))
    assert len(local._memory) == 3

    async def large() -> str:
        source.began += 1
        return "x" * 101

    began = source.began
    for _ in range(2):
        assert len(await shared.get(KEY, large, kind=str, ttl_s=LONG_S)) == 101
    assert source.began - began == 2


async def test_a_value_of_another_version_is_loaded_again(deployment: Deployment) -> None:
    cache, source = await deployment.process(UNREMEMBERED), Source()

    async def older() -> str:
        return "of another shape"

    await cache.get(KEY, older, kind=str, ttl_s=LONG_S)
    assert await read(cache, source) == 1
    source.version = 2
    assert await read(cache, source) == 1

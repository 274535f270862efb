"""The gate's stores under real concurrency: four processes on one Redis, and all at once in memory."""

import asyncio
import time

import redis

from tests.support.gate_racer import BUDGET, MINUTE, SEAT, SLOTS, Racers
from tests.support.waiting import eventually
from tidegate.admission.memory_store import MemoryStore
from tidegate.admission.redis_store import RedisStore, script_source
from tidegate.admission.store import Asked, Check, Seeding, Spent
from tidegate.storage.pipeline import PipelinedRedis

SEEDING = Seeding(BUDGET.counter, 0, 0, BUDGET.amount, 3_000)
LOOK = Check(BUDGET.counter, "calendar", "cost", BUDGET.amount, 0, False)


async def test_two_hundred_racing_for_the_last_cent_spend_at_most_it(redis_url: str, redis_prefix: str) -> None:
    async with PipelinedRedis.running(redis_url, client_name="test", scripts={"gate": script_source()}) as pipe:
        store = _store(pipe, redis_prefix)
        assert await store.seed("w:1", SEEDING)
        with Racers.ready(redis_url, redis_prefix, ["cent"] * 4) as racers:
            racers.begin()
            results = await asyncio.to_thread(racers.results)
        used = (await store.take("w:1", "test", Asked("look", (LOOK,)))).used[0]
    assert not any(result["lost"] for result in results)
    # Places come free while they race, for those who came to less than they reserved: each is taken or refused once.
    assert sum(result["taken"] for result in results) >= (BUDGET.amount - SEEDING.used) // BUDGET.take
    assert used == SEEDING.used + sum(result["spent"] for result in results)
    assert used <= BUDGET.amount


async def test_two_hundred_at_once_in_memory_reserve_at_most_the_last_cent() -> None:
    store = MemoryStore()
    await store.seed("w:1", SEEDING)
    replies = await asyncio.gather(
        *(store.take("w:1", f"w{n % 4}", Asked(f"entry-{n}", (BUDGET,))) for n in range(200))
    )
    taken = [n for n, reply in enumerate(replies) if reply.said == "taken"]
    assert len(taken) == (BUDGET.amount - SEEDING.used) // BUDGET.take
    for n in taken:
        store.release("w:1", f"w{n % 4}", f"entry-{n}", Spent(0, n % BUDGET.take), (BUDGET,))
    used = (await store.take("w:1", "test", Asked("look", (LOOK,)))).used[0]
    assert used == SEEDING.used + sum(n % BUDGET.take for n in taken) <= BUDGET.amount


async def test_four_processes_never_hold_more_than_there_is(redis_url: str, redis_prefix: str) -> None:
    with Racers.ready(redis_url, redis_prefix, ["slots"] * 4) as racers:
        racers.begin()
        results = await asyncio.to_thread(racers.results)
    assert 1 < max(result["most_slots"] for result in results) <= SLOTS.amount
    assert max(result["most_seats"] for result in results) <= SEAT.capacity
    assert sum(result["inside"] for result in results) > 100
    with redis.Redis.from_url(redis_url) as client:
        assert client.hget(f"{redis_prefix}:{{u:3}}:t", "n") == b"0"
        assert client.hget(f"{redis_prefix}:{{w:3}}:i:{SLOTS.counter}", "n") == b"0"


async def test_a_killed_process_gives_back_in_20_s_while_four_share_one_minute(
    redis_url: str, redis_prefix: str
) -> None:
    """The one real wait for a lease's end, and the race takes the first half of it."""
    async with PipelinedRedis.running(redis_url, client_name="test", scripts={"gate": script_source()}) as pipe:
        store = _store(pipe, redis_prefix)
        with Racers.ready(redis_url, redis_prefix, ["hold"]) as victim:
            victim.begin()
            assert await asyncio.to_thread(victim.results) == [{"seats": ["held"] * SEAT.capacity}]
        killed_at = time.monotonic()
        assert (await store.take("u:4", "test", Asked("first", (SLOTS,), SEAT))).seat == "queued"
        with Racers.ready(redis_url, redis_prefix, ["minute"] * 4) as racers:
            racers.begin()
            results = await asyncio.to_thread(racers.results)
        assert sum(result["taken"] for result in results) == MINUTE.amount
        assert sum(result["asked"] for result in results) > 2 * MINUTE.amount

        async def is_held() -> bool:
            return (await store.attend("u:4", "test", ("first",))).waiting == ("held",)

        await eventually(is_held, within_s=20 - (time.monotonic() - killed_at), poll_s=0.25)
        reply = await store.take("u:4", "test", Asked("second", (SLOTS,), SEAT))
    assert (reply.seat, reply.used) == ("held", (2,))


def _store(pipe: PipelinedRedis, prefix: str) -> RedisStore:
    return RedisStore(pipe, prefix, told=lambda *_: None, alerted=lambda *_: None)

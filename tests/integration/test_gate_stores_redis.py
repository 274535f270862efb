"""What only the gate's Redis store can show: its keys, another run of the server, answers that are late or lost."""

import asyncio
from typing import Any, cast

import redis

from tests.support.gate_stores import (
    MINUTE,
    SEAT,
    SEEDING,
    SLOTS,
    START_MS,
    TAG,
    TOKENS,
    TOTAL,
    DirectPipe,
    TwinStores,
    direct_store,
    take,
)
from tidegate.admission.redis_store import RedisStore, grant_channel
from tidegate.admission.store import Asked, Check, Held, Seat, Seeding, Spent
from tidegate.storage.pipeline import PipelinedRedis, StoreGone, Taker


def test_every_key_is_of_its_tag_and_has_an_end(stores: TwinStores, client: "redis.Redis", redis_prefix: str) -> None:
    many = (Check("slots", "held", "concurrency", 99, 1), Check("total", "calendar", "cost", 10**6, 1))
    stores.seed(SEEDING)
    stores.release("w1", "unknown", Spent(0, 1), (Check("other", "calendar", "cost", 1, 1), TOTAL))
    take(stores, "w0", "seatless", *many)
    stores.clock.passes(1_000)
    for worker in ("w1", "w2", "w3"):
        for n in range(3):
            take(stores, worker, f"{worker}-{n}", MINUTE, TOKENS, *many, seat=Seat(2, 9, worker))
    take(stores, "w4", "refused", Check("new", "sliding", "requests", 0, 1, alerts=True))
    # The first worker is dead by now; then somebody else's ticket is granted, and not claimed.
    stores.clock.passes(14_000)
    stores.attend("w2")
    stores.release("w1", "w1-0", Spent())
    stores.release("w1", "w1-1", Spent())
    keys = [cast("bytes", key).decode() for key in client.scan_iter(f"*{redis_prefix}*", count=1000)]
    kinds = {key.removeprefix(f"{redis_prefix}:{{{TAG}}}:").partition(":")[0] for key in keys}
    assert {"t", "w", "h", "o", "oz", "q", "r", "l", "f", "u", "s", "m", "i", "p", "pz", "e"} <= kinds
    assert [key for key in keys if not key.startswith(f"{redis_prefix}:{{{TAG}}}:")] == []
    assert [key for key in keys if client.ttl(key) < 0] == []


def test_another_run_of_the_server_begins_anew_and_is_declared_to(stores: TwinStores) -> None:
    """As a Redis that was restarted from an old snapshot: the keys are there, and untrue."""
    stores.seed(SEEDING)
    old = Asked("e1", (TOTAL, SLOTS), SEAT)
    stores.take("w1", old)
    stores.take("w2", Asked("e2", (), SEAT))
    stores.pipe.run_id = "another"

    async def on_redis() -> None:
        store = stores.redis
        assert (await store.attend(TAG, "w1", ("e1",))).entries == 0
        assert (await store.take(TAG, "w3", Asked("e3", (TOTAL,)))).said == "unseeded"
        await store.declare(TAG, "w1", (Held("e1", (TOTAL, SLOTS), SEAT),), ())
        assert await store.seed(TAG, Seeding("total", 0, 0, 1000, 350))
        assert (await store.take(TAG, "w1", old)).used == (450, 1)
        assert (await store.take(TAG, "w2", Asked("e4", (SLOTS,), SEAT))).used == (2,)
        assert (await store.take(TAG, "w2", Asked("e5", (), SEAT))).seat == "queued"

    asyncio.run(on_redis())


def test_a_lost_part_of_the_tag_is_no_error(stores: TwinStores, client: "redis.Redis", redis_prefix: str) -> None:
    """Redis lost some keys (a policy that evicts): the others' steps go on."""
    for n in range(5):
        take(stores, "w1", f"e{n}", SLOTS, seat=SEAT)
    base = f"{redis_prefix}:{{{TAG}}}"

    async def on_redis() -> None:
        client.delete(f"{base}:h:w1", f"{base}:q")
        assert (await stores.redis.take(TAG, "w2", Asked("e6", (), Seat(9, 9)))).said == "taken"
        client.delete(f"{base}:t")
        stores.clock.passes(1)
        assert (await stores.redis.take(TAG, "w2", Asked("e7", (SLOTS,), SEAT))).used == (1,)

    asyncio.run(on_redis())


def test_whom_anothers_step_grants_a_slot_hears_of_it_on_his_own_channel(
    stores: TwinStores, client: "redis.Redis", redis_prefix: str
) -> None:
    with client.pubsub(ignore_subscribe_messages=True) as heard:  # type: ignore[no-untyped-call]
        heard.subscribe(grant_channel(redis_prefix, "w2"))
        # What says that it stands.
        assert heard.get_message(timeout=10) is None
        take(stores, "w1", "e1", seat=Seat(1, 3))
        assert take(stores, "w2", "e2", seat=Seat(1, 3)) == "queued"
        stores.release("w1", "e1", Spent())
        message = heard.get_message(timeout=10)
    assert message is not None
    assert message["data"] == f"{redis_prefix}:{{{TAG}}}\ne2".encode()


class SlowPipe(DirectPipe):
    """Does each step at once, and answers when it is told to."""

    def __init__(self, client: "redis.Redis") -> None:
        super().__init__(client)
        self.answers: list[tuple[asyncio.Future[Any], Taker]] = []

    def hand_script(self, taker: Taker, name: str, key: str, op: str, payload: bytes) -> None:
        self.answers.append((self.script(name, [key], [op, payload, self.run_id]), taker))

    def answer(self) -> None:
        for done, taker in self.answers:
            if not taker.done():
                taker.set_result(done.result())
        self.answers.clear()


async def test_a_grant_in_an_answer_that_nobody_waits_for_is_told_all_the_same(
    client: "redis.Redis", redis_prefix: str
) -> None:
    told: list[str] = []
    pipe = SlowPipe(client)
    store = RedisStore(
        cast("PipelinedRedis", pipe), redis_prefix, told=lambda *grant: told.append(grant[2]), alerted=lambda *_: None
    )
    for entry in ("e1", "e2"):
        taking = asyncio.create_task(store.take(TAG, "w1", Asked(entry, (), Seat(1, 3))))
        await asyncio.sleep(0)
        pipe.answer()
        await taking
    given_up = asyncio.create_task(store.take(TAG, "w1", Asked("e3", (), Seat(2, 3))))
    await asyncio.sleep(0)
    given_up.cancel()
    await asyncio.wait([given_up])
    pipe.answer()
    await asyncio.sleep(0)
    assert told == ["e2"]


async def test_a_release_that_may_not_have_been_done_is_told(client: "redis.Redis", redis_prefix: str) -> None:
    class Gone(DirectPipe):
        def hand_script(self, taker: Taker, name: str, key: str, op: str, payload: bytes) -> None:
            answer = self.script(name, [key], [op, payload, self.run_id]).result()
            if op == "release":
                taker.set_exception(StoreGone("lost on the way"))
            else:
                taker.set_result(answer)

    lost: list[tuple[str, str, Spent, tuple[Check, ...]]] = []
    store = RedisStore(
        cast("PipelinedRedis", Gone(client)),
        redis_prefix,
        told=lambda *_: None,
        alerted=lambda *_: None,
        lost=lambda *what: lost.append(what),
        clock_ms=lambda: START_MS,
    )
    await store.seed(TAG, SEEDING)
    await store.take(TAG, "w1", Asked("e1", (TOTAL,)))
    store.release(TAG, "w1", "e1", Spent(0, 70), (TOTAL,))
    await asyncio.sleep(0)
    assert lost == [(TAG, "e1", Spent(0, 70), (TOTAL,))]
    # It had been done: told again, it is counted once.
    again = direct_store(DirectPipe(client), redis_prefix, lambda: START_MS, [])
    tag, entry, spent, checks = lost[0]
    again.release(tag, "w1", entry, spent, checks)
    assert (await again.take(TAG, "w1", Asked("e2", (TOTAL,)))).used == (470,)

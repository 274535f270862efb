"""Limits over four real worker processes, Redis and PostgreSQL: what holds in one holds in all."""

import asyncio
import functools
import re
import statistics
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from decimal import Decimal

import openai
import pytest

from tests.support import services
from tests.support.behaviours import Completion, Usage, refusal, stalled
from tests.support.caller import catalogue_of, content, reply_of
from tests.support.client import ConnectionEnded, RawClient
from tests.support.limited import LimitedGateway, LimitedKey, a_meter, held_in_redis, peak, worker_of
from tests.support.official_client import OfficialClient
from tests.support.server import GatewayPlan
from tests.support.services import Service
from tests.support.upstream import ScriptedUpstream
from tests.support.waiting import eventually
from tests.support.wire import Gate

WORKERS = 4
PRICE = {"input": "1.00", "output": "1000.00"}
# What `ask` may cost at most: five tokens of output, and its input by its bytes.
ONE_REQUEST = Decimal("0.0055")
NARROW, SECOND, FAIR, CRASH = 3, 2, 4, 6


def the_catalogue(upstream: ScriptedUpstream) -> str:
    plain = {"base_url": upstream.base_url, "count": "deltas", "breaker": "off"}
    tight = {**plain, "max_concurrency": 1, "queue": {"length": 2, "deadline_s": 1}}
    upstreams = {
        "plain": {**plain, "max_concurrency": 500},
        "narrow": {**plain, "max_concurrency": NARROW},
        "second": {**plain, "max_concurrency": SECOND},
        "fair": {**plain, "max_concurrency": FAIR, "queue": {"length": 1000, "deadline_s": 60}},
        "crash": {**plain, "max_concurrency": CRASH, "queue": {"length": 100, "deadline_s": 60}},
        "tight": tight,
        "full": {**tight, "queue": {"length": 0, "deadline_s": 1}},
        "patient": {**tight, "queue": {"length": 10, "deadline_s": 60}},
    }
    models = {
        "m": {"attempts": ["plain/m"], "price": PRICE, "reserve_output_tokens": 10},
        "narrow": "narrow/n",
        "failover": ["narrow/bad", "second/good"],
        "fair": "fair/f",
        "crash": {"attempts": ["crash/c"], "price": PRICE},
        "tight": "tight/t",
        "full": "full/full",
        "patient": {"attempts": ["patient/p"], "price": PRICE, "keepalive_after_s": 1},
    }
    return catalogue_of(upstreams, models)


@pytest.fixture(scope="module")
async def upstream() -> AsyncIterator[ScriptedUpstream]:
    async with ScriptedUpstream() as server:
        yield server


@pytest.fixture(scope="module")
def database_url(postgres_service: Service) -> Iterator[str]:
    url = services.create_database(postgres_service)
    yield url
    services.drop_database(postgres_service, url)


@pytest.fixture(scope="module")
async def gateway(
    upstream: ScriptedUpstream,
    database_url: str,
    redis_service: Service,
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[LimitedGateway]:
    url = services.redis_url(redis_service)
    folder = tmp_path_factory.mktemp("limited")
    prefix = f"tgtest-{folder.name}-{time.time_ns():x}"
    plan = GatewayPlan(
        catalogue=the_catalogue(upstream),
        workers=WORKERS,
        database_url=database_url,
        redis_url=url,
        redis_prefix=prefix,
    )
    try:
        async with LimitedGateway.running(folder, plan) as running:
            yield running
            # Whatever ended how: nothing of it is held.
            await eventually(lambda: held_in_redis(url, prefix) == {}, within_s=20, poll_s=0.2)
            # However busy the machine was: no worker took a store that answers for one that is gone.
            assert not [line for line in running.process.lines() if line["event"] == "limits_judged_alone"]
    finally:
        services.delete_keys(url, prefix)


@pytest.fixture(autouse=True)
def fresh_script(upstream: ScriptedUpstream) -> None:
    upstream.default = Completion(usage=Usage(completion=5))
    upstream.by_model.clear()
    upstream.requests.clear()


def told(figures: str) -> None:
    """For whoever runs with `-s`."""
    sys.stdout.write(f"{figures}\n")


async def test_requests_a_minute_hold_over_all_workers(gateway: LimitedGateway, upstream: ScriptedUpstream) -> None:
    key = await gateway.key(a_meter("requests", 10, "minute"))
    answers = await gateway.ask_at_once(key, 40)
    assert Counter(one.status for one in answers) == {200: 10, 429: 30}
    assert len(upstream.requests) == 10
    refused = next(one for one in answers if one.status == 429)
    assert refused.code == "rate_limit_exceeded"
    assert 1 <= int(refused.headers["retry-after"]) <= 61
    assert 1 <= int(refused.headers["retry-after-ms"]) <= 61_000
    assert refused.headers["x-should-retry"] == "true"
    assert refused.headers["ratelimit-policy"] == '"key-requests-minute";q=10;w=60'
    assert refused.headers["x-ratelimit-remaining-requests"] == "0"
    remaining = sorted(int(one.headers["x-ratelimit-remaining-requests"]) for one in answers if one.status == 200)
    assert remaining == list(range(10))


async def test_two_hundred_that_race_for_the_last_cent_spend_at_most_it(gateway: LimitedGateway) -> None:
    budget = Decimal("0.06")
    key = await gateway.key(a_meter("cost", str(budget), "total"))
    answers = await gateway.ask_at_once(key, 200)
    assert {one.status for one in answers} == {200, 429}
    assert {one.code for one in answers} == {None, "insufficient_quota"}
    assert all(one.headers["x-should-retry"] == "false" for one in answers if one.status == 429)
    served = sum(one.status == 200 for one in answers)
    while (await gateway.ask(key)).status == 200:
        served += 1
    assert len(await gateway.entries(key, served)) == served
    assert budget - ONE_REQUEST < await gateway.spent(key) <= budget


async def test_slots_in_use_never_pass_the_cap_streams_hang_ups_and_failovers_included(
    gateway: LimitedGateway, upstream: ScriptedUpstream
) -> None:
    key = await gateway.key()
    upstream.by_model["n"] = upstream.by_model["good"] = Completion(deltas=("a", "b"), gap_s=0.05)
    upstream.by_model["bad"] = refusal(500)
    gone = asyncio.gather(*(hung_up_in_the_middle(gateway, key) for _ in range(12)))
    answers = await asyncio.gather(
        *(gateway.ask(key, "narrow", stream=n % 2 == 0) for n in range(30)),
        *(gateway.ask(key, "failover", stream=n % 2 == 0) for n in range(12)),
    )
    await gone
    assert Counter(one.status for one in answers) == {200: 42}
    assert peak(upstream, "n") == NARROW
    assert 1 <= peak(upstream, "good") <= SECOND
    assert sum(request.body["model"] == "good" for request in upstream.requests) == 12


async def hung_up_in_the_middle(gateway: LimitedGateway, key: LimitedKey) -> None:
    async with asyncio.timeout(60), gateway.client() as client:
        await gateway.stream(client, key, "narrow")
        await first_content(client)
        client.hang_up()


async def first_content(client: RawClient) -> None:
    assert (await client.head()).status == 200
    await content(client)


async def test_two_names_of_one_server_have_slots_of_their_own(
    gateway: LimitedGateway, upstream: ScriptedUpstream
) -> None:
    key, gate = await gateway.key(), Gate()
    upstream.by_model["n"] = stalled(after=1, at=gate)
    upstream.by_model["p"] = stalled(after=1, at=gate)
    held = [asyncio.create_task(gateway.ask(key, "narrow", stream=True)) for _ in range(NARROW)]
    held.append(asyncio.create_task(gateway.ask(key, "patient", stream=True)))
    await upstream.wait_for(lambda: gate.waiting == NARROW + 1, within_s=20)
    gate.open()
    assert {one.status for one in await asyncio.gather(*held)} == {200}


async def test_who_waits_too_long_or_is_one_too_many_is_told_when_to_come_again(
    gateway: LimitedGateway, upstream: ScriptedUpstream
) -> None:
    key, gate = await gateway.key(), Gate()
    upstream.by_model["t"] = stalled(after=1, at=gate)
    holder = asyncio.create_task(gateway.ask(key, "tight", stream=True))
    await upstream.wait_for(lambda: gate.waiting == 1, within_s=20)
    early = await gateway.ask(key, "tight", headers={"X-Tidegate-Deadline-Ms": "900"})
    answers = await gateway.ask_at_once(key, 4, "tight")
    gate.open()
    assert (await holder).status == 200
    assert {(one.status, one.code) for one in (*answers, early)} == {(503, "overloaded")}
    for one in (*answers, early):
        assert int(one.headers["retry-after"]) >= 1
        assert int(one.headers["retry-after-ms"]) >= 1000
        assert one.headers["x-should-retry"] == "true"
    kinds = Counter("full" if "is full" in one.reply.error["message"] else "late" for one in answers if one.reply)
    assert kinds["full"] >= 2
    assert all(one.took_s >= 1 for one in answers if one.reply and "is full" not in one.reply.error["message"])
    waited = re.search(r"within (0\.\d+) s", early.stream.error["message"])
    # What was left of the caller's own deadline, which is sooner than the queue's.
    assert waited is not None
    assert 0 < float(waited[1]) <= 0.9
    assert len(upstream.requests) == 1


async def test_a_hang_up_in_the_queue_leaves_at_once_and_gives_rate_and_budget_back(
    gateway: LimitedGateway, upstream: ScriptedUpstream
) -> None:
    # While it waits it has all of both: nothing is let in before it gave them back.
    key, gate = await gateway.key(a_meter("requests", 1, "minute"), a_meter("cost", "0.0075", "total")), Gate()
    holding = await gateway.key()
    upstream.by_model["p"] = stalled(after=1, at=gate)
    holder = asyncio.create_task(gateway.ask(holding, "patient", stream=True))
    await upstream.wait_for(lambda: gate.waiting == 1, within_s=20)
    async with gateway.client() as client:
        await gateway.stream(client, key, "patient")
        head, event = await client.head(), await client.event()
        assert (head.status, event and event.raw) == (200, b": queued, position 1\n\n")
        assert (await gateway.ask(key)).status == 429
        client.hang_up()

    async def is_let_in() -> bool:
        return (await gateway.ask(key)).status == 200

    await eventually(is_let_in, within_s=5, poll_s=0.05)
    gate.open()
    assert (await holder).status == 200
    entries = await gateway.entries(key, 2)
    assert [entry.outcome for entry in entries] == ["client_disconnected", "completed"]
    assert entries[0].cost in (None, 0)


async def test_openais_client_does_not_ask_again_where_money_is_out(gateway: LimitedGateway) -> None:
    key = await gateway.key(a_meter("cost", "0.001", "total"))
    async with OfficialClient(gateway.process.api_url, key.secret) as official:
        with pytest.raises(openai.RateLimitError) as refused:
            await official.say("m")
    assert refused.value.code == "insufficient_quota"
    assert official.statuses == [429]


async def test_openais_client_comes_again_when_it_is_told_to(
    gateway: LimitedGateway, upstream: ScriptedUpstream
) -> None:
    key, gate = await gateway.key(), Gate()
    upstream.by_model["full"] = stalled(after=1, at=gate)
    holder = asyncio.create_task(gateway.ask(key, "full", stream=True))
    await upstream.wait_for(lambda: gate.waiting == 1, within_s=20)
    async with OfficialClient(gateway.process.api_url, key.secret) as official:
        served = asyncio.create_task(official.say("full"))
        await eventually(lambda: official.statuses, within_s=20)
        gate.open()
        assert (await holder).status == 200
        assert await served
    assert official.statuses == [503, 200]
    assert official.asked_at[1] - official.asked_at[0] >= 1


async def test_a_flood_by_one_key_leaves_the_calm_ones_their_turn(
    gateway: LimitedGateway, upstream: ScriptedUpstream
) -> None:
    upstream.by_model["f"] = Completion(before_headers=0.06)
    flooding, calm = await gateway.key(), [await gateway.key() for _ in range(9)]
    async with AsyncExitStack() as stack:
        clients = await on_one_worker(gateway, stack, 9)
        alone = await waits_of(gateway, calm, clients, rounds=15)
        is_over = asyncio.Event()
        flood = [asyncio.create_task(asks_until(gateway, flooding, is_over)) for _ in range(60)]
        await eventually(lambda: len(upstream.requests) > 9 * 15 + FAIR, within_s=20)
        beside = await waits_of(gateway, calm, clients, rounds=15)
        is_over.set()
        assert {status for statuses in await asyncio.gather(*flood) for status in statuses} == {200}
    before, after = statistics.median(alone), statistics.median(beside)
    p95 = [statistics.quantiles(waits, n=20)[-1] for waits in (alone, beside)]
    told(f"queue_ms of the calm: alone {before} (p95 {p95[0]:.0f}), beside a flood {after} (p95 {p95[1]:.0f})")
    assert before > 0, "they have to wait for each other, or there is nothing to compare"
    assert after <= 2 * before, f"{after} ms beside a flood, {before} ms without"


async def on_one_worker(gateway: LimitedGateway, stack: AsyncExitStack, count: int) -> list[RawClient]:
    """So many open connections that one and the same worker took."""
    by_worker: dict[int, list[RawClient]] = {}
    while True:
        client = await stack.enter_async_context(gateway.client())
        pid = await eventually(functools.partial(worker_of, gateway.process, client), within_s=10)
        by_worker.setdefault(pid, []).append(client)
        if len(by_worker[pid]) == count:
            return by_worker[pid]


async def waits_of(
    gateway: LimitedGateway, keys: list[LimitedKey], clients: list[RawClient], *, rounds: int
) -> list[int]:
    """What each request of each key waited in the queue, in ms, by the ledger. One at a time for each key."""

    async def one_by_one(key: LimitedKey, client: RawClient) -> list[int]:
        seen = len(await gateway.entries(key, 0))
        for _ in range(rounds):
            await gateway.stream(client, key, "fair", stream=False)
            assert (await reply_of(client)).status == 200
        entries = await gateway.entries(key, seen + rounds)
        return [entry.queue_ms or 0 for entry in entries[-rounds:]]

    waits = await asyncio.gather(*(one_by_one(key, client) for key, client in zip(keys, clients, strict=True)))
    return [wait for each in waits for wait in each]


async def asks_until(gateway: LimitedGateway, key: LimitedKey, is_over: asyncio.Event) -> list[int]:
    statuses = []
    while not is_over.is_set():
        statuses.append((await gateway.ask(key, "fair")).status)
    return statuses


async def test_a_stream_that_outgrows_its_reservation_is_cut_or_finishes_as_its_limit_says(
    gateway: LimitedGateway, upstream: ScriptedUpstream
) -> None:
    upstream.by_model["m"] = Completion(deltas=tuple("abcdefghijklmnopqrstuvwxyz"), gap_s=0.05, usage_when="never")
    cut, finishing, roomy = await gateway.key(), await gateway.key(), await gateway.key()
    # Room for the ten tokens that a request without a limit reserves, not for ten more.
    await gateway.limit(cut, "cost", "0.015", "total", on_overrun="cut")
    await gateway.limit(finishing, "cost", "0.015", "total", on_overrun="finish")
    await gateway.limit(roomy, "cost", "1", "total", on_overrun="cut")
    first, second, third = await asyncio.gather(
        *(gateway.ask(key, "m", stream=True, max_tokens=None) for key in (cut, finishing, roomy))
    )
    assert {one.status for one in (first, second, third)} == {200}
    cut_short, whole = first.stream, (second.stream, third.stream)
    assert [event.json["error"]["code"] for event in cut_short.errors] == ["insufficient_quota"]
    assert not cut_short.is_done
    assert 8 <= len(cut_short.text) < 26
    assert [(one.is_done, len(one.text)) for one in whole] == [(True, 26)] * 2
    (entry,) = await gateway.entries(cut, 1)
    assert (entry.outcome, entry.error_code, entry.status) == ("interrupted", "insufficient_quota", 200)
    assert Decimal("0.008") <= (entry.cost or 0) <= Decimal("0.015")
    (overdrawn,) = await gateway.entries(finishing, 1)
    assert overdrawn.outcome == "completed"
    assert (overdrawn.cost or 0) > Decimal("0.026")
    assert (await gateway.ask(finishing)).code == "insufficient_quota"
    assert (await gateway.ask(roomy)).status == 200


async def test_what_a_killed_worker_held_comes_back(gateway: LimitedGateway, upstream: ScriptedUpstream) -> None:
    # Room for what six reserve, and for no seventh before some of it is settled.
    key = await gateway.key(a_meter("concurrency", CRASH), a_meter("cost", "0.034", "total"))
    other, gate = await gateway.key(), Gate()
    upstream.by_model["c"] = stalled(after=1, at=gate)
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(gateway.client()) for _ in range(CRASH)]
        for client in clients:
            await gateway.stream(client, key, "crash")
            await first_content(client)
        assert (await gateway.ask(key)).status == 429
        workers = {client: worker_of(gateway.process, client) for client in clients}
        victim, count = Counter(workers.values()).most_common(1)[0]
        killed_at = time.monotonic()
        next(process for process in gateway.process.tree() if process.pid == victim).kill()
        # The slots: as many wait for them as there were. The key's concurrency and budget: it is let in again.
        waiting = [await stack.enter_async_context(gateway.client()) for _ in range(count)]
        for client in waiting:
            await gateway.stream(client, other, "crash")
        async with asyncio.timeout(30):
            for client in waiting:
                await first_content(client)
        slots_after_s = time.monotonic() - killed_at

        async def is_let_in() -> bool:
            return (await gateway.ask(key)).status == 200

        await eventually(is_let_in, within_s=20, poll_s=0.2)
        key_after_s = time.monotonic() - killed_at
        told(f"{count} of {CRASH} slots were back after {slots_after_s:.1f} s, the key's after {key_after_s:.1f} s")
        assert max(slots_after_s, key_after_s) < 20
        assert peak(upstream, "c") == CRASH
        gate.open()
        for client, pid in workers.items():
            if pid == victim:
                with pytest.raises(ConnectionEnded):
                    await reply_of(client)
            else:
                assert [event async for event in client.events()][-1].is_done

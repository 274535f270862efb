"""A request's turn at the cache: in whatever phase somebody goes, the others are served and nothing is left."""

import asyncio
import time
import uuid
from typing import cast

import anyio
import pytest

from tests.unit.samples import an_exchange
from tidegate.errors import RequestTimeout
from tidegate.inference.caching import Caching
from tidegate.inference.client import Client
from tidegate.inference.exchange import Exchange
from tidegate.inference.kept_answers import AnswerKey, KeptAnswer
from tidegate.inference.response_cache import ResponseCache
from tidegate.ledger.entry import Tokens

KEY = AnswerKey(uuid.uuid4(), "d")
A_BODY = b'{"choices": [{"message": {"role": "assistant", "content": "a"}, "finish_reason": "stop"}]}'


class Answers:
    """A store that a test holds."""

    def __init__(self) -> None:
        self.kept: dict[AnswerKey, KeptAnswer] = {}
        self.found = 0
        self.finding = asyncio.Event()
        self.finding.set()
        self.keeping = asyncio.Event()
        self.keeping.set()

    async def find(self, key: AnswerKey, ttl_s: float) -> KeptAnswer | None:
        self.found += 1
        await self.finding.wait()
        answer = self.kept.get(key)
        return answer if answer is not None and answer.is_fresh(ttl_s, time.time()) else None

    async def keep(self, key: AnswerKey, answer: KeptAnswer, ttl_s: float) -> None:
        await self.keeping.wait()
        self.kept[key] = answer


class NoClient:
    """What the turn tells a client: its headers."""

    def __init__(self) -> None:
        self.headers: list[tuple[bytes, bytes]] = []


class World:
    """A cache, and an upstream that answers once it may. `calls` counts who called it."""

    def __init__(self) -> None:
        self.answers = Answers()
        self.cache = ResponseCache(self.answers)
        self.upstream = asyncio.Event()
        self.calls = 0
        self.exchanges: list[Exchange] = []
        self.scopes: list[anyio.CancelScope] = []

    def ask(self, *, ttl_s: int = 60, deadline_s: float | None = None, follow_s: float = 60) -> "asyncio.Task[str]":
        at = None if deadline_s is None else time.perf_counter() + deadline_s
        exchange = an_exchange(client=cast("Client", NoClient()), deadline_at=at, temperature=0)
        self.exchanges.append(exchange)
        scope = anyio.CancelScope()
        self.scopes.append(scope)

        async def watched() -> str:
            # As `Client.watched` ends the work for a client that hung up.
            with scope:
                return await self._road(exchange, Caching(ttl_s, KEY, follow_s))
            return "gone"

        return asyncio.create_task(watched())

    async def settled(self) -> None:
        for _ in range(8):
            await asyncio.sleep(0)

    def is_empty(self) -> bool:
        return (len(self.cache.flights), self.cache.flights.waiting) == (0, 0)

    async def _road(self, exchange: Exchange, caching: Caching) -> str:
        async with self.cache.turn(exchange, caching) as kept:
            if kept is not None:
                return "hit"
            self.calls += 1
            await self.upstream.wait()
            caching.offer(A_BODY, 1, Tokens(), None)
            return "miss"


@pytest.mark.parametrize("phase", ["looking-it-up", "calling", "keeping"])
async def test_a_leader_that_hangs_up_in_any_phase_cancels_nobody_and_leaves_nothing(phase: str) -> None:
    world = World()
    if phase == "looking-it-up":
        world.answers.finding.clear()
    if phase == "keeping":
        world.answers.keeping.clear()
    leader = world.ask()
    await world.settled()
    followers = [world.ask() for _ in range(3)]
    await world.settled()
    assert world.cache.flights.waiting == 3
    if phase == "keeping":
        world.upstream.set()
        await world.settled()
        assert all(follower.done() for follower in followers)
    world.scopes[0].cancel()
    await world.settled()
    for event in (world.answers.finding, world.answers.keeping, world.upstream):
        event.set()
    done = await asyncio.wait_for(asyncio.gather(*followers), 10)
    # What was paid for is given to all and kept, also where its leader goes.
    assert sorted(done) == (["hit"] * 3 if phase == "keeping" else ["hit", "hit", "miss"])
    # Its answer was there before it went.
    assert await asyncio.wait_for(leader, 10) == ("miss" if phase == "keeping" else "gone")
    assert KEY in world.answers.kept
    assert world.is_empty()


async def test_a_leader_that_is_cut_by_the_server_leaves_nothing() -> None:
    world = World()
    leader, follower = world.ask(), world.ask()
    await world.settled()
    leader.cancel()
    await asyncio.wait([leader], timeout=10)
    assert leader.cancelled()
    world.upstream.set()
    assert await asyncio.wait_for(follower, 10) == "miss"
    assert world.is_empty()


async def test_an_answer_that_is_found_is_looked_up_once_for_all_who_wait_but_those_who_want_a_younger_one() -> None:
    world = World()
    world.upstream.set()
    world.answers.kept[KEY] = KeptAnswer(A_BODY, "stop", 1, 1, None, time.time() - 30)
    world.answers.finding.clear()
    tasks = [world.ask(), world.ask(), world.ask(ttl_s=10), world.ask()]
    await world.settled()
    assert world.answers.found == 1
    world.answers.finding.set()
    assert await asyncio.wait_for(asyncio.gather(*tasks), 10) == ["hit", "hit", "miss", "hit"]
    assert world.calls == 1
    said = [dict(cast("NoClient", exchange.client).headers)[b"x-tidegate-cache"] for exchange in world.exchanges]
    assert said == [b"hit", b"hit", b"miss", b"hit"]
    assert [exchange.progress.units.get("joined") for exchange in world.exchanges] == [None, 1, None, 1]
    assert world.is_empty()


async def test_a_follower_waits_as_long_as_it_may_and_then_is_told_or_goes_itself() -> None:
    world = World()
    leader = world.ask()
    await world.settled()
    late, alone = world.ask(deadline_s=0.01), world.ask(follow_s=0.01, deadline_s=50)
    with pytest.raises(RequestTimeout):
        await asyncio.wait_for(late, 10)
    while world.calls < 2:
        await asyncio.sleep(0)
    world.upstream.set()
    assert [await asyncio.wait_for(task, 10) for task in (leader, alone)] == ["miss", "miss"]
    assert world.is_empty()


async def test_without_a_key_nothing_is_looked_up_or_kept() -> None:
    world = World()
    world.upstream.set()
    exchange = an_exchange(client=cast("Client", NoClient()))
    assert await world._road(exchange, Caching(60)) == "miss"
    assert exchange.progress.cache == "miss"
    assert (world.answers.found, world.answers.kept) == (0, {})
    assert world.is_empty()

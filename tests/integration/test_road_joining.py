"""Identical requests at once: one is sent upstream, the others wait for its answer, and every one ends on its own."""

import asyncio
import json
import secrets
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from functools import partial
from typing import Any, Literal

import pytest
from starlette.types import Message, Send

from tests.support.behaviours import Behaviour, Completion, refusal, stalled
from tests.support.caller import CHAT, Json, Reply, catalogue_of, content, reply_of
from tests.support.client import RawClient
from tests.support.road import Road, open_road
from tests.support.upstream import ScriptedUpstream
from tests.support.waiting import eventually
from tests.support.wire import FOREVER, Gate, Received
from tidegate.http.context import SCOPE_KEY, RequestContext
from tidegate.inference.joining import MOST_HANDOVERS
from tidegate.inference.response import RoadResponse

HEADERS = {"x-tidegate-cache": "60s"}


@pytest.fixture(scope="module")
async def upstream() -> AsyncIterator[ScriptedUpstream]:
    async with ScriptedUpstream() as server:
        yield server


@pytest.fixture(scope="module")
async def road(upstream: ScriptedUpstream, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Road]:
    plain = {"base_url": upstream.base_url, "breaker": "off", "count": "deltas"}
    catalogue = catalogue_of(
        {"plain": plain, "one": {**plain, "max_concurrency": 1}},
        {"m": {"attempts": ["plain/m"], "price": {"input": "2", "output": "8"}}, "one": "one/m"},
    )
    async with open_road(tmp_path_factory.mktemp("road"), catalogue) as opened:
        yield opened


@pytest.fixture(autouse=True)
async def _nothing_is_held(road: Road) -> AsyncIterator[None]:
    yield
    await road.at_rest()
    assert len(road.gateway.cache.flights) == 0


class Crowd:
    """Requests that are the same: the first leads, the others follow. Each has a label of its own."""

    def __init__(self, road: Road, upstream: ScriptedUpstream, stack: AsyncExitStack, **body: Any) -> None:
        self.clients: list[RawClient] = []
        self._road = road
        self._upstream = upstream
        self._stack = stack
        self._name = secrets.token_hex(4)
        self._body: Json = {
            "temperature": 0,
            "stream": False,
            "messages": [{"role": "user", "content": self._name}],
            **body,
        }

    def label(self, n: int) -> str:
        return f"{self._name}-{n}"

    async def ask(self, *, headers: dict[str, str] | None = None, receive_buffer: int | None = None) -> RawClient:
        client = await self._stack.enter_async_context(self._road.client(receive_buffer=receive_buffer))
        self.clients.append(client)
        label = self.label(len(self.clients) - 1)
        await self._road.caller.ask(client, label, headers={**HEADERS, **(headers or {})}, **self._body)
        return client

    async def lead_by(self, send: Send) -> None:
        """A request as the others, whose answer goes to `send`."""
        context = RequestContext(f"{self._name}-leader", "POST", CHAT)
        headers = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
        credential = (b"authorization", f"Bearer {self._road.caller.api_key}".encode())
        principal = await self._road.state["authenticator"].authenticate([credential])
        body = json.dumps({"model": "m", **self._body}).encode()
        unread: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> Message:
            return unread.pop() if unread else await asyncio.Future()

        scope = {"type": "http", "method": "POST", "path": CHAT, "headers": headers, SCOPE_KEY: context}
        await RoadResponse(self._road.gateway, principal)(scope, receive, send)

    async def led(self, followers: int = 2) -> None:
        """One that leads, and so many that wait for it."""
        await self.ask()
        await eventually(lambda: len(self._road.gateway.cache.flights) == 1)
        for n in range(followers):
            await self.ask()
            await eventually(partial(self._is_followed, n + 1))

    def _is_followed(self, by: int) -> bool:
        return self.waiting == by

    @property
    def waiting(self) -> int:
        return self._road.gateway.cache.flights.waiting

    def seen(self, n: int) -> list[Received]:
        """The upstream's calls for this one."""
        return [request for request in self._upstream.requests if request.headers["x-request-id"] == self.label(n)]

    async def reply(self, n: int) -> Reply:
        return await asyncio.wait_for(reply_of(self.clients[n]), 30)

    async def entry(self, n: int) -> Json:
        return await self._road.caller.entry(self.label(n))


@pytest.fixture
async def crowd(road: Road, upstream: ScriptedUpstream) -> AsyncIterator[Crowd]:
    async with AsyncExitStack() as stack:
        yield Crowd(road, upstream, stack)


def said(reply: Reply) -> str | None:
    return reply.head.headers.get("x-tidegate-cache")


async def test_one_is_sent_upstream_and_the_others_are_given_its_answer(
    crowd: Crowd, road: Road, upstream: ScriptedUpstream
) -> None:
    upstream.enqueue(Completion(before_headers=(gate := Gate())))
    await crowd.led(followers=9)
    assert road.gateway.serving.slots["plain"].in_use == 1
    gate.open()
    replies = [await crowd.reply(n) for n in range(10)]
    assert {reply.status for reply in replies} == {200}
    assert len({reply.body for reply in replies}) == 1
    assert [said(reply) for reply in replies] == ["miss"] + ["hit"] * 9
    assert len({reply.head.headers["x-tidegate-entry-id"] for reply in replies}) == 10
    assert [len(crowd.seen(n)) for n in range(10)] == [1] + [0] * 9
    leader = await crowd.entry(0)
    assert (leader["cache"], leader["cost"], leader["units"], len(leader["attempts"])) == ("miss", "0.000038", {}, 1)
    for n in range(1, 10):
        entry = await crowd.entry(n)
        assert (entry["cache"], entry["outcome"], entry["cost"], entry["attempts"]) == ("hit", "completed", "0", [])
        assert entry["units"] == {
            "joined": 1,
            "saved_input_tokens": 7,
            "saved_output_tokens": 3,
            "saved_cost": 38_000,
        }


LEADING: dict[str, Behaviour] = {
    "before-the-headers": Completion(before_headers=FOREVER),
    "in-the-body": Completion(pauses={0: FOREVER}),
}


@pytest.mark.parametrize("how", ["fin", "rst"])
@pytest.mark.parametrize("phase", LEADING)
async def test_a_leader_that_hangs_up_hands_over(
    phase: str, how: Literal["fin", "rst"], crowd: Crowd, road: Road, upstream: ScriptedUpstream
) -> None:
    upstream.enqueue(LEADING[phase])
    await crowd.led(followers=3)
    await eventually(lambda: crowd.seen(0))
    crowd.clients[0].hang_up() if how == "fin" else crowd.clients[0].reset()
    replies = [await crowd.reply(n) for n in range(1, 4)]
    assert [said(reply) for reply in replies] == ["miss", "hit", "hit"]
    assert crowd.seen(0)[0].closed_early
    assert [len(crowd.seen(n)) for n in range(4)] == [1, 1, 0, 0]
    gone = await crowd.entry(0)
    assert (gone["outcome"], gone["status"], gone["cache"]) == ("client_disconnected", 499, "miss")
    entries = [await crowd.entry(n) for n in range(1, 4)]
    assert [len(entry["attempts"]) for entry in entries] == [1, 0, 0]
    assert {entry["outcome"] for entry in entries} == {"completed"}
    await road.at_rest()


async def test_a_leader_that_hangs_up_in_the_queue_hands_over(road: Road, upstream: ScriptedUpstream) -> None:
    async with AsyncExitStack() as stack:
        crowd = Crowd(road, upstream, stack, model="one")
        upstream.enqueue(stalled(after=1, at=(gate := Gate())))
        holder = await stack.enter_async_context(road.client())
        await road.caller.ask(holder, "holder", model="one")
        await holder.head()
        await content(holder)
        await crowd.led(followers=2)
        await eventually(lambda: road.gateway.serving.slots["one"].waiting == 1)
        crowd.clients[0].hang_up()
        await eventually(lambda: crowd.waiting == 1)
        await eventually(lambda: road.gateway.serving.slots["one"].waiting == 1)
        gate.open()
        assert (await holder.body()).endswith(b"[DONE]\n\n")
        assert [said(await crowd.reply(n)) for n in (1, 2)] == ["miss", "hit"]
        entry = await crowd.entry(0)
        assert (entry["outcome"], entry["attempts"]) == ("client_disconnected", [])
        assert [len(crowd.seen(n)) for n in range(3)] == [0, 1, 0]


async def test_a_leader_that_fails_hands_over_and_fails_alone(crowd: Crowd, upstream: ScriptedUpstream) -> None:
    upstream.enqueue(_Late(gate := Gate(), refusal(500, "at line 7")))
    await crowd.led(followers=2)
    gate.open()
    replies = [await crowd.reply(n) for n in range(3)]
    assert [reply.status for reply in replies] == [502, 200, 200]
    assert [said(reply) for reply in replies] == [None, "miss", "hit"]
    assert [len(crowd.seen(n)) for n in range(3)] == [1, 1, 0]
    assert (await crowd.entry(0))["outcome"] == "upstream_failed"


async def test_failures_do_not_add_up_for_those_behind(crowd: Crowd, upstream: ScriptedUpstream) -> None:
    gates = [Gate() for _ in range(MOST_HANDOVERS + 1)]
    upstream.enqueue(*(_Late(gate, refusal(500, "at line 7")) for gate in gates))
    followers = MOST_HANDOVERS + 3
    await crowd.led(followers=followers)
    for n, gate in enumerate(gates):
        await eventually(partial(crowd.seen, n))
        gate.open()
        assert (await crowd.reply(n)).status == 502
    # All that are left are sent at once, each for itself.
    left = range(len(gates), followers + 1)
    assert len(left) == 3
    assert [said(await crowd.reply(n)) for n in left] == ["miss"] * 3
    assert [len(crowd.seen(n)) for n in left] == [1] * 3


async def test_who_asks_before_the_leader_has_left_is_given_its_answer(
    crowd: Crowd, road: Road, upstream: ScriptedUpstream
) -> None:
    upstream.enqueue(Completion(deltas=("whole",)))
    sends, may_send = asyncio.Event(), asyncio.Event()

    async def send(_: Message) -> None:
        sends.set()
        await may_send.wait()

    # By no socket: a server may take an answer whole from a leader, however slowly its client reads.
    leader = asyncio.create_task(crowd.lead_by(send))
    try:
        await asyncio.wait_for(sends.wait(), 30)
        assert len(road.gateway.cache.flights) == 1
        await crowd.ask()
        reply = await crowd.reply(0)
        assert (said(reply), reply.json["choices"][0]["message"]["content"]) == ("hit", "whole")
        assert crowd.seen(0) == []
    finally:
        may_send.set()
        await asyncio.wait_for(leader, 30)


@pytest.mark.parametrize("how", ["fin", "rst"])
async def test_a_follower_that_hangs_up_leaves_alone(
    how: Literal["fin", "rst"], crowd: Crowd, upstream: ScriptedUpstream
) -> None:
    upstream.enqueue(Completion(before_headers=(gate := Gate())))
    await crowd.led(followers=3)
    crowd.clients[2].hang_up() if how == "fin" else crowd.clients[2].reset()
    await eventually(lambda: crowd.waiting == 2)
    entry = await crowd.entry(2)
    assert (entry["outcome"], entry["status"], entry["cache"]) == ("client_disconnected", 499, None)
    assert (entry["attempts"], entry["units"], entry["cost"]) == ([], {}, None)
    gate.open()
    assert [said(await crowd.reply(n)) for n in (0, 1, 3)] == ["miss", "hit", "hit"]
    assert [len(crowd.seen(n)) for n in range(4)] == [1, 0, 0, 0]


async def test_all_hang_up_at_once_and_nothing_is_left(crowd: Crowd, road: Road, upstream: ScriptedUpstream) -> None:
    # Whoever is handed the lead on the way may call, and is seen to hang up too.
    upstream.enqueue(*[Completion(before_headers=FOREVER)] * 8)
    try:
        await crowd.led(followers=7)
        for client in crowd.clients:
            client.hang_up()
        await road.at_rest()
    finally:
        upstream._queue.clear()
    assert len(road.gateway.cache.flights) == 0
    outcomes = Counter([(await crowd.entry(n))["outcome"] for n in range(8)])
    assert outcomes == {"client_disconnected": 8}
    assert all(request.closed_early for n in range(8) for request in crowd.seen(n))


async def test_a_follower_waits_under_its_own_deadline(crowd: Crowd, upstream: ScriptedUpstream) -> None:
    upstream.enqueue(Completion(before_headers=(gate := Gate())))
    await crowd.led(followers=0)
    await crowd.ask(headers={"x-tidegate-deadline-ms": "200"})
    await crowd.ask()
    reply = await crowd.reply(1)
    assert (reply.status, reply.error["code"]) == (408, "request_timeout")
    entry = await crowd.entry(1)
    assert (entry["outcome"], entry["attempts"]) == ("timed_out", [])
    gate.open()
    assert [said(await crowd.reply(n)) for n in (0, 2)] == ["miss", "hit"]


async def test_a_leaders_deadline_is_its_own(crowd: Crowd, upstream: ScriptedUpstream) -> None:
    upstream.enqueue(Completion(before_headers=FOREVER))
    await crowd.ask(headers={"x-tidegate-deadline-ms": "1500"})
    await eventually(lambda: crowd.seen(0))
    await crowd.ask()
    assert (await crowd.reply(0)).status == 408
    assert said(await crowd.reply(1)) in ("miss", "hit")
    assert (await crowd.entry(1))["outcome"] == "completed"


async def test_what_is_not_worth_keeping_is_for_its_caller_alone(crowd: Crowd, upstream: ScriptedUpstream) -> None:
    upstream.enqueue(Completion(before_headers=(gate := Gate()), finish_reason="content_filter"))
    await crowd.led(followers=2)
    gate.open()
    assert [said(await crowd.reply(n)) for n in range(3)] == ["miss"] * 3
    assert [len(crowd.seen(n)) for n in range(3)] == [1, 1, 1]


async def test_who_is_kept_waits_for_nobody_and_streams_are_not_joined(road: Road, upstream: ScriptedUpstream) -> None:
    async with AsyncExitStack() as stack:
        crowd = Crowd(road, upstream, stack, stream=True)
        upstream.enqueue(*[Completion(before_headers=(gate := Gate()))] * 2)
        await crowd.ask()
        await crowd.ask()
        await eventually(lambda: gate.waiting == 2)
        gate.open()
        assert [said(await crowd.reply(n)) for n in range(2)] == ["miss", "miss"]


class _Late:
    """Answers, once the gate is open."""

    def __init__(self, gate: Gate, answer: Behaviour) -> None:
        self._gate = gate
        self._answer = answer

    async def answer(self, exchange: Any) -> None:
        await exchange.pause(self._gate)
        await self._answer.answer(exchange)

"""Keep-alive comments: while there is nothing to say, between events, and without giving up failover."""

from collections.abc import AsyncIterator

import pytest

from tests.support.behaviours import Completion, refusal, silent, stalled
from tests.support.caller import Json, catalogue_of, content, reply_of
from tests.support.client import RawClient
from tests.support.road import Road, open_road
from tests.support.upstream import ScriptedUpstream
from tests.support.wire import FOREVER, Exchange, Gate

AFTER_S = 0.05
PATIENT_S = 0.36


@pytest.fixture(scope="module")
async def upstream() -> AsyncIterator[ScriptedUpstream]:
    async with ScriptedUpstream() as server:
        yield server


@pytest.fixture(scope="module")
async def road(upstream: ScriptedUpstream, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Road]:
    plain = {"base_url": upstream.base_url, "breaker": "off", "count": "deltas"}
    upstreams = {
        "one": {**plain, "max_concurrency": 1},
        "brief": {**plain, "max_concurrency": 1, "queue": {"length": 1, "deadline_s": 12 * AFTER_S}},
        "hasty": {**plain, "timeouts": {"first_token_s": 12 * AFTER_S}},
        "plain": plain,
        "other": plain,
    }
    telling = {"keepalive_after_s": AFTER_S}
    models: Json = {name: {"attempts": [f"{name}/m"], **telling} for name in upstreams}
    models["two"] = {"attempts": ["plain/m", "other/m"], **telling}
    models["patient"] = {"attempts": ["plain/m"], "keepalive_after_s": PATIENT_S}
    models["off"] = {"attempts": ["plain/m"], "keepalive": "off", **telling}
    async with open_road(tmp_path_factory.mktemp("road"), catalogue_of(upstreams, models)) as opened:
        yield opened


@pytest.fixture(autouse=True)
async def _nothing_is_held(road: Road) -> AsyncIterator[None]:
    yield
    await road.at_rest()


async def comments(client: RawClient, count: int, said: bytes = b"keep-alive") -> None:
    """Waits for so many comments, and nothing between them."""
    for _ in range(count):
        event = await client.event()
        assert event is not None
        assert event.raw == b": " + said + b"\n\n"


@pytest.mark.parametrize("where", ["headers", "first-token"])
async def test_a_silent_upstream_is_bridged_by_comments(where: str, road: Road, upstream: ScriptedUpstream) -> None:
    gate = Gate()
    script = Completion(before_headers=gate) if where == "headers" else Completion(pauses={0: gate})
    upstream.enqueue(script)
    async with road.client() as client:
        await road.caller.ask(client, where, model="plain")
        head = await client.head()
        assert head.status == 200
        assert head.headers["content-type"].startswith("text/event-stream")
        assert head.headers["x-tidegate-entry-id"]
        await comments(client, 3)
        gate.open()
        events = [event async for event in client.events()]
    assert "".join(event.content for event in events if not event.is_comment) == "Hello, world"
    assert events[-1].is_done
    entry = await road.caller.entry(where)
    assert (entry["outcome"], entry["output_tokens"]) == ("completed", 3)


async def test_the_queue_is_bridged_by_comments(road: Road, upstream: ScriptedUpstream) -> None:
    upstream.enqueue(stalled(after=1, at=(gate := Gate())))
    async with road.client() as holder, road.client() as waiter:
        await road.caller.ask(holder, "holder", model="one")
        await holder.head()
        await road.caller.ask(waiter, "waiter", model="one")
        await waiter.head()
        await comments(waiter, 2, b"queued, position 1")
        assert road.gateway.serving.slots["one"].waiting == 1
        gate.open()
        assert (await holder.body()).endswith(b"[DONE]\n\n")
        assert (await waiter.body()).endswith(b"[DONE]\n\n")
    entry = await road.caller.entry("waiter")
    assert entry["outcome"] == "completed"
    assert entry["queue_ms"] >= 1000 * AFTER_S
    assert entry["ttft_ms"] >= entry["queue_ms"]


async def test_a_pause_between_tokens_is_bridged_between_whole_events(road: Road, upstream: ScriptedUpstream) -> None:
    upstream.enqueue(Completion(deltas=("a", "b"), pauses={1: (gate := Gate())}))
    async with road.client() as client:
        await road.caller.ask(client, "between", model="plain")
        await client.head()
        await content(client)
        await comments(client, 2)
        gate.open()
        assert (await client.body()).endswith(b"[DONE]\n\n")


async def test_an_error_after_a_comment_is_an_event(road: Road, upstream: ScriptedUpstream) -> None:
    upstream.enqueue(Completion(pauses={0: FOREVER}))
    reply = await road.caller.chat("hasty", model="hasty")
    assert reply.status == 200
    assert reply.comments >= 1
    assert (reply.error["code"], len(reply.errors), reply.is_done) == ("upstream_timeout", 1, False)
    entry = await road.caller.entry("hasty")
    assert (entry["outcome"], entry["status"], entry["error_code"]) == ("timed_out", 200, "upstream_timeout")


@pytest.mark.parametrize("status", [400, 404])
async def test_a_refusal_after_a_comment_is_an_event_with_the_upstreams_message(
    status: int, road: Road, upstream: ScriptedUpstream
) -> None:
    gate = Gate()
    upstream.enqueue(_Late(gate, status))
    async with road.client() as client:
        await road.caller.ask(client, f"late-{status}", model="two")
        head = await client.head()
        await comments(client, 1)
        gate.open()
        events = [event async for event in client.events() if not event.is_comment]
    assert head.status == 200
    (event,) = events
    assert event.json["error"]["message"] == "Not like this"
    entry = await road.caller.entry(f"late-{status}")
    assert (entry["outcome"], entry["status"]) == ("upstream_failed", 200)
    assert [attempt["status"] for attempt in entry["attempts"]] == [status]


async def test_failover_stays_possible_after_comments(road: Road, upstream: ScriptedUpstream) -> None:
    gate = Gate()
    upstream.enqueue(_Late(gate, 500), Completion())
    async with road.client() as client:
        await road.caller.ask(client, "late-failover", model="two")
        await client.head()
        await comments(client, 2)
        gate.open()
        reply = await client.body()
    assert reply.endswith(b"[DONE]\n\n")
    entry = await road.caller.entry("late-failover")
    assert (entry["outcome"], entry["upstream"]) == ("completed", "other")
    assert [attempt["outcome"] for attempt in entry["attempts"]] == ["upstream_failed", "completed"]


async def test_a_queue_whose_deadline_passes_after_a_comment_is_an_event(
    road: Road, upstream: ScriptedUpstream
) -> None:
    upstream.enqueue(stalled(after=1, at=(gate := Gate())))
    async with road.client() as holder:
        await road.caller.ask(holder, "brief-holder", model="brief")
        await holder.head()
        reply = await road.caller.chat("brief-waiter", model="brief")
        gate.open()
        await holder.body()
    assert (reply.status, reply.error["code"], reply.is_done) == (200, "overloaded", False)
    entry = await road.caller.entry("brief-waiter")
    assert (entry["outcome"], entry["status"], entry["attempts"]) == ("rejected", 200, [])


async def test_a_stream_that_is_never_silent_for_so_long_gets_no_comment(
    road: Road, upstream: ScriptedUpstream
) -> None:
    # Longer in all than two silences; a busy machine may stretch one pause, so there are tries.
    for n in range(5):
        upstream.enqueue(Completion(deltas=("a",) * 30, gap_s=PATIENT_S / 12))
        reply = await road.caller.chat(f"steady-{n}", model="patient")
        assert reply.is_done
        if reply.comments == 0:
            return
    raise AssertionError("a steady stream got comments five times")


async def test_keepalive_off_says_nothing_while_there_is_nothing_to_say(road: Road, upstream: ScriptedUpstream) -> None:
    upstream.enqueue(Completion(before_headers=10 * AFTER_S, pauses={0: 10 * AFTER_S, 1: 10 * AFTER_S}))
    reply = await road.caller.chat("off", model="off")
    assert (reply.comments, reply.is_done) == (0, True)


async def test_one_not_streamed_gets_no_comments(road: Road, upstream: ScriptedUpstream) -> None:
    upstream.enqueue(Completion(before_headers=10 * AFTER_S))
    reply = await road.caller.chat("whole", model="plain", stream=False)
    assert (reply.status, reply.json["object"]) == (200, "chat.completion")
    upstream.enqueue(silent())
    async with road.client() as client:
        headers = {"x-tidegate-deadline-ms": "300"}
        await road.caller.ask(client, "whole-late", model="plain", stream=False, headers=headers)
        assert (await reply_of(client)).status == 408


class _Late:
    """Refuses, once the gate is open."""

    def __init__(self, gate: Gate, status: int) -> None:
        self._gate = gate
        self._answer = refusal(status, "Not like this")

    async def answer(self, exchange: Exchange) -> None:
        await exchange.pause(self._gate)
        await self._answer.answer(exchange)

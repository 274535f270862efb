"""The scripted upstream does what its script says, and its records say what happened."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.support.behaviours import (
    Answer,
    Behaviour,
    ClosesUnderTheClient,
    Completion,
    Echo,
    Raw,
    RefusesStreamOptions,
    Sse,
    Usage,
    flood,
    html,
    refusal,
    silent,
    stalled,
)
from tests.support.blackhole import BlackHole, DeafPeer
from tests.support.client import ConnectionEnded, Event, Head, RawClient
from tests.support.upstream import NAMED, ScriptedUpstream
from tests.support.waiting import NeverHappened, eventually
from tests.support.wire import FOREVER, Gate

PATH = "/v1/chat/completions"


def chat(
    *, stream: bool = True, usage: bool = False, model: str = "scripted", content: str = "hello"
) -> dict[str, Any]:
    body: dict[str, Any] = {"model": model, "stream": stream, "messages": [{"role": "user", "content": content}]}
    return {**body, "stream_options": {"include_usage": True}} if usage else body


async def ask(client: RawClient, **request: Any) -> Head:
    await client.send("POST", PATH, json=chat(**request), headers={"authorization": "Bearer secret"})
    return await client.head()


async def whole(client: RawClient, **request: Any) -> list[Event]:
    await ask(client, **request)
    return [event async for event in client.events()]


async def events_of(upstream: ScriptedUpstream, script: Behaviour, **request: Any) -> list[Event]:
    upstream.enqueue(script)
    async with RawClient(upstream.base_url) as client:
        return await whole(client, **request)


def usages(events: list[Event]) -> list[Any]:
    return [event.json["usage"] for event in events if event.data and not event.is_done and "usage" in event.json]


async def test_a_stream_has_its_tokens_its_finish_reason_and_its_end(upstream: ScriptedUpstream) -> None:
    events = await events_of(upstream, Completion(deltas=["a", " b"], finish_reason="length"))
    assert "".join(event.content for event in events) == "a b"
    assert [event.json["choices"][0]["finish_reason"] for event in events[:-1]] == [None, None, None, "length"]
    assert events[-1].is_done
    assert usages(events) == []
    request = upstream.last
    assert (request.method, request.path, request.headers["authorization"]) == ("POST", PATH, "Bearer secret")
    assert request.body == chat()
    assert request.raw_body == json.dumps(chat()).encode()
    assert request.done_at is not None
    assert not request.closed_early


@pytest.mark.parametrize(
    ("script", "asked", "seen"),
    [
        (Completion(), True, [3]),
        (Completion(), False, []),
        (Completion(usage_when="always"), False, [3]),
        (Completion(usage_when="never"), True, []),
        (Completion(usage=None), True, []),
        (Completion(usage=Usage(prompt=0, completion=0)), True, [0]),
        (Completion(usage_in="last_chunk"), True, [3]),
        (Completion(usage_in="last_chunk", finish_reason=None), True, [3]),
        (Completion(usage_in="every_chunk"), True, [0, 1, 2, 3, 3]),
        (Completion(null_usage=True), True, [None, None, None, None, None, 3]),
    ],
)
async def test_usage_stands_where_the_script_says(
    upstream: ScriptedUpstream, script: Completion, asked: bool, seen: list[int | None]
) -> None:
    events = await events_of(upstream, script, usage=asked)
    assert [usage and usage["completion_tokens"] for usage in usages(events)] == seen


async def test_an_answer_that_is_not_streamed_is_whole_and_keeps_the_connection(upstream: ScriptedUpstream) -> None:
    async with RawClient(upstream.base_url) as client:
        for _ in range(2):
            head = await ask(client, stream=False)
            body = json.loads(await client.body())
            assert head.headers["content-type"] == "application/json"
            assert body["choices"][0]["message"]["content"] == "Hello, world"
            assert body["usage"]["total_tokens"] == 10
    assert [len(connection.requests) for connection in upstream.connections] == [2]


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("ending", ["fin", "rst", "half_fin", "half_rst"])
async def test_an_upstream_that_dies_cuts_the_body(upstream: ScriptedUpstream, ending: Any, stream: bool) -> None:
    upstream.enqueue(Completion(deltas=["a", "b"], ending=ending))
    async with RawClient(upstream.base_url) as client:
        with pytest.raises(ConnectionEnded) as cut:
            await whole(client, stream=stream)
    half = ending.startswith("half") or not stream
    # A reset may overtake what was sent before it.
    assert bool(cut.value.partial) == half or ending.endswith("rst")
    assert cut.value.was_reset == ending.endswith("rst")
    assert upstream.connections[0].closed_by == "upstream"
    assert not upstream.last.closed_early
    assert upstream.last.done_at is None


async def test_an_error_event_ends_the_stream_without_done(upstream: ScriptedUpstream) -> None:
    events = await events_of(upstream, Completion(deltas=["a"], ending="error_event", error={"message": "broken"}))
    assert events[-1].json == {"error": {"message": "broken"}}
    events = await events_of(upstream, Completion(deltas=["a"], ending="no_done"))
    assert events[-1].json["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize(
    "sse",
    [
        Sse(split=1),
        Sse(split=7, newline="\r\n"),
        Sse(split="joined"),
        Sse(comments=True),
        Sse(multiline=True, newline="\r\n", split=3),
        Sse(space=False),
        Sse(newline="\r"),
    ],
)
async def test_however_the_bytes_are_cut_the_events_are_the_same(upstream: ScriptedUpstream, sse: Sse) -> None:
    events = await events_of(upstream, Completion(deltas=["ä", "€", "🙂"], sse=sse))
    spoken = [event for event in events if not event.is_comment]
    assert "".join(event.content for event in spoken) == "ä€🙂"
    assert spoken[-1].is_done
    assert (len(spoken) < len(events)) == sse.comments


async def test_events_that_are_joined_come_in_one_chunk(upstream: ScriptedUpstream) -> None:
    upstream.enqueue(Completion(sse=Sse(split="joined")))
    async with RawClient(upstream.base_url) as client:
        await ask(client)
        piece = await client.piece()
        assert piece.endswith(b"data: [DONE]\n\n")
        assert await client.piece() == b""


@pytest.mark.parametrize(
    ("make", "stream"),
    [
        (silent, True),
        (silent, False),
        (lambda: Completion(pauses={0: FOREVER}), True),
        (lambda: Completion(pauses={0: FOREVER}), False),
        (lambda: stalled(after=2), True),
        (flood, True),
    ],
)
@pytest.mark.parametrize("hang_up", [RawClient.hang_up, RawClient.reset])
async def test_a_hang_up_is_seen_in_every_phase(
    upstream: ScriptedUpstream, make: Callable[[], Behaviour], stream: bool, hang_up: Callable[[RawClient], float]
) -> None:
    upstream.enqueue(make())
    async with RawClient(upstream.base_url) as client:
        await client.send("POST", PATH, json=chat(stream=stream))
        await upstream.received()
        assert upstream.in_flight == 1
        hung_up_at = hang_up(client)
        await upstream.wait_for(lambda: upstream.closed_early, within_s=10)
    assert upstream.last.hung_up_at is not None
    assert upstream.last.hung_up_at >= hung_up_at
    connection = upstream.connections[0]
    assert connection.closed_by == "client"
    assert upstream.in_flight == 0
    if make is silent:
        assert connection.was_reset == (hang_up is RawClient.reset)


async def test_a_slow_reader_holds_a_flood_back(upstream: ScriptedUpstream) -> None:
    total = 64 * 1024 * 1024
    upstream.enqueue(flood(total))
    async with RawClient(upstream.base_url, receive_buffer=16 * 1024) as client:
        await ask(client)
        await upstream.wait_for(lambda: upstream.last.sent_bytes > 0)
        before = -1
        while upstream.last.sent_bytes != before:
            before = upstream.last.sent_bytes
            await asyncio.sleep(0.1)
        assert before < total / 2
        received = 0
        while received < before + 1024 * 1024:
            received += len(await client.piece())
        await upstream.wait_for(lambda: upstream.last.sent_bytes > before)


async def test_a_gate_holds_a_stream_until_it_opens(upstream: ScriptedUpstream) -> None:
    gate = Gate()
    upstream.enqueue(stalled(after=1, at=gate), stalled(after=1, at=gate))
    async with RawClient(upstream.base_url) as one, RawClient(upstream.base_url) as other:
        await ask(one)
        await ask(other)
        await eventually(lambda: gate.waiting == 2)
        assert (upstream.in_flight, upstream.peak_in_flight) == (2, 2)
        gate.open()
        assert [event async for event in one.events()][-1].is_done
        assert [event async for event in other.events()][-1].is_done
    assert (upstream.in_flight, upstream.peak_in_flight) == (0, 2)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 429, 500, 503])
async def test_a_refusal_has_the_vendors_form(upstream: ScriptedUpstream, status: int) -> None:
    upstream.enqueue(refusal(status, "No.", code="some_code", headers=[("retry-after", "3")]))
    async with RawClient(upstream.base_url) as client:
        head = await ask(client)
        assert (head.status, head.headers["retry-after"]) == (status, "3")
        assert json.loads(await client.body())["error"]["code"] == "some_code"


async def test_an_answer_may_be_no_json_at_all(upstream: ScriptedUpstream) -> None:
    upstream.enqueue(html(200), Answer(body=b'{"id": '), Raw(data=b"SSH-2.0-OpenSSH_9.2\r\n\r\n"))
    async with RawClient(upstream.base_url) as client:
        assert (await ask(client)).headers["content-type"] == "text/html"
        assert b"<html>" in await client.body()
        await ask(client)
        assert await client.body() == b'{"id": '
        await client.send("POST", PATH, json=chat())
        assert await client.closed_by_server()


async def test_stream_options_can_be_refused(upstream: ScriptedUpstream) -> None:
    upstream.default = RefusesStreamOptions()
    async with RawClient(upstream.base_url) as client:
        assert (await ask(client, usage=True)).status == 400
        assert json.loads(await client.body())["error"]["param"] == "stream_options"
        assert (await ask(client)).status == 200


@pytest.mark.parametrize("when", ["after_the_answer", "on_the_next_request"])
async def test_a_kept_connection_may_close_under_the_client(upstream: ScriptedUpstream, when: Any) -> None:
    upstream.default = ClosesUnderTheClient(when=when)
    async with RawClient(upstream.base_url) as client:
        assert (await ask(client, stream=False)).status == 200
        await client.body()
        await client.send("POST", PATH, json=chat(stream=False))
        with pytest.raises(ConnectionEnded):
            await client.head()
    assert upstream.connections[0].closed_by == "upstream"
    assert len(upstream.requests) == (1 if when == "after_the_answer" else 2)


async def test_the_script_is_chosen_by_queue_then_model_then_name(upstream: ScriptedUpstream) -> None:
    upstream.by_model["mine"] = refusal(418)
    upstream.enqueue(refusal(409))
    statuses = []
    async with RawClient(upstream.base_url) as client:
        for model in ("mine", "mine", "status-503", "other"):
            statuses.append((await ask(client, model=model, stream=False)).status)
            await client.body()
        await client.send("GET", "/v1/models")
        await client.head()
        assert {model["id"] for model in json.loads(await client.body())["data"]} == set(NAMED)
    assert statuses == [409, 418, 503, 200]


async def test_echoes_are_not_mixed(upstream: ScriptedUpstream) -> None:
    upstream.default = Echo()

    async def one(n: int) -> bool:
        async with RawClient(upstream.base_url) as client:
            await ask(client, content=f"number {n} of many")
            return "".join([event.content async for event in client.events()]) == f"number {n} of many"

    assert all(await asyncio.gather(*(one(n) for n in range(20))))
    assert len(upstream.requests) == 20


async def test_a_broken_script_fails_the_test() -> None:
    class Broken:
        async def answer(self, exchange: object) -> None:
            raise ZeroDivisionError

    async def scripted() -> None:
        async with ScriptedUpstream(Broken()) as upstream, RawClient(upstream.base_url) as client:
            await client.send("POST", PATH, json=chat())
            await client.closed_by_server()

    with pytest.raises(ExceptionGroup, match="the script failed"):
        await scripted()


async def test_a_black_hole_never_connects_and_sees_who_knocks() -> None:
    async with BlackHole() as hole:
        assert hole.knocking() == 0
        knock = asyncio.create_task(RawClient(hole.base_url).__aenter__())
        await eventually(lambda: hole.knocking() == 1)
        assert not knock.done()
        knock.cancel()
        await eventually(lambda: hole.knocking() == 0)


async def test_a_deaf_peer_leaves_the_client_writing() -> None:
    async with DeafPeer() as deaf:
        client = RawClient(deaf.base_url)
        async with client:
            writing = asyncio.create_task(client.send_raw(b"x" * 32 * 1024 * 1024))
            await eventually(lambda: deaf.established() == 1)
            done, _ = await asyncio.wait([writing], timeout=0.2)
            assert not done
            client.reset()
            await eventually(lambda: deaf.established() == 0)
            writing.cancel()


async def test_what_never_happens_is_said() -> None:
    with pytest.raises(NeverHappened, match=r"the moon .* within 0.02 s"):
        await eventually(lambda: False, within_s=0.02, what="the moon")

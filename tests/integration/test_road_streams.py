"""What a stream is when it passes the road, and how each of its ends is told."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Literal

import pytest

from tests.support.behaviours import Behaviour, Completion, Ending, RefusesStreamOptions, Sse, Usage
from tests.support.caller import CHAT, DONE, Caller, Json, Reply, Script, catalogue_of, chunk
from tests.support.client import Event
from tests.support.road import Road, open_road
from tests.support.upstream import ScriptedUpstream
from tests.support.wire import Gate

ASKED: Json = {"stream_options": {"include_usage": True}}


@pytest.fixture(scope="module")
async def upstream() -> AsyncIterator[ScriptedUpstream]:
    async with ScriptedUpstream() as server:
        yield server


@pytest.fixture(scope="module")
async def road(upstream: ScriptedUpstream, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Road]:
    plain = {"base_url": upstream.base_url, "breaker": "off"}
    upstreams = {
        "plain": plain,
        "deltas": {**plain, "count": "deltas"},
        "always": {**plain, "usage_request": "always"},
        "never": {**plain, "usage_request": "never"},
        "learns": plain,
    }
    models = {"m": "plain/m", "any/*": "plain/*", "other-name": "plain/m", **{name: f"{name}/m" for name in upstreams}}
    async with open_road(tmp_path_factory.mktemp("road"), catalogue_of(upstreams, models)) as opened:
        yield opened


@pytest.fixture(autouse=True)
async def _nothing_is_held(road: Road) -> AsyncIterator[None]:
    yield
    await road.at_rest()


SHAPES = {
    "lf": Completion(),
    "crlf": Completion(sse=Sse(newline="\r\n")),
    "cr": Completion(sse=Sse(newline="\r")),
    "crlf-a-byte-at-a-time": Completion(sse=Sse(newline="\r\n", split=1)),
    "cr-a-byte-at-a-time": Completion(sse=Sse(newline="\r", split=1)),
    "seven-bytes-at-a-time": Completion(sse=Sse(split=7)),
    "all-at-once": Completion(sse=Sse(split="joined")),
    "crlf-all-at-once": Completion(sse=Sse(newline="\r\n", split="joined")),
    "no-space-comments-many-lines": Completion(sse=Sse(space=False, comments=True, multiline=True)),
    "null-usage": Completion(null_usage=True),
    "no-role": Completion(role_chunk=False),
    "beyond-ascii": Completion(deltas=("Grüße", " 世界", " 🌊", '"quoted" \\ "usage":{', "\n\ndata: [DONE]\n\n")),
    "tool-call": Completion(
        deltas=(
            {"tool_calls": [{"index": 0, "id": "c", "type": "function", "function": {"name": "f", "arguments": ""}}]},
            {"tool_calls": [{"index": 0, "function": {"arguments": '{"a": 1}'}}]},
        ),
        finish_reason="tool_calls",
    ),
    "reasoning": Completion(deltas=({"reasoning_content": "hm"}, "yes"), usage=Usage(reasoning=1)),
    "usage-in-the-last-chunk": Completion(usage_in="last_chunk", usage_when="always"),
    "usage-in-every-chunk": Completion(usage_in="every_chunk", usage_when="always"),
}


def is_usage(event: Event) -> bool:
    return not event.is_comment and not event.is_done and event.json["choices"] == []


@pytest.mark.parametrize("asked", [{}, ASKED], ids=["usage-not-asked", "usage-asked"])
async def test_a_stream_passes_byte_for_byte(asked: Json, road: Road, upstream: ScriptedUpstream) -> None:
    upstream.by_model.update(SHAPES)
    direct = Caller(upstream.base_url.removesuffix("/v1"))

    async def passes(shape: str) -> None:
        label = f"{shape}-{bool(asked)}"
        sent = await direct.chat("direct", model=shape, **ASKED)
        reply = await road.caller.chat(label, model=f"any/{shape}", **asked)
        assert reply.status == 200
        assert reply.head.headers["content-type"].startswith("text/event-stream")
        expected = [event.raw for event in sent.events if asked or not is_usage(event)]
        assert reply.body == b"".join(expected), shape
        entry = await road.caller.entry(label)
        assert entry["outcome"] == "completed"
        assert entry["finish_reason"] == SHAPES[shape].finish_reason
        assert (entry["usage_source"], entry["input_tokens"]) == ("provider", 7)
        assert entry["output_tokens"] + entry["reasoning_tokens"] == len(SHAPES[shape].deltas)

    await asyncio.gather(*(passes(shape) for shape in SHAPES))


async def test_the_request_goes_on_as_it_came_but_for_model_and_usage(road: Road, upstream: ScriptedUpstream) -> None:
    members = b'"model":"%s","stream":true,"messages":[{"role":"user","content":"\\u00fc"}],"x":1.50,"y":{"b":1, "a":2}'
    usage = b',"stream_options":{"include_usage":true}'

    async def sent(name: bytes, more: bytes) -> bytes:
        body = b"{" + members % name + more + b"}"
        reply = await road.caller.call("POST", CHAT, headers={"content-type": "application/json"}, body=body)
        assert reply.is_done
        return upstream.last.raw_body

    for name, more in [(b"m", usage), (b"m", b""), (b"other-name", usage)]:
        assert await sent(name, more) == b"{" + members % b"m" + usage + b"}"


async def test_usage_is_asked_for_as_the_configuration_says(road: Road, upstream: ScriptedUpstream) -> None:
    for model, asks in [("plain", True), ("always", True), ("never", False)]:
        reply = await road.caller.chat(f"asks-{model}", model=model)
        assert ("stream_options" in upstream.last.body) is asks
        assert b'"usage"' not in reply.body
        entry = await road.caller.entry(f"asks-{model}")
        assert entry["usage_source"] == ("provider" if asks else "estimated")
    given: Json = {"stream_options": {"include_obfuscation": False}}
    await road.caller.chat("keeps-options", **given)
    assert upstream.last.body["stream_options"] == {"include_obfuscation": False, "include_usage": True}


@pytest.mark.parametrize("status", [400, 422])
async def test_an_upstream_that_refuses_stream_options_is_asked_once_more_and_learnt(
    status: int, tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    before = len(upstream.requests)
    old = RefusesStreamOptions(status=status)
    table = {"base_url": upstream.base_url}
    async with open_road(tmp_path, catalogue_of({"old": table}, {"m": "old/m"})) as fresh:
        upstream.enqueue(old, old, old)
        assert (await fresh.caller.chat("learns")).is_done
        assert ["stream_options" in seen.body for seen in upstream.requests[before:]] == [True, False]
        assert (await fresh.caller.chat("knows")).is_done
        assert "stream_options" not in upstream.last.body
        assert len(upstream.requests) == before + 3
        for label in ("learns", "knows"):
            entry = await fresh.caller.entry(label)
            assert [attempt["outcome"] for attempt in entry["attempts"]] == ["completed"]
            assert entry["usage_source"] == "estimated"
        await fresh.at_rest()


async def test_an_upstream_that_always_refuses_stream_options_is_not_asked_twice(
    road: Road, upstream: ScriptedUpstream
) -> None:
    before = len(upstream.requests)
    upstream.enqueue(RefusesStreamOptions())
    reply = await road.caller.chat("always-refused", model="always")
    assert reply.status == 400
    assert len(upstream.requests) == before + 1


async def test_zero_usage_is_the_providers_word(road: Road, upstream: ScriptedUpstream) -> None:
    upstream.enqueue(Completion(usage=Usage(prompt=0, completion=0)))
    await road.caller.chat("zero")
    entry = await road.caller.entry("zero")
    assert (entry["usage_source"], entry["input_tokens"], entry["output_tokens"]) == ("provider", 0, 0)


async def test_the_opening_of_a_stream_waits_for_its_first_content(road: Road, upstream: ScriptedUpstream) -> None:
    gate = Gate()
    upstream.enqueue(Completion(pauses={0: gate}))
    async with road.client() as client:
        await road.caller.ask(client, "opener")
        await upstream.wait_for(lambda: gate.waiting == 1)
        assert upstream.last.sent_events == 1
        assert road.gateway.serving.slots["plain"].in_use == 1
        gate.open()
        head = await client.head()
        assert head.headers["x-tidegate-upstream"] == "plain"
        assert head.headers["cache-control"] == "no-store"
        assert head.headers["x-accel-buffering"] == "no"
        assert (await client.body()).endswith(DONE)


# Ends


def failed_in_mid_stream(reply: Reply, entry: Json, *, said: str, deltas: int = 3) -> None:
    """One error event, no `[DONE]`, the body ended well; the entry has what came until then."""
    assert reply.status == 200
    assert len(reply.spoken) == deltas + 1, reply.body
    assert [event is reply.events[-1] for event in reply.errors] == [True]
    assert not reply.is_done
    assert reply.error["code"] == "upstream_error"
    assert reply.error["type"] == "api_error"
    assert said in reply.error["message"]
    assert entry["outcome"] == "upstream_failed"
    assert entry["status"] == 200
    assert entry["error_code"] == "upstream_error"
    assert entry["finish_reason"] is None
    (attempt,) = entry["attempts"]
    assert (attempt["outcome"], attempt["status"]) == ("upstream_failed", 200)
    assert (entry["output_tokens"], entry["usage_source"]) == (deltas, "estimated")
    assert entry["input_tokens"] > 0


@pytest.mark.parametrize("ending", ["fin", "rst", "half_fin", "half_rst"])
async def test_an_upstream_that_dies_in_mid_stream_is_one_error_event(
    ending: Ending, road: Road, upstream: ScriptedUpstream
) -> None:
    upstream.enqueue(Completion(ending=ending))
    reply = await road.caller.chat(ending, model="deltas")
    failed_in_mid_stream(reply, await road.caller.entry(ending), said="'deltas' broke off its answer")
    assert b"never whole" not in reply.body


async def test_an_error_event_of_the_upstream_after_content_is_told_as_ours(
    road: Road, upstream: ScriptedUpstream
) -> None:
    upstream.enqueue(Completion(ending="error_event", error={"message": "out of memory", "type": "server_error"}))
    reply = await road.caller.chat("error-event", model="deltas")
    entry = await road.caller.entry("error-event")
    failed_in_mid_stream(reply, entry, said="'deltas' failed while it answered: out of memory")


async def test_content_that_comes_in_one_piece_with_an_error_is_not_lost(
    road: Road, upstream: ScriptedUpstream
) -> None:
    error = b'data: {"error":{"message":"out of memory"}}\n\n'
    upstream.enqueue(Script(pieces=[chunk() + chunk("a") + chunk("b") + error]))
    reply = await road.caller.chat("joined-error", model="deltas")
    entry = await road.caller.entry("joined-error")
    failed_in_mid_stream(reply, entry, said="out of memory", deltas=2)
    assert reply.text == "ab"


async def test_an_error_event_before_content_is_a_true_status(road: Road, upstream: ScriptedUpstream) -> None:
    upstream.enqueue(Completion(deltas=(), ending="error_event"))
    reply = await road.caller.chat("early-error")
    assert (reply.status, reply.error["code"]) == (502, "upstream_error")
    entry = await road.caller.entry("early-error")
    assert (entry["outcome"], entry["status"], entry["output_tokens"]) == ("upstream_failed", 502, 0)


@pytest.mark.parametrize("ending", ["fin", "rst", "half_fin", "no_done"])
async def test_an_upstream_that_dies_before_content_is_a_true_status(
    ending: Ending, road: Road, upstream: ScriptedUpstream
) -> None:
    upstream.enqueue(Completion(deltas=(), finish_reason=None, usage=None, ending=ending))
    label = f"early-{ending}"
    reply = await road.caller.chat(label)
    assert (reply.status, reply.error["code"]) == (502, "upstream_error")
    assert reply.head.headers["x-tidegate-entry-id"] == (await road.caller.entry(label))["entry_id"]


async def test_a_finish_reason_makes_a_stream_complete_without_done(road: Road, upstream: ScriptedUpstream) -> None:
    upstream.enqueue(Completion(ending="no_done"))
    reply = await road.caller.chat("no-done")
    assert (reply.text, reply.is_done, reply.errors) == ("Hello, world", False, [])
    entry = await road.caller.entry("no-done")
    assert (entry["outcome"], entry["finish_reason"], entry["output_tokens"]) == ("completed", "stop", 3)


async def test_of_several_choices_each_must_have_finished(road: Road, upstream: ScriptedUpstream) -> None:
    def choice(index: int, **delta: object) -> bytes:
        return chunk("x").replace(b'"index":0', b'"index":%d' % index)

    first, second = choice(0), choice(1)
    finish = chunk(finish_reason="stop")
    upstream.enqueue(Script(pieces=[first, second, finish]))
    reply = await road.caller.chat("one-of-two", n=2)
    assert len(reply.errors) == 1
    upstream.enqueue(Script(pieces=[first, second, finish, finish.replace(b'"index":0', b'"index":1')]))
    reply = await road.caller.chat("two-of-two", n=2)
    assert reply.errors == []
    assert (await road.caller.entry("two-of-two"))["outcome"] == "completed"


async def test_a_stream_without_an_end_is_never_given_a_clean_one(road: Road, upstream: ScriptedUpstream) -> None:
    upstream.enqueue(Completion(finish_reason=None, ending="no_done", usage=None))
    reply = await road.caller.chat("unfinished", model="deltas")
    failed_in_mid_stream(reply, await road.caller.entry("unfinished"), said="before it was complete")


async def test_what_comes_of_a_truncated_event_after_the_finish_is_dropped(
    road: Road, upstream: ScriptedUpstream
) -> None:
    whole = chunk("a") + chunk(finish_reason="stop")
    upstream.enqueue(Script(pieces=[whole, b'data: {"choices":[], "usa']))
    reply = await road.caller.chat("dropped")
    assert reply.body == whole
    assert (await road.caller.entry("dropped"))["outcome"] == "completed"


async def test_a_body_that_ends_late_after_done_is_complete_at_done(road: Road, upstream: ScriptedUpstream) -> None:
    gate = Gate()
    upstream.enqueue(Script(pieces=[chunk("a"), chunk(finish_reason="stop") + DONE, gate]))
    reply = await road.caller.chat("late-end")
    assert reply.is_done
    entry = await road.caller.entry("late-end")
    assert (entry["outcome"], entry["status"]) == ("completed", 200)
    await upstream.wait_for(lambda: upstream.last.closed_early)
    gate.open()


@pytest.mark.parametrize("ending", ["fin", "rst"])
async def test_what_the_upstream_does_after_done_changes_nothing(
    ending: Literal["fin", "rst"], road: Road, upstream: ScriptedUpstream
) -> None:
    gate = Gate()
    upstream.enqueue(Script(pieces=[chunk("a"), chunk(finish_reason="stop") + DONE, gate], ending=ending))
    async with road.client() as client:
        await road.caller.ask(client, f"breaks-after-done-{ending}")
        await client.head()
        async for event in client.events():
            if event.is_done:
                gate.open()
    entry = await road.caller.entry(f"breaks-after-done-{ending}")
    assert (entry["outcome"], entry["status"], entry["finish_reason"]) == ("completed", 200, "stop")


async def test_a_client_that_leaves_once_it_has_everything_did_not_hang_up(
    road: Road, upstream: ScriptedUpstream
) -> None:
    gate = Gate()
    upstream.enqueue(Script(pieces=[chunk("a"), chunk(finish_reason="stop") + DONE, gate]))
    async with road.client() as client:
        await road.caller.ask(client, "has-all")
        await client.head()
        async for _ in client.events():
            pass
        client.reset()
    entry = await road.caller.entry("has-all")
    assert (entry["outcome"], entry["status"]) == ("completed", 200)


async def test_the_upstreams_connection_is_used_again_after_a_complete_stream(
    road: Road, upstream: ScriptedUpstream
) -> None:
    await road.caller.chat("first-use")
    first = upstream.last.connection
    await road.caller.chat("second-use")
    assert upstream.last.connection is first


async def test_an_event_larger_than_any_is_an_error_and_not_memory(road: Road, upstream: ScriptedUpstream) -> None:
    endless: Behaviour = Script(pieces=[chunk("a"), b"data: ", *[b"x" * 1024 * 1024] * 18])
    upstream.enqueue(endless)
    reply = await road.caller.chat("endless-event")
    assert "sent an event of more than" in reply.error["message"]
    assert (await road.caller.entry("endless-event"))["outcome"] == "upstream_failed"

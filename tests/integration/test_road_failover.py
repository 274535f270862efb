"""Which failures go to the next attempt, which never do, and what the ledger says of each."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from tests.support.behaviours import Answer, Behaviour, Completion, html, refusal, stalled
from tests.support.blackhole import BlackHole
from tests.support.caller import DONE, Json, Script, catalogue_of, chunk
from tests.support.road import Road, open_road
from tests.support.server import free_port
from tests.support.upstream import ScriptedUpstream
from tests.support.wire import FOREVER, Gate


@pytest.fixture(scope="module")
async def upstream() -> AsyncIterator[ScriptedUpstream]:
    async with ScriptedUpstream() as server:
        yield server


@pytest.fixture(scope="module")
async def hole() -> AsyncIterator[BlackHole]:
    async with BlackHole() as opened:
        yield opened


@pytest.fixture(scope="module")
async def road(
    upstream: ScriptedUpstream, hole: BlackHole, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Road]:
    plain = {"base_url": upstream.base_url, "breaker": "off", "count": "deltas"}
    upstreams = {
        "first": plain,
        "second": plain,
        "closed": {**plain, "base_url": f"http://127.0.0.1:{free_port()}/v1"},
        "hole": {**plain, "base_url": hole.base_url, "timeouts": {"connect_s": 0.2}},
        "headers": {**plain, "timeouts": {"headers_s": 0.2}},
        "first_token": {**plain, "timeouts": {"first_token_s": 0.2}},
        "full": {**plain, "max_concurrency": 1, "queue": {"length": 0, "deadline_s": 1}},
        "fragile": {**plain, "breaker": {"failures": 2, "window_s": 60, "open_s": 60}},
    }
    models: Json = {name: {"attempts": [f"{name}/m", "second/m"]} for name in upstreams if name != "second"}
    models["over/*"] = {"attempts": ["first/*", "second/m"]}
    models["all-closed"] = {"attempts": ["closed/m", "closed/n"]}
    async with open_road(tmp_path_factory.mktemp("road"), catalogue_of(upstreams, models)) as opened:
        yield opened


@pytest.fixture(autouse=True)
async def _nothing_is_held(road: Road) -> AsyncIterator[None]:
    yield
    await road.at_rest()


def went_over(entry: Json, *, first: str, outcome: str = "upstream_failed", status: int | None) -> None:
    """The first attempt failed so, and the second answered."""
    assert (entry["outcome"], entry["status"], entry["upstream"]) == ("completed", 200, "second")
    one, two = entry["attempts"]
    assert (one["upstream"], one["outcome"], one["status"]) == (first, outcome, status)
    assert (two["upstream"], two["outcome"], two["status"], two["output_tokens"]) == ("second", "completed", 200, 3)


GOES_OVER: dict[str, tuple[Behaviour, int]] = {
    **{f"status-{status}": (refusal(status), status) for status in (401, 403, 408, 429, 500, 502, 503)},
    "html-200": (html(200), 200),
    "html-404": (html(404), 404),
    "json-for-a-stream": (Answer(body=b'{"choices": []}'), 200),
    "redirect": (Answer(status=302, headers=[("location", "/v2")]), 302),
    "truncated": (Completion(deltas=(), finish_reason=None, usage=None, ending="no_done"), 200),
    "fin-before-content": (Completion(deltas=(), ending="fin"), 200),
    "rst-before-content": (Completion(deltas=(), ending="rst"), 200),
    "half-an-event": (Completion(deltas=(), ending="half_fin"), 200),
    "error-before-content": (Completion(deltas=(), ending="error_event"), 200),
}


@pytest.mark.parametrize("streamed", [True, False], ids=["streamed", "whole"])
async def test_what_fails_before_the_first_content_goes_to_the_next(
    streamed: bool, road: Road, upstream: ScriptedUpstream
) -> None:
    for failure, (behaviour, _) in GOES_OVER.items():
        only_streamed = failure in ("json-for-a-stream", "truncated", "error-before-content")
        broken = Answer(body=b'{"id": "chatcmpl-')
        upstream.by_model[failure] = broken if only_streamed and not streamed else behaviour

    async def goes_over(failure: str) -> None:
        label = f"{failure}-{streamed}"
        reply = await road.caller.chat(label, model=f"over/{failure}", stream=streamed)
        assert reply.status == 200, failure
        text = reply.text if streamed else reply.json["choices"][0]["message"]["content"]
        assert text == "Hello, world"
        assert reply.head.headers["x-tidegate-upstream"] == "second"
        went_over(await road.caller.entry(label), first="first", status=GOES_OVER[failure][1])

    await asyncio.gather(*(goes_over(failure) for failure in GOES_OVER))


async def test_what_cannot_be_connected_to_goes_to_the_next(road: Road) -> None:
    await road.caller.chat("closed", model="closed")
    entry = await road.caller.entry("closed")
    went_over(entry, first="closed", status=None)
    assert entry["attempts"][0]["usage_source"] == "none"
    await road.caller.chat("hole", model="hole")
    went_over(await road.caller.entry("hole"), first="hole", outcome="timed_out", status=None)


@pytest.mark.parametrize("pause", ["headers", "first_token"])
async def test_a_timeout_before_the_first_token_goes_to_the_next(
    pause: str, road: Road, upstream: ScriptedUpstream
) -> None:
    slow = Completion(before_headers=FOREVER) if pause == "headers" else Completion(pauses={0: FOREVER})
    upstream.enqueue(slow, Completion())
    await road.caller.chat(f"slow-{pause}", model=pause)
    status = None if pause == "headers" else 200
    went_over(await road.caller.entry(f"slow-{pause}"), first=pause, outcome="timed_out", status=status)


@pytest.mark.parametrize("status", [400, 404, 409, 413, 422])
async def test_a_refusal_of_the_request_never_goes_over(status: int, road: Road, upstream: ScriptedUpstream) -> None:
    before = len(upstream.requests)
    upstream.enqueue(refusal(status, "Not like this", code="my_code", param="messages"))
    reply = await road.caller.chat(f"refused-{status}", model="first")
    assert reply.status == status
    error = reply.error
    assert (error["message"], error["code"], error["param"]) == ("Not like this", "my_code", "messages")
    assert len(upstream.requests) == before + 1
    entry = await road.caller.entry(f"refused-{status}")
    assert (entry["outcome"], entry["status"], entry["error_code"]) == ("upstream_failed", status, "my_code")
    (attempt,) = entry["attempts"]
    assert (attempt["outcome"], attempt["status"], attempt["input_tokens"]) == ("upstream_failed", status, 0)


@pytest.mark.parametrize("ending", ["fin", "error_event"])
async def test_after_the_first_content_nothing_goes_over(ending: str, road: Road, upstream: ScriptedUpstream) -> None:
    before = len(upstream.requests)
    error = b'data: {"error": {"message": "no"}}\n\n'
    pieces = [chunk("a")] if ending == "fin" else [chunk("a"), error]
    upstream.enqueue(Script(pieces=pieces, ending="fin" if ending == "fin" else "finish"))
    reply = await road.caller.chat(f"late-{ending}", model="first")
    assert (reply.status, reply.text, len(reply.errors)) == (200, "a", 1)
    assert len(upstream.requests) == before + 1
    assert len((await road.caller.entry(f"late-{ending}"))["attempts"]) == 1


async def test_content_and_error_in_one_piece_do_not_go_over(road: Road, upstream: ScriptedUpstream) -> None:
    before = len(upstream.requests)
    upstream.enqueue(Script(pieces=[chunk("a") + b'data: {"error": {"message": "no"}}\n\n']))
    reply = await road.caller.chat("joined", model="first")
    assert (reply.status, reply.text, len(reply.errors)) == (200, "a", 1)
    assert len(upstream.requests) == before + 1


async def test_a_full_queue_goes_to_the_next_and_is_no_attempt(road: Road, upstream: ScriptedUpstream) -> None:
    upstream.enqueue(stalled(after=1, at=(gate := Gate())))
    async with road.client() as holder:
        await road.caller.ask(holder, "holder", model="full")
        await holder.head()
        reply = await road.caller.chat("past-the-queue", model="full")
        gate.open()
        await holder.body()
    assert reply.is_done
    entry = await road.caller.entry("past-the-queue")
    assert [attempt["upstream"] for attempt in entry["attempts"]] == ["second"]
    assert entry["upstream"] == "second"


async def test_where_every_attempt_fails_the_last_error_is_told(road: Road, upstream: ScriptedUpstream) -> None:
    upstream.enqueue(refusal(500), refusal(429, headers=[("retry-after", "7")]))
    reply = await road.caller.chat("all-fail", model="first")
    assert (reply.status, reply.error["code"]) == (502, "upstream_error")
    assert "'second' limits the gateway's rate" in reply.error["message"]
    assert reply.head.headers["retry-after"] == "7"
    entry = await road.caller.entry("all-fail")
    assert (entry["outcome"], entry["status"], entry["upstream"]) == ("upstream_failed", 502, "second")
    assert [attempt["status"] for attempt in entry["attempts"]] == [500, 429]

    reply = await road.caller.chat("all-closed", model="all-closed")
    assert (reply.status, reply.error["code"]) == (502, "upstream_error")
    entry = await road.caller.entry("all-closed")
    assert (len(entry["attempts"]), entry["usage_source"]) == (2, "none")


async def test_a_breaker_that_opened_puts_its_upstream_last(road: Road, upstream: ScriptedUpstream) -> None:
    upstream.enqueue(refusal(500), Completion(), refusal(500), Completion())
    for n in range(2):
        await road.caller.chat(f"breaks-{n}", model="fragile")
        await road.caller.entry(f"breaks-{n}")
    before = len(upstream.requests)
    upstream.enqueue(Script(pieces=[chunk("a"), chunk(finish_reason="stop"), DONE]))
    await road.caller.chat("passed-by", model="fragile")
    entry = await road.caller.entry("passed-by")
    assert [attempt["upstream"] for attempt in entry["attempts"]] == ["second"]
    assert len(upstream.requests) == before + 1

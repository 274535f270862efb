"""Answers that are not streamed, and refusals: what passes on, what becomes a 502, and what each is to the ledger."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.behaviours import Answer, Behaviour, ClosesUnderTheClient, Completion, Raw, html, refusal
from tests.support.caller import Json, Script, catalogue_of
from tests.support.road import Road, open_road
from tests.support.upstream import ScriptedUpstream
from tests.support.wire import Gate


@pytest.fixture(scope="module")
async def upstream() -> AsyncIterator[ScriptedUpstream]:
    async with ScriptedUpstream() as server:
        yield server


@pytest.fixture(scope="module")
async def road(upstream: ScriptedUpstream, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Road]:
    price = {"input": "2.00", "cached_input": "0.50", "output": "8.00"}
    upstreams = {
        "plain": {"base_url": upstream.base_url, "breaker": "off", "forward_headers": ["X-Org"], "api_key": "sk-up"},
        "echo": {"provider": "echo"},
    }
    models = {"m": {"attempts": ["plain/m"], "price": price}, "any/*": "plain/*", "echo": "echo/echo"}
    async with open_road(tmp_path_factory.mktemp("road"), catalogue_of(upstreams, models)) as opened:
        yield opened


@pytest.fixture(autouse=True)
async def _nothing_is_held(road: Road) -> AsyncIterator[None]:
    yield
    await road.at_rest()


async def test_a_whole_answer_passes_byte_for_byte(road: Road, upstream: ScriptedUpstream) -> None:
    answer = {
        "id": "x",
        "object": "chat.completion",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "Grüße"}, "finish_reason": "length"}],
        "usage": {
            "prompt_tokens": 10,
            "completion_tokens": 6,
            "prompt_tokens_details": {"cached_tokens": 4},
            "completion_tokens_details": {"reasoning_tokens": 2},
        },
        "unknown": [1.50, None],
    }
    body = json.dumps(answer, indent=3, ensure_ascii=False).encode()
    upstream.enqueue(Answer(body=body, headers=[("x-request-id", "up-1"), ("x-ratelimit-limit-requests", "9")]))
    reply = await road.caller.chat("whole", stream=False)
    assert (reply.status, reply.body) == (200, body)
    headers = reply.head.headers
    assert headers["content-type"] == "application/json"
    assert headers["content-length"] == str(len(body))
    assert headers["x-tidegate-upstream-request-id"] == "up-1"
    assert headers["x-tidegate-upstream-ratelimit-limit-requests"] == "9"
    assert (headers["x-tidegate-model"], headers["x-tidegate-upstream"]) == ("m", "plain")
    entry = await road.caller.entry("whole")
    assert (entry["outcome"], entry["status"], entry["finish_reason"]) == ("completed", 200, "length")
    assert entry["streamed"] is False
    classes = ("input_tokens", "cached_input_tokens", "output_tokens", "reasoning_tokens")
    assert [entry[name] for name in classes] == [6, 4, 4, 2]
    assert entry["usage_source"] == "provider"
    assert entry["cost"] == "0.000062"
    (attempt,) = entry["attempts"]
    assert attempt["upstream_request_id"] == "up-1"


async def test_an_answer_without_usage_is_counted_by_its_text(road: Road, upstream: ScriptedUpstream) -> None:
    upstream.enqueue(Completion(usage=None))
    await road.caller.chat("uncounted", stream=False)
    entry = await road.caller.entry("uncounted")
    assert (entry["usage_source"], entry["output_tokens"]) == ("estimated", 3)


NO_ANSWERS: dict[str, Behaviour] = {
    "html": html(200),
    "html-500": html(500),
    "broken-json": Answer(body=b'{"id": "chatcmpl-'),
    "empty": Answer(),
    "another-object": Answer(body=b'{"object": "list", "data": []}'),
    "no-utf-8": Answer(body=b'{"choices": [{"message": {"content": "\xff"}}]}'),
    "cut-by-fin": Completion(ending="fin"),
    "cut-by-rst": Completion(ending="rst"),
    "shorter-than-it-says": Script(pieces=[b'{"choices": []}'], length=100, ending="fin", content_type="text/json"),
    "no-http": Raw(data=b"\x15\x03\x01\x00\x02\x02\x50"),
    "closed-without-a-word": ClosesUnderTheClient(when="on_the_next_request", otherwise=Raw(data=b"")),
    "larger-than-any": Script(pieces=[b" " * 1024 * 1024] * 65, content_type="application/json"),
    "redirect": Answer(status=307, headers=[("location", "/elsewhere")]),
    "status-401": refusal(401, "Incorrect API key provided: sk-up"),
    "status-403": refusal(403, "no access with sk-up"),
    "status-429": refusal(429, "slow down"),
    "status-500": refusal(500, "at line 7"),
    "status-400-without-a-reason": Answer(status=400, body=b"Bad Request", content_type="text/plain"),
}


async def test_what_was_not_asked_for_is_a_502(road: Road, upstream: ScriptedUpstream) -> None:
    upstream.by_model.update(NO_ANSWERS)

    async def is_a_502(answer: str) -> None:
        reply = await road.caller.chat(answer, model=f"any/{answer}", stream=False)
        assert (reply.status, reply.error["code"], reply.error["type"]) == (502, "upstream_error", "api_error"), answer
        assert "'plain'" in reply.error["message"]
        # An upstream's own words stay out of what callers see, and so does its key.
        assert b"sk-up" not in reply.body
        assert b"line 7" not in reply.body
        entry = await road.caller.entry(answer)
        assert (entry["outcome"], entry["status"], entry["error_code"]) == ("upstream_failed", 502, "upstream_error")
        assert len(entry["attempts"]) == 1

    await asyncio.gather(*(is_a_502(answer) for answer in NO_ANSWERS))


@pytest.mark.parametrize("streamed", [True, False], ids=["streamed", "whole"])
@pytest.mark.parametrize("status", [400, 404, 409, 413, 422])
async def test_an_upstreams_refusal_of_the_request_passes_on(
    status: int, streamed: bool, road: Road, upstream: ScriptedUpstream
) -> None:
    upstream.enqueue(refusal(status, "Not like this", param="messages"))
    label = f"passes-{status}-{streamed}"
    reply = await road.caller.chat(label, stream=streamed)
    assert reply.status == status
    assert (reply.error["message"], reply.error["param"]) == ("Not like this", "messages")
    kinds = {404: "not_found_error", 413: "request_too_large"}
    assert reply.error["type"] == kinds.get(status, "invalid_request_error")
    assert reply.head.headers["content-type"] == "application/json"
    entry = await road.caller.entry(label)
    assert (entry["outcome"], entry["status"]) == ("upstream_failed", status)
    assert (entry["usage_source"], entry["input_tokens"], entry["cost"]) == ("counted", 0, "0")


@pytest.mark.parametrize("code", ["context_length_exceeded", "exceed_context_size_error"])
async def test_a_prompt_that_is_too_long_has_one_code(code: str, road: Road, upstream: ScriptedUpstream) -> None:
    upstream.enqueue(refusal(400, "too many tokens", code=code))
    assert (await road.caller.chat(code)).error["code"] == "context_length_exceeded"


async def test_what_goes_to_the_upstream_is_allowed_by_name(road: Road, upstream: ScriptedUpstream) -> None:
    headers = {
        "cookie": "session=1",
        "x-api-key": road.caller.api_key,
        "x-org": "ours",
        "openai-beta": "yes",
        "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "x-other": "no",
        "user-agent": "caller/1",
    }
    await road.caller.chat("passes-headers", headers=headers)
    seen = upstream.last.headers
    assert seen["authorization"] == "Bearer sk-up"
    assert seen["x-request-id"] == "passes-headers"
    assert (seen["x-org"], seen["openai-beta"], seen["traceparent"]) == ("ours", "yes", headers["traceparent"])
    assert not {"cookie", "x-api-key", "x-other"} & set(seen)
    assert seen["user-agent"] == "tidegate"
    assert road.caller.api_key not in str(seen)
    assert (await road.caller.entry("passes-headers"))["user_agent"] == "caller/1"


async def test_two_requests_with_one_label_are_two_entries(road: Road, upstream: ScriptedUpstream) -> None:
    first, second = [await road.caller.chat("same") for _ in range(2)]
    ids = {reply.head.headers["x-tidegate-entry-id"] for reply in (first, second)}
    assert len(ids) == 2
    assert first.head.headers["x-request-id"] == second.head.headers["x-request-id"] == "same"
    await road.at_rest()
    found: list[Json] = []
    while len(found) < 2:
        found = await road.caller.entries("same")
    assert {entry["entry_id"] for entry in found} == ids


async def test_a_label_that_is_none_is_replaced(road: Road, upstream: ScriptedUpstream) -> None:
    reply = await road.caller.chat("not a label!")
    label = reply.head.headers["x-request-id"]
    assert label != "not a label!"
    assert upstream.last.headers["x-request-id"] == label
    assert (await road.caller.entry(label))["outcome"] == "completed"


@pytest.mark.parametrize("reset", [False, True], ids=["fin", "rst"])
async def test_idle_connections_that_all_close_under_us_are_one_attempt(
    reset: bool, road: Road, upstream: ScriptedUpstream
) -> None:
    gate = Gate()
    upstream.enqueue(*[Completion(before_headers=gate)] * 5)
    opening = asyncio.gather(*(road.caller.chat(f"opens-{reset}-{n}") for n in range(5)))
    await upstream.wait_for(lambda: gate.waiting == 5)
    gate.open()
    await opening
    await upstream.wait_for(lambda: len(upstream.open_connections) >= 5)
    before = len(upstream.requests)
    # Only one that is new is answered; it is found at the first try, however many are kept.
    upstream.enqueue(*[ClosesUnderTheClient(reset=reset)] * 2)
    reply = await road.caller.chat(f"closes-{reset}")
    assert (reply.status, reply.text, reply.is_done) == (200, "Hello, world", True)
    assert len(upstream.requests) == before + 2
    entry = await road.caller.entry(f"closes-{reset}")
    assert [attempt["outcome"] for attempt in entry["attempts"]] == ["completed"]
    assert entry["output_tokens"] == 3


@pytest.mark.parametrize("reset", [False, True], ids=["fin", "rst"])
async def test_a_new_connection_that_closes_without_a_word_is_not_asked_again(
    reset: bool, tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    before = len(upstream.requests)
    upstream.enqueue(Raw(data=b"", reset=reset))
    catalogue = catalogue_of({"plain": {"base_url": upstream.base_url}}, {"m": "plain/m"})
    async with open_road(tmp_path, catalogue) as fresh:
        assert (await fresh.caller.chat("asked-once")).status == 502
        assert len(upstream.requests) == before + 1


async def test_an_idle_connection_that_closed_meanwhile_is_not_used(road: Road, upstream: ScriptedUpstream) -> None:
    upstream.enqueue(ClosesUnderTheClient(when="after_the_answer"))
    await road.caller.chat("closes-after")
    before = len(upstream.requests)
    assert (await road.caller.chat("opens-anew")).is_done
    assert len(upstream.requests) == before + 1


async def test_a_stream_is_collected_for_who_did_not_ask_for_one(road: Road) -> None:
    reply = await road.caller.chat("collected", model="echo", stream=False)
    assert reply.json["choices"][0]["message"] == {"role": "assistant", "content": "Hello"}
    assert reply.json["object"] == "chat.completion"
    assert reply.json["usage"] == {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
    entry = await road.caller.entry("collected")
    assert (entry["streamed"], entry["output_tokens"], entry["usage_source"]) == (False, 1, "provider")

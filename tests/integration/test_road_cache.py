"""The response cache over the real road, in memory and in Redis: who hits, what is said, and what it costs."""

import json
import secrets
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from pydantic import SecretStr

from tests.support import services
from tests.support.behaviours import Answer, Behaviour, Completion, Usage, refusal, stalled
from tests.support.caller import Caller, Json, Reply, Script, catalogue_of, chunk, content
from tests.support.credentials import keyrings
from tests.support.road import Road, open_road
from tests.support.services import Service
from tests.support.upstream import ScriptedUpstream
from tests.support.waiting import eventually
from tests.support.wire import Gate
from tidegate.accounts.api_keys.keys import ApiKeys
from tidegate.accounts.models import Workspace
from tidegate.accounts.schemas import NewKey
from tidegate.inference.kept_answers import MemoryAnswers, RedisAnswers
from tidegate.inference.response_cache import ResponseCache
from tidegate.settings.groups import RedisSettings
from tidegate.storage.bounded_redis import BoundedRedis

PRICE = {"input": "2.00", "cached_input": "0.50", "output": "8.00"}
SAVED = {"saved_input_tokens": 7, "saved_output_tokens": 3, "saved_cost": 38_000}
FOR_A_MINUTE = {"x-tidegate-cache": "60s"}
FORCED = {"x-tidegate-cache": "60s, force"}


@pytest.fixture(scope="module")
async def upstream() -> AsyncIterator[ScriptedUpstream]:
    async with ScriptedUpstream() as server:
        yield server


def cached_catalogue(upstream: ScriptedUpstream) -> str:
    plain = {"base_url": upstream.base_url, "breaker": "off", "count": "deltas", "forward_headers": ["X-Org"]}
    models: Json = {
        "m": {"attempts": ["plain/m"], "price": PRICE},
        "cached": {"attempts": ["plain/m"], "price": PRICE, "cache": {"ttl_s": 60}},
        "two": {"attempts": ["plain/a", "other/b"], "price": PRICE},
        "unpriced": {"attempts": ["plain/unheard-of"]},
        "narrow": "narrow/m",
    }
    return catalogue_of({"plain": plain, "other": plain, "narrow": {**plain, "max_concurrency": 1}}, models)


@pytest.fixture(scope="module")
def prefix(redis_service: Service) -> Iterator[str]:
    prefix = f"tgtest-{secrets.token_hex(6)}"
    yield prefix
    services.delete_keys(services.redis_url(redis_service), prefix)


@pytest.fixture(scope="module", params=["memory", "redis"])
async def road(
    request: pytest.FixtureRequest, upstream: ScriptedUpstream, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Road]:
    redis = None
    if request.param == "redis":
        url = services.redis_url(request.getfixturevalue("redis_service"))
        redis = RedisSettings(url=SecretStr(url), key_prefix=request.getfixturevalue("prefix"))
    async with open_road(tmp_path_factory.mktemp("road"), cached_catalogue(upstream), redis=redis) as opened:
        if redis is not None:
            # A busy machine must not be taken for a Redis that is slow.
            patient = BoundedRedis("a test", within_s=60)
            answers = RedisAnswers(opened.state["redis"], redis.key_prefix, bounded=patient)
            opened.gateway.cache = ResponseCache(answers)
        yield opened


@pytest.fixture(autouse=True)
async def _nothing_is_held(road: Road) -> AsyncIterator[None]:
    yield
    await road.at_rest()
    assert len(road.gateway.cache.flights) == 0


def asking(**more: Any) -> Json:
    """A repeatable request that no other test makes."""
    return {"temperature": 0, "messages": [{"role": "user", "content": secrets.token_hex(8)}], **more}


def said(reply: Reply) -> str | None:
    return reply.head.headers.get("x-tidegate-cache")


async def a_hit(road: Road, label: str, **saved: int) -> Json:
    """The entry of a hit: completed, no attempt, no token, and it cost nothing."""
    entry = await road.caller.entry(label)
    assert (entry["cache"], entry["outcome"], entry["status"]) == ("hit", "completed", 200)
    assert (entry["attempts"], entry["cost"], entry["upstream"], entry["usage_source"]) == ([], "0", None, "none")
    assert entry["units"] == (saved or SAVED)
    return entry


@pytest.mark.parametrize("again", [True, False], ids=["streamed", "whole"])
@pytest.mark.parametrize("first", [True, False], ids=["streamed", "whole"])
async def test_one_answer_serves_both_forms(first: bool, again: bool, road: Road, upstream: ScriptedUpstream) -> None:
    body, label = asking(), secrets.token_hex(4)
    miss = await road.caller.chat(f"{label}-1", stream=first, headers=FOR_A_MINUTE, **body)
    calls = len(upstream.requests)
    hit = await road.caller.chat(f"{label}-2", stream=again, headers=FOR_A_MINUTE, **body)
    assert len(upstream.requests) == calls
    assert (said(miss), said(hit)) == ("miss", "hit")
    headers = hit.head.headers
    assert headers["x-tidegate-entry-id"] != miss.head.headers["x-tidegate-entry-id"]
    assert "x-tidegate-upstream" not in headers
    if again:
        assert headers["content-type"].startswith("text/event-stream")
        assert (hit.text, hit.is_done) == ("Hello, world", True)
        assert hit.spoken[0].json["choices"][0]["delta"]["role"] == "assistant"
        assert [c["finish_reason"] for e in hit.spoken for c in e.json["choices"]][-1] == "stop"
        # Nobody asked for it, though the kept answer has it.
        assert all("usage" not in event.json for event in hit.spoken)
        assert {event.json["object"] for event in hit.spoken} == {"chat.completion.chunk"}
    else:
        assert hit.json["object"] == "chat.completion"
        assert hit.json["choices"][0]["message"] == {"role": "assistant", "content": "Hello, world"}
        assert hit.json["usage"]["prompt_tokens"] == 7
        if not first:
            assert hit.body == miss.body
    entry = await a_hit(road, f"{label}-2")
    assert (entry["streamed"], entry["finish_reason"]) == (again, "stop")
    entry = await road.caller.entry(f"{label}-1")
    assert (entry["cache"], entry["units"], len(entry["attempts"])) == ("miss", {}, 1)


async def test_a_replayed_stream_has_a_usage_chunk_where_it_is_asked_for(
    road: Road, upstream: ScriptedUpstream
) -> None:
    body = asking()
    await road.caller.chat("unasked", headers=FOR_A_MINUTE, **body)
    hit = await road.caller.chat("asked", headers=FOR_A_MINUTE, stream_options={"include_usage": True}, **body)
    assert said(hit) == "hit"
    *others, last = hit.spoken
    assert (last.json["choices"], last.json["usage"]["completion_tokens"]) == ([], 3)
    assert all(event.json["usage"] is None for event in others)


async def test_a_model_with_a_cache_has_it_for_what_is_repeatable_alone(road: Road, upstream: ScriptedUpstream) -> None:
    body = asking()
    for n, expected in enumerate(["miss", "hit"]):
        assert said(await road.caller.chat(f"default-{n}", model="cached", **body)) == expected
    for n in range(2):
        reply = await road.caller.chat(f"off-{n}", model="cached", headers={"x-tidegate-cache": "off"}, **body)
        assert said(reply) is None
        reply = await road.caller.chat(f"warm-{n}", model="cached", **{**body, "temperature": 0.5})
        assert said(reply) is None
        assert (await road.caller.entry(f"warm-{n}"))["cache"] is None


async def test_without_being_asked_there_is_no_cache(road: Road, upstream: ScriptedUpstream) -> None:
    body = asking()
    for n in range(2):
        reply = await road.caller.chat(f"unasked-{n}", stream=False, **body)
        assert said(reply) is None
        entry = await road.caller.entry(f"unasked-{n}")
        assert (entry["cache"], entry["units"], len(entry["attempts"])) == (None, {}, 1)


async def test_what_is_not_repeatable_is_cached_where_it_is_forced(road: Road, upstream: ScriptedUpstream) -> None:
    body = asking(temperature=1)
    for n in range(2):
        assert said(await road.caller.chat(f"unforced-{n}", headers=FOR_A_MINUTE, **body)) == "miss"
    assert said(await road.caller.chat("forced-0", headers=FORCED, **body)) == "miss"
    assert said(await road.caller.chat("forced-1", headers=FORCED, **body)) == "hit"


@pytest.mark.parametrize("written", ["60", "0s", "25h", "", "yes", "60s, now", "60s force", "-5s", "1d", "9999999999s"])
async def test_a_header_of_another_form_is_refused_by_its_name(written: str, road: Road) -> None:
    reply = await road.caller.chat("bad", headers={"x-tidegate-cache": written})
    assert (reply.status, reply.error["code"], reply.error["param"]) == (400, "invalid_request", "X-Tidegate-Cache")
    assert '"60s"' in reply.error["message"]


async def test_another_request_is_a_miss(road: Road, upstream: ScriptedUpstream) -> None:
    body = asking()
    others: list[tuple[Json, dict[str, str]]] = [
        ({}, {}),
        ({"max_tokens": 5}, {}),
        ({"metadata": {"a": "b"}}, {}),
        ({"model": "two"}, {}),
        ({}, {"openai-beta": "assistants=v2"}),
        ({}, {"x-org": "one"}),
        ({}, {"x-org": "two"}),
    ]
    for n, (more, headers) in enumerate(others):
        reply = await road.caller.chat(f"other-{n}", headers={**FOR_A_MINUTE, **headers}, **{**body, **more})
        assert said(reply) == "miss", (more, headers)
    for n, (more, headers) in enumerate(others):
        reply = await road.caller.chat(f"again-{n}", headers={**FOR_A_MINUTE, **headers}, **{**body, **more})
        assert said(reply) == "hit", (more, headers)
    same: list[tuple[Json, dict[str, str]]] = [
        ({"user": "u", "safety_identifier": "s"}, {"x-tidegate-end-user": "e"}),
        ({"stream_options": {"include_usage": False}}, {"traceparent": f"00-{'1' * 32}-{'2' * 16}-01"}),
    ]
    for n, (more, headers) in enumerate(same):
        reply = await road.caller.chat(f"same-{n}", headers={**FOR_A_MINUTE, **headers}, **{**body, **more})
        assert said(reply) == "hit", (more, headers)


async def test_another_workspace_never_hits(road: Road, upstream: ScriptedUpstream) -> None:
    async with road.database.transaction() as session:
        session.add(Workspace(name=(name := f"w-{secrets.token_hex(4)}")))
    created = await ApiKeys(road.database, keyrings().peppers).create(NewKey(name="other", workspace=name))
    stranger = Caller(road.base_url, created.secret)
    body = asking()
    for caller in (road.caller, stranger):
        assert said(await caller.chat("whose", headers=FOR_A_MINUTE, stream=False, **body)) == "miss"
        assert said(await caller.chat("whose", headers=FOR_A_MINUTE, stream=False, **body)) == "hit"


CALL = (
    b'data: {"choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"id":"1","function":'
    b'{"name":"f","arguments":"{}"}}]},"finish_reason":null}]}\n\n'
)
INCOMPLETE: dict[str, Behaviour] = {
    "refused": refusal(500, "at line 7"),
    "cut": Completion(ending="half_fin"),
    "an-error-event": Completion(ending="error_event"),
    "filtered": Completion(finish_reason="content_filter"),
    "a-tool-call": Script(
        pieces=[
            chunk(),
            CALL,
            chunk(finish_reason="tool_calls"),
            b"data: [DONE]\n\n",
        ]
    ),
    "without-an-end": Script(pieces=[chunk("a"), b"data: [DONE]\n\n"]),
    "not-understood": Script(pieces=[chunk("a"), b"data: {x\n\n", chunk(finish_reason="stop"), b"data: [DONE]\n\n"]),
    "too-large": Script(pieces=[chunk("x" * 2**20), chunk(finish_reason="stop"), b"data: [DONE]\n\n"]),
}


@pytest.mark.parametrize("what", INCOMPLETE)
async def test_what_is_not_a_whole_plain_answer_is_never_kept(
    what: str, road: Road, upstream: ScriptedUpstream
) -> None:
    body = asking()
    for n in range(2):
        upstream.enqueue(INCOMPLETE[what])
        reply = await road.caller.chat(f"{what}-{n}", headers=FORCED, **body)
        assert said(reply) == ("miss" if reply.status == 200 else None)
        entry = await road.caller.entry(f"{what}-{n}")
        assert (entry["cache"], len(entry["attempts"])) == ("miss", 1)


async def test_a_stream_whose_client_hangs_up_is_not_kept(road: Road, upstream: ScriptedUpstream) -> None:
    body, label = asking(), f"left-{secrets.token_hex(4)}"
    upstream.enqueue(stalled(after=2))
    async with road.client() as client:
        await road.caller.ask(client, label, headers=FOR_A_MINUTE, **body)
        await client.head()
        await content(client)
        client.hang_up()
        [request] = [seen for seen in upstream.requests if seen.headers["x-request-id"] == label]
        await eventually(lambda: request.closed_early)
    await road.at_rest()
    entry = await road.caller.entry(label)
    assert (entry["outcome"], entry["cache"]) == ("client_disconnected", "miss")
    assert said(await road.caller.chat("next", headers=FOR_A_MINUTE, **body)) == "miss"


async def test_a_failed_attempt_leaves_nothing_in_what_the_next_one_says(
    road: Road, upstream: ScriptedUpstream
) -> None:
    body = asking(model="two")
    upstream.enqueue(Script(pieces=[chunk(id="failed"), b": a comment\n\n"], ending="rst"), Completion())
    assert (await road.caller.chat("over-0", headers=FOR_A_MINUTE, **body)).text == "Hello, world"
    hit = await road.caller.chat("over-1", headers=FOR_A_MINUTE, **body)
    assert (said(hit), hit.text, hit.spoken[0].json["id"]) == ("hit", "Hello, world", "chatcmpl-scripted")


async def test_what_was_saved_is_by_the_upstreams_figures_else_by_size(road: Road, upstream: ScriptedUpstream) -> None:
    body = asking()
    upstream.enqueue(Completion(usage=Usage(prompt=10, completion=6, cached=4, reasoning=2)))
    await road.caller.chat("figures-0", headers=FOR_A_MINUTE, **body)
    await road.caller.chat("figures-1", headers=FOR_A_MINUTE, **body)
    assert (await road.caller.entry("figures-0"))["cost"] == "0.000062"
    await a_hit(road, "figures-1", saved_input_tokens=10, saved_output_tokens=6, saved_cost=62_000)
    body = asking(model="unpriced")
    text = "word " * 80
    answer = {"choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}]}
    upstream.enqueue(Answer(body=json.dumps(answer).encode()))
    await road.caller.chat("size-0", headers=FOR_A_MINUTE, stream=False, **body)
    await road.caller.chat("size-1", headers=FOR_A_MINUTE, stream=False, **body)
    entry = await road.caller.entry("size-1")
    assert (entry["cost"], entry["units"]["saved_output_tokens"]) == ("0", 100)
    assert entry["units"]["saved_input_tokens"] > 0
    assert "saved_cost" not in entry["units"]


async def test_a_hit_counts_as_a_request_and_gives_back_its_tokens_and_cost(
    road: Road, upstream: ScriptedUpstream
) -> None:
    key = await road.caller.call(
        "POST", "/api/limits", json={"scope": "workspace", "meter": "requests", "window": "minute", "amount": 1000}
    )
    other = await road.caller.call(
        "POST", "/api/limits", json={"scope": "workspace", "meter": "tokens", "window": "minute", "amount": 1_000_000}
    )
    assert (key.status, other.status) == (201, 201), (key.body, other.body)
    try:
        body = asking()
        told = []
        for n in range(4):
            reply = await road.caller.chat(f"metered-{n}", headers=FOR_A_MINUTE, **body)
            await road.at_rest()
            told.append([int(reply.head.headers[f"x-ratelimit-remaining-{what}"]) for what in ("requests", "tokens")])
        requests, tokens = [list(values) for values in zip(*told, strict=True)]
        assert requests == [requests[0] - n for n in range(4)]
        # The miss' own came to 10 tokens; the hits' to none.
        assert tokens == [tokens[0], *[tokens[0] - 10] * 3]
    finally:
        for limit in (key, other):
            await road.caller.call("DELETE", f"/api/limits/{limit.json['id']}")


async def test_a_hit_takes_no_slot_of_an_upstream(road: Road, upstream: ScriptedUpstream) -> None:
    body = asking(model="narrow")
    await road.caller.chat("slots-0", headers=FOR_A_MINUTE, **body)
    upstream.enqueue(stalled(after=1, at=(gate := Gate())))
    async with road.client() as holder:
        await road.caller.ask(holder, "holder", model="narrow")
        await holder.head()
        await content(holder)
        assert road.gateway.serving.slots["narrow"].in_use == 1
        assert said(await road.caller.chat("slots-1", headers=FOR_A_MINUTE, **body)) == "hit"
        gate.open()
        await holder.body()


async def test_an_answer_is_taken_for_as_long_as_it_was_kept_and_by_no_one_who_asks_for_a_younger_one(
    road: Road, upstream: ScriptedUpstream
) -> None:
    clock = [time.time()]
    ours = road.gateway.cache
    road.gateway.cache = ResponseCache(MemoryAnswers(clock=lambda: clock[0]))
    try:
        body = asking()
        await road.caller.chat("aged-0", headers=FOR_A_MINUTE, **body)
        clock[0] = time.time() + 30
        assert said(await road.caller.chat("aged-1", headers={"x-tidegate-cache": "1h"}, **body)) == "hit"
        assert said(await road.caller.chat("aged-2", headers={"x-tidegate-cache": "5S"}, **body)) == "miss"
        clock[0] = time.time() + 61
        assert said(await road.caller.chat("aged-3", headers={"x-tidegate-cache": "1h"}, **body)) == "miss"
    finally:
        road.gateway.cache = ours

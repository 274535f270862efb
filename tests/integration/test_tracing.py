"""The spans that a real gateway sends to a collector: one a request, one an attempt, whatever ended them."""

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
from pydantic import SecretStr

from tests.support.behaviours import Answer, Completion, refusal, stalled
from tests.support.caller import CHAT, DONE, Caller, Script, catalogue_of, chunk, content, reply_of
from tests.support.collector import CLIENT, INTERNAL, SERVER, Collector, SeenSpan
from tests.support.credentials import keyrings
from tests.support.metrics import Scrape
from tests.support.road import Road, open_road
from tests.support.server import API_KEY, free_port
from tests.support.upstream import ScriptedUpstream
from tests.support.waiting import eventually
from tests.support.wire import Gate
from tidegate.accounts.api_keys.keys import ApiKeys
from tidegate.accounts.schemas import NewKey
from tidegate.limits.metered import MeteredAmount
from tidegate.settings.tracing import TracingSettings
from tidegate.telemetry.tracing import STATE_KEY
from tidegate.telemetry.tracing_export import Exporter

REQUEST = f"POST {CHAT}"
CALLERS = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@dataclass(frozen=True)
class Scene:
    road: Road
    upstream: ScriptedUpstream
    collector: Collector

    async def spans_of(self, label: str) -> tuple[SeenSpan, list[SeenSpan]]:
        """A request's own span and its children's, which were handed over before it."""
        exporter: Exporter = self.road.state[STATE_KEY]._take.__self__

        def seen() -> list[SeenSpan]:
            # Not in a second: now.
            exporter._wake.set()
            return [span for span in self.collector.spans if span.attributes.get("tidegate.request_id") == label]

        (span,) = await eventually(seen, within_s=20, what=f"the span of {label}")
        assert span.name == REQUEST
        return span, self.collector.children(span)


@pytest.fixture(scope="module")
async def scene(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Scene]:
    async with ScriptedUpstream() as upstream, Collector() as collector:
        plain = {"base_url": upstream.base_url, "breaker": "off", "count": "deltas"}
        upstreams = {
            "first": plain,
            "second": plain,
            "closed": {**plain, "base_url": f"http://127.0.0.1:{free_port()}/v1"},
            "one": {**plain, "max_concurrency": 1},
            "full": {**plain, "max_concurrency": 1, "queue": {"length": 0, "deadline_s": 1}},
        }
        priced = {"input": "1000", "output": "2000"}
        models = {
            "m": {"attempts": ["first/m"], "price": priced},
            "over": {"attempts": ["first/m", "second/m"]},
            "closed": {"attempts": ["closed/m", "second/m"]},
            "one": {"attempts": ["one/m"]},
            "full": {"attempts": ["full/m"]},
            "any/*": {"attempts": ["first/*"]},
        }
        tracing = TracingSettings(endpoint=collector.endpoint, headers=SecretStr("x-team=a%20key"))
        catalogue = catalogue_of(upstreams, models)
        async with open_road(tmp_path_factory.mktemp("road"), catalogue, tracing=tracing) as road:
            yield Scene(road, upstream, collector)


@pytest.fixture(autouse=True)
async def _nothing_is_held(scene: Scene) -> AsyncIterator[None]:
    yield
    await scene.road.at_rest()


async def test_a_stream_is_told_by_its_request_and_its_attempt(scene: Scene) -> None:
    reply = await scene.road.caller.chat("streamed", model="m")
    assert reply.is_done
    span, (attempt,) = await scene.spans_of("streamed")
    entry = await scene.road.caller.entry("streamed")
    assert (span.kind, span.parent_id, span.is_error) == (SERVER, "", False)
    assert span.attributes == {
        "http.request.method": "POST",
        "http.route": CHAT,
        "url.path": CHAT,
        "url.scheme": "http",
        "http.response.status_code": 200,
        "client.address": "127.0.0.1",
        "tidegate.request_id": "streamed",
        "tidegate.entry_id": entry["entry_id"],
        "tidegate.model": "m",
        "tidegate.outcome": "completed",
        "tidegate.attempts": 1,
    }
    assert (attempt.name, attempt.kind, attempt.trace_id, attempt.is_error) == ("chat m", CLIENT, span.trace_id, False)
    told = attempt.attributes
    first_s = told.pop("gen_ai.response.time_to_first_chunk")
    assert 0 < first_s * 1e9 <= attempt.end_ns - attempt.start_ns
    assert told.pop("tidegate.cost") == pytest.approx(float(entry["cost"]))
    assert told.pop("tidegate.ttft_ms") == entry["ttft_ms"]
    assert told.pop("gen_ai.response.id").startswith("chatcmpl-")
    assert told == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": "m",
        "gen_ai.request.stream": True,
        "gen_ai.response.model": "m",
        "gen_ai.response.finish_reasons": ("stop",),
        "gen_ai.usage.input_tokens": entry["input_tokens"],
        "gen_ai.usage.output_tokens": entry["output_tokens"],
        "http.response.status_code": 200,
        "server.address": "127.0.0.1",
        "server.port": scene.upstream.port,
        "tidegate.attempt": 1,
        "tidegate.upstream": "first",
        "tidegate.outcome": "completed",
        "tidegate.usage_source": "provider",
        "tidegate.queue_ms": 0,
    }
    first_ns = attempt.events["tidegate.first_token"]
    assert span.start_ns <= attempt.start_ns < first_ns <= attempt.end_ns <= span.end_ns
    assert span.resource["service.name"] == "tidegate"


async def test_an_answer_that_is_not_streamed_is_told_too(scene: Scene) -> None:
    assert (await scene.road.caller.chat("whole", model="m", stream=False)).status == 200
    _, (attempt,) = await scene.spans_of("whole")
    assert "gen_ai.request.stream" not in attempt.attributes
    assert "gen_ai.response.time_to_first_chunk" not in attempt.attributes
    assert attempt.attributes["gen_ai.response.model"] == "m"
    assert attempt.attributes["gen_ai.response.finish_reasons"] == ("stop",)
    assert set(attempt.events) == {"tidegate.first_token"}


async def test_a_failover_is_two_attempts_of_which_one_failed(scene: Scene) -> None:
    scene.upstream.enqueue(refusal(503), Completion())
    assert (await scene.road.caller.chat("failover", model="over")).is_done
    span, (one, two) = await scene.spans_of("failover")
    assert (one.attributes["tidegate.attempt"], one.attributes["tidegate.upstream"]) == (1, "first")
    assert (one.attributes["error.type"], one.attributes["http.response.status_code"]) == ("upstream_error", 503)
    assert (one.is_error, one.events, "gen_ai.response.finish_reasons" in one.attributes) == (True, {}, False)
    assert (two.attributes["tidegate.attempt"], two.attributes["tidegate.upstream"]) == (2, "second")
    assert (two.is_error, two.attributes["tidegate.outcome"]) == (False, "completed")
    assert (span.is_error, span.attributes["tidegate.attempts"]) == (False, 2)


async def test_what_was_never_reached_has_used_nothing(scene: Scene) -> None:
    assert (await scene.road.caller.chat("unreached", model="closed")).is_done
    _, (one, two) = await scene.spans_of("unreached")
    assert one.is_error
    assert not [name for name in one.attributes if name.startswith(("gen_ai.usage", "gen_ai.response"))]
    assert not two.is_error


async def test_a_stream_that_breaks_is_an_error_of_both_though_its_status_was_200(scene: Scene) -> None:
    scene.upstream.enqueue(Completion(ending="rst"))
    assert (await scene.road.caller.chat("broken", model="m")).error["code"] == "upstream_error"
    span, (attempt,) = await scene.spans_of("broken")
    assert (span.attributes["http.response.status_code"], span.attributes["error.type"]) == (200, "upstream_error")
    assert (attempt.attributes["tidegate.outcome"], attempt.attributes["error.type"]) == (
        "upstream_failed",
        "upstream_error",
    )
    assert attempt.attributes["gen_ai.response.finish_reasons"] == ("error",)
    assert (span.is_error, attempt.is_error) == (True, True)


@pytest.mark.parametrize("phase", ["headers", "stream"])
async def test_a_hang_up_ends_each_span_once_and_is_nobodys_error(phase: str, scene: Scene) -> None:
    gate = Gate()
    scene.upstream.enqueue(stalled(after=2, at=gate) if phase == "stream" else Completion(before_headers=gate))
    label = f"hang-up-{phase}"
    async with scene.road.client() as client:
        await scene.road.caller.ask(client, label, model="m")
        if phase == "stream":
            await client.head()
            await content(client)
        else:
            await eventually(lambda: scene.upstream.in_flight)
        client.hang_up()
        await scene.road.at_rest()
    span, (attempt,) = await scene.spans_of(label)
    assert (span.attributes["http.response.status_code"], span.is_error) == (499, False)
    assert span.attributes["tidegate.outcome"] == attempt.attributes["tidegate.outcome"] == "client_disconnected"
    assert (attempt.is_error, "error.type" in attempt.attributes) == (False, False)
    assert bool(attempt.events) == (phase == "stream")


async def test_a_wait_for_a_slot_is_a_span_and_so_is_one_in_vain(scene: Scene) -> None:
    gate = Gate()
    scene.upstream.enqueue(stalled(after=1, at=gate))
    slots = scene.road.gateway.serving.slots["one"]
    async with scene.road.client() as holds, scene.road.client() as waits, scene.road.client() as leaves:
        await scene.road.caller.ask(holds, "holds", model="one")
        await holds.head()
        await content(holds)
        await scene.road.caller.ask(waits, "waits", model="one")
        await eventually(lambda: slots.waiting == 1)
        await scene.road.caller.ask(leaves, "leaves", model="one")
        await eventually(lambda: slots.waiting == 2)
        leaves.hang_up()
        await eventually(lambda: slots.waiting == 1)
        gate.open()
        holds.hang_up()
        assert (await reply_of(waits)).is_done
    span, (queue, attempt) = await scene.spans_of("waits")
    assert (queue.name, queue.kind, queue.attributes["tidegate.got_slot"]) == ("queue one", INTERNAL, True)
    assert queue.start_ns < queue.end_ns <= attempt.start_ns
    assert attempt.attributes["tidegate.queue_ms"] == pytest.approx((queue.end_ns - queue.start_ns) / 1e6, abs=1)
    span, (queue,) = await scene.spans_of("leaves")
    assert (queue.attributes, span.attributes["http.response.status_code"]) == (
        {"tidegate.upstream": "one", "tidegate.got_slot": False},
        499,
    )


async def test_a_full_queue_has_no_attempt(scene: Scene) -> None:
    gate = Gate()
    scene.upstream.enqueue(stalled(after=1, at=gate))
    async with scene.road.client() as holds:
        await scene.road.caller.ask(holds, "fills", model="full")
        await holds.head()
        await content(holds)
        assert (await scene.road.caller.chat("refused", model="full")).status == 503
        holds.hang_up()
    span, (queue,) = await scene.spans_of("refused")
    assert (span.attributes["error.type"], span.is_error, queue.name) == ("overloaded", True, "queue full")


async def test_what_is_refused_before_any_upstream_has_its_code_and_is_no_error_of_the_server(scene: Scene) -> None:
    headers = {"authorization": "Bearer tg_unknown1_" + "x" * 43, "x-request-id": "unknown-key"}
    reply = await scene.road.caller.call("POST", CHAT, headers=headers, json={"model": "m", "messages": []})
    assert reply.status == 401
    span, children = await scene.spans_of("unknown-key")
    assert (span.attributes["http.response.status_code"], span.attributes["error.type"]) == (401, "invalid_api_key")
    assert (span.is_error, children) == (False, [])


async def test_an_ordinary_route_is_told_by_its_template(scene: Scene) -> None:
    missing = "/api/requests/00000000-0000-0000-0000-000000000000"
    assert (await scene.road.caller.call("GET", missing)).status == 404
    span = await scene.collector.span("GET /api/requests/{entry_id}", url__path=missing)
    assert (span.attributes["http.response.status_code"], span.attributes["error.type"]) == (404, "not_found")
    assert (await scene.road.caller.call("GET", "/nowhere/tg_testkey1_" + "s" * 43)).status == 404
    span = await scene.collector.span("GET", url__path="/nowhere/tg_testkey1_[redacted]")
    assert "http.route" not in span.attributes


async def test_a_callers_trace_goes_on_and_the_upstream_is_told_ours(scene: Scene) -> None:
    await scene.road.caller.chat("continued", model="m", headers={"traceparent": CALLERS})
    span, (attempt,) = await scene.spans_of("continued")
    assert (span.trace_id, span.parent_id) == (CALLERS[3:35], CALLERS[36:52])
    assert (span.is_of_remote_parent, attempt.is_of_remote_parent) == (True, False)
    sent = [value for name, value in scene.upstream.last.headers.items() if name == "traceparent"]
    assert sent == [f"00-{span.trace_id}-{attempt.span_id}-01"]


@pytest.mark.parametrize(
    "written", ["00-1-2-01", f"00-{'0' * 32}-b7ad6b7169203331-01", CALLERS.upper(), CALLERS + "-x"]
)
async def test_a_traceparent_that_is_none_is_neither_taken_nor_sent_on(written: str, scene: Scene) -> None:
    label = f"invalid-{len(written)}-{written.isupper()}-{written.count(chr(48))}"
    await scene.road.caller.chat(label, model="m", headers={"traceparent": written})
    span, (attempt,) = await scene.spans_of(label)
    assert span.parent_id == ""
    assert scene.upstream.last.headers["traceparent"] == f"00-{span.trace_id}-{attempt.span_id}-01"


async def test_a_batch_has_the_configured_headers_and_no_words_and_no_keys(scene: Scene) -> None:
    question, answer = "a question about herons", "an answer about herons"
    scene.upstream.enqueue(Script(pieces=[chunk(), chunk(answer), chunk(finish_reason="stop"), DONE]))
    messages = [{"role": "user", "content": question}]
    await scene.road.caller.chat("words", model="m", messages=messages)
    scene.upstream.enqueue(Answer(body=json.dumps({"choices": [{"message": {"content": answer}}]}).encode()))
    await scene.road.caller.chat("whole-words", model="m", stream=False, messages=messages)
    await scene.spans_of("words")
    await scene.spans_of("whole-words")
    sent = b"".join(scene.collector.bodies)
    assert b"herons" not in sent
    assert API_KEY.encode() not in sent
    assert API_KEY[-43:].encode() not in sent
    assert all("\r\nx-team: a key\r\n" in head for head in scene.collector.heads)
    assert all(head.startswith("post /v1/traces http/1.1\r\n") for head in scene.collector.heads)


async def test_what_an_answer_calls_itself_is_told_bounded_and_without_secrets(scene: Scene) -> None:
    named = chunk("a", id="x" * 5000, model="sk-0123456789abcdef")
    scene.upstream.enqueue(Script(pieces=[named, chunk(finish_reason="stop"), DONE]))
    await scene.road.caller.chat("named", model="any/sk-9876543210fedcba")
    span, (attempt,) = await scene.spans_of("named")
    assert attempt.attributes["gen_ai.response.id"] == "x" * 256
    assert attempt.attributes["gen_ai.response.model"] == "sk-[redacted]"
    assert attempt.name == "chat sk-[redacted]"
    assert span.attributes["tidegate.model"] == "any/sk-[redacted]"
    scene.upstream.enqueue(Script(pieces=[chunk("a", id=7, model=None), chunk(finish_reason="stop"), DONE]))
    await scene.road.caller.chat("unnamed", model="m")
    _, (attempt,) = await scene.spans_of("unnamed")
    assert not {"gen_ai.response.id", "gen_ai.response.model"} & set(attempt.attributes)


async def test_probes_are_not_traced(scene: Scene) -> None:
    assert (await scene.road.caller.call("GET", "/health/live")).status == 200
    await scene.road.caller.chat("after-a-probe", model="m")
    await scene.spans_of("after-a-probe")
    assert not [span for span in scene.collector.spans if "health" in span.name]


async def test_a_limit_that_refuses_has_no_attempt_and_its_code(scene: Scene) -> None:
    new = NewKey(name="limited", limits=(MeteredAmount(meter="requests", amount=1, window="minute"),))
    created = await ApiKeys(scene.road.database, keyrings().peppers).create(new)
    caller = Caller(scene.road.base_url, created.secret)
    assert (await caller.chat("within", model="m")).is_done
    assert (await caller.chat("limited", model="m")).status == 429
    span, children = await scene.spans_of("limited")
    assert (span.attributes["http.response.status_code"], span.attributes["error.type"]) == (429, "rate_limit_exceeded")
    assert (span.is_error, children) == (False, [])


async def test_the_metrics_say_how_many_were_sent(scene: Scene) -> None:
    async def told() -> bool:
        scrape = Scrape.of((await scene.road.caller.call("GET", "/metrics")).body)
        return scrape.value("tidegate_trace_spans_total", result="sent") >= 1

    await scene.road.caller.chat("counted", model="m")
    await eventually(told, within_s=20, poll_s=0.1)


async def test_no_span_is_told_twice(scene: Scene) -> None:
    ids = [span.span_id for span in scene.collector.spans]
    assert len(ids) == len(set(ids)) > 20

"""A request's trace: whose id it has, whether it is recorded, and how its spans reach a collector."""

import asyncio
import json
import logging
import os
import random
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.types import Message, Receive, Scope, Send

from tests.support.collector import Collector, decoded
from tests.support.waiting import eventually
from tidegate.admission.slots import Lease
from tidegate.http.context import RequestContext
from tidegate.http.middleware import with_edge
from tidegate.inference.spans import AttemptSpan
from tidegate.settings import Settings
from tidegate.settings.groups import HttpSettings
from tidegate.settings.tracing import TracingSettings
from tidegate.telemetry.tracing import CLIENT, INTERNAL, SERVER, STATE_KEY, Span, SpanEvent, Tracer, parse_traceparent
from tidegate.telemetry.tracing_export import BATCH, FLUSH_WITHIN_S, MOST_WAITING, Exporter
from tidegate.telemetry.tracing_wire import span_encoder

LOGGER = "tidegate.telemetry.tracing_export"
TRACE_ID, SPAN_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SAMPLED, UNSAMPLED = f"00-{TRACE_ID}-{SPAN_ID}-01".encode(), f"00-{TRACE_ID}-{SPAN_ID}-00".encode()


def events_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [json.loads(json.dumps(record.msg))["event"] for record in caplog.records]


def a_span(name: str = "s", **changed: Any) -> Span:
    return Span(name, INTERNAL, TRACE_ID, SPAN_ID, None, 1, 2, {})._replace(**changed)


async def asked(
    *, sample: float = 1, peer: str = "203.0.113.9", path: str = "/x", headers: list[tuple[bytes, bytes]] | None = None
) -> list[Span]:
    """The spans of a request through the edge, behind the proxy 10.0.0.1."""
    spans: list[Span] = []
    settings = Settings(
        environment="test",
        http=HttpSettings(trusted_proxies=("10.0.0.1",)),
        tracing=TracingSettings(endpoint="http://127.0.0.1:4318"),
    )

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        pass

    scope = {
        "type": "http",
        "method": "GET",
        "path": path,
        "query_string": b"",
        "scheme": "http",
        "client": (peer, 1),
        "headers": headers or [],
        "state": {STATE_KEY: Tracer(spans.append, sample=sample)},
    }
    await with_edge(app, settings)(scope, receive, send)
    return spans


@pytest.mark.parametrize(
    "header",
    [
        SAMPLED,
        UNSAMPLED,
        b"00-" + TRACE_ID.encode() + b"-" + SPAN_ID.encode() + b"-ff",
        b"cc-" + TRACE_ID.encode() + b"-" + SPAN_ID.encode() + b"-01-what-comes-later",
    ],
)
def test_a_valid_traceparent_is_read(header: bytes) -> None:
    parent = parse_traceparent(header)
    assert parent is not None
    assert (parent.trace_id, parent.span_id) == (TRACE_ID, SPAN_ID)
    assert parent.is_sampled == (header != UNSAMPLED)


@pytest.mark.parametrize(
    "header",
    [
        b"",
        SAMPLED + b"-more",
        SAMPLED + b" ",
        SAMPLED.upper(),
        b"ff" + SAMPLED[2:],
        b"00-" + b"0" * 32 + SAMPLED[35:],
        SAMPLED[:36] + b"0" * 16 + b"-01",
        SAMPLED.replace(b"-", b"_"),
        SAMPLED + b"\n",
    ],
)
def test_what_is_no_traceparent_is_none(header: bytes) -> None:
    assert parse_traceparent(header) is None


@given(st.binary(max_size=70))
def test_whatever_the_header_holds_it_is_read_or_none(header: bytes) -> None:
    parent = parse_traceparent(header)
    assert parent is None or (len(parent.trace_id), len(parent.span_id)) == (32, 16)


async def test_a_strangers_flag_neither_makes_nor_hides_a_trace() -> None:
    assert await asked(sample=0, headers=[(b"traceparent", SAMPLED)]) == []
    (span,) = await asked(sample=1, headers=[(b"traceparent", UNSAMPLED)])
    assert (span.trace_id, span.parent_id) == (TRACE_ID, SPAN_ID)


async def test_a_trusted_proxys_flag_is_obeyed_and_without_one_the_share_is() -> None:
    proxy = "10.0.0.1"
    (span,) = await asked(sample=0, peer=proxy, headers=[(b"traceparent", SAMPLED)])
    assert (span.trace_id, span.kind) == (TRACE_ID, SERVER)
    assert await asked(sample=1, peer=proxy, headers=[(b"traceparent", UNSAMPLED)]) == []
    assert len(await asked(sample=1, peer=proxy)) == 1
    assert await asked(sample=0, peer=proxy) == []


async def test_two_traceparents_are_none() -> None:
    (span,) = await asked(headers=[(b"traceparent", SAMPLED), (b"traceparent", SAMPLED)])
    assert (span.parent_id, span.trace_id == TRACE_ID) == (None, False)


def test_the_share_is_drawn_by_chance_and_not_by_the_trace() -> None:
    random.seed(4)
    tracer = Tracer(lambda _: None, sample=0.25)
    traces = [tracer.begin([SAMPLED], is_trusted=False, started=0, received_ns=0) for _ in range(2000)]
    assert 400 < sum(trace.is_sampled for trace in traces) < 600
    assert {trace.id for trace in traces} == {TRACE_ID}
    assert len({trace.span_id for trace in traces}) == len(traces)


def test_what_is_not_recorded_is_handed_to_nobody_and_says_so_to_who_is_called() -> None:
    spans: list[Span] = []
    trace = Tracer(spans.append, sample=0).begin([], is_trusted=False, started=0, received_ns=0)
    trace.record(a_span())
    assert spans == []
    assert trace.traceparent(SPAN_ID) == f"00-{trace.id}-{SPAN_ID}-00".encode()


def test_times_are_of_the_wall_clock_as_it_stood_at_the_start() -> None:
    started, received_ns = time.perf_counter(), 1_700_000_000_000_000_000
    trace = Tracer(lambda _: None, sample=1).begin([], is_trusted=False, started=started, received_ns=received_ns)
    assert trace.at_ns(started + 1.5) - received_ns == pytest.approx(1_500_000_000, abs=2000)


def test_a_span_arrives_as_it_was() -> None:
    encode = span_encoder("gate", "1.2")
    attributes = {"text": "ä\ud800", "flag": True, "whole": 7, "part": 0.5, "list": ("a", "b")}
    events = (SpanEvent("first", 5),)
    span = a_span("n", kind=CLIENT, parent_id="00f067aa0ba902b7", attributes=attributes, events=events, is_error=True)
    (seen,) = decoded(encode([span]))
    assert seen.attributes == {**attributes, "text": "ä\\ud800"}
    assert (seen.name, seen.kind, seen.events, seen.is_error) == ("n", CLIENT, {"first": 5}, True)
    assert (seen.trace_id, seen.span_id, seen.parent_id) == (TRACE_ID, SPAN_ID, "00f067aa0ba902b7")
    assert (seen.resource["service.name"], seen.resource["service.version"]) == ("gate", "1.2")
    (backward,) = decoded(encode([a_span(start_ns=9, end_ns=3)]))
    assert (backward.start_ns, backward.end_ns) == (9, 9)


def test_the_upstream_is_sent_one_traceparent() -> None:
    trace = Tracer(lambda _: None, sample=1).begin([SAMPLED], is_trusted=False, started=0, received_ns=0)
    span = AttemptSpan(trace)
    headers = [(b"traceparent", SAMPLED), (b"x-request-id", b"r")]
    span.carried_by(headers, Lease("u", 0.0), streamed=True)
    assert headers == [(b"x-request-id", b"r"), (b"traceparent", f"00-{TRACE_ID}-{span.span_id}-01".encode())]


def test_a_first_token_of_another_attempt_is_not_told_of_this_one() -> None:
    context = RequestContext("r-1", "POST", "/v1/chat/completions")
    tracer = Tracer(lambda _: None, sample=1)
    trace = tracer.begin([], is_trusted=False, started=context.started, received_ns=context.received_ns)
    span = AttemptSpan(trace)
    told: dict[str, Any] = {}
    before_s = (span._began_s - context.started) / 2
    assert span._first_token(context, before_s, told) == ()
    assert told == {}
    (event,) = span._first_token(context, span._began_s - context.started + 1, told)
    assert (event.name, told) == ("tidegate.first_token", {"tidegate.ttft_ms": pytest.approx(1000, abs=50)})


# The exporter


@pytest.fixture
async def collector() -> AsyncIterator[Collector]:
    async with Collector() as opened:
        yield opened


Export = Callable[..., Exporter]


@pytest.fixture
async def export(collector: Collector) -> AsyncIterator[Export]:
    """Exporters that look every 10 ms."""
    made: list[Exporter] = []

    def start(encode: Callable[[list[Span]], bytes] | None = None) -> Exporter:
        url = f"{collector.endpoint}/v1/traces"
        exporter = Exporter(encode or span_encoder("gate", "1"), url, [], interval_s=0.01)
        exporter.start()
        made.append(exporter)
        return exporter

    yield start
    for exporter in made:
        await exporter.aclose()
        # What is left behind ends with its request's time-out; it is not to outlive the test.
        await asyncio.to_thread(exporter._thread.join, 20)
        assert not exporter._thread.is_alive()


async def test_more_than_a_batch_goes_in_several(collector: Collector, export: Export) -> None:
    exporter = export()
    for number in range(3 * BATCH):
        exporter.take(a_span(str(number)))
    await eventually(lambda: len(collector.spans) == 3 * BATCH)
    assert sorted(int(span.name) for span in collector.spans) == list(range(3 * BATCH))
    assert (len(collector.bodies) >= 3, exporter.dropped) == (True, 0)


async def test_the_end_sends_what_waits(collector: Collector, export: Export) -> None:
    exporter = export()
    exporter.take(a_span("last"))
    await exporter.aclose()
    assert ([span.name for span in collector.spans], exporter.sent) == (["last"], 1)


async def test_what_waits_is_bounded_and_what_is_dropped_is_counted(collector: Collector, export: Export) -> None:
    collector.hangs = True
    exporter = export()
    exporter.take(a_span())
    await eventually(lambda: collector.bodies)
    for _ in range(MOST_WAITING + 10):
        exporter.take(a_span())
    assert (exporter.dropped, len(exporter._waiting)) == (10, MOST_WAITING)


async def test_a_collector_that_hangs_holds_the_end_for_its_bound_and_the_loop_not_at_all(
    collector: Collector, export: Export, caplog: pytest.LogCaptureFixture
) -> None:
    collector.hangs = True
    exporter = export()
    exporter.take(a_span())
    await eventually(lambda: collector.bodies)
    began = time.monotonic()
    ticks = 0

    async def ticking() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0.01)
            ticks += 1

    ticker = asyncio.create_task(ticking())
    with caplog.at_level(logging.WARNING, LOGGER):
        await exporter.aclose()
    ticker.cancel()
    assert time.monotonic() - began < FLUSH_WITHIN_S + 3
    assert ticks > 20
    assert events_in(caplog) == ["traces_left"]


async def test_a_collector_that_is_away_is_told_once_and_again_when_it_is_back(
    collector: Collector, export: Export, caplog: pytest.LogCaptureFixture
) -> None:
    collector.answers = 503
    exporter = export()
    with caplog.at_level(logging.INFO, LOGGER):
        exporter.take(a_span("kept"))
        await eventually(lambda: len(collector.bodies) >= 2, within_s=20)
        collector.answers = 200
        await eventually(lambda: collector.spans, within_s=20)
        await eventually(lambda: len(caplog.records) >= 2)
    assert events_in(caplog) == ["traces_not_taken", "traces_taken_again"]
    assert ([span.name for span in collector.spans], exporter.dropped) == (["kept"], 0)


async def test_a_refused_batch_is_dropped_and_the_next_is_tried(
    collector: Collector, export: Export, caplog: pytest.LogCaptureFixture
) -> None:
    collector.answers = 401
    exporter = export()
    with caplog.at_level(logging.INFO, LOGGER):
        exporter.take(a_span("refused"))
        await eventually(lambda: exporter.dropped == 1)
        collector.answers = 200
        exporter.take(a_span("taken"))
        await eventually(lambda: collector.spans, within_s=20)
    assert [span.name for span in collector.spans] == ["taken"]


async def test_a_redirect_is_not_followed(collector: Collector, export: Export) -> None:
    collector.answers = 307
    exporter = export()
    exporter.take(a_span())
    await eventually(lambda: exporter.dropped == 1)
    assert len(collector.bodies) == 1


async def test_a_span_that_cannot_be_written_takes_its_batch_along_and_not_the_thread(
    collector: Collector, export: Export
) -> None:
    encode = span_encoder("gate", "1")
    exporter = export(encode)
    exporter.take(a_span(trace_id="no hexadecimal"))
    await eventually(lambda: exporter.dropped == 1)
    exporter.take(a_span("next"))
    await eventually(lambda: collector.spans, within_s=20)


# Off


_OFF = """
import asyncio, json, sys, threading
from pathlib import Path
from tests.support.road import open_road

async def main():
    catalogue = '[upstreams.echo]\\nprovider = "echo"\\n[[models]]\\nname = "m"\\nattempts = ["echo/echo"]\\n'
    async with open_road(Path(sys.argv[1]), catalogue) as road:
        reply = await road.caller.chat("a")
        assert reply.is_done
        names = [thread.name for thread in threading.enumerate()]
        print(json.dumps([sorted(sys.modules), names, road.state["tracer"]]))

asyncio.run(main())
"""


def test_off_it_imports_nothing_and_starts_nothing(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _OFF, str(tmp_path)], capture_output=True, text=True, timeout=50, check=False
    )
    assert done.returncode == 0, done.stderr
    modules, threads, tracer = json.loads(done.stdout)
    assert tracer is None
    assert "tidegate-traces" not in threads
    assert "tidegate.telemetry.tracing_wire" not in modules
    # redis-py imports the SDK's metrics by itself, where they are installed.
    tracing = ("opentelemetry.sdk.trace", "opentelemetry.exporter", "opentelemetry.proto", "google.protobuf")
    assert [name for name in modules if name.startswith(tracing)] == []


_WITHOUT_THE_EXTRA = """
import sys
for package in ("opentelemetry", "opentelemetry.sdk", "opentelemetry.proto"):
    sys.modules[package] = None
sys.argv = ["tidegate", "serve"]
from tidegate.cli.main import main
sys.exit(main())
"""


def test_a_start_without_the_extra_is_refused_by_one_line(tmp_path: Path) -> None:
    variables = {name: value for name, value in os.environ.items() if not name.startswith("TIDEGATE_")}
    variables |= {"TIDEGATE_TRACING__ENDPOINT": "http://127.0.0.1:4318", "TIDEGATE_DATA_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", _WITHOUT_THE_EXTRA],
        capture_output=True,
        text=True,
        timeout=50,
        env=variables,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 1
    told = [line for line in (done.stdout + done.stderr).splitlines() if "TRACING" in line]
    assert len(told) == 1
    assert "pip install 'tidegate[tracing]'" in told[0]
    assert "Traceback" not in done.stderr

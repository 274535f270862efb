"""The spans of a request's attempts: one a call of an upstream, one a wait for its slot. Where tracing is on alone.

They follow OpenTelemetry's conventions for GenAI clients (`gen_ai.…`, in development there); what is ours is
`tidegate.…`. No word of a prompt or of an answer is told, and no key. An attempt's span is handed over where its row is
written, by that row.
"""

import time
from collections.abc import Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import msgspec

from tidegate.admission.slots import Lease
from tidegate.errors import TidegateError
from tidegate.http.context import RequestContext
from tidegate.inference.reading import ChatReader, Kind
from tidegate.inference.sse import event_data
from tidegate.ledger.entry import Attempt
from tidegate.telemetry.redaction import may_hold_secret, redact
from tidegate.telemetry.tracing import CLIENT, INTERNAL, Span, SpanEvent, Trace, Value, new_span_id
from tidegate.upstream.echoed_key import without_key

if TYPE_CHECKING:
    from tidegate.inference.attempt import LiveAttempt

_OPERATIONS: Final[Mapping[str, str]] = MappingProxyType({"completions": "text_completion", "embeddings": "embeddings"})
_PROVIDERS: Final[Mapping[str, str]] = MappingProxyType({"gemini": "gcp.gemini"})
_PORTS: Final[Mapping[str, int]] = MappingProxyType({"http": 80, "https": 443})
_FAILED = frozenset({"upstream_failed", "timed_out", "interrupted", "rejected"})
_LONGEST_NAME = 256
# A slot that is free is had sooner.
_LEAST_WAIT_S = 0.001


class AttemptSpan:
    """One attempt, from its slot to its row. `says` is a part of the answer in which the model names itself."""

    __slots__ = ("_began_s", "_is_streamed", "_trace", "_waited_s", "says", "span_id")

    def __init__(self, trace: Trace) -> None:
        self.span_id = new_span_id()
        self.says: bytes | None = None
        self._trace = trace
        self._began_s = time.perf_counter()
        self._waited_s = 0.0
        self._is_streamed = False

    def reader(self, *, choices: int, keep_text: bool) -> ChatReader:
        if self._trace.is_sampled:
            return NamingReader(self, choices=choices, keep_text=keep_text)
        return ChatReader(choices=choices, keep_text=keep_text)

    def carried_by(self, headers: list[tuple[bytes, bytes]], lease: Lease, *, streamed: bool) -> None:
        """Puts this span into the headers of a request to the upstream, in the caller's place."""
        self._waited_s, self._is_streamed = lease.waited_s, streamed
        headers[:] = [pair for pair in headers if pair[0] != b"traceparent"]
        headers.append((b"traceparent", self._trace.traceparent(self.span_id)))

    def ended(self, live: "LiveAttempt", row: Attempt, error: BaseException | None) -> None:
        """Hands the span over. Called once, where the row is written."""
        trace = self._trace
        if not trace.is_sampled:
            return
        exchange = live.exchange
        operation = _OPERATIONS.get(exchange.call.protocol, "chat")
        model = _safe(row.model[:_LONGEST_NAME])
        attributes = _of_row(row) | {
            "gen_ai.operation.name": operation,
            "gen_ai.provider.name": _PROVIDERS.get(live.planned.upstream.provider, live.planned.upstream.provider),
            "gen_ai.request.model": model,
            "tidegate.queue_ms": round(self._waited_s * 1000),
        }
        attributes.update(_place(live.planned.upstream.base_url))
        if self._is_streamed:
            attributes["gen_ai.request.stream"] = True
        attributes.update(_answer(self.says, live.key_sent))
        if live.status == 200 and exchange.call.choices == 1:
            attributes["gen_ai.response.finish_reasons"] = (_safe(live.reader.finish_reason or "error"),)
        if row.outcome in _FAILED:
            attributes["error.type"] = error.http_code if isinstance(error, TidegateError) else row.outcome
        events = self._first_token(exchange.context, exchange.progress.ttft_s, attributes)
        trace.record(
            Span(
                f"{operation} {model}",
                CLIENT,
                trace.id,
                self.span_id,
                trace.span_id,
                trace.at_ns(self._began_s),
                trace.at_ns(time.perf_counter()),
                attributes,
                events,
                is_error=row.outcome in _FAILED,
            )
        )

    def _first_token(
        self, context: RequestContext, ttft_s: float | None, attributes: dict[str, Value]
    ) -> tuple[SpanEvent, ...]:
        """When it came, where it was of this attempt."""
        if ttft_s is None or context.started + ttft_s < self._began_s:
            return ()
        at_s = context.started + ttft_s
        attributes["tidegate.ttft_ms"] = round(ttft_s * 1000)
        if self._is_streamed:
            attributes["gen_ai.response.time_to_first_chunk"] = at_s - self._began_s
        return (SpanEvent("tidegate.first_token", self._trace.at_ns(at_s)),)


class NamingReader(ChatReader):
    """Keeps for a span the first event in which the model names itself."""

    def __init__(self, span: AttemptSpan, *, choices: int, keep_text: bool) -> None:
        super().__init__(choices=choices, keep_text=keep_text)
        self._span = span

    def read(self, event: bytes) -> Kind:
        if self._span.says is None and b'"model"' in event:
            self._span.says = event_data(event)
        return super().read(event)


def record_wait(context: RequestContext, upstream: str, began_s: float, lease: Lease | None) -> None:
    """The wait for a slot, where there was one to speak of or none was had. `began_s` is of `time.perf_counter`."""
    trace = context.trace
    if trace is None or not trace.is_sampled or (lease is not None and lease.waited_s < _LEAST_WAIT_S):
        return
    ended_s = time.perf_counter() if lease is None else began_s + lease.waited_s
    attributes: dict[str, Value] = {"tidegate.upstream": upstream, "tidegate.got_slot": lease is not None}
    times = trace.at_ns(began_s), trace.at_ns(ended_s)
    trace.record(Span(f"queue {upstream}", INTERNAL, trace.id, new_span_id(), trace.span_id, *times, attributes))


def _of_row(row: Attempt) -> dict[str, Value]:
    attributes: dict[str, Value] = {
        "tidegate.attempt": row.n,
        "tidegate.upstream": row.upstream,
        "tidegate.outcome": row.outcome,
    }
    if row.status is not None:
        attributes["http.response.status_code"] = row.status
    if row.usage_source == "none":
        return attributes
    attributes["tidegate.usage_source"] = row.usage_source
    # The convention's sums hold what was cached and what was reasoning; ours are disjoint.
    cache_write = row.cache_write_tokens + row.cache_write_1h_tokens
    attributes["gen_ai.usage.input_tokens"] = row.input_tokens + row.cached_input_tokens + cache_write
    attributes["gen_ai.usage.output_tokens"] = row.output_tokens + row.reasoning_tokens
    for name, tokens in (
        ("cache_read.input_tokens", row.cached_input_tokens),
        ("cache_write.input_tokens", cache_write),
        ("reasoning.output_tokens", row.reasoning_tokens),
    ):
        if tokens:
            attributes[f"gen_ai.usage.{name}"] = tokens
    if row.cost is not None:
        attributes["tidegate.cost"] = float(row.cost)
    return attributes


@lru_cache(maxsize=256)
def _place(base_url: str) -> Mapping[str, Value]:
    """The configured host alone: neither the path nor where a name led to."""
    url = urlsplit(base_url)
    if not url.hostname:
        return MappingProxyType({})
    return MappingProxyType({"server.address": url.hostname, "server.port": url.port or _PORTS.get(url.scheme, 0)})


class _Named(msgspec.Struct):
    # Whatever they are: an answer is not at fault for its names.
    id: Any = None
    model: Any = None


_named_decoder = msgspec.json.Decoder(_Named)


def _answer(says: bytes | None, key: str | None) -> dict[str, Value]:
    """What the answer calls itself, and the model."""
    if says is None:
        return {}
    try:
        named = _named_decoder.decode(says)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return {}
    told = (("gen_ai.response.id", named.id), ("gen_ai.response.model", named.model))
    return {
        attribute: _safe(without_key(value, key)[:_LONGEST_NAME])
        for attribute, value in told
        if isinstance(value, str) and value
    }


def _safe(text: str) -> str:
    return redact(text) if may_hold_secret(text) else text

"""The trace of a request: its ids, whether it is recorded, and the spans that go to the exporter.

A span is handed over once, whole, when what it tells of has ended; nothing is kept open meanwhile but ids and a start.
So a span cannot be left open by a cancellation or ended twice: whoever writes down the end (the edge its line, an
attempt its row) hands over the span. Times are of the wall clock as it stood when the request came.

Whether a request is recorded is ours to say: a caller's `traceparent` (W3C Trace Context) gives its trace's id and its
parent's, and the sampled flag in it counts only where the peer is a trusted proxy. Else a caller could make this
gateway record all, or hide.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from random import getrandbits, random
from typing import Final, NamedTuple

STATE_KEY: Final = "tracer"
# As OTLP numbers them.
INTERNAL, SERVER, CLIENT = 1, 2, 3

_TRACEPARENT = re.compile(rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_NO_TRACE, _NO_SPAN = b"0" * 32, b"0" * 16

Value = str | bool | int | float | Sequence[str]
Attributes = Mapping[str, Value]


class SpanEvent(NamedTuple):
    """`at_ns` is of the Unix epoch."""

    name: str
    at_ns: int


class Span(NamedTuple):
    """A span that has ended. Ids are hexadecimal, times nanoseconds of the Unix epoch."""

    name: str
    kind: int
    trace_id: str
    span_id: str
    parent_id: str | None
    start_ns: int
    end_ns: int
    attributes: Attributes
    events: tuple[SpanEvent, ...] = ()
    is_error: bool = False


class Parent(NamedTuple):
    """What a `traceparent` says."""

    trace_id: str
    span_id: str
    is_sampled: bool


class Trace:
    """One request's part of a trace. `id` is the trace's, `span_id` that of the request's own span.

    >>> trace = tracer.begin(traceparents, is_trusted=False, started=time.perf_counter(), received_ns=time.time_ns())
    >>> trace.record(Span("GET /health", SERVER, trace.id, trace.span_id, trace.parent_id, start_ns, end_ns, {}))
    """

    __slots__ = ("_origin_ns", "_take", "id", "is_sampled", "parent_id", "span_id")

    def __init__(
        self, take: Callable[[Span], None], parent: Parent | None, *, is_sampled: bool, origin_ns: int
    ) -> None:
        self._take = take
        self._origin_ns = origin_ns
        self.is_sampled = is_sampled
        self.id = f"{getrandbits(128) or 1:032x}" if parent is None else parent.trace_id
        self.parent_id = None if parent is None else parent.span_id
        self.span_id = new_span_id()

    def at_ns(self, clock_s: float) -> int:
        """A time of `time.perf_counter`, in nanoseconds of the Unix epoch."""
        return self._origin_ns + int(clock_s * 1e9)

    def traceparent(self, span_id: str) -> bytes:
        """The header for who is called within this span."""
        return f"00-{self.id}-{span_id}-{'01' if self.is_sampled else '00'}".encode()

    def record(self, span: Span) -> None:
        """Hands a span over, where this trace is recorded. It never waits, and never fails."""
        if self.is_sampled:
            self._take(span)


class Tracer:
    """Begins the traces of one process. `sample` is the share that is recorded, `take` is given each span that ended.

    >>> Tracer(export.take, sample=0.1)
    """

    def __init__(self, take: Callable[[Span], None], *, sample: float) -> None:
        self._take = take
        self._sample = sample

    def begin(self, traceparents: Sequence[bytes], *, is_trusted: bool, started: float, received_ns: int) -> Trace:
        """The trace of a request with these `traceparent` headers. `started` is of `time.perf_counter`."""
        parent = parse_traceparent(traceparents[0]) if len(traceparents) == 1 else None
        # By chance, not by the trace's id: a caller chooses that.
        is_sampled = parent.is_sampled if is_trusted and parent is not None else random() < self._sample  # noqa: S311
        return Trace(self._take, parent, is_sampled=is_sampled, origin_ns=received_ns - int(started * 1e9))


def parse_traceparent(header: bytes) -> Parent | None:
    """None where it is not valid (W3C Trace Context, 3.2). Of a later version, what this one knows.

    >>> parse_traceparent(b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01").is_sampled
    True
    """
    found = _TRACEPARENT.fullmatch(header)
    if found is None:
        return None
    version, trace_id, span_id, flags, rest = found.groups()
    if version == b"ff" or (version == b"00" and rest) or trace_id == _NO_TRACE or span_id == _NO_SPAN:
        return None
    return Parent(trace_id.decode(), span_id.decode(), bool(int(flags, 16) & 1))


def new_span_id() -> str:
    # A label, not a secret. The generator is seeded anew in forked children.
    return f"{getrandbits(64) or 1:016x}"

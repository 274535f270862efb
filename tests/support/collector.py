"""A collector of traces: an OTLP/HTTP receiver on loopback that keeps the spans it was sent.

    async with Collector() as collector:
        …
        span = await collector.span("POST /v1/chat/completions")

`answers` is the status of its answers; while `hangs` it takes a batch and says nothing.
"""

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self, cast

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1 import trace_pb2

from tests.support.waiting import eventually

LOOPBACK = "127.0.0.1"
WITHIN_S = 20.0
INTERNAL, SERVER, CLIENT = 1, 2, 3


@dataclass(frozen=True)
class SeenSpan:
    """A span as it came. Ids are hexadecimal, times nanoseconds of the Unix epoch."""

    name: str
    kind: int
    trace_id: str
    span_id: str
    parent_id: str
    start_ns: int
    end_ns: int
    attributes: dict[str, Any]
    events: dict[str, int]
    is_error: bool
    is_of_remote_parent: bool
    resource: dict[str, Any]


@dataclass
class Collector:
    answers: int = 200
    hangs: bool = False
    spans: list[SeenSpan] = field(default_factory=list)
    heads: list[str] = field(default_factory=list)
    """The head of each request, in lower case."""
    bodies: list[bytes] = field(default_factory=list)
    port: int = 0
    _server: asyncio.Server | None = None
    _connections: list["_Connection"] = field(default_factory=list)

    @property
    def endpoint(self) -> str:
        return f"http://{LOOPBACK}:{self.port}"

    async def span(self, name: str, *, within_s: float = WITHIN_S, **attributes: object) -> SeenSpan:
        """The one span of this name with these attributes (`__` for `.`); waits until it came."""
        found = await self.all_of(name, 1, within_s=within_s, **attributes)
        assert len(found) == 1, found
        return found[0]

    async def all_of(
        self, name: str, count: int, *, within_s: float = WITHIN_S, **attributes: object
    ) -> list[SeenSpan]:
        """All such spans, once there are so many."""
        wanted = {key.replace("__", "."): value for key, value in attributes.items()}.items()

        def found() -> list[SeenSpan]:
            return [span for span in self.spans if span.name == name and wanted <= span.attributes.items()]

        what = f"{count} spans {name!r} {dict(wanted)}"
        await eventually(lambda: len(found()) >= count, within_s=within_s, what=what)
        return found()

    def children(self, parent: SeenSpan) -> list[SeenSpan]:
        """In the order in which they began."""
        found = [span for span in self.spans if span.parent_id == parent.span_id]
        return sorted(found, key=lambda span: span.start_ns)

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(self._accept, LOOPBACK, self.port)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        # The transports close in the loop's next turn.
        await asyncio.sleep(0)

    def stop(self) -> None:
        """Refuses connections from here on, and resets what is open."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for connection in self._connections:
            connection.abort()

    def answer(self, head: str, body: bytes) -> bytes | None:
        """What a request is answered; None for nothing."""
        self.heads.append(head)
        self.bodies.append(body)
        if self.hangs:
            return None
        if self.answers == 200:
            self.spans += decoded(body)
        elsewhere = f"location: {self.endpoint}/elsewhere\r\n"
        return f"HTTP/1.1 {self.answers} x\r\n{elsewhere}content-length: 0\r\n\r\n".encode()

    def _accept(self) -> "_Connection":
        connection = _Connection(self)
        self._connections.append(connection)
        return connection


class _Connection(asyncio.Protocol):
    """No task of its own: those of a gateway in the same loop are counted."""

    def __init__(self, collector: Collector) -> None:
        self._collector = collector
        self._received = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, blank, rest = self._received.partition(b"\r\n\r\n")
        lines = head.decode("latin-1").lower() + "\r\n"
        length = next((int(line[15:]) for line in lines.split("\r\n") if line.startswith("content-length:")), 0)
        if not blank or len(rest) < length:
            return
        self._received = rest[length:]
        answer = self._collector.answer(lines, rest[:length])
        if answer is not None and self._transport is not None:
            self._transport.write(answer)

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()


def decoded(body: bytes) -> list[SeenSpan]:
    """The spans of a request's body."""
    request = ExportTraceServiceRequest.FromString(body)
    return [
        _seen(span, _attributes(of_resource.resource.attributes))
        for of_resource in request.resource_spans
        for of_scope in of_resource.scope_spans
        for span in of_scope.spans
    ]


def _seen(span: trace_pb2.Span, resource: dict[str, Any]) -> SeenSpan:
    return SeenSpan(
        name=span.name,
        kind=span.kind,
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex(),
        start_ns=span.start_time_unix_nano,
        end_ns=span.end_time_unix_nano,
        attributes=_attributes(span.attributes),
        events={event.name: event.time_unix_nano for event in span.events},
        is_error=span.status.code == trace_pb2.Status.STATUS_CODE_ERROR,
        is_of_remote_parent=bool(span.flags & 0x200),
        resource=resource,
    )


def _attributes(pairs: Iterable[KeyValue]) -> dict[str, Any]:
    found = list(pairs)
    assert len({pair.key for pair in found}) == len(found), "an attribute is there twice"
    return {pair.key: _value(pair.value) for pair in found}


def _value(value: AnyValue) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return tuple(_value(item) for item in value.array_value.values)
    return None if kind is None else getattr(value, kind)

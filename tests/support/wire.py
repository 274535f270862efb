"""HTTP/1.1 as a server speaks it, laid open: what was received and when, and every way to answer or to fail.

`Received` and `Connection` are records that tests read. An `Exchange` is one request being answered: it sends exactly
the bytes that it is told to, waits where it is told to, and raises `HangUp` in the behaviour the moment the client is
gone. Times are `time.monotonic()`, which all processes of a machine share. The transport's own buffer holds nothing
back: what `send` returned from is with the kernel.
"""

import asyncio
import json
import math
import socket
import struct
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Literal, cast

import httptools

FOREVER = math.inf
Headers = Sequence[tuple[str, str]]
Closer = Literal["client", "upstream"]


class HangUp(Exception):
    """The client closed its connection before the answer was done."""


class Gate:
    """A place in a script that waits until the test opens it. `waiting` says how many requests stand there."""

    def __init__(self) -> None:
        self._opened = asyncio.Event()
        self.waiting = 0

    def open(self) -> None:
        self._opened.set()

    async def passed(self) -> None:
        self.waiting += 1
        try:
            await self._opened.wait()
        finally:
            self.waiting -= 1


Pause = float | Gate


@dataclass(eq=False)
class Received:
    """One request and what became of it."""

    method: str
    path: str
    headers: dict[str, str]
    """By lower-case name; of a header that came twice, the last."""
    raw_body: bytes
    connection: "Connection"
    received_at: float
    answered_at: float | None = None
    """When the response's head was sent."""
    done_at: float | None = None
    """When its last byte was."""
    hung_up_at: float | None = None
    """When the client closed the connection, where that was before the answer was done."""
    sent_bytes: int = 0
    """Of the body, before chunked framing."""
    sent_events: int = 0

    @property
    def body(self) -> Any:
        """The body as JSON; raises where it is none."""
        return json.loads(self.raw_body)

    @property
    def closed_early(self) -> bool:
        return self.hung_up_at is not None

    @property
    def in_flight(self) -> bool:
        return self.done_at is None and self.hung_up_at is None and self.connection.closed_at is None


@dataclass(eq=False)
class Connection:
    """One connection, from accept to close."""

    number: int
    opened_at: float
    closed_at: float | None = None
    closed_by: Closer | None = None
    was_reset: bool = False
    """Whether the client ended it with RST."""
    requests: list[Received] = field(default_factory=list)


class Exchange:
    """One request being answered. A behaviour calls `start`, `send` as often as it likes, and `finish`."""

    def __init__(self, received: Received, wire: "Wire") -> None:
        self.received = received
        self._wire = wire
        self._chunked = False

    async def start(self, status: int, headers: Headers = (), *, length: int | None = None) -> None:
        """Sends the head. Without a length the body is chunked."""
        self._chunked = length is None
        framing = ("transfer-encoding", "chunked") if length is None else ("content-length", str(length))
        reason = HTTPStatus(status).phrase
        lines = [f"HTTP/1.1 {status} {reason}", *(f"{name}: {value}" for name, value in (*headers, framing))]
        await self._wire.write("\r\n".join([*lines, "", ""]).encode())
        self.received.answered_at = time.monotonic()

    async def send(self, data: bytes) -> None:
        """Sends a piece of the body, as one chunk, and returns once the kernel has it all."""
        if data:
            await self._wire.write(b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data)
            self.received.sent_bytes += len(data)

    async def finish(self) -> None:
        """Ends the body; the connection stays open for the next request."""
        if self._chunked:
            await self._wire.write(b"0\r\n\r\n")
        self.received.done_at = time.monotonic()

    async def raw(self, data: bytes) -> None:
        """Sends bytes that need not be HTTP."""
        await self._wire.write(data)

    async def pause(self, pause: Pause) -> None:
        """Waits that long, or until the gate opens; raises `HangUp` as soon as the client is gone."""
        if isinstance(pause, Gate):
            await self._wire.unless_gone(pause.passed())
        elif pause == FOREVER:
            await self._wire.unless_gone(asyncio.Event().wait())
        elif pause > 0:
            await self._wire.unless_gone(asyncio.sleep(pause))

    def close(self) -> None:
        """Ends the connection with FIN, whatever was promised."""
        self._wire.close(reset=False)

    def reset(self) -> None:
        """Ends the connection with RST."""
        self._wire.close(reset=True)


class Wire(asyncio.Protocol):
    """A connection as asyncio sees it. `answer` is called with each exchange, one after the other."""

    def __init__(
        self, record: Connection, answer: Callable[[Exchange], "asyncio.Task[None]"], *, send_buffer: int | None
    ) -> None:
        self.record = record
        self._answer = answer
        self._send_buffer = send_buffer
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport | None = None
        self._writable = asyncio.Event()
        self._gone = asyncio.Event()
        self._current: Received | None = None
        self._task: asyncio.Task[None] | None = None
        self._url = b""
        self._headers: dict[str, str] = {}
        self._body = bytearray()

    # What an exchange calls

    async def write(self, data: bytes) -> None:
        if self._gone.is_set() or self._transport is None:
            raise HangUp
        self._transport.write(data)
        if not self._writable.is_set():
            await self.unless_gone(self._writable.wait())

    async def unless_gone(self, work: Awaitable[object]) -> None:
        """Awaits `work`, but raises `HangUp` the moment the client is gone."""
        working = asyncio.ensure_future(work)
        gone = asyncio.ensure_future(self._gone.wait())
        try:
            await asyncio.wait([working, gone], return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                raise HangUp
        finally:
            working.cancel()
            gone.cancel()

    def close(self, *, reset: bool) -> None:
        if self._transport is None or self._gone.is_set():
            return
        self.record.closed_by = self.record.closed_by or "upstream"
        if reset:
            self._transport.get_extra_info("socket").setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
            )
            self._transport.abort()
        else:
            self._transport.close()

    async def wait_closed(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        # The loop's turn to close the transport.
        await asyncio.sleep(0)

    # What asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Not an instance under uvloop.
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=0)
        if self._send_buffer is not None:
            transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, self._send_buffer)
        self._writable.set()

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def eof_received(self) -> bool:
        self._client_gone()
        if self._transport is not None:
            self._transport.abort()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.record.was_reset = self.record.was_reset or isinstance(exc, ConnectionError)
        if self.record.closed_by is None:
            self._client_gone()
        self.record.closed_at = self.record.closed_at or time.monotonic()
        self._gone.set()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def _client_gone(self) -> None:
        now = time.monotonic()
        self.record.closed_at = self.record.closed_at or now
        self.record.closed_by = self.record.closed_by or "client"
        current = self._current
        if current is not None and current.done_at is None and self.record.closed_by == "client":
            current.hung_up_at = current.hung_up_at or now
        self._gone.set()

    # What the parser calls

    def on_message_begin(self) -> None:
        self._url, self._headers, self._body = b"", {}, bytearray()

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        received = Received(
            method=self._parser.get_method().decode(),
            path=self._url.decode(),
            headers=self._headers,
            raw_body=bytes(self._body),
            connection=self.record,
            received_at=time.monotonic(),
        )
        self.record.requests.append(received)
        self._current = received
        keep_alive = self._parser.should_keep_alive()
        self._task = self._answer(Exchange(received, self))
        if not keep_alive:
            self._task.add_done_callback(lambda _: self.close(reset=False))

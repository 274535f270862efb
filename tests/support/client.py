"""A client that shows every byte and can hang up at any moment: HTTP/1.1 on a bare connection, or by TLS.

Nothing is read that was not asked for, so that a test may read slowly or not at all; `receive_buffer` then bounds what
the kernel takes in its place. `hang_up` closes with FIN, `reset` with RST, `say_goodbye` as TLS has it, its FIN
after it. Times are `time.monotonic()`.

    async with RawClient(base_url) as client:
        await client.send("POST", "/v1/chat/completions", json={…}, headers={"authorization": f"Bearer {key}"})
        head = await client.head()
        event = await client.event()
        hung_up_at = client.hang_up()
"""

import asyncio
import json as json_module
import socket
import ssl
import struct
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

_LIMIT = 64 * 1024


@dataclass(frozen=True)
class Head:
    """A response's status and headers, by lower-case name; `values` has them all in order."""

    status: int
    headers: dict[str, str]
    values: tuple[tuple[str, str], ...]
    at: float


@dataclass(frozen=True)
class Event:
    """One SSE event, or one comment, as it came: `raw` with its blank line, and when it was whole."""

    raw: bytes
    at: float

    @property
    def data(self) -> str | None:
        """Its data, lines joined; None where it has none."""
        lines = [line[5:] for line in self._lines if line.startswith("data:")]
        return "\n".join(line.removeprefix(" ") for line in lines) if lines else None

    @property
    def name(self) -> str | None:
        return next((line[6:].strip() for line in self._lines if line.startswith("event:")), None)

    @property
    def is_comment(self) -> bool:
        return all(line.startswith(":") for line in self._lines if line)

    @property
    def is_done(self) -> bool:
        return self.data == "[DONE]"

    @property
    def json(self) -> Any:
        """Its data as JSON; raises where it is none."""
        assert self.data is not None, f"an event without data: {self.raw!r}"
        return json_module.loads(self.data)

    @property
    def content(self) -> str:
        """The text of a chat chunk, empty where it has none."""
        choices = [] if self.data is None or self.is_done else self.json.get("choices", [])
        return choices[0].get("delta", {}).get("content") or "" if choices else ""

    @property
    def _lines(self) -> list[str]:
        return self.raw.decode().splitlines()


class ConnectionEnded(Exception):
    """The server closed the connection before what was awaited. `partial` is what had come of it."""

    def __init__(self, partial: bytes = b"", *, was_reset: bool = False) -> None:
        super().__init__(f"the connection {'was reset' if was_reset else 'ended'}; what had come: {partial[-200:]!r}")
        self.partial = partial
        self.was_reset = was_reset


class RawClient:
    """One connection to a server, opened by `async with`."""

    def __init__(self, base_url: str, *, receive_buffer: int | None = None, tls: ssl.SSLContext | None = None) -> None:
        """`tls` is what an https URL is asked by; without it whoever answers is believed."""
        address = urlsplit(base_url)
        self._tls = (tls or _trusting()) if address.scheme == "https" else None
        assert address.hostname is not None
        assert address.port is not None
        self._host, self._port = address.hostname, address.port
        self._receive_buffer = receive_buffer
        self._reader = asyncio.StreamReader()
        self._writer: asyncio.StreamWriter | None = None
        self._head: Head | None = None
        self._left = 0
        """Of the present chunk, or of the body where its length is known."""
        self._ended = True
        self._unread = bytearray()
        """Of the body, read and not yet handed out."""

    async def __aenter__(self) -> Self:
        plain = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        plain.setblocking(False)
        if self._receive_buffer is not None:
            # Before the connection is made: the window is agreed on then.
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self._receive_buffer)
        try:
            await asyncio.get_running_loop().sock_connect(plain, (self._host, self._port))
            name = None if self._tls is None else self._host
            if self._tls is not None:
                # Else a goodbye behind a request waits 40 ms for an acknowledgement (Nagle).
                plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._reader, self._writer = await asyncio.open_connection(
                sock=plain, limit=_LIMIT, ssl=self._tls, server_hostname=name
            )
        except BaseException:
            plain.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._writer is not None:
            self._writer.transport.abort()
            # The loop's turn to close the transport.
            await asyncio.sleep(0)

    @property
    def local_port(self) -> int:
        port: int = self._stream.get_extra_info("sockname")[1]
        return port

    async def send(
        self,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        json: object = None,
        body: bytes = b"",
    ) -> None:
        """Sends one request. `json` in place of `body` sets the content type too."""
        sent = {"host": f"{self._host}:{self._port}", **(headers or {})}
        if json is not None:
            body = json_module.dumps(json).encode()
            sent.setdefault("content-type", "application/json")
        if body or method not in ("GET", "HEAD"):
            sent.setdefault("content-length", str(len(body)))
        lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in sent.items())]
        await self.send_raw("\r\n".join([*lines, "", ""]).encode() + body)

    async def send_raw(self, data: bytes) -> None:
        """Sends bytes that need not be HTTP, or be only a part of a request."""
        self._stream.write(data)
        await self._stream.drain()

    async def head(self) -> Head:
        """Waits for the response's status and headers. Raises `ConnectionEnded`."""
        block = await self._until(b"\r\n\r\n")
        first, *lines = block.decode("latin-1").removesuffix("\r\n\r\n").split("\r\n")
        pairs = [line.partition(":") for line in lines]
        values = tuple((name.strip().lower(), value.strip()) for name, _, value in pairs)
        self._head = Head(int(first.split(" ")[1]), dict(values), values, time.monotonic())
        self._left = 0 if self._is_chunked else int(self._head.headers.get("content-length", 0))
        self._ended = not self._is_chunked and self._left == 0
        return self._head

    async def piece(self) -> bytes:
        """The next piece of the body, at most a chunk; empty at its end. Raises `ConnectionEnded` where it is cut."""
        if self._unread:
            piece, self._unread = bytes(self._unread), bytearray()
            return piece
        if self._ended:
            return b""
        if self._is_chunked and self._left == 0:
            self._left = int((await self._until(b"\r\n")).split(b";")[0], 16)
            if self._left == 0:
                await self._until(b"\r\n")
                self._ended = True
                return b""
        try:
            piece = await self._reader.read(min(self._left, _LIMIT))
        except ConnectionError:
            raise ConnectionEnded(was_reset=True) from None
        if not piece:
            raise ConnectionEnded
        self._left -= len(piece)
        if self._left == 0:
            if self._is_chunked:
                await self._until(b"\r\n")
            else:
                self._ended = True
        return piece

    async def body(self) -> bytes:
        """The rest of the body. Raises `ConnectionEnded` where it is cut."""
        whole = bytearray()
        try:
            while piece := await self.piece():
                whole += piece
        except ConnectionEnded as end:
            raise ConnectionEnded(bytes(whole), was_reset=end.was_reset) from None
        return bytes(whole)

    async def event(self) -> Event | None:
        """The next SSE event or comment; None where the body ended well. Raises `ConnectionEnded` where it is cut."""
        held = bytearray()
        while True:
            for blank in (b"\n\n", b"\r\n\r\n", b"\r\r"):
                if (end := held.find(blank)) >= 0:
                    self._unread = held[end + len(blank) :]
                    return Event(bytes(held[: end + len(blank)]), time.monotonic())
            try:
                piece = await self.piece()
            except ConnectionEnded as end:
                raise ConnectionEnded(bytes(held), was_reset=end.was_reset) from None
            if not piece:
                if held:
                    raise ConnectionEnded(bytes(held))
                return None
            held += piece

    async def events(self) -> AsyncIterator[Event]:
        """Every further event, up to the end of the body."""
        while (event := await self.event()) is not None:
            yield event

    def hang_up(self) -> float:
        """Closes the connection at once with FIN, and says when."""
        return self._close(reset=False)

    def reset(self) -> float:
        """Closes the connection at once with RST, and says when."""
        return self._close(reset=True)

    def say_goodbye(self) -> float:
        """Ends TLS by its alert, and the connection with FIN once the server has answered. Says when."""
        at = time.monotonic()
        self._stream.transport.close()
        return at

    @property
    def server_certificate(self) -> bytes:
        """What the server showed, as DER."""
        found: bytes = self._stream.get_extra_info("ssl_object").getpeercert(binary_form=True)
        return found

    async def closed_by_server(self) -> bool:
        """Waits for the server's end of the connection; what is still sent is thrown away."""
        try:
            while await self._reader.read(_LIMIT):
                pass
        except ConnectionError:
            pass
        return True

    def _close(self, *, reset: bool) -> float:
        sock = self._stream.get_extra_info("socket")
        if reset:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        else:
            # abort() closes in the loop's next turn; the FIN leaves now.
            sock.shutdown(socket.SHUT_RDWR)
        at = time.monotonic()
        self._stream.transport.abort()
        return at

    async def _until(self, end: bytes) -> bytes:
        try:
            return await self._reader.readuntil(end)
        except asyncio.IncompleteReadError as cut:
            raise ConnectionEnded(cut.partial) from None
        except ConnectionError:
            raise ConnectionEnded(was_reset=True) from None

    @property
    def _is_chunked(self) -> bool:
        return self._head is not None and self._head.headers.get("transfer-encoding", "").lower() == "chunked"

    @property
    def _stream(self) -> asyncio.StreamWriter:
        assert self._writer is not None, "the client is opened by `async with`"
        return self._writer


def _trusting() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context

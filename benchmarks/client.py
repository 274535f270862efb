"""The benchmark's client: a kept connection on an asyncio protocol, cheap enough to share a core with the upstream.

It counts instead of keeping: reads, chunks, the moment of the first. Anything but a whole 200 is an error.
"""

import asyncio
import json
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import httptools

_CHUNK = b'"content":"'
_ANSWER_WITHIN_S = 30.0


class BadAnswer(Exception):
    """The subject did not answer as it should; the message has its status and the beginning of its body."""


@dataclass
class Answer:
    """What one request saw, in seconds from its sending."""

    first_s: float = 0.0
    """To the first token, or to the answer's body."""
    whole_s: float = 0.0
    reads: int = 0
    chunks: int = 0


@dataclass(frozen=True)
class Target:
    """Whom to ask, and with which headers."""

    host: str
    port: int
    headers: tuple[tuple[str, str], ...] = ()

    def request(self, model: str, *, stream: bool, content: str = "Say hello.", label: str | None = None) -> bytes:
        """The bytes of a chat request of about 300 bytes."""
        body: dict[str, object] = {
            "model": model,
            "messages": [
                {"role": "system", "content": "You are a helpful assistant."},
                {"role": "user", "content": content},
            ],
            "max_tokens": 64,
            "temperature": 0.7,
        }
        if stream:
            body["stream"] = True
        data = json.dumps(body).encode()
        headers: Mapping[str, str] = {**dict(self.headers), **({"x-request-id": label} if label else {})}
        lines = ["POST /v1/chat/completions HTTP/1.1", f"host: {self.host}:{self.port}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        lines += ["content-type: application/json", f"content-length: {len(data)}", "", ""]
        return "\r\n".join(lines).encode() + data


class Connection(asyncio.Protocol):
    """One connection, one request at a time."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport
        self.is_open = False
        self._parser = httptools.HttpResponseParser(self)
        self._answer = Answer()
        self._sent_at = 0.0
        self._waits_for_first = False
        self._done: asyncio.Future[Answer] | None = None
        self._status = 0
        self._body = b""

    @classmethod
    async def open(cls, target: Target, *, receive_buffer: int | None = None) -> "Connection":
        plain = socket.socket()
        plain.setblocking(False)
        if receive_buffer is not None:
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        loop = asyncio.get_running_loop()
        try:
            await loop.sock_connect(plain, (target.host, target.port))
            _, connection = await loop.create_connection(cls, sock=plain)
        except BaseException:
            plain.close()
            raise
        return connection

    async def ask(self, request: bytes, *, until_first: bool = False) -> Answer:
        """Sends a request; returns when the answer is whole, or its first token there."""
        self._begin(request)
        self._waits_for_first = until_first
        self._done = asyncio.get_running_loop().create_future()
        async with asyncio.timeout(_ANSWER_WITHIN_S):
            return await self._done

    def send(self, request: bytes) -> None:
        """Sends a request and waits for nothing."""
        self._begin(request)

    def hang_up(self) -> float:
        """Closes at once with FIN; the time of it."""
        at = time.monotonic()
        # uvloop's own close waits for its next turn, and its socket has no shutdown.
        plain = socket.socket(fileno=self.transport.get_extra_info("socket").fileno())
        plain.shutdown(socket.SHUT_RDWR)
        plain.detach()
        self.transport.abort()
        return at

    def _begin(self, request: bytes) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._answer, self._status, self._body = Answer(), 0, b""
        self._sent_at = time.monotonic()
        self.transport.write(request)

    def _finish(self, error: Exception | None = None) -> None:
        done, self._done = self._done, None
        if done is None or done.done():
            return
        if error is not None:
            done.set_exception(error)
        else:
            done.set_result(self._answer)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Not an instance under uvloop.
        self.transport = cast("asyncio.Transport", transport)
        self.is_open = True

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_open = False
        self._finish(BadAnswer(f"the connection ended: {exc}"))

    def data_received(self, data: bytes) -> None:
        self._answer.reads += 1
        self._parser.feed_data(data)

    def on_status(self, status: bytes) -> None:
        self._status = self._parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        if self._status != 200:
            self._body += body
            return
        chunks = body.count(_CHUNK)
        if chunks and not self._answer.chunks:
            self._answer.first_s = time.monotonic() - self._sent_at
            if self._waits_for_first:
                self._finish()
        self._answer.chunks += chunks

    def on_message_complete(self) -> None:
        self._answer.whole_s = time.monotonic() - self._sent_at
        if self._status != 200:
            self._finish(BadAnswer(f"{self._status}: {self._body[:400]!r}"))
        else:
            self._finish()

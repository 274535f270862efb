"""The floor: proxies that do nothing but pass a request and its answer on, by uvicorn on uvloop and httptools.

`python -m benchmarks.proxy hand PORT UPSTREAM_URL` calls the upstream by a client written for it on an asyncio
protocol; `httpx2` in its place calls it by httpx2's `AsyncClient`, so that the difference is that client's share. Both
stream as bytes come, hold a fast upstream back for a slow reader, and close the upstream's connection when the client
hangs up: what a gateway cannot leave out. They know no key, no limit, no usage and no log.
"""

import argparse
import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Protocol, cast
from urllib.parse import urlsplit

import httptools
import httpx2
import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

_HIGH_WATER = 64 * 1024
Start = Callable[[int, list[tuple[bytes, bytes]]], Awaitable[None]]
_PASSED_ON = (b"content-type", b"content-length")


class Caller(Protocol):
    """Calls an upstream: `call` tells `start` the head, then yields the body's pieces; closed early, it hangs up."""

    def call(self, path: str, body: bytes, start: Start) -> AsyncIterator[bytes]: ...

    async def close(self) -> None: ...


class UpstreamConnection(asyncio.Protocol):
    """One kept connection to the upstream, with one answer at a time."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport
        self.is_open = False
        self.headers: list[tuple[bytes, bytes]] = []
        self.status = 0
        self._pieces: deque[bytes] = deque()
        self._held = 0
        self._done = False
        self._waiter: asyncio.Future[None] | None = None
        self._parser = httptools.HttpResponseParser(self)

    async def ask(self, request: bytes) -> None:
        """Sends a request and returns once the answer's head is there."""
        self.headers, self.status, self._done = [], 0, False
        self._parser = httptools.HttpResponseParser(self)
        self.transport.write(request)
        while not self.status:
            await self._more()

    async def pieces(self) -> AsyncIterator[bytes]:
        while True:
            while self._pieces:
                piece = self._pieces.popleft()
                self._held -= len(piece)
                if self._held < _HIGH_WATER and not self.transport.is_reading():
                    self.transport.resume_reading()
                yield piece
            if self._done:
                return
            await self._more()

    async def _more(self) -> None:
        if not self.is_open:
            raise ConnectionError("the upstream closed the connection")
        self._waiter = asyncio.get_running_loop().create_future()
        await self._waiter

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Not an instance under uvloop.
        self.transport = cast("asyncio.Transport", transport)
        self.is_open = True

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_open = False
        self._wake()

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)
        self._wake()

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        self.status = self._parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        self._pieces.append(body)
        self._held += len(body)
        if self._held > _HIGH_WATER:
            self.transport.pause_reading()

    def on_message_complete(self) -> None:
        self._done = True

    @property
    def is_reusable(self) -> bool:
        return self._done and self.is_open


class HandWritten:
    """A client of exactly what is needed, with a pool that is a list."""

    def __init__(self, base_url: str) -> None:
        address = urlsplit(base_url)
        self._host, self._port = address.hostname or "", address.port or 0
        self._idle: list[UpstreamConnection] = []

    async def call(self, path: str, body: bytes, start: Start) -> AsyncIterator[bytes]:
        connection = await self._connection()
        try:
            head = f"POST {path} HTTP/1.1\r\nhost: {self._host}\r\ncontent-type: application/json\r\n"
            await connection.ask(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
            await start(connection.status, connection.headers)
            async for piece in connection.pieces():
                yield piece
        finally:
            if connection.is_reusable:
                self._idle.append(connection)
            else:
                connection.transport.abort()

    async def _connection(self) -> UpstreamConnection:
        while self._idle:
            connection = self._idle.pop()
            if connection.is_open:
                return connection
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(UpstreamConnection, self._host, self._port)
        return connection

    async def close(self) -> None:
        for connection in self._idle:
            connection.transport.abort()


class ByHttpx2:
    """httpx2's client, set as the gateway sets it."""

    def __init__(self, base_url: str) -> None:
        limits = httpx2.Limits(max_connections=4096, max_keepalive_connections=256, keepalive_expiry=60)
        timeout = httpx2.Timeout(connect=5, read=60, write=10, pool=5)
        self._client = httpx2.AsyncClient(base_url=base_url, limits=limits, timeout=timeout, trust_env=False)

    async def call(self, path: str, body: bytes, start: Start) -> AsyncIterator[bytes]:
        headers = {"content-type": "application/json"}
        async with self._client.stream("POST", path, content=body, headers=headers) as response:
            await start(response.status_code, response.headers.raw)
            async for piece in response.aiter_raw():
                yield piece

    async def close(self) -> None:
        await self._client.aclose()


def proxy(caller: Caller) -> ASGIApp:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _lifespan(caller, receive, send)
            return
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        relaying = asyncio.current_task()
        assert relaying is not None
        watching = asyncio.ensure_future(receive())
        watching.add_done_callback(lambda seen: None if seen.cancelled() else relaying.cancel())
        try:
            await _relay(caller, scope["path"], body, send)
        except asyncio.CancelledError:
            if not watching.done():
                raise
        finally:
            watching.cancel()

    return app


async def _relay(caller: Caller, path: str, body: bytes, send: Send) -> None:
    async def start(status: int, headers: list[tuple[bytes, bytes]]) -> None:
        passed = [(name, value) for name, value in headers if name.lower() in _PASSED_ON]
        await send({"type": "http.response.start", "status": status, "headers": passed})

    async with _closing(caller.call(path, body, start)) as pieces:
        async for piece in pieces:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
    await send({"type": "http.response.body", "body": b"", "more_body": False})


@asynccontextmanager
async def _closing(pieces: AsyncIterator[bytes]) -> AsyncIterator[AsyncIterator[bytes]]:
    generator: Any = pieces
    try:
        yield pieces
    finally:
        await generator.aclose()


async def _lifespan(caller: Caller, receive: Receive, send: Send) -> None:
    await receive()
    await send({"type": "lifespan.startup.complete"})
    await receive()
    await caller.close()
    await send({"type": "lifespan.shutdown.complete"})


def main() -> None:
    parser = argparse.ArgumentParser(description="A bare proxy before one upstream.")
    parser.add_argument("client", choices=["hand", "httpx2"])
    parser.add_argument("port", type=int)
    parser.add_argument("upstream", help="its base URL, without a path")
    options = parser.parse_args()
    caller: Caller = HandWritten(options.upstream) if options.client == "hand" else ByHttpx2(options.upstream)
    uvicorn.run(
        proxy(caller),
        port=options.port,
        loop="uvloop",
        http="httptools",
        ws="none",
        interface="asgi3",
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=1,
        backlog=4096,
    )


if __name__ == "__main__":
    main()

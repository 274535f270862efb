"""An upstream played by the test itself, byte by byte: it takes each connection in its turn and says what it likes."""

import asyncio
from types import TracebackType
from typing import Self

import httpx2

from tidegate.upstream.transport import UpstreamBody

LOOPBACK = "127.0.0.1"
_WITHIN_S = 10.0


class RawPeer:
    """The upstream's end of one connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self.writer = writer

    async def request(self) -> tuple[bytes, bytes]:
        """The next request's head and its body, chunks as they are written."""
        async with asyncio.timeout(_WITHIN_S):
            head = await self.head()
            lowered = head.lower()
            if b"transfer-encoding: chunked" in lowered:
                return head, await self._reader.readuntil(b"0\r\n\r\n")
            _, named, behind = lowered.partition(b"content-length: ")
            return head, await self._reader.readexactly(int(behind.split(b"\r\n")[0])) if named else b""

    async def head(self) -> bytes:
        async with asyncio.timeout(_WITHIN_S):
            return await self._reader.readuntil(b"\r\n\r\n")

    async def say(self, *parts: bytes) -> None:
        for part in parts:
            self.writer.write(part)
            async with asyncio.timeout(_WITHIN_S):
                await self.writer.drain()

    async def closed(self) -> None:
        """Returns when the client has closed the connection."""
        async with asyncio.timeout(_WITHIN_S):
            try:
                while await self._reader.read(65536):
                    pass
            except ConnectionError:
                return

    def close(self) -> None:
        self.writer.close()

    def reset(self) -> None:
        # With what was not read, the kernel resets it.
        self.writer.transport.abort()


class RawUpstream:
    """The server. `peer` gives its connections one after the other."""

    def __init__(self) -> None:
        self._server: asyncio.Server | None = None
        self._waiting: asyncio.Queue[RawPeer] = asyncio.Queue()
        self._peers: list[RawPeer] = []
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://{LOOPBACK}:{self.port}/v1"

    @property
    def connections(self) -> int:
        """How many there were in all."""
        return len(self._peers)

    async def peer(self) -> RawPeer:
        async with asyncio.timeout(_WITHIN_S):
            return await self._waiting.get()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, LOOPBACK, 0, limit=2**20)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        for peer in self._peers:
            peer.writer.transport.abort()
        await asyncio.sleep(0)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = RawPeer(reader, writer)
        self._peers.append(peer)
        self._waiting.put_nowait(peer)


def sent(
    client: httpx2.AsyncClient, url: str, body: bytes = b"hi", **timeouts: float | None
) -> asyncio.Task[httpx2.Response]:
    """A request whose response is open."""
    headers = {"content-length": str(len(body))}
    request = httpx2.Request("POST", url, content=body, headers=headers, extensions={"timeout": timeouts})
    return asyncio.create_task(client.send(request, stream=True))


def body_of(response: httpx2.Response) -> UpstreamBody:
    assert isinstance(response.stream, UpstreamBody)
    return response.stream


async def exchange(client: httpx2.AsyncClient, upstream: RawUpstream, peer: RawPeer | None, *said: bytes) -> RawPeer:
    """One request, answered with `said` by the peer that is there, or a new one, and read to its end."""
    sending = asyncio.create_task(client.post(upstream.url, content=b"hi"))
    peer = peer or await upstream.peer()
    await peer.request()
    await peer.say(*said)
    response = await sending
    assert response.status_code == 200
    return peer

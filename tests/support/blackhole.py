"""Peers that keep a client in the phases before a request is taken.

`BlackHole` never lets a connection be made: its backlog is full, so the kernel drops every further SYN and the client
stays in its connecting phase. `DeafPeer` accepts and never reads: a large request stays in its writing phase. Both say
who is knocking, so that a test sees a client give up.
"""

import asyncio
import socket
from types import TracebackType
from typing import Self, cast

from tests.support.sockets import towards
from tests.support.waiting import eventually

LOOPBACK = "127.0.0.1"
# More than the backlog of 0 lets in on any kernel; those that it leaves out prove that it is full.
_FILLERS = 8


class BlackHole:
    """A port of loopback on which no connection is ever made."""

    def __init__(self) -> None:
        self._listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self._fillers: list[socket.socket] = []
        self.port = 0

    @property
    def base_url(self) -> str:
        return f"http://{LOOPBACK}:{self.port}/v1"

    def knocking(self) -> int:
        """How many connections of others are being attempted now."""
        own = {filler.getsockname()[1] for filler in self._fillers}
        return sum(local not in own for local in towards(self.port, "connecting"))

    async def __aenter__(self) -> Self:
        self._listener.bind((LOOPBACK, 0))
        self._listener.listen(0)
        self.port = self._listener.getsockname()[1]
        for _ in range(_FILLERS):
            filler = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            filler.setblocking(False)
            filler.connect_ex((LOOPBACK, self.port))
            self._fillers.append(filler)
        await eventually(lambda: len(towards(self.port, "connecting")) >= _FILLERS // 2, what="a full backlog")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for each in (*self._fillers, self._listener):
            each.close()


class DeafPeer(asyncio.Protocol):
    """A server that accepts connections and never reads from them."""

    def __init__(self) -> None:
        self._server: asyncio.Server | None = None
        self._transports: list[asyncio.Transport] = []
        self.port = 0

    @property
    def base_url(self) -> str:
        return f"http://{LOOPBACK}:{self.port}/v1"

    async def __aenter__(self) -> Self:
        self._server = await asyncio.get_running_loop().create_server(lambda: self, LOOPBACK, 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        for transport in self._transports:
            transport.abort()
        await asyncio.sleep(0)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        opened = cast("asyncio.Transport", transport)
        opened.pause_reading()
        # What the kernel takes in our place stays small.
        opened.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self._transports.append(opened)

    def established(self) -> int:
        """How many connections clients hold open to this peer now, as the kernel sees them."""
        return len(towards(self.port, "established"))

"""Listening by TLS: what uvicorn leaves to the loop's defaults is said here, and who still shakes hands is counted.

The loop's own bounds are 60 s for a handshake, and 30 s for all of a closing, in which a slow reader would lose the
rest of its answer; ours are those of a connection in the clear (`http.protocol`). A connection is uvicorn's only once
its handshake is over, so a server that retires has to know of those that are not.
"""

import asyncio
import socket
import weakref
from collections import deque
from collections.abc import Sequence
from typing import Any, Final, cast

import uvicorn
from uvicorn.server import ServerState

from tidegate.http.protocol import HEAD_WITHIN_S, TidegateHttpProtocol

HANDSHAKE_WITHIN_S: Final = HEAD_WITHIN_S
# A net: the protocol ends a connection that closes long before.
_CLOSED_WITHIN_S: Final = 3600.0
# Nobody who means to ask takes longer, and a replaced worker waits for no others.
AWAITED_S: Final = 5.0
# What remembers them is bounded; so many in five seconds are an attack, or another worker's by now.
_MOST_AWAITED: Final = 4096


class Handshakes:
    """Those that began in the last seconds."""

    def __init__(self, awaited_s: float) -> None:
        self._awaited_s = awaited_s
        self._begun: deque[tuple[float, weakref.ref[asyncio.Protocol]]] = deque(maxlen=_MOST_AWAITED)

    def begin(self, protocol: asyncio.Protocol) -> None:
        self._forget()
        self._begun.append((asyncio.get_running_loop().time(), weakref.ref(protocol)))

    def are_under_way(self) -> bool:
        self._forget()
        return any(_is_without_transport(protocol()) for _, protocol in self._begun)

    def _forget(self) -> None:
        now = asyncio.get_running_loop().time()
        while self._begun and self._begun[0][0] < now - self._awaited_s:
            self._begun.popleft()


def _is_without_transport(protocol: asyncio.Protocol | None) -> bool:
    return protocol is not None and getattr(protocol, "transport", None) is None


async def listen_by_tls(
    config: uvicorn.Config,
    state: ServerState,
    app_state: dict[str, Any],
    sockets: Sequence[socket.socket],
    handshakes: Handshakes,
) -> list[asyncio.Server]:
    """As `uvicorn.Server.startup` listens, but for the bounds."""
    loop = asyncio.get_running_loop()
    make = cast("type[TidegateHttpProtocol]", config.http_protocol_class)

    def begin() -> asyncio.Protocol:
        protocol = make(config, state, app_state)
        handshakes.begin(protocol)
        return protocol

    return [
        await loop.create_server(
            begin,
            sock=sock,
            ssl=config.ssl,
            backlog=config.backlog,
            ssl_handshake_timeout=HANDSHAKE_WITHIN_S,
            ssl_shutdown_timeout=_CLOSED_WITHIN_S,
        )
        for sock in sockets
    ]

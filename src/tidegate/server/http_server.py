"""uvicorn, configured in one place for the single process and for gunicorn's workers, and how it stops.

A stop lets running requests finish for `drain_s`, cancels what is left, waits until that has settled, and only then
runs the lifespan's end, which closes what settling needs. uvicorn alone would run it beside them. `hurry` shortens the
first wait to nothing.

A server that retires has others beside it that take new connections: it accepts none, serves what comes on those that
it has, each for the last time, and stops once there is none or its time is over.
"""

import asyncio
import logging
import math
import signal
import socket
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from tidegate.http.protocol import TidegateHttpProtocol
from tidegate.server.bounds import KEPT_IDLE_S, SETTLE_S
from tidegate.server.certificate import Entrance
from tidegate.server.listening import BACKLOG
from tidegate.server.tls_listening import AWAITED_S, Handshakes, listen_by_tls
from tidegate.settings import Settings

# Longer than the idle time of common load balancers (60 s), so that it is they who close a connection.
KEEP_ALIVE_S = 75
logger = logging.getLogger(__name__)

# As often as uvicorn itself looks.
_TICK_S = 0.1


def uvicorn_config(app: ASGIApp, settings: Settings, entrance: Entrance | None = None) -> uvicorn.Config:
    """With an entrance every socket speaks TLS."""
    return uvicorn.Config(
        app,
        loop="uvloop",
        http=TidegateHttpProtocol,
        ws="none",
        lifespan="on",
        interface="asgi3",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_S,
        ssl_context_factory=None if entrance is None else lambda _config, _default: entrance.context,
        # The server below keeps this bound itself; uvicorn's is a net under it.
        timeout_graceful_shutdown=math.ceil(settings.server.drain_s) + SETTLE_S + 1,
    )


class GracefulServer(uvicorn.Server):
    """A uvicorn whose stop by signal is a normal end: the process is not killed again by the signal it got.

    A subclass may have other bounds.
    """

    kept_idle_s: float = KEPT_IDLE_S
    handshake_awaited_s: float = AWAITED_S

    def __init__(self, config: uvicorn.Config, *, drain_s: float) -> None:
        super().__init__(config)
        self._drain_s = drain_s
        self._hurried = False
        self._retires = False
        self._handshakes = Handshakes(self.handshake_awaited_s)

    @property
    def requests(self) -> int:
        """How many were answered."""
        return self.server_state.total_requests

    def retire(self) -> None:
        """Others take this server's place. May be called from a signal's handler, and before the server has begun."""
        self._retires = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        if not self.config.is_ssl or sockets is None:
            await super().startup(sockets)
            return
        # The lifespan alone.
        await super().startup([])
        config, app_state = self.config, self.lifespan.state
        self.servers = await listen_by_tls(config, self.server_state, app_state, sockets, self._handshakes)

    async def on_tick(self, counter: int) -> bool:
        return await super().on_tick(counter) or self._retires

    async def main_loop(self) -> None:
        await super().main_loop()
        if self._retires and not self.should_exit:
            await self._see_requests_out()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A second SIGINT hurries; a second SIGTERM does not: gunicorn sends it every second to a worker too many."""
        del frame
        if self.should_exit and sig == signal.SIGINT:
            self.hurry()
        self.should_exit = True

    def hurry(self) -> None:
        """Stops now: running requests are cancelled instead of waited for."""
        self.should_exit = True
        self._hurried = True

    async def _see_requests_out(self) -> None:
        """Every request has the drain's time from its own begin, since the last may come when the idle time ends."""
        logger.info("retiring: no new connections")
        for server in self.servers:
            server.close()
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self.kept_idle_s + self._drain_s
        counter = 0
        while not self.should_exit and loop.time() < deadline:
            for connection in list(self.server_state.connections):
                if isinstance(connection, TidegateHttpProtocol):
                    connection.retire(self.kept_idle_s)
            await asyncio.sleep(_TICK_S)
            counter += 1
            await super().on_tick(counter)
            # Looked at after the pause: a connection that was accepted just before is there only then.
            is_idle = not self.server_state.connections and not self.server_state.tasks
            if is_idle and not self._handshakes.are_under_way():
                break
        if not self.should_exit:
            # What is left had its time.
            self._drain_s = 0

    async def _wait_tasks_to_complete(self) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._drain_s
        ending = asyncio.ensure_future(super()._wait_tasks_to_complete())
        try:
            while not ending.done() and not self._hurried and loop.time() < deadline:
                await asyncio.wait((ending,), timeout=_TICK_S)
            if ending.done():
                await ending
            else:
                await self._cut()
        finally:
            ending.cancel()

    async def _cut(self) -> None:
        requests = set(self.server_state.tasks)
        if requests:
            logger.warning("cut %d running requests", len(requests))
            for request in requests:
                request.cancel(msg="the server stops")
            await asyncio.wait(requests, timeout=SETTLE_S)

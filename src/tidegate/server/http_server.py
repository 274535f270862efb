"""uvicorn, configured in one place for the single process and for gunicorn's workers, and how it stops.

A stop lets running requests finish for `drain_s`, cancels what is left, waits until that has settled, and only then
runs the lifespan's end, which closes what settling needs. uvicorn alone would run it beside them. `hurry` shortens the
first wait to nothing.
"""

import asyncio
import logging
import math
import signal
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from tidegate.http.protocol import TidegateHttpProtocol
from tidegate.server.bounds import SETTLE_S
from tidegate.server.listening import BACKLOG
from tidegate.settings import Settings

# Longer than the idle time of common load balancers (60 s), so that it is they who close a connection.
KEEP_ALIVE_S = 75
logger = logging.getLogger(__name__)

# As often as uvicorn itself looks.
_TICK_S = 0.1


def uvicorn_config(app: ASGIApp, settings: Settings) -> uvicorn.Config:
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
        # The server below keeps this bound itself; uvicorn's is a net under it.
        timeout_graceful_shutdown=math.ceil(settings.server.drain_s) + SETTLE_S + 1,
    )


class GracefulServer(uvicorn.Server):
    """A uvicorn whose stop by signal is a normal end: the process is not killed again by the signal it got."""

    def __init__(self, config: uvicorn.Config, *, drain_s: float) -> None:
        super().__init__(config)
        self._drain_s = drain_s
        self._hurried = False

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

"""uvicorn, configured in one place for the single process and for gunicorn's workers, and how it stops.

A stop lets running requests finish for `drain_s`, cancels what is left, and runs the lifespan's end in every case,
since the ledger is settled there. `hurry` shortens the wait to nothing; it too runs the lifespan's end.
"""

import asyncio
import signal
from types import FrameType
from typing import cast

import uvicorn
from starlette.types import ASGIApp

from tidegate.server.listening import BACKLOG
from tidegate.settings import Settings

# Longer than the idle time of common load balancers (60 s), so that it is they who close a connection.
KEEP_ALIVE_S = 75
# As often as uvicorn itself looks.
_TICK_S = 0.1


def uvicorn_config(app: ASGIApp, settings: Settings) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        loop="uvloop",
        http="httptools",
        ws="none",
        lifespan="on",
        interface="asgi3",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_S,
        # asyncio.wait_for gets it, which takes a fraction too.
        timeout_graceful_shutdown=cast("int", settings.server.drain_s),
    )


class GracefulServer(uvicorn.Server):
    """A uvicorn whose stop by signal is a normal end: the process is not killed again by the signal it got."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
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
        waiting = asyncio.ensure_future(super()._wait_tasks_to_complete())
        try:
            while not waiting.done():
                if self._hurried:
                    # uvicorn's own way out of this wait: it cancels the requests, then ends the lifespan.
                    raise TimeoutError
                await asyncio.wait((waiting,), timeout=_TICK_S)
            await waiting
        finally:
            waiting.cancel()

"""gunicorn's worker: the same uvicorn as the single process, with an end that drains and a parent that is watched.

It mends what the stock UvicornWorker lacks: a bounded graceful stop, a heartbeat while it drains, an ear for SIGQUIT,
and an end when the arbiter is gone. It tells the arbiter that it serves, and when it is worn; SIGUSR2 retires it.
"""

import asyncio
import contextlib
import random
import signal
import sys
import time
from types import FrameType
from typing import Any

import uvicorn
from gunicorn.arbiter import Arbiter
from uvicorn_worker import UvicornWorker

from tidegate.server.http_server import GracefulServer, uvicorn_config
from tidegate.server.lifeline import terminate_self, watch
from tidegate.server.recycling import WordPipe

# A replacement that cannot boot (its database is down, say) tries again after this, and the others serve meanwhile.
_BOOT_RETRY_S = 2.0
# How far from each other workers wear out that began together.
_JITTER = 0.1
_ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGABRT)
# The root's to take, or gunicorn's own, with another meaning than here.
_MEANINGLESS = (signal.SIGHUP, signal.SIGUSR1, signal.SIGTTIN, signal.SIGTTOU, signal.SIGWINCH)


class _WorkersServer(GracefulServer):
    """Says when it serves, and when it has answered `worn_after` requests; 0: never."""

    def __init__(self, config: uvicorn.Config, *, drain_s: float, words: WordPipe, worn_after: int) -> None:
        super().__init__(config, drain_s=drain_s)
        self._words = words
        self._worn_after = worn_after
        self._said_serving = False
        self._said_worn = worn_after == 0

    async def on_tick(self, counter: int) -> bool:
        if not self._said_serving:
            self._said_serving = self._words.say("serving")
        if not self._said_worn and self.requests >= self._worn_after:
            self._said_worn = self._words.say("worn")
        return await super().on_tick(counter)


class TidegateWorker(UvicornWorker):  # type: ignore[misc]  # gunicorn and uvicorn-worker ship no types
    """`app` is the arbiter's application: the settings, the root's line, and the pipes to and from the arbiter."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.retires = False
        self._server: _WorkersServer | None = None

    def init_signals(self) -> None:
        """In the worker, first of all: until then the arbiter's own handlers stand."""
        for number in _ENDING:
            signal.signal(number, signal.SIG_DFL)
        for number in _MEANINGLESS:
            signal.signal(number, signal.SIG_IGN)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGUSR2, self.retire)
        signal.siginterrupt(signal.SIGUSR2, False)

    def retire(self, *_: int | FrameType | None) -> None:
        """Others take this worker's place: now, or as soon as it serves."""
        self.retires = True
        self.app.opening.supervisor.is_retiring = True
        if self._server is not None:
            self._server.retire()

    def run(self) -> None:
        self.config = uvicorn_config(self.wsgi, self.app.settings, self.app.opening.refreshed_entrance())
        try:
            super().run()
        except SystemExit as ending:
            if ending.code != Arbiter.WORKER_BOOT_ERROR or self.age <= self.cfg.workers:
                raise
            # This code makes gunicorn stop the whole server, rightly only for a worker of the first generation.
            time.sleep(_BOOT_RETRY_S)
            sys.exit(1)

    async def _serve(self) -> None:
        settings = self.app.settings.server
        worn_after = round(settings.max_requests * random.uniform(1 - _JITTER, 1 + _JITTER))  # noqa: S311 - no secret
        server = self._server = _WorkersServer(
            self.config, drain_s=settings.drain_s, words=self.app.words, worn_after=worn_after
        )
        if self.retires:
            server.retire()
        asyncio.get_running_loop().add_signal_handler(signal.SIGQUIT, server.hurry)
        watch(terminate_self, self.app.arbiter_lifeline)
        beating = asyncio.create_task(self._beat())
        try:
            # Not gunicorn's wrappers: uvloop closes what is in them twice, the second time perhaps somebody else's.
            await server.serve(sockets=[listener.sock for listener in self.sockets])
        finally:
            beating.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await beating
        if not server.started:
            sys.exit(Arbiter.WORKER_BOOT_ERROR)

    async def _beat(self) -> None:
        """Tells the arbiter that the loop turns, to the very end: uvicorn's own callback stops when it drains."""
        while True:
            self.notify()
            await asyncio.sleep(self.timeout / 4)

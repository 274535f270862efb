"""gunicorn's worker: the same uvicorn as the single process, with an end that drains and a parent that is watched.

It mends what the stock UvicornWorker lacks: a bounded graceful stop, a heartbeat while it drains, an ear for SIGQUIT,
and an end when the arbiter is gone.
"""

import asyncio
import contextlib
import signal
import sys
import time

from gunicorn.arbiter import Arbiter
from uvicorn_worker import UvicornWorker

from tidegate.server.http_server import GracefulServer, uvicorn_config
from tidegate.server.lifeline import terminate_self, watch

# A replacement that cannot boot (its database is down, say) tries again after this, and the others serve meanwhile.
_BOOT_RETRY_S = 2.0


class TidegateWorker(UvicornWorker):  # type: ignore[misc]  # gunicorn and uvicorn-worker ship no types
    """`app` is the arbiter's application, which holds the settings and the pipe that ends with the arbiter."""

    def run(self) -> None:
        self.config = uvicorn_config(self.wsgi, self.app.settings)
        try:
            super().run()
        except SystemExit as ending:
            if ending.code != Arbiter.WORKER_BOOT_ERROR or self.age <= self.cfg.workers:
                raise
            # This code makes gunicorn stop the whole server, rightly only for a worker of the first generation.
            time.sleep(_BOOT_RETRY_S)
            sys.exit(1)

    async def _serve(self) -> None:
        server = GracefulServer(self.config, drain_s=self.app.settings.server.drain_s)
        asyncio.get_running_loop().add_signal_handler(signal.SIGQUIT, server.hurry)
        watch(terminate_self, self.app.arbiter_lifeline)
        beating = asyncio.create_task(self._beat())
        try:
            await server.serve(sockets=self.sockets)
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

"""Keeps the local model's process running: it is started again when it ends, ever later while it keeps ending.

Its death never stops the server, but for a start that no restart can mend (wheels missing, weights wrong), while the
server itself is starting: that refuses the start.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from tidegate.server.children import Child, describe_exit
from tidegate.server.refusal import EXIT_REFUSED, StartRefused
from tidegate.telemetry.logging import get_logger

STOP_BOUND_S = 10


@dataclass(frozen=True, slots=True)
class Backoff:
    """Seconds between an end and the next start: doubled each time, begun anew after a life of `reset_s`."""

    first_s: float = 0.5
    longest_s: float = 30
    reset_s: float = 60

    def next(self, last_s: float | None, lived_s: float) -> float:
        if last_s is None or lived_s >= self.reset_s:
            return self.first_s
        return min(last_s * 2, self.longest_s)


class ModelKeeper:
    """Runs `command` for as long as `run` runs. `started` is set once the server is ready."""

    def __init__(self, command: Sequence[str], backoff: Backoff) -> None:
        self._command = command
        self._backoff = backoff
        self._child: Child | None = None
        self.server_is_ready = False

    async def run(self) -> None:
        """Never returns. Raises `StartRefused` where the first start cannot succeed; the child has said why."""
        loop = asyncio.get_running_loop()
        log = get_logger(__name__)
        delay: float | None = None
        while True:
            began = loop.time()
            child = self._child = await Child.start(self._command)
            code = await child.wait()
            self._child = None
            child.release()
            if code == EXIT_REFUSED and (delay is None or not self.server_is_ready):
                raise StartRefused
            delay = self._backoff.next(delay, loop.time() - began)
            log.warning("the local model ended", ending=describe_exit(code), starts_again_in_s=delay)
            await asyncio.sleep(delay)

    async def stop(self) -> None:
        """After `run` was cancelled."""
        if self._child is not None:
            await self._child.stop(STOP_BOUND_S)
            self._child.release()
            self._child = None

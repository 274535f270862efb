"""The root's way to start its server within `warm_forks`: a fork, which has the app's modules already."""

import asyncio
import contextlib
import os
import signal
import threading
from collections.abc import Mapping, Sequence

from tests.support.warm_forks import become, run_module
from tidegate.server.children import Child

_OUT, _ERR = 1, 2


async def fork_child(
    command: Sequence[str], *, descriptors: Sequence[int] = (), environ: Mapping[str, str] | None = None
) -> Child:
    """`Child.start` for a command of `children.python`."""
    reading, lifeline = os.pipe()
    pid = os.fork()
    if pid == 0:
        module = command.index("-m") + 1
        if environ is not None:
            os.environ.clear()
            os.environ.update(environ)
        become(lambda: run_module(command[module], command[module + 1 :]), (reading, _OUT, _ERR), descriptors)
    os.close(reading)
    return Child(_Forked(pid), lifeline)


class _Forked:
    """What `asyncio.subprocess.Process` is to a child that was executed."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[int] = self._loop.create_future()
        threading.Thread(target=self._reap, daemon=True).start()

    async def wait(self) -> int:
        return await asyncio.shield(self._ended)

    def send_signal(self, number: signal.Signals) -> None:
        """Nothing where it has ended."""
        if not self._ended.done():
            os.kill(self.pid, number)

    def _reap(self) -> None:
        _, status = os.waitpid(self.pid, 0)
        # A root that was killed off has no loop any more.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._ended.set_result, os.waitstatus_to_exitcode(status))

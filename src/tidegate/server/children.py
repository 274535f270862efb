"""The root's children: each in a session of its own, each with a lifeline that only the root holds.

Ctrl-C reaches only the root, since children are not in the terminal's foreground group. Whatever ends the root closes
the lifelines, and every child ends by itself. A child's group can be ended whole, also when its leader died first.
"""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from typing import Protocol, Self

_LOOK_S = 0.05


def python(module: str, *arguments: str) -> list[str]:
    """The command that runs a module in this interpreter. The working directory is no place to import from."""
    return [sys.executable, "-P", "-m", module, *arguments]


def describe_exit(code: int) -> str:
    """`exit code 3`, or `SIGKILL` where a signal ended it."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"


class Running(Protocol):
    """A started process, as `asyncio.subprocess.Process` has it. What was told to one that has ended may be lost."""

    pid: int

    async def wait(self) -> int:
        """Its exit code; negative where a signal ended it."""

    def send_signal(self, number: signal.Signals, /) -> None: ...


class Child:
    """A running child. Its process group has its pid.

    >>> child = await Child.start(python("tidegate.server.model"))
    >>> code = await child.wait()
    """

    def __init__(self, running: Running, lifeline: int) -> None:
        self._running = running
        self._lifeline: int | None = lifeline

    @classmethod
    async def start(
        cls, command: Sequence[str], *, descriptors: Sequence[int] = (), environ: Mapping[str, str] | None = None
    ) -> Self:
        """Starts a command that inherits `descriptors` by their numbers, standard output and standard error.

        `environ` is its environment, else ours.
        """
        reading, lifeline = os.pipe()
        try:
            running = await asyncio.create_subprocess_exec(
                *command, stdin=reading, pass_fds=descriptors, env=environ, start_new_session=True
            )
        except BaseException:
            os.close(lifeline)
            raise
        finally:
            os.close(reading)
        return cls(running, lifeline)

    @property
    def pid(self) -> int:
        return self._running.pid

    async def wait(self) -> int:
        """Its exit code; negative where a signal ended it."""
        return await self._running.wait()

    def send(self, number: signal.Signals) -> None:
        """To the child alone; nothing where it has ended."""
        with contextlib.suppress(ProcessLookupError):
            self._running.send_signal(number)

    async def stop(self, bound_s: float) -> bool:
        """Ends the child by SIGTERM, and by SIGKILL what is left of its group after the bound.

        Returns whether it ended within the bound.
        """
        self.send(signal.SIGTERM)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(bound_s):
                await self.wait()
                await self._group_gone()
                return True
        self.kill()
        await self.wait()
        return False

    def kill(self) -> None:
        """At once, with its whole group."""
        self._send_group(signal.SIGKILL)

    def release(self) -> None:
        """Lets go of the lifeline. May be called again."""
        if self._lifeline is not None:
            os.close(self._lifeline)
            self._lifeline = None

    async def _group_gone(self) -> None:
        """Ends what the leader left behind. A leader that ended rightly left nothing."""
        is_there = self._send_group(signal.SIGTERM)
        while is_there:
            self._reap_orphans()
            await asyncio.sleep(_LOOK_S)
            is_there = self._send_group(0)

    def _reap_orphans(self) -> None:
        """Where the root is a container's process 1, what the leader left behind is the root's to reap."""
        with contextlib.suppress(ChildProcessError):
            os.waitpid(-self.pid, os.WNOHANG)

    def _send_group(self, number: int) -> bool:
        """Whether there is such a group."""
        try:
            os.killpg(self.pid, number)
        except (ProcessLookupError, PermissionError):
            # macOS answers EPERM for a group of zombies.
            return False
        return True

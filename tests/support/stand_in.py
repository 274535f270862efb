"""The gateway's process tree around a stand-in app and model, driven like the real one."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import IO, TypeVar

import orjson
import psutil

from tests.support.client import RawClient
from tests.support.server import GatewayProcess
from tests.support.waiting import eventually
from tests.support.warm import Warm, warm_start

ECHO = '[upstreams.echo]\nprovider = "echo"\n[[models]]\nname = "echo"\nattempts = ["echo/echo"]\n'
LOCAL = '[upstreams.local]\nprovider = "local"\n[[models]]\nname = "tide"\nattempts = ["local/tide"]\n'
Gateway = TypeVar("Gateway", bound=GatewayProcess)
_REPOSITORY = Path(__file__).parents[2]


class StandIn(GatewayProcess):
    """`tidegate serve` with the parts of `serve_root`: every process of the tree is real but the app's inside."""

    def _spawned(self, out: IO[bytes], err: IO[bytes]) -> "subprocess.Popen[bytes] | Warm":
        module = "tests.support.serve_root"
        if self.plan.cold:
            return self._executed([sys.executable, "-m", module], out, err)
        return warm_start(module, ["warm"], cwd=self.folder, env=self._environ(), stdout=out, stderr=err)

    def _environ(self) -> dict[str, str]:
        return _with_tests(super()._environ())

    def titled(self, title: str) -> list[psutil.Process]:
        """The processes of the tree with this title, such as `worker`."""
        found = []
        for process in self.tree():
            with contextlib.suppress(psutil.Error):
                if _title(process) == f"tidegate: {title}" and not _is_fresh(process):
                    found.append(process)
        return found

    async def one_titled(self, title: str, *, other_than: int = 0) -> psutil.Process:
        """Waits until there is exactly one such process, with another pid than this."""

        def one() -> psutil.Process | None:
            found = self.titled(title)
            return found[0] if len(found) == 1 and found[0].pid != other_than else None

        process = await eventually(one, within_s=30, what=f"one process titled {title}")
        assert process is not None
        return process

    async def get(self, path: str) -> tuple[int, bytes]:
        async with asyncio.timeout(30), RawClient(self.base_url) as client:
            await client.send("GET", path, headers={"connection": "close"})
            head = await client.head()
            return head.status, await client.body()

    async def worker_pid(self) -> int:
        pid: int = orjson.loads((await self.get("/who"))[1])["pid"]
        return pid

    def noted(self, name: str) -> list[str]:
        """The lines of a file that the stand-ins wrote: `ends`, `model-starts`."""
        path = self.data_dir / name
        return path.read_text("utf-8").split("\n")[:-1] if path.exists() else []

    def tell(self, name: str, text: str = "") -> None:
        """Leaves a word for the stand-ins: `unready`, `fail-to-start`, `model-code`."""
        self.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        (self.data_dir / name).write_text(text)


def _title(process: psutil.Process) -> str:
    return "".join(process.cmdline()[:1])


def _is_fresh(process: psutil.Process) -> bool:
    """Whether it is a fork that has still the title of what forked it."""
    parent = process.parent()
    return parent is not None and _title(parent) == _title(process)


def _with_tests(environ: dict[str, str]) -> dict[str, str]:
    places = [str(_REPOSITORY), environ.get("PYTHONPATH", "")]
    return environ | {"PYTHONPATH": os.pathsep.join(filter(None, places))}


@asynccontextmanager
async def not_started(gateway: Gateway) -> AsyncIterator[Gateway]:
    """A gateway that the test starts itself; it is stopped at the end, also where the test fails."""
    async with AsyncExitStack() as stack:
        stack.push_async_exit(gateway)
        yield gateway


async def refusal(gateway: GatewayProcess) -> list[str]:
    """Starts a gateway that will not start: exit code 1, nothing left, no traceback; what it said on standard error."""
    gateway.spawn()
    code = await gateway.ended(within_s=60)
    await gateway.assert_nothing_left()
    said = gateway.output("stderr")
    assert code == 1, gateway.output()
    assert "Traceback" not in said
    return said.splitlines()


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)

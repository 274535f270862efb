"""The real gateway as a process of its own, for end-to-end tests and the benchmark; and any app on a real socket.

`GatewayProcess` runs `tidegate serve` with an environment of its own in a folder of its own. That folder is the working
directory of every process of its tree and of no other, so the tree is found by it, and nothing of it may be left when
the gateway has stopped. `in_process_server` serves an app by uvicorn on the test's own loop.
"""

import asyncio
import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import orjson
import psutil
import uvicorn
from starlette.types import ASGIApp

from tests.support import blocking
from tests.support.client import ConnectionEnded, RawClient
from tests.support.schema import bring_to_head
from tests.support.waiting import NeverHappened, eventually
from tests.support.warm import Warm, warm_start

LOOPBACK = "127.0.0.1"
ADMIN_EMAIL = "admin@example.com"
ADMIN_PASSWORD = "correct-horse-battery-staple"
API_KEY = "tg_testkey1_QhX4c0m8Tn2vKp6wRz9bLd3fJs7gYu1eAi5oVk0xWqE"
UPSTREAM_KEY = "sk-upstream-0123456789"
READY_WITHIN_S = 60.0
# What one stop may take beside the drain: settlements, the journal, the engine, a busy machine.
_STOP_MARGIN_S = 25.0
# Below the range from which the kernel takes ports for outgoing connections.
_PORTS = (15000, 30000)
_SECRETS = {
    "TIDEGATE_AUTH__JWT_KEYS": "1:6f1d2c3b4a59687786a5b4c3d2e1f0ff0112233445566778899aabbccddeeff0",
    "TIDEGATE_AUTH__API_KEY_PEPPERS": "1:a1b2c3d4e5f60718293a4b5c6d7e8f90112233445566778899aabbccddeeff01",
}


@dataclass(frozen=True, kw_only=True)
class GatewayPlan:
    """How a gateway is set up. One worker on SQLite with stores in the process, unless it says more.

    `environment` production needs `database_url`, and `redis_url` for more than one worker; the database is migrated
    before the start. `variables` stand above everything else. Its processes are forks of one that has the modules
    imported already; `cold` ones are interpreters of their own, as a person starts them.
    """

    catalogue: str
    workers: int = 1
    environment: str = "test"
    database_url: str | None = None
    redis_url: str | None = None
    redis_prefix: str | None = None
    drain_s: float = 5.0
    variables: Mapping[str, str] = field(default_factory=dict)
    cold: bool = False

    def environ(self, folder: Path, port: int) -> dict[str, str]:
        """The whole environment of the gateway: nothing of Tidegate's is inherited from the test's own."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("TIDEGATE_")}
        return {
            **inherited,
            "PYTHONUNBUFFERED": "1",
            "UPSTREAM_KEY": UPSTREAM_KEY,
            "TIDEGATE_ENVIRONMENT": self.environment,
            "TIDEGATE_DATA_DIR": str(folder / "var"),
            "TIDEGATE_CONFIG_TOML": self.catalogue,
            "TIDEGATE_SERVER__HOST": LOOPBACK,
            "TIDEGATE_SERVER__PORT": str(port),
            "TIDEGATE_SERVER__WORKERS": str(self.workers),
            "TIDEGATE_SERVER__DRAIN_S": str(self.drain_s),
            # Tests ask until it is so, as often as they may.
            "TIDEGATE_LIMITS__API_PER_MINUTE": "1000000",
            "TIDEGATE_BOOTSTRAP__ADMIN_EMAIL": ADMIN_EMAIL,
            "TIDEGATE_BOOTSTRAP__ADMIN_PASSWORD": ADMIN_PASSWORD,
            "TIDEGATE_BOOTSTRAP__API_KEY": API_KEY,
            **_SECRETS,
            **({"TIDEGATE_DATABASE__URL": self.database_url} if self.database_url else {}),
            **({"TIDEGATE_REDIS__URL": self.redis_url} if self.redis_url else {}),
            **({"TIDEGATE_REDIS__KEY_PREFIX": self.redis_prefix} if self.redis_prefix else {}),
            **self.variables,
        }


class GatewayProcess:
    """A gateway that runs from `start` to `stop` or `kill9`, and may be started again on the same data.

    >>> async with GatewayProcess(tmp_path, GatewayPlan(catalogue=catalogue(upstream.base_url, ["gpt"]))) as gateway:
    ...     async with RawClient(gateway.base_url) as client: ...

    Leaving the context stops it with SIGTERM and raises where that took SIGKILL, left a process behind, or where a call
    blocked a worker's loop meanwhile (`blocking.py`; not in cold ones).
    """

    api_key = API_KEY
    admin_email = ADMIN_EMAIL
    admin_password = ADMIN_PASSWORD

    def __init__(self, folder: Path, plan: GatewayPlan) -> None:
        self.folder = folder.resolve() / "gateway"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.plan = plan
        self.port = free_port()
        self._root: subprocess.Popen[bytes] | Warm | None = None
        self._migrated = False

    @property
    def base_url(self) -> str:
        scheme = "https" if "TIDEGATE_SERVER__TLS_CERTIFICATE" in self.plan.variables else "http"
        return f"{scheme}://{LOOPBACK}:{self.port}"

    @property
    def api_url(self) -> str:
        """As OpenAI's clients take it, with `/v1`."""
        return f"{self.base_url}/v1"

    @property
    def data_dir(self) -> Path:
        return self.folder / "var"

    @property
    def pid(self) -> int:
        """The root's."""
        assert self._root is not None, "the gateway was not started"
        return self._root.pid

    @property
    def exit_code(self) -> int | None:
        return None if self._root is None else self._root.poll()

    async def start(self, *, within_s: float = READY_WITHIN_S) -> None:
        """Returns once /health/ready answers 200. Raises with what the gateway printed where it does not."""
        if self.plan.database_url is not None and not self._migrated:
            await bring_to_head(self.plan.database_url)
            self._migrated = True
        self.spawn()
        try:
            await eventually(self._ready_or_ended, within_s=within_s, poll_s=0.02)
        except NeverHappened:
            await self.kill9()
            raise AssertionError(f"the gateway was not ready within {within_s:g} s:\n{self.output()}") from None
        if self.exit_code is not None:
            raise AssertionError(f"the gateway ended with {self.exit_code}:\n{self.output()}")

    def spawn(self) -> None:
        """Starts it and returns at once, for starts that are refused."""
        with self._log("stdout") as out, self._log("stderr") as err:
            self._root = self._spawned(out, err)

    async def stop(self) -> int:
        """SIGTERM to the root; its exit code. Raises where it did not end by itself, or left a process behind."""
        assert self._root is not None
        self._root.send_signal(signal.SIGTERM)
        code = await self.ended(within_s=self.plan.drain_s + _STOP_MARGIN_S)
        await self.assert_nothing_left()
        self.assert_nothing_blocked()
        return code

    async def ended(self, *, within_s: float = 30.0) -> int:
        """Waits for the root's end, however it was told to; its exit code."""
        root = self._root
        assert root is not None
        try:
            await eventually(lambda: root.poll() is not None, within_s=within_s, poll_s=0.02)
        except NeverHappened:
            await self.kill9()
            raise AssertionError(f"the gateway did not end within {within_s:g} s:\n{self.output()}") from None
        return root.wait()

    async def kill9(self, *, root_alone: bool = False) -> None:
        """SIGKILL to every process of the tree at once, or to the root alone, whose children then end by themselves."""
        assert self._root is not None
        victims = [psutil.Process(self.pid)] if root_alone and self._root.poll() is None else self.tree()
        for victim in victims:
            with contextlib.suppress(psutil.NoSuchProcess):
                victim.suspend()
        for victim in victims:
            with contextlib.suppress(psutil.NoSuchProcess):
                victim.kill()
        await asyncio.to_thread(self._root.wait)
        if not root_alone:
            await self.assert_nothing_left()

    def signal(self, number: signal.Signals) -> None:
        """To the root, which takes the signals of the tree."""
        os.kill(self.pid, number)

    def tree(self) -> list[psutil.Process]:
        """Every process of this gateway that runs now: the root, its children, and theirs."""
        return list(_running_in(self.folder))

    async def assert_nothing_left(self, *, within_s: float = 15.0) -> None:
        """Waits for the last process of the tree to end; raises with their titles where one stays, and ends it."""
        try:
            await eventually(lambda: not self.tree(), within_s=within_s, poll_s=0.02)
        except NeverHappened:
            left = self.tree()
            titles = [" ".join(process.cmdline()) for process in left if process.is_running()]
            for process in left:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            raise AssertionError(f"processes were left behind: {titles}\n{self.output()}") from None

    def assert_nothing_blocked(self) -> None:
        """Raises with the stack of each call that blocked a worker's loop, over all its starts so far."""
        found = blocking.told(self.folder / blocking.FILE)
        assert not found, "the loop was blocked:\n\n" + "\n\n".join(found)

    @property
    def worst_loop_lag_s(self) -> float:
        """Of all workers that ended by themselves."""
        return blocking.worst_lag_s(self.folder / blocking.FILE)

    async def command(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Runs `tidegate ARGUMENT…` on this gateway's settings, whether or not it runs."""
        done = await asyncio.to_thread(self._command, arguments)
        assert not check or done.returncode == 0, f"tidegate {arguments} ended with {done.returncode}:\n{done.stderr}"
        return done

    def output(self, stream: str = "both") -> str:
        """What it printed so far, over all its starts: `stdout`, `stderr` or both."""
        names = ("stdout", "stderr") if stream == "both" else (stream,)
        paths = [self.folder / f"{name}.log" for name in names]
        return "\n".join(path.read_text("utf-8", errors="replace") for path in paths if path.exists())

    def lines(self) -> list[dict[str, Any]]:
        """Its log: the lines that are JSON objects, in order; what is none is left out."""
        return list(_objects(self.output().splitlines()))

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._root is None:
            return
        if error is not None:
            await self.kill9()
        elif self.exit_code is None:
            await self.stop()
        else:
            await self.assert_nothing_left()
            self.assert_nothing_blocked()

    def _environ(self) -> dict[str, str]:
        return self.plan.environ(self.folder, self.port)

    def _command(self, arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
            running = warm_start(
                "tests.support.warm_tidegate", arguments, cwd=self.folder, env=self._environ(), stdout=out, stderr=err
            )
            code = running.wait(60)
            for stream in (out, err):
                stream.seek(0)
            return subprocess.CompletedProcess(arguments, code, out.read(), err.read())

    def _spawned(self, out: IO[bytes], err: IO[bytes]) -> "subprocess.Popen[bytes] | Warm":
        if self.plan.cold:
            return self._executed(tidegate("serve"), out, err)
        return warm_start(
            "tests.support.warm_tidegate", ["serve"], cwd=self.folder, env=self._environ(), stdout=out, stderr=err
        )

    def _executed(self, command: Sequence[str], out: IO[bytes], err: IO[bytes]) -> "subprocess.Popen[bytes]":
        return subprocess.Popen(
            command,
            cwd=self.folder,
            env=self._environ(),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            start_new_session=True,
        )

    @contextmanager
    def _log(self, name: str) -> Iterator[IO[bytes]]:
        with (self.folder / f"{name}.log").open("ab") as log:
            yield log

    async def _ready_or_ended(self) -> bool:
        return self.exit_code is not None or await answers(self.base_url, "/health/ready") == 200


def tidegate(*arguments: str) -> list[str]:
    """The command `tidegate`, of this interpreter."""
    return [sys.executable, "-P", "-m", "tidegate.cli.main", *arguments]


def catalogue(base_url: str, models: Sequence[str], *, upstream: str = "", model: str = "") -> str:
    """The text of a catalogue with one upstream, `scripted`. `upstream` and `model` are further lines of their tables.

    >>> catalogue(upstream.base_url, ["gpt"], upstream="max_concurrency = 1")
    """
    tables = [f'[upstreams.scripted]\nprovider = "openai"\nbase_url = "{base_url}"\napi_key = "env:UPSTREAM_KEY"']
    tables[0] += f"\n{upstream}"
    tables += [f'[[models]]\nname = "{name}"\nattempts = ["scripted/{name}"]\n{model}' for name in models]
    return "\n\n".join(tables) + "\n"


async def answers(base_url: str, path: str, *, within_s: float = 5.0) -> int:
    """The status of a GET; 0 where there is no answer in time."""
    try:
        async with asyncio.timeout(within_s), RawClient(base_url) as client:
            await client.send("GET", path, headers={"connection": "close"})
            return (await client.head()).status
    except (OSError, TimeoutError, ConnectionEnded):
        return 0


def free_port() -> int:
    """A port of loopback that nobody listens on, and that no outgoing connection takes in the meantime."""
    for port in random.sample(range(*_PORTS), 200):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((LOOPBACK, port))
            return port
    raise OSError("no free port was found")


class _QuickServer(uvicorn.Server):
    """Leaves the test's signal handlers alone, and looks more often whether it shall stop."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def main_loop(self) -> None:
        await self.on_tick(0)
        while not self.should_exit:
            await asyncio.sleep(0.01)


@asynccontextmanager
async def in_process_server(app: ASGIApp | uvicorn.Config) -> AsyncIterator[str]:
    """Serves an app on a free port of loopback, in the running loop, its lifespan included; yields its base URL.

    At the end running requests have the configuration's `timeout_graceful_shutdown` (2 s) before they are cancelled.
    """
    if isinstance(app, uvicorn.Config):
        config = app
    else:
        config = uvicorn.Config(app, log_config=None, access_log=False, ws="none", timeout_graceful_shutdown=2)
    # asyncio looks at the protocol: without it an answer in two writes waits 40 ms for an acknowledgement (Nagle).
    listener = socket.socket(proto=socket.IPPROTO_TCP)
    listener.bind((LOOPBACK, 0))
    server = _QuickServer(config)
    serving = asyncio.create_task(_serve(server, listener))
    try:
        await eventually(lambda: server.started or serving.done(), within_s=30)
        if serving.done():
            await serving
        yield f"http://{LOOPBACK}:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        await serving


async def _serve(server: uvicorn.Server, listener: socket.socket) -> None:
    try:
        await server.serve(sockets=[listener])
    except SystemExit:
        # uvicorn's way to say that the lifespan's start failed; in a task it would end the test run.
        raise RuntimeError("the app's start failed; its error is in the log") from None
    finally:
        listener.close()


def _running_in(folder: Path) -> Iterator[psutil.Process]:
    for process in psutil.process_iter():
        try:
            if process.status() != psutil.STATUS_ZOMBIE and Path(process.cwd()) == folder:
                yield process
        except (psutil.Error, OSError):
            continue


def _objects(lines: Sequence[str]) -> Iterator[dict[str, Any]]:
    for line in lines:
        with contextlib.suppress(orjson.JSONDecodeError):
            value = orjson.loads(line)
            if isinstance(value, dict):
                yield value

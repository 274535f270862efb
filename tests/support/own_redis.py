"""A Redis of a test's own, to be killed, stopped, emptied and put back to an old snapshot.

with OwnRedis.started(folder) as redis:
    redis.kill()
    redis.start()       # empty, at the same address
"""

import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

import psutil
import redis as redis_client

from tests.support.server import free_port
from tests.support.services import LOOPBACK, ROOT, ServiceUnavailable
from tests.support.waiting import eventually_sync

SNAPSHOT = "dump.rdb"


class OwnRedis:
    """`url` is where it listens whenever it runs. Its keeper ends it where the test run is killed."""

    def __init__(self, program: str, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self._program = program
        self._keeper: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://{LOOPBACK}:{self.port}/0"

    @classmethod
    @contextmanager
    def started(cls, folder: Path) -> Iterator[Self]:
        """Raises `ServiceUnavailable` where no program is on PATH."""
        program = shutil.which("redis-server") or shutil.which("valkey-server")
        if program is None:
            raise ServiceUnavailable("neither redis-server nor valkey-server on PATH")
        folder.mkdir(parents=True, exist_ok=True)
        server = cls(program, folder)
        try:
            server.start()
            yield server
        finally:
            if server._keeper is not None:
                server.kill()

    def start(self) -> None:
        """With what the snapshot in its folder holds, empty without one. Returns once it answers."""
        command = [self._program, "--bind", LOOPBACK, "--port", str(self.port), "--save", "", "--appendonly", "no"]
        command += ["--dir", str(self.folder), "--dbfilename", SNAPSHOT]
        keeper = [sys.executable, "-m", "tests.support.keeper", "-", *command]
        with (self.folder / "server.log").open("ab") as log:
            self._keeper = subprocess.Popen(keeper, cwd=ROOT, stdin=subprocess.PIPE, stdout=log, stderr=log)
        eventually_sync(self._answers, within_s=30, poll_s=0.01, what="an answer of Redis")

    def kill(self) -> None:
        """SIGKILL: nothing is saved."""
        assert self._keeper is not None
        self._server().kill()
        assert self._keeper.stdin is not None
        self._keeper.stdin.close()
        self._keeper.wait(15)
        self._keeper = None

    def pause(self) -> None:
        self._server().send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._server().send_signal(signal.SIGCONT)

    def snapshot(self) -> bytes:
        """What it holds now, as `restart_from` takes it. Its folder keeps none."""
        with redis_client.Redis(LOOPBACK, self.port) as client:
            client.save()
        path = self.folder / SNAPSHOT
        held = path.read_bytes()
        path.unlink()
        return held

    def restart_from(self, snapshot: bytes) -> None:
        """Of a server that was killed: it comes back with what it held then."""
        (self.folder / SNAPSHOT).write_bytes(snapshot)
        self.start()
        (self.folder / SNAPSHOT).unlink()

    def _server(self) -> psutil.Process:
        assert self._keeper is not None, "it does not run"
        (server,) = psutil.Process(self._keeper.pid).children()
        return server

    def _answers(self) -> bool:
        try:
            with redis_client.Redis(LOOPBACK, self.port, socket_timeout=1) as client:
                return bool(client.ping())
        except redis_client.RedisError:
            return False

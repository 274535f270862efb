"""Python programs that start within milliseconds: as forks of one process that has everything imported.

    with Path("stdout.log").open("ab") as out:
        running = warm_start("tests.support.warm_tidegate", ["serve"], cwd=folder, env=environ, stdout=out, stderr=out)
    assert running.wait() == 0

That process (`warm_forks.py`) is started when the first is asked for, and ends with the test run.
"""

import functools
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).resolve().parents[2]
_ENDS_WITHIN_S = 30
_GONE = "the process that forks programs for tests has ended; why stands on standard error (pytest -s shows it)"
_asking = threading.Lock()


class Warm:
    """A program that runs, as `subprocess.Popen` is to one that was executed."""

    def __init__(self, answers: socket.socket) -> None:
        self._answers = answers
        self._text = b""
        self.returncode: int | None = None
        self.pid = self._number(None)

    def poll(self) -> int | None:
        if self.returncode is None and select.select([self._answers], [], [], 0)[0]:
            self.wait()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code, negative where a signal ended it. Raises `TimeoutError`."""
        if self.returncode is None:
            self.returncode = self._number(timeout)
            self._answers.close()
        return self.returncode

    def send_signal(self, number: signal.Signals) -> None:
        """Nothing where it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def _number(self, timeout: float | None) -> int:
        self._answers.settimeout(timeout)
        while b"\n" not in self._text:
            piece = self._answers.recv(64)
            if not piece:
                raise ConnectionError(_GONE)
            self._text += piece
        number, _, self._text = self._text.partition(b"\n")
        return int(number)


def warm_start(
    module: str,
    arguments: Sequence[str],
    *,
    cwd: Path,
    env: Mapping[str, str],
    stdin: IO[Any] | None = None,
    stdout: IO[Any],
    stderr: IO[Any],
) -> Warm:
    """Runs `python -m MODULE ARGUMENT…` in a session of its own; without `stdin` there is nothing to read.

    Raises `ConnectionError` where the process that is to fork it could not start.
    """
    job = json.dumps({"module": module, "arguments": list(arguments), "cwd": str(cwd), "env": dict(env)}).encode()
    with _asking:
        control = _forking_process()
        answers, theirs = socket.socketpair()
        with theirs, Path(os.devnull).open("rb") as nothing:
            streams = [stream.fileno() for stream in (stdin or nothing, stdout, stderr)]
            try:
                socket.send_fds(control, [b"%d\n" % len(job)], [theirs.fileno(), *streams])
                control.sendall(job)
            except OSError:
                raise ConnectionError(_GONE) from None
    return Warm(answers)


@functools.cache
def _forking_process() -> socket.socket:
    control, theirs = socket.socketpair()
    command = [sys.executable, "-m", "tests.support.warm_forks"]
    environ = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with theirs:
        process = subprocess.Popen(command, cwd=ROOT, env=environ, stdin=theirs.fileno())
    _ending.append((control, process))
    return control


_ending: list[tuple[socket.socket, "subprocess.Popen[bytes]"]] = []


def end_forking() -> None:
    """Ends that process, if there is one. What it started goes on."""
    while _ending:
        control, process = _ending.pop()
        control.close()
        process.wait(_ENDS_WITHIN_S)
    _forking_process.cache_clear()

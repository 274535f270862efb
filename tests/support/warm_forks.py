"""A process that has the gateway's modules imported and forks what is started: `python -m tests.support.warm_forks`.

An interpreter with the app's modules costs a second and a half of CPU, and the end-to-end tests start a hundred. Its
forks run what `python -P -m MODULE ARGUMENT…` would, in a session of their own; the root among them forks its server
likewise (`fork_child`). It serves jobs on the socket that is its standard input, and ends with it. `warm.py` asks it.
"""

import gc
import importlib
import json
import logging
import os
import runpy
import selectors
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

# Neither of them is a module that a job runs as its program: that one would be there twice.
_MODULES = (
    *("tidegate.app", "tidegate.lifespan", "tidegate.cli.serve", "tidegate.cli.failures", "tidegate.server.root"),
    *("tidegate.server.opening", "tidegate.server.prepare", "tidegate.server.worker", "tidegate.server.http_server"),
    *("tidegate.server.banner", "gunicorn.app.base", "gunicorn.arbiter", "uvicorn.lifespan.on", "uvloop"),
    *("tidegate.telemetry.gunicorn_logger", "sqlalchemy.dialects.sqlite.aiosqlite", "tests.support.serve_parts"),
    *("sqlalchemy.dialects.postgresql.asyncpg", "asyncpg", "runpy", "tests.support.warm_root"),
    "tests.support.guarded",
)
_STANDARD = 3
# What asyncio sets in a parent. A program begins with what this one began with: a test run in the background, or
# under nohup, ignores some, and so does every program that it starts.
_AT_START = {
    getattr(signal, name): signal.getsignal(getattr(signal, name))
    for name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGCHLD", "SIGQUIT")
}


def become(program: Callable[[], Any], standard: Sequence[int], keep: Sequence[int] = ()) -> NoReturn:
    """In a fork: runs a program as the only thing of a new session, with these standard streams. Never returns.

    `keep` are the descriptors that it has beside them, by their numbers.
    """
    code: int | str | None = 1
    try:
        os.setsid()
        signal.set_wakeup_fd(-1)
        for taken, disposition in _AT_START.items():
            signal.signal(taken, disposition)
        for number, stream in enumerate(standard):
            os.dup2(stream, number)
        _close_all_but({*range(_STANDARD), *keep})
        for descriptor in keep:
            os.set_inheritable(descriptor, True)
        program()
        code = 0
    except SystemExit as ending:
        code = ending.code
    except BaseException:  # noqa: BLE001 - the edge of a process, as Python's own
        traceback.print_exc()
    finally:
        if isinstance(code, str):
            sys.stderr.write(code + "\n")
            code = 1
        logging.shutdown()
        for output in (sys.stdout, sys.stderr):
            output.flush()
        os._exit(code or 0)


def run_module(module: str, arguments: Sequence[str]) -> None:
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _close_all_but(kept: set[int]) -> None:
    low = 0
    for descriptor in sorted(kept):
        # An empty range is taken for all of them.
        if low < descriptor:
            os.closerange(low, descriptor)
        low = descriptor + 1
    os.closerange(low, os.sysconf("SC_OPEN_MAX"))


class _Jobs:
    """`running` has whom to tell how each ended."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._running: dict[int, socket.socket] = {}

    def serve(self) -> None:
        waking, wakes = socket.socketpair()
        for end in (waking, wakes, self._control):
            end.setblocking(False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wakes.fileno(), warn_on_full_buffer=False)
        with selectors.DefaultSelector() as selector:
            selector.register(self._control, selectors.EVENT_READ)
            selector.register(waking, selectors.EVENT_READ)
            while True:
                ready = {key.fileobj for key, _ in selector.select()}
                if waking in ready:
                    waking.recv(4096)
                    self._reap()
                if self._control in ready and not self._take():
                    return

    def _take(self) -> bool:
        """Starts a job; False once nobody asks any more."""
        self._control.setblocking(True)
        text, descriptors, _, _ = socket.recv_fds(self._control, 1 << 16, 4)
        if not text:
            return False
        length, _, rest = text.partition(b"\n")
        while len(rest) < int(length):
            rest += self._control.recv(int(length) - len(rest))
        self._control.setblocking(False)
        answers, *standard = descriptors
        job = json.loads(rest)
        pid = os.fork()
        if pid == 0:
            become(lambda: _run(job), standard)
        for stream in standard:
            os.close(stream)
        self._running[pid] = socket.socket(fileno=answers)
        self._tell(pid, f"{pid}\n")
        return True

    def _reap(self) -> None:
        for pid in list(self._running):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                self._tell(pid, f"{os.waitstatus_to_exitcode(status)}\n")
                self._running.pop(pid).close()

    def _tell(self, pid: int, line: str) -> None:
        try:
            self._running[pid].sendall(line.encode())
        except OSError:
            # Who asked is gone.
            return


def _run(job: dict[str, Any]) -> None:
    os.chdir(job["cwd"])
    os.environ.clear()
    os.environ.update(job["env"])
    run_module(job["module"], job["arguments"])


def main() -> None:
    control = socket.socket(fileno=os.dup(0))
    gc.disable()
    for module in _MODULES:
        importlib.import_module(module)
    assert threading.active_count() == 1, "an import started a thread: nothing may be forked from here"
    gc.freeze()
    gc.enable()
    _Jobs(control).serve()


if __name__ == "__main__":
    main()

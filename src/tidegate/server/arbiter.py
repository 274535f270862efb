"""The server of production: gunicorn, configured in code, started by the root as `python -m tidegate.server.arbiter`.

It never exits while a worker of its own lives, ends when the root is gone, and leaves no signal unheard while it forks.
"""

import os
import queue
import signal
import sys
from pathlib import Path
from typing import Any

from gunicorn.app.base import BaseApplication
from gunicorn.arbiter import Arbiter
from setproctitle import setproctitle
from starlette.types import ASGIApp

from tidegate.server import lifeline
from tidegate.server.bounds import worker_bound_s
from tidegate.server.http_server import KEEP_ALIVE_S
from tidegate.server.listening import BACKLOG
from tidegate.server.opening import Opening, hush, serve
from tidegate.server.worker import TidegateWorker
from tidegate.telemetry.gunicorn_logger import GunicornLogger
from tidegate.telemetry.logging import configure_logging

# A worker whose loop does not turn for this long is killed and replaced.
_STALL_S = 30
_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - gunicorn makes and unlinks its file there with mkstemp


class Application(BaseApplication):  # type: ignore[misc]  # gunicorn ships no types
    """What gunicorn runs. Of the pipe `arbiter_lifeline` only the arbiter holds the writing end."""

    def __init__(self, opening: Opening) -> None:
        self.opening = opening
        self.settings = opening.settings
        self.arbiter_lifeline, self._alive = os.pipe()
        super().__init__()

    def load_config(self) -> None:
        for name, value in self._configuration().items():
            self.cfg.set(name, value)

    def load(self) -> ASGIApp:
        return self.opening.make_app()

    def _configuration(self) -> dict[str, Any]:
        in_memory = _SHARED_MEMORY.is_dir() and os.access(_SHARED_MEMORY, os.W_OK)
        return {
            "bind": [f"fd://{descriptor}" for descriptor in self.opening.listeners],
            "backlog": BACKLOG,
            "workers": self.opening.workers,
            "worker_class": TidegateWorker,
            "worker_tmp_dir": str(_SHARED_MEMORY) if in_memory else None,
            "timeout": _STALL_S,
            # Longer than a worker's own bound, or gunicorn kills it with streams and ledger unfinished.
            "graceful_timeout": worker_bound_s(self.settings),
            "keepalive": KEEP_ALIVE_S,
            "max_requests": 0,
            "control_socket_disable": True,
            "proc_name": "tidegate",
            "loglevel": self.settings.log_level,
            "logger_class": GunicornLogger,
            "accesslog": None,
            "on_starting": lambda _arbiter: hush(self.settings),
            "pre_fork": lambda _arbiter, _worker: setproctitle("tidegate: arbiter"),
            "post_fork": self._enter_worker,
        }

    def _enter_worker(self, arbiter: Any, worker: Any) -> None:
        del worker
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
            signal.signal(number, signal.SIG_DFL)
        os.close(self._alive)
        if _was_told_to_stop(arbiter.SIG_QUEUE):
            sys.exit(0)
        setproctitle("tidegate: worker")
        configure_logging(self.settings, process="worker")
        hush(self.settings)


class _RootedArbiter(Arbiter):  # type: ignore[misc]  # gunicorn ships no types
    """Stops as by SIGTERM when the root is gone: looked at in every round, at most a second apart."""

    def murder_workers(self) -> None:
        if lifeline.has_ended():
            self.log.warning("the root is gone: stopping")
            raise StopIteration
        super().murder_workers()


def _was_told_to_stop(signals: "queue.SimpleQueue[int]") -> bool:
    """Whether a stop came between the fork and now: gunicorn's inherited handler only put it into this copy."""
    while True:
        try:
            if signals.get_nowait() in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
                return True
        except queue.Empty:
            return False


def _run(opening: Opening) -> None:
    _RootedArbiter(Application(opening)).run()


if __name__ == "__main__":
    serve("arbiter", _run)

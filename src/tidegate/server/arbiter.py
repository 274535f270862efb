"""The server of production: gunicorn, configured in code, started by the root as `python -m tidegate.server.arbiter`.

It never exits while a worker of its own lives, ends when the root is gone, and leaves no signal unheard while it forks.
Of gunicorn's signals only those that stop keep their meaning. SIGUSR2 retires all workers, and ends it after them;
worn workers are replaced one by one, each by a replacement that serves before it leaves.
"""

import os
import queue
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

from gunicorn.app.base import BaseApplication
from gunicorn.arbiter import Arbiter
from gunicorn.errors import HaltServer
from setproctitle import setproctitle
from starlette.types import ASGIApp

from tidegate.server import lifeline
from tidegate.server.bounds import retiring_bound_s, worker_bound_s
from tidegate.server.http_server import KEEP_ALIVE_S
from tidegate.server.listening import BACKLOG
from tidegate.server.opening import Opening, hush, serve
from tidegate.server.recycling import Crew, WordPipe
from tidegate.server.worker import TidegateWorker
from tidegate.telemetry.gunicorn_logger import GunicornLogger
from tidegate.telemetry.logging import configure_logging

# A worker whose loop does not turn for this long is killed and replaced.
_STALL_S = 30
# Between two forks, so that not all of a start's work falls together; gunicorn's own.
_SPREAD_S = 0.1
_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - gunicorn makes and unlinks its file there with mkstemp


class Application(BaseApplication):  # type: ignore[misc]  # gunicorn ships no types
    """What gunicorn runs. Only the arbiter holds the writing end of `arbiter_lifeline`, and reads `words`."""

    def __init__(self, opening: Opening) -> None:
        self.opening = opening
        self.settings = opening.settings
        self.arbiter_lifeline, self._alive = os.pipe()
        self.words = WordPipe()
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
            # Ours counts: gunicorn's worker would leave before another has come.
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

    def _enter_worker(self, arbiter: Any, worker: TidegateWorker) -> None:
        worker.init_signals()
        os.close(self._alive)
        self.words.enter_worker()
        missed = _missed(arbiter.SIG_QUEUE)
        if missed & {signal.SIGTERM, signal.SIGINT, signal.SIGQUIT}:
            sys.exit(0)
        if signal.SIGUSR2 in missed:
            worker.retire()
        setproctitle("tidegate: worker")
        configure_logging(self.settings, process="worker")
        hush(self.settings)


class RootedArbiter(Arbiter):  # type: ignore[misc]  # gunicorn ships no types
    """Stops as by SIGTERM when the root is gone: looked at in every round, at most a second apart."""

    def __init__(self, application: Application) -> None:
        super().__init__(application)
        self._words = application.words
        self._entrance = application.opening.entrance
        self._retiring_bound_s = retiring_bound_s(application.settings)
        self._crew = Crew(application.opening.workers)
        self._leave_by: dict[int, float] = {}
        self._is_stopping = False

    def murder_workers(self) -> None:
        if lifeline.has_ended():
            self.log.warning("the root is gone: stopping")
            raise StopIteration
        super().murder_workers()
        for pid in [pid for pid, deadline in self._leave_by.items() if time.monotonic() > deadline]:
            del self._leave_by[pid]
            if pid in self.WORKERS:
                self.log.error("Worker (pid:%s) was to retire and did not end in time: it is killed", pid)
                self.kill_worker(pid, signal.SIGKILL)

    def stop(self, graceful: bool = True) -> None:
        self._is_stopping = True
        super().stop(graceful)

    def reap_workers(self) -> None:
        """One that could not boot ends the server, once: what else ends while it stops is only waited for."""
        try:
            super().reap_workers()
        except HaltServer:
            if not self._is_stopping:
                raise

    def manage_workers(self) -> None:
        """In every round, instead of gunicorn's own, which would end what is one too many."""
        if self._entrance is not None:
            self._entrance.keep_up()
        for word, pid in self._words.heard():
            self._crew.hear(word, pid)
        orders = self._crew.orders(self.WORKERS)
        for pid in orders.retire:
            self.log.info("Worker (pid:%s) retires: others take its place", pid)
            self._leave_by[pid] = time.monotonic() + self._retiring_bound_s
            self.kill_worker(pid, signal.SIGUSR2)
        for _ in range(orders.start):
            if not self._is_spawned():
                break
            time.sleep(_SPREAD_S * random.random())  # noqa: S311 - no secret
        if self._crew.retires and not self.WORKERS:
            raise StopIteration

    def _is_spawned(self) -> bool:
        """Whether there is one worker more. gunicorn would end those that serve where a fork fails."""
        try:
            self.spawn_worker()
        except OSError as error:
            if os.getpid() != self.pid:
                raise
            self.log.error("a worker could not be started, and is tried again: %s", error)  # noqa: TRY400
            return False
        return True

    def handle_usr2(self) -> None:
        self._crew.retires = True

    def handle_hup(self) -> None:
        self.log.warning("this signal is the root's to take: nothing was changed")

    handle_usr1 = handle_ttin = handle_ttou = handle_winch = handle_hup


def _missed(signals: "queue.SimpleQueue[int]") -> set[int]:
    """What came between the fork and now: gunicorn's inherited handler only put it into this copy."""
    missed = set()
    while True:
        try:
            missed.add(signals.get_nowait())
        except queue.Empty:
            return missed


def _run(opening: Opening) -> None:
    RootedArbiter(Application(opening)).run()


if __name__ == "__main__":
    serve("arbiter", _run)

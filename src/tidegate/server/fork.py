"""Runs the prepare step in a fork of the server's process, and brings its result up by a pipe.

The fork is taken when the app's modules are imported and nothing runs yet, neither threads nor an event loop: a fresh
interpreter would spend a second of CPU on importing them again.
"""

import asyncio
import logging
import os
from collections.abc import Callable, Coroutine
from dataclasses import asdict, dataclass
from typing import Any, NoReturn, Self

import orjson
from setproctitle import setproctitle

from tidegate.server.lifeline import terminate_self, watch_in_thread
from tidegate.server.pools import Pool
from tidegate.server.refusal import EXIT_REFUSED, StartRefused, print_faults
from tidegate.settings import Settings
from tidegate.telemetry.logging import configure_logging

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Prepared:
    """`pool` is for the workers (None on SQLite without Redis, which need no arithmetic), `made` for the root's banner.

    Of `made` only what was generated just now is there: `admin_email`, `admin_password`, `api_key`.
    """

    pool: Pool | None = None
    made: dict[str, str] | None = None

    def to_json(self) -> bytes:
        return orjson.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: bytes) -> Self:
        fields = orjson.loads(text)
        pool = fields["pool"]
        return cls(pool=Pool(**pool) if pool else None, made=fields["made"])


Step = Callable[[Settings, int], Coroutine[Any, Any, Prepared]]


def run_in_fork(step: Step, settings: Settings, workers: int) -> Prepared:
    """Raises `StartRefused`: without a fault where the fork has printed each."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        _run(step, settings, workers, writing)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        answer = pipe.read()
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code == EXIT_REFUSED:
        raise StartRefused
    if code != 0:
        raise StartRefused(f"the prepare step ended with code {code}")
    return Prepared.from_json(answer)


def _run(step: Step, settings: Settings, workers: int, writing: int) -> NoReturn:
    code = 1
    try:
        setproctitle("tidegate: prepare")
        configure_logging(settings, process="prepare")
        watch_in_thread(terminate_self)
        os.write(writing, asyncio.run(step(settings, workers)).to_json())
        code = 0
    except Exception as error:
        # The edge of a process: what nobody foresaw is logged as everything else is.
        faults = _faults(error)
        if faults is None:
            logger.exception("the prepare step failed")
        else:
            print_faults(faults, as_json=settings.in_production)
            code = EXIT_REFUSED
    finally:
        # The parent's exit hooks are not this fork's.
        os._exit(code)


def _faults(error: Exception) -> list[str] | None:
    # Imported here: it knows every floor's errors, and only a failure needs them.
    from tidegate.cli.failures import failure_lines  # noqa: PLC0415

    return list(error.faults) if isinstance(error, StartRefused) else failure_lines(error)

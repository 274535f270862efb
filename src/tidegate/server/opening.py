"""What the server's process does before it serves, in both its forms: arguments, settings, imports, prepare step.

The app's modules are imported before the fork of the prepare step and, under gunicorn, before that of the workers, so
that they are imported once. Importing makes nothing; each worker makes its own app.
"""

import argparse
import gc
import importlib
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NoReturn

import orjson
from setproctitle import setproctitle
from starlette.types import ASGIApp

from tidegate.server.cpu import usable_cpus
from tidegate.server.descriptors import raise_descriptor_limit
from tidegate.server.drain import install_drain
from tidegate.server.fork import run_in_fork
from tidegate.server.pools import Pool, worker_count
from tidegate.server.refusal import EXIT_REFUSED, StartRefused, print_faults
from tidegate.settings import Settings, SettingsError, load_settings
from tidegate.telemetry.logging import Process, configure_logging

# Each `module:function`; tests name others. The app is made from the settings and one worker's pool.
APP = "tidegate.server.opening:create_app"
PREPARE = "tidegate.server.prepare:prepare"
_SERVERS = ("uvicorn.error", "gunicorn.error")


@dataclass(frozen=True, slots=True)
class Opening:
    """A server that may serve now."""

    settings: Settings
    workers: int
    listeners: list[int]
    make_app: Callable[[], ASGIApp]


def create_app(settings: Settings, pool: Pool | None) -> ASGIApp:
    """The gateway's app for one worker. Its modules are imported by `_open`, before any fork."""
    from tidegate import app, lifespan  # noqa: PLC0415

    leaving = partial(install_drain, linger_s=settings.server.linger_s)
    workers = worker_count(settings, usable_cpus()) * settings.database.max_replicas
    surroundings = lifespan.Surroundings(workers=workers, leaving=leaving)
    if pool is not None:
        surroundings = replace(surroundings, pool_size=pool.size, max_overflow=pool.overflow)
    return app.create_app(settings, surroundings)


def serve(process: Process, run: Callable[[Opening], None]) -> NoReturn:
    """Opens a server as the root's arguments say, and runs it; exits as its parent understands it."""
    setproctitle(f"tidegate: {process}")
    arguments = _parse()
    settings: Settings | None = None
    try:
        settings = load_settings()
        configure_logging(settings, process=process)
        # A stream has two connections, and every worker is a child of this process, or this process.
        raise_descriptor_limit()
        run(_open(settings, arguments))
    except (StartRefused, SettingsError) as refusal:
        print_faults(refusal.faults, as_json=settings is not None and settings.in_production)
        sys.exit(EXIT_REFUSED)
    sys.exit(0)


def hush(settings: Settings) -> None:
    """In development the banner speaks for the servers; what they say of themselves is for a machine to read."""
    if settings.environment == "development":
        for name in _SERVERS:
            logging.getLogger(name).setLevel(logging.WARNING)


def _open(settings: Settings, arguments: argparse.Namespace) -> Opening:
    if arguments.management_port is not None:
        # The app judges by this number, and 0 may have been asked for.
        server = settings.server.model_copy(update={"management_port": arguments.management_port})
        settings = settings.model_copy(update={"server": server})
    # It tells of each plugin and each connection.
    logging.getLogger("alembic").setLevel(logging.WARNING)
    with _importing():
        factory = _imported(arguments.app)
        step = _imported(arguments.prepare)
        if arguments.app == APP:
            importlib.import_module("tidegate.app")
    prepared = run_in_fork(step, settings, arguments.workers)
    with os.fdopen(arguments.report, "wb") as report:
        report.write(orjson.dumps(prepared.made) + b"\n")
    return Opening(settings, arguments.workers, arguments.listen, lambda: factory(settings, prepared.pool))


def _imported(name: str) -> Any:
    module, _, function = name.partition(":")
    return getattr(importlib.import_module(module), function)


@contextmanager
def _importing() -> Iterator[None]:
    """Without garbage collection, which costs imports a tenth; what was imported is then never looked at again."""
    gc.disable()
    yield
    gc.freeze()
    gc.enable()


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Started by `tidegate serve`, not by hand.")
    parser.add_argument("--listen", type=int, action="append", required=True, help="a listening socket, inherited")
    parser.add_argument("--report", type=int, required=True, help="where the prepare step's result goes")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--management-port", type=int, help="which of the sockets' ports is management's own")
    parser.add_argument("--app", default=APP)
    parser.add_argument("--prepare", default=PREPARE)
    return parser.parse_args()

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
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, NoReturn

import orjson
from setproctitle import setproctitle
from starlette.types import ASGIApp

from tidegate.server.bounds import retired_bound_s, server_bound_s
from tidegate.server.certificate import CertificateError, Entrance, entrance_of
from tidegate.server.conditions import Conditions, require_shared_stores, starting_conditions
from tidegate.server.cpu import usable_cpus
from tidegate.server.descriptors import raise_descriptor_limit
from tidegate.server.drain import install_drain
from tidegate.server.fork import run_in_fork
from tidegate.server.pools import Pool, worker_count
from tidegate.server.refusal import EXIT_REFUSED, StartRefused, print_faults
from tidegate.server.root_settings import as_the_root_has_it, differing
from tidegate.server.supervisor import RootSupervisor
from tidegate.settings import Settings, SettingsError, load_settings
from tidegate.telemetry.logging import Process, configure_logging, get_logger

# Each `module:function`; tests name others. The app is made from the settings, one worker's pool, and its line to the
# root.
APP = "tidegate.server.opening:create_app"
PREPARE = "tidegate.server.prepare:prepare"
WORKERS = "TIDEGATE_SERVER__WORKERS"
_SERVERS = ("uvicorn.error", "gunicorn.error")


@dataclass(frozen=True, slots=True)
class Opening:
    """A server that may serve now."""

    settings: Settings
    workers: int
    listeners: list[int]
    supervisor: RootSupervisor
    make_app: Callable[[], ASGIApp]
    entrance: Entrance | None = None

    def refreshed_entrance(self) -> Entrance | None:
        """With the certificate that is on disk now; in a worker, which may begin long after its arbiter.

        Where that one is bad this worker shows the last good one that its arbiter saw: others serve, and so must it.
        """
        if self.entrance is not None:
            try:
                self.entrance.use(self.entrance.read_waiting())
            except CertificateError as error:
                get_logger(__name__).error("the certificate on disk is not shown: an older one is", reason=error.fault)
        return self.entrance


def create_app(settings: Settings, pool: Pool | None, supervisor: RootSupervisor) -> ASGIApp:
    """The gateway's app for one worker. Its modules are imported by `_open`, before any fork."""
    from tidegate import app, lifespan  # noqa: PLC0415
    from tidegate.server.recording import record_reload  # noqa: PLC0415

    supervisor.record_by(partial(record_reload, settings))
    leaving = partial(install_drain, linger_s=settings.server.linger_s)
    workers = worker_count(settings, usable_cpus()) * settings.database.max_replicas
    surroundings = lifespan.Surroundings(workers=workers, leaving=leaving, supervisor=supervisor)
    if pool is not None:
        surroundings = replace(
            surroundings, pool_size=pool.size, max_overflow=pool.overflow, redis_connections=pool.redis
        )
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
        run(_open(settings, arguments, workers=1 if process == "worker" else None))
    except (StartRefused, SettingsError) as refusal:
        print_faults(refusal.faults, as_json=settings is not None and settings.in_production)
        sys.exit(EXIT_REFUSED)
    sys.exit(0)


def hush(settings: Settings) -> None:
    """In development the banner speaks for the servers; what they say of themselves is for a machine to read."""
    if settings.environment == "development":
        for name in _SERVERS:
            logging.getLogger(name).setLevel(logging.WARNING)


def _open(settings: Settings, arguments: argparse.Namespace, *, workers: int | None) -> Opening:
    """`workers` is the number where this program can have no other."""
    asked = worker_count(settings, usable_cpus())
    settings = _judged(settings, arguments, one_alone=workers == 1 < asked)
    workers = workers or asked
    conditions = starting_conditions(settings)
    entrance = _entrance(settings)
    require_shared_stores(settings, workers)
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
            importlib.import_module("tidegate.server.recording")
    prepared = run_in_fork(step, settings, workers)
    with os.fdopen(arguments.report, "wb") as report:
        report.write(orjson.dumps({"made": prepared.made, **_opened(settings, conditions, workers)}) + b"\n")
    supervisor = RootSupervisor(settings.data_dir, generation=arguments.generation, entrance=entrance)
    return Opening(
        settings, workers, arguments.listen, supervisor, lambda: factory(settings, prepared.pool, supervisor), entrance
    )


def _entrance(settings: Settings) -> Entrance | None:
    try:
        entrance = entrance_of(settings.server)
    except CertificateError as error:
        raise StartRefused(error.fault) from None
    if entrance is not None and entrance.pair.ends_soon:
        get_logger(__name__).warning("the certificate ends soon: renew it, then reload", ends_on=entrance.pair.day)
    return entrance


def _judged(settings: Settings, arguments: argparse.Namespace, *, one_alone: bool) -> Settings:
    of_root = orjson.loads(arguments.of_root)
    names = differing(settings, of_root) + ([WORKERS] if one_alone else [])
    if names:
        get_logger(__name__).warning("these settings stay as they were until the next start", settings=names)
    return as_the_root_has_it(settings, of_root)


def _opened(settings: Settings, conditions: Conditions, workers: int) -> dict[str, Any]:
    """What the root is told of this generation, as `generation.Opened` takes it."""
    local = (upstream for upstream in conditions.catalogue.upstreams.values() if upstream.provider == "local")
    return {
        "workers": workers,
        "stop_within_s": server_bound_s(settings),
        "retire_within_s": retired_bound_s(settings),
        "source": asdict(conditions.source),
        "version": conditions.catalogue.version,
        "config": None if settings.config is None else str(settings.config),
        "config_toml": settings.config_toml,
        "model_slots": next((upstream.max_concurrency for upstream in local), None),
    }


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
    parser.add_argument("--generation", type=int, default=1, help="which of the root's servers this is")
    parser.add_argument("--of-root", default="{}", help="the settings that the root has, as JSON by variable")
    parser.add_argument("--management-port", type=int, help="which of the sockets' ports is management's own")
    parser.add_argument("--app", default=APP)
    parser.add_argument("--prepare", default=PREPARE)
    return parser.parse_args()

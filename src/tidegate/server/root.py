"""The root of the process tree: a small process above the server and the local model that keeps its pid.

It takes the signals, binds the sockets, holds the data directory, watches its children, and ends them in order: the
server first, within its bound, the model last. It imports neither FastAPI nor SQLAlchemy. It ends with 0 where it was
told to stop, else with 1 and a line that says why.
"""

import asyncio
import contextlib
import os
import signal
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import orjson
from setproctitle import setproctitle

from tidegate.routing.catalogue import Catalogue
from tidegate.routing.configuration import open_key_files
from tidegate.server.banner import banner, credentials
from tidegate.server.bounds import server_bound_s
from tidegate.server.children import Child, describe_exit, python
from tidegate.server.conditions import require_conditions
from tidegate.server.cpu import usable_cpus
from tidegate.server.directory import hold
from tidegate.server.listening import listen, listen_for_management, port_of, url_of
from tidegate.server.model_keeper import Backoff, ModelKeeper
from tidegate.server.pools import worker_count
from tidegate.server.readiness import until_ready
from tidegate.server.refusal import EXIT_REFUSED, StartRefused, print_faults
from tidegate.settings import Settings, setting_advice, unknown_variables
from tidegate.telemetry.logging import configure_logging, get_logger

# How long a killed root's children may still hold the port.
_SUCCESSION_S = 5
# How long a start that failed for another reason waits to hear what the prepare step made.
_PREPARE_BOUND_S = 10


class Start(Protocol):
    """How the server becomes a child: `Child.start`."""

    async def __call__(self, command: Sequence[str], *, descriptors: Sequence[int] = ()) -> Child: ...


@dataclass(frozen=True, slots=True)
class Parts:
    """What the tree is made of. Tests put in others.

    After `patience_s` without readiness the root says what it waits for.
    """

    start: Start = Child.start
    server_arguments: tuple[str, ...] = ()
    model: Sequence[str] = field(default_factory=lambda: python("tidegate.server.model"))
    backoff: Backoff = field(default_factory=Backoff)
    patience_s: float = 10


@dataclass(frozen=True, slots=True)
class Plan:
    """What this start amounts to, judged before the first child. `management` are the sockets of a port of its own."""

    settings: Settings
    catalogue: Catalogue
    workers: int
    listeners: list[socket.socket]
    management: list[socket.socket]

    @property
    def keeps_model(self) -> bool:
        return any(upstream.provider == "local" for upstream in self.catalogue.upstreams.values())

    @property
    def is_single(self) -> bool:
        return self.workers == 1 and not self.settings.in_production


def run(settings: Settings, parts: Parts | None = None) -> int:
    """Serves until it is told to stop. Returns the exit code; a refused start has printed its faults."""
    setproctitle("tidegate: root")
    configure_logging(settings, process="root")
    for line in (*unknown_variables(), *setting_advice(settings)):
        get_logger(__name__).warning(line)
    try:
        catalogue = require_conditions(settings)
        for line in open_key_files(settings):
            get_logger(__name__).warning(line)
        workers = worker_count(settings, usable_cpus())
        _require_shared_stores(settings, workers)
        with hold(settings.data_dir) as was_killed:
            patience_s = _SUCCESSION_S + settings.server.linger_s if was_killed else 0
            listeners = listen(settings.server.host, settings.server.port, patience_s=patience_s)
            management = listen_for_management(settings.server, listeners, patience_s=patience_s)
            plan = Plan(settings, catalogue, workers, listeners, management)
            return asyncio.run(_Root(plan, parts or Parts()).run())
    except StartRefused as refusal:
        print_faults(refusal.faults, as_json=settings.in_production)
        return 1


class _Root:
    def __init__(self, plan: Plan, parts: Parts) -> None:
        self._plan = plan
        self._parts = parts
        self._log = get_logger(__name__)
        self._began = time.monotonic()
        self._told_to_stop = asyncio.Event()
        self._server: Child | None = None
        self._prepared: asyncio.Task[bytes] | None = None
        self._shown = False
        self._model = ModelKeeper(parts.model, parts.backoff) if plan.keeps_model else None
        self._hurries = 0

    async def run(self) -> int:
        self._take_signals()
        tasks: dict[str, asyncio.Task[Any]] = {"stop": asyncio.create_task(self._told_to_stop.wait())}
        try:
            if self._model is not None:
                tasks["model"] = asyncio.create_task(self._model.run())
            reading, writing = os.pipe()
            self._server = await self._start_server(writing)
            os.close(writing)
            tasks["server"] = asyncio.create_task(self._server.wait())
            self._prepared = asyncio.create_task(_read_to_end(reading))
            tasks["ready"] = asyncio.create_task(self._announce(self._prepared))
            code = await _first_end(tasks)
        finally:
            ended_in_time = await self._end(list(tasks.values()))
        return code if ended_in_time else 1

    async def _start_server(self, report: int) -> Child:
        management = self._plan.management
        descriptors = [listener.fileno() for listener in (*self._plan.listeners, *management)]
        command = python(
            "tidegate.server.single" if self._plan.is_single else "tidegate.server.arbiter",
            *(f"--listen={descriptor}" for descriptor in descriptors),
            f"--report={report}",
            f"--workers={self._plan.workers}",
            *((f"--management-port={port_of(management)}",) if management else ()),
            *self._parts.server_arguments,
        )
        return await self._parts.start(command, descriptors=[*descriptors, report])

    async def _announce(self, prepared: "asyncio.Task[bytes]") -> None:
        """Waits for the prepare step and for readiness, then says where the server is."""
        report = await asyncio.shield(prepared)
        if not report:
            return
        settings = self._plan.settings
        listener = self._plan.listeners[0]
        await until_ready(listener, patience_s=self._parts.patience_s, impatient=self._wait_for)
        if self._model is not None:
            self._model.server_is_ready = True
        url = url_of(self._plan.listeners)
        management_url = url_of(self._plan.management) if self._plan.management else None
        if settings.environment == "development":
            model = next((model.name for model in self._plan.catalogue.models), None)
            _print(banner(url, settings.data_dir, model, orjson.loads(report), management_url=management_url))
            self._shown = True
        else:
            of_management = {"management_url": management_url} if management_url else {}
            after_s = round(self._age_s, 2)
            self._log.info("ready", url=url, **of_management, workers=self._plan.workers, after_s=after_s)

    def _take_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop, number)
        for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
            loop.add_signal_handler(number, self._decline, number)

    def _stop(self, number: signal.Signals) -> None:
        if not self._told_to_stop.is_set():
            self._told_to_stop.set()
            drain_s = self._plan.settings.server.drain_s
            self._say(f"stopping; running requests may take {drain_s:g} s (Ctrl-C again hurries)", signal=number.name)
        elif number == signal.SIGINT and self._server is not None:
            self._hurries += 1
            if self._hurries == 1:
                self._server.send(signal.SIGQUIT)
            else:
                self._server.kill()

    def _decline(self, number: signal.Signals) -> None:
        self._say(f"{number.name} is not supported; nothing was changed", signal=number.name)

    def _wait_for(self, what: str) -> None:
        self._say(f"still waiting for: {what}", after_s=round(self._age_s, 1))

    def _say(self, line: str, **fields: Any) -> None:
        if self._plan.settings.environment == "development":
            # A terminal may have shown ^C just now.
            _print(("\n" if sys.stdout.isatty() else "") + f"tidegate: {line}\n")
        else:
            self._log.info(line, **fields)

    @property
    def _age_s(self) -> float:
        return time.monotonic() - self._began

    async def _end(self, tasks: list["asyncio.Task[Any]"]) -> bool:
        """Ends the server, then the model. Returns whether the server ended within its bound."""
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._show_what_was_made()
        # Else a client that comes now waits in a queue that nobody will ever look at.
        for listener in (*self._plan.listeners, *self._plan.management):
            listener.close()
        in_time = True
        if self._server is not None:
            bound_s = server_bound_s(self._plan.settings)
            in_time = await self._server.stop(bound_s)
            if not in_time:
                self._log.error("the server did not end in time and was killed", bound_s=bound_s)
        if self._model is not None:
            await self._model.stop()
        return in_time

    async def _show_what_was_made(self) -> None:
        """Where the start failed before the banner: a password that was generated is never shown again."""
        if self._prepared is None or self._shown or self._plan.settings.environment != "development":
            return
        if not self._told_to_stop.is_set():
            await asyncio.wait({self._prepared}, timeout=_PREPARE_BOUND_S)
        if self._prepared.done() and (report := self._prepared.result()):
            _print(credentials(orjson.loads(report)))
        self._prepared.cancel()


async def _first_end(tasks: dict[str, "asyncio.Task[Any]"]) -> int:
    """The exit code, once something ended that ends the server. What a task raised comes out of here."""
    pending = set(tasks.values())
    while True:
        done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        if tasks["stop"] in done:
            return 0
        if tasks["server"] in done:
            code: int = tasks["server"].result()
            if code == EXIT_REFUSED:
                raise StartRefused
            raise StartRefused(f"the server ended by itself ({describe_exit(code)})")
        for task in done:
            task.result()


def _require_shared_stores(settings: Settings, workers: int) -> None:
    """What several workers share must be outside of them, in development too."""
    if workers == 1:
        return
    faults = []
    if settings.redis.url is None:
        faults.append("TIDEGATE_REDIS__URL: needed for more than one worker; or set TIDEGATE_SERVER__WORKERS=1")
    if settings.on_sqlite:
        faults.append("TIDEGATE_DATABASE__URL: SQLite serves one worker; use PostgreSQL or TIDEGATE_SERVER__WORKERS=1")
    if faults:
        raise StartRefused(*faults)


async def _read_to_end(descriptor: int) -> bytes:
    reader = asyncio.StreamReader()
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(descriptor, "rb")
    )
    try:
        return await reader.read()
    finally:
        transport.close()


def _print(text: str) -> None:
    # Whoever read this may be gone; the server is not there for its banner.
    with contextlib.suppress(OSError):
        sys.stdout.write(text)
        sys.stdout.flush()

"""The root of the process tree of `tidegate serve`: what exists once, signals, and the end of everything.

It binds the listeners, holds the data directory and the control socket, starts the server (gunicorn's arbiter, or one
process in development) and keeps the local model running. Its pid stays for as long as anything of the tree lives.
`commanding` is what it is asked for while it serves: to reload, to be replaced, to report.
"""

import asyncio
import contextlib
import signal
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson
from setproctitle import setproctitle

from tidegate.routing.catalogue import Catalogue
from tidegate.routing.configuration import open_key_files
from tidegate.server.banner import banner, credentials
from tidegate.server.bounds import server_bound_s
from tidegate.server.certificate import shown_pair
from tidegate.server.children import Child, describe_exit, python
from tidegate.server.commanding import Commands
from tidegate.server.conditions import require_conditions, require_shared_stores
from tidegate.server.control_door import ControlDoor
from tidegate.server.cpu import usable_cpus
from tidegate.server.directory import hold
from tidegate.server.generation import Generation, Start
from tidegate.server.generations import Generations
from tidegate.server.listening import listen, listen_for_management, port_of, url_of
from tidegate.server.metric_keeper import MetricKeeper
from tidegate.server.model_keeper import Backoff, ModelKeeper
from tidegate.server.pools import worker_count
from tidegate.server.readiness import until_ready
from tidegate.server.refusal import EXIT_REFUSED, StartRefused, print_faults
from tidegate.server.root_settings import root_settings
from tidegate.settings import Settings, setting_advice, unknown_variables
from tidegate.settings.clear_text import clear_text_advice
from tidegate.telemetry.logging import configure_logging, get_logger
from tidegate.telemetry.metrics.folding import DIRECTORY as METRICS
from tidegate.tls import own_context

# How long a killed root's children may still hold the port.
_SUCCESSION_S = 5
# How long a start that failed for another reason waits to hear what the prepare step made.
_PREPARE_BOUND_S = 10


@dataclass(frozen=True, slots=True)
class Parts:
    """What the tree is made of. Tests put in others.

    After `patience_s` without readiness the root says what it waits for. A new generation has `comes_within_s` to be
    prepared, and as long again until its workers serve.
    """

    start: Start = Child.start
    server_arguments: tuple[str, ...] = ()
    model: Sequence[str] = field(default_factory=lambda: python("tidegate.server.model"))
    backoff: Backoff = field(default_factory=Backoff)
    patience_s: float = 10
    comes_within_s: float = 60


@dataclass(frozen=True, slots=True)
class Plan:
    """What this start amounts to, judged before the first child. `management` are the sockets of a port of its own.

    `environ` is the environment without what the env file said: a new generation reads that anew.
    """

    settings: Settings
    catalogue: Catalogue
    workers: int
    listeners: list[socket.socket]
    management: list[socket.socket]
    environ: Mapping[str, str] | None

    @property
    def model_slots(self) -> int | None:
        """The local model's; None where the catalogue has none."""
        upstreams = self.catalogue.upstreams.values()
        return next((upstream.max_concurrency for upstream in upstreams if upstream.provider == "local"), None)

    @property
    def urls(self) -> dict[str, str]:
        """Where this machine reaches the server: `url`, and `management_url` where that has a port of its own; and the
        file of the `certificate` that it shows there.
        """
        scheme, certificate = self.settings.server.scheme, self.settings.server.tls_certificate
        return {
            "url": url_of(self.listeners, scheme),
            **({"management_url": url_of(self.management, scheme)} if self.management else {}),
            **({"certificate": str(certificate.absolute())} if certificate is not None else {}),
        }

    @property
    def is_single(self) -> bool:
        return self.workers == 1 and not self.settings.in_production


def run(settings: Settings, parts: Parts | None = None, *, environ: Mapping[str, str] | None = None) -> int:
    """Serves until it is told to stop. Returns the exit code; a refused start has printed its faults.

    `environ` is what `given_environment` told before the settings were loaded; without it children inherit ours.
    """
    setproctitle("tidegate: root")
    configure_logging(settings, process="root")
    for line in (*unknown_variables(), *setting_advice(settings)):
        get_logger(__name__).warning(line)
    try:
        catalogue = require_conditions(settings)
        for line in open_key_files(settings):
            get_logger(__name__).warning(line)
        if settings.in_production and (advice := clear_text_advice(settings, catalogue.base_urls)):
            get_logger(__name__).warning(advice)
        workers = worker_count(settings, usable_cpus())
        require_shared_stores(settings, workers)
        with hold(settings.data_dir) as was_killed:
            patience_s = _SUCCESSION_S + settings.server.linger_s if was_killed else 0
            listeners = listen(settings.server.host, settings.server.port, patience_s=patience_s)
            management = listen_for_management(settings.server, listeners, patience_s=patience_s)
            plan = Plan(settings, catalogue, workers, listeners, management, environ)
            return asyncio.run(_serve(plan, parts or Parts()))
    except StartRefused as refusal:
        print_faults(refusal.faults, as_json=settings.in_production)
        return 1


async def _serve(plan: Plan, parts: Parts) -> int:
    root = _Root(plan, parts)
    async with root.door:
        return await root.run()


class _Root:
    def __init__(self, plan: Plan, parts: Parts) -> None:
        self._plan = plan
        self._parts = parts
        self._log = get_logger(__name__)
        self._began = time.monotonic()
        self._told_to_stop = asyncio.Event()
        self._shown = False
        self._model = ModelKeeper(parts.model, parts.backoff) if plan.model_slots is not None else None
        self._metrics = MetricKeeper(plan.settings.data_dir / METRICS)
        self._hurries = 0
        self._commands = Commands(plan.settings, model_slots=plan.model_slots, say=self._say, urls=plan.urls)
        self.door = ControlDoor(plan.settings.data_dir, self._commands.verbs, self._commands.greet)
        self._generations = Generations(
            self._launch,
            self.door,
            stop_within_s=server_bound_s(plan.settings),
            comes_within_s=parts.comes_within_s,
        )
        self._commands.enter(self.door, self._generations)

    async def run(self) -> int:
        self._take_signals()
        tasks: dict[str, asyncio.Task[Any]] = {"stop": asyncio.create_task(self._told_to_stop.wait())}
        try:
            self._metrics.begin()
            tasks["metrics"] = asyncio.create_task(self._metrics.run())
            if self._model is not None:
                tasks["model"] = asyncio.create_task(self._model.run())
            first = await self._generations.begin()
            tasks["server"] = asyncio.create_task(self._generations.until_over())
            tasks["ready"] = asyncio.create_task(self._announce(first))
            code = await _first_end(tasks)
        finally:
            ended_in_time = await self._end(list(tasks.values()))
        return code if ended_in_time else 1

    async def _launch(self, number: int) -> Generation:
        plan = self._plan
        descriptors = [listener.fileno() for listener in (*plan.listeners, *plan.management)]
        command = python(
            "tidegate.server.single" if plan.is_single else "tidegate.server.arbiter",
            *(f"--listen={descriptor}" for descriptor in descriptors),
            f"--generation={number}",
            f"--of-root={orjson.dumps(root_settings(plan.settings)).decode()}",
            *((f"--management-port={port_of(plan.management)}",) if plan.management else ()),
            *self._parts.server_arguments,
        )
        return await Generation.start(number, self._parts.start, command, descriptors=descriptors, environ=plan.environ)

    async def _announce(self, first: Generation) -> None:
        """Waits for the prepare step and for readiness, then says where the server is."""
        opened = await asyncio.shield(first.opened)
        if opened is None:
            return
        settings = self._plan.settings
        listener = self._plan.listeners[0]
        # Nothing is told it, so whoever has the port may answer; a renewed certificate may be on its way.
        tls = own_context(None) if settings.server.scheme == "https" else None
        await until_ready(listener, patience_s=self._parts.patience_s, impatient=self._wait_for, tls=tls)
        if self._model is not None:
            self._model.server_is_ready = True
        url, management_url = self._plan.urls["url"], self._plan.urls.get("management_url")
        if settings.environment == "development":
            model = next((model.name for model in self._plan.catalogue.models), None)
            pair = await shown_pair(settings.server)
            made = opened.made
            _print(banner(url, settings.data_dir, model, made, management_url=management_url, certificate=pair))
            self._shown = True
        else:
            of_management = {"management_url": management_url} if management_url else {}
            after_s = round(self._age_s, 2)
            self._log.info("ready", url=url, **of_management, workers=opened.workers, after_s=after_s)

    def _take_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop, number)
        loop.add_signal_handler(signal.SIGHUP, self._commands.reload_by_signal)
        loop.add_signal_handler(signal.SIGUSR2, self._commands.replace_by_signal)
        loop.add_signal_handler(signal.SIGUSR1, self._decline, signal.SIGUSR1)

    def _stop(self, number: signal.Signals) -> None:
        if not self._told_to_stop.is_set():
            self._told_to_stop.set()
            drain_s = self._plan.settings.server.drain_s
            self._say(f"stopping; running requests may take {drain_s:g} s (Ctrl-C again hurries)", signal=number.name)
        elif number == signal.SIGINT:
            self._hurries += 1
            for generation in self._generations.alive:
                if self._hurries == 1:
                    generation.child.send(signal.SIGQUIT)
                else:
                    generation.child.kill()

    def _decline(self, number: signal.Signals) -> None:
        self._say(f"{number.name} is not supported; nothing was changed", signal=number.name)

    def _wait_for(self, what: str) -> None:
        self._say(f"still waiting for: {what}", after_s=round(self._age_s, 1))

    def _say(self, line: str, *, is_bad: bool = False, **fields: Any) -> None:
        if self._plan.settings.environment == "development":
            # A terminal may have shown ^C just now.
            _print(("\n" if sys.stdout.isatty() else "") + f"tidegate: {line}\n")
        elif is_bad:
            self._log.error(line, **fields)
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
        await self._commands.end()
        await self._show_what_was_made()
        # Else a client that comes now waits in a queue that nobody will ever look at.
        for listener in (*self._plan.listeners, *self._plan.management):
            listener.close()
        in_time = await self._generations.stop()
        if self._model is not None:
            await self._model.stop()
        return in_time

    async def _show_what_was_made(self) -> None:
        """Where the start failed before the banner: a password that was generated is never shown again."""
        first = self._generations.numbered(1)
        if first is None or self._shown or self._plan.settings.environment != "development":
            return
        if not self._told_to_stop.is_set():
            await asyncio.wait({first.opened}, timeout=_PREPARE_BOUND_S)
        if first.told is not None:
            _print(credentials(first.told.made))


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


def _print(text: str) -> None:
    # Whoever read this may be gone; the server is not there for its banner.
    with contextlib.suppress(OSError):
        sys.stdout.write(text)
        sys.stdout.flush()

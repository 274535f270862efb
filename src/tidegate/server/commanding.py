"""What a root is asked for while it serves, by signal or at the control socket: reload, replace, report.

One thing at a time changes what serves: reloads wait for each other, and while a generation is replaced both another
replacement and a reload are declined.
"""

import asyncio
import contextlib
import os
from collections.abc import Coroutine, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any, Protocol

from tidegate import __version__
from tidegate.server.certificate import CERTIFICATE, KEY
from tidegate.server.control import Message
from tidegate.server.control_door import AttachedWorker, ControlDoor, Verb, WorkerGone
from tidegate.server.generation import Generation, Opened
from tidegate.server.generations import Generations, NotReplaced
from tidegate.server.reloading import Reloaded, bring_up_to_date, reload
from tidegate.settings import Settings

_REPORT_WITHIN_S = 2.0
_FACTS_WITHIN_S = 6.0
_OPENED_WITHIN_S = 4.0
_RECORD_WITHIN_S = 20.0
_LONGEST_NAME = 256
_BUSY = "the server is being replaced: the new generation reads the catalogue by itself; reload again when it serves"


class Say(Protocol):
    """A line for whoever runs the server."""

    def __call__(self, line: str, *, is_bad: bool = False, **fields: Any) -> None: ...


class Commands:
    """The root's commands. `enter` comes before the first of them."""

    _door: ControlDoor
    _generations: Generations

    def __init__(
        self, settings: Settings, *, model_slots: int | None, say: Say, urls: Mapping[str, str] | None = None
    ) -> None:
        """`urls` are where the server listens, for its report: `url`, and `management_url` where there is one; with
        the file of the `certificate` that is shown there.
        """
        self._settings = settings
        self._urls = urls or {}
        self._model_slots = model_slots
        self._say = say
        self._started_at = datetime.now(UTC)
        self._turn = asyncio.Lock()
        self._replacing: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._is_over = False

    def enter(self, door: ControlDoor, generations: Generations) -> None:
        self._door = door
        self._generations = generations

    @property
    def verbs(self) -> Mapping[str, Verb]:
        return {
            "reload": self._reload_by_command,
            "report": self._report,
            "facts": self._facts,
            "catalogue": self._catalogue,
        }

    async def greet(self, worker: AttachedWorker) -> None:
        """A worker that booted while others reloaded has the older catalogue."""
        wrong = await bring_up_to_date(worker, self._generations.numbered(worker.generation))
        if wrong is not None:
            self._say(f"a worker has another catalogue: {wrong}", is_bad=True, worker=worker.pid)

    def reload_by_signal(self) -> None:
        self._begin(self._reload({"by": None, "signal": "SIGHUP"}))

    def replace_by_signal(self) -> None:
        if self._replacing is not None:
            self._say("SIGUSR2: a new generation is coming already; nothing was changed", signal="SIGUSR2")
        elif (current := self._generations.current) is None or current.told is None:
            self._say("SIGUSR2: the server is still starting; nothing was changed", signal="SIGUSR2")
        elif not self._is_over:
            self._replacing = self._begin(self._replace())
            self._replacing.add_done_callback(self._replaced)

    async def end(self) -> None:
        """Leaves what is under way as it is."""
        self._is_over = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _begin(self, work: Coroutine[Any, Any, Any]) -> "asyncio.Task[Any]":
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _replaced(self, task: "asyncio.Task[None]") -> None:
        self._replacing = None
        if not task.cancelled() and (error := task.exception()) is not None:
            self._say(f"the server could not be replaced: {type(error).__name__}: {error}", is_bad=True)

    async def _reload_by_command(self, ask: Message) -> Message:
        reloaded = await self._reload({"by": str(ask.get("by", ""))[:_LONGEST_NAME], "signal": None})
        return {"done": asdict(reloaded) | {"is_whole": reloaded.is_whole}}

    async def _reload(self, actor: Message) -> Reloaded:
        async with self._turn:
            current = self._generations.current
            if self._is_over:
                reloaded = Reloaded(faults=("the server is stopping",))
            elif self._replacing is not None or current is None:
                reloaded = Reloaded(faults=(_BUSY,))
            else:
                reloaded = await reload(self._door, current, self._settings)
            asked = actor["by"] or actor["signal"]
            for fault in reloaded.faults:
                # The other faults are the catalogue's.
                about = "" if fault.startswith((CERTIFICATE, KEY)) else "catalogue: "
                self._say(f"{about}{fault}", is_bad=True, asked_by=asked)
            if reloaded.version is None or current is None or current.catalogue is None:
                self._say("catalogue not reloaded: nothing was changed", is_bad=True, asked_by=asked)
                return reloaded
            shown: Message = {}
            if reloaded.certificate_until is not None:
                shown["certificate_until"] = reloaded.certificate_until
            self._say(
                "catalogue reloaded",
                version=reloaded.version,
                before=reloaded.before,
                workers=reloaded.workers,
                asked_by=asked,
                **shown,
            )
            details = {"version": {"from": reloaded.before, "to": reloaded.version}, "workers": reloaded.workers}
            details |= {"faults": list(reloaded.faults)} if reloaded.faults else {}
            event = {**actor, "name": current.catalogue.source.name, "version": reloaded.version, "details": details}
            self._begin(self._record(current, event))
            return reloaded

    async def _replace(self) -> None:
        # A reload that is under way ends first.
        async with self._turn:
            pass
        try:
            opened = await self._generations.replace(self._model_slots)
        except (NotReplaced, OSError) as error:
            self._say(f"the new generation did not come: {error}; the old one stays", is_bad=True)
            return
        self._say("the new generation serves; the old one retires", workers=opened.workers)
        current = self._generations.current
        assert current is not None
        event = {"by": None, "signal": "SIGUSR2", "name": opened.source.name, "version": opened.version}
        self._begin(self._record(current, event | {"details": _replacement(current, opened)}))

    async def _record(self, generation: Generation, event: Message) -> None:
        """One row in the audit trail, by the first worker that can. The change stands, whether it is written or not."""
        faults = ["no worker was there"]
        for worker in self._door.workers_of(generation.number):
            with contextlib.suppress(WorkerGone, TimeoutError):
                answer = await worker.ask({"ask": "record", **event}, within_s=_RECORD_WITHIN_S)
                if not (faults := answer.get("faults", [])):
                    return
        self._say(f"the audit trail lacks this reload: {'; '.join(map(str, faults))}", is_bad=True)

    async def _report(self, _: Message) -> Message:
        current = self._generations.current
        told = None if current is None else current.told
        in_force = None if current is None else current.catalogue
        workers = await asyncio.gather(*(_report_of(worker) for worker in self._door.workers))
        return {
            "done": {
                "pid": os.getpid(),
                "version": __version__,
                "started_at": self._started_at.isoformat(timespec="milliseconds"),
                "generation": None if current is None else current.number,
                "workers_expected": None if told is None else told.workers,
                "catalogue_version": None if in_force is None else in_force.version,
                "is_being_replaced": self._replacing is not None,
                "stop_within_s": None if told is None else told.stop_within_s,
                **self._urls,
                "workers": workers,
            }
        }

    async def _facts(self, ask: Message) -> Message:
        report = await self._report(ask)
        workers = {worker.pid: worker for worker in self._door.workers}
        standing = [each for each in report["done"]["workers"] if each.get("state") not in ("gone", "silent")]
        asked = [(each, workers[each["pid"]]) for each in standing if each["pid"] in workers]
        told = await asyncio.gather(*(_facts_of(worker, ask.get("request_id")) for _, worker in asked))
        for (each, _), facts in zip(asked, told, strict=True):
            each["facts"] = facts
        return report

    async def _catalogue(self, ask: Message) -> Message:
        generation = self._generations.numbered(int(ask["generation"]))
        if generation is None:
            return {"done": None}
        # Its report may be on its way while its first workers boot already.
        await asyncio.wait({generation.opened}, timeout=_OPENED_WITHIN_S)
        if (in_force := generation.catalogue) is None:
            return {"done": None}
        return {"done": {"source": asdict(in_force.source), "serial": in_force.serial}}


def _replacement(current: Generation, opened: Opened) -> Message:
    return {"generation": current.number, "workers": opened.workers, "version": opened.version}


async def _facts_of(worker: AttachedWorker, request_id: object) -> Message | None:
    """None where it does not tell: it hangs or leaves, or it is an older version's."""
    try:
        answer = await worker.ask({"ask": "facts", "request_id": request_id}, within_s=_FACTS_WITHIN_S)
    except (WorkerGone, TimeoutError):
        return None
    told = answer.get("done")
    return told if isinstance(told, dict) else None


async def _report_of(worker: AttachedWorker) -> Message:
    who = {"pid": worker.pid, "generation": worker.generation}
    try:
        answer = await worker.ask({"ask": "report"}, within_s=_REPORT_WITHIN_S)
    except WorkerGone:
        return who | {"state": "gone"}
    except TimeoutError:
        return who | {"state": "silent"}
    told = answer.get("done")
    return (told if isinstance(told, dict) else {"state": "unknown"}) | who

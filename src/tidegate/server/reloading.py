"""Reloading the catalogue of the generation that serves, and its certificate: all of its workers, or none.

The catalogue is judged by a worker, not by the root: by the very code, settings and secrets that will serve it, which
may be newer than the root's. The first worker takes it or refuses it with every fault, and then nothing has changed
anywhere. Once one took it, it is in force: the others follow, and who starts later begins with it.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from tidegate.routing.configuration import CatalogueError, CatalogueSource, read_catalogue
from tidegate.server.certificate import shown_pair
from tidegate.server.control import LONGEST_CATALOGUE, Message
from tidegate.server.control_door import AttachedWorker, ControlDoor, WorkerGone
from tidegate.server.generation import Generation
from tidegate.settings import Settings

# All of a reload, its reading included, takes less than the 5 s that it is promised in.
READ_WITHIN_S = 0.8
JUDGED_WITHIN_S = 2.0
FOLLOWED_WITHIN_S = 2.0

_UNKNOWN = "no worker answered in time, and nothing is known to have changed: look at the log, and reload again"


@dataclass(frozen=True, slots=True)
class Reloaded:
    """How a reload ended. Without a version nothing changed; with faults too, these workers do not have it.

    `certificate_until` is the last day of the certificate that is shown from now on, where there is one.
    """

    version: str | None = None
    before: str | None = None
    workers: int = 0
    faults: tuple[str, ...] = ()
    judged_by: int | None = None
    certificate_until: str | None = None

    @property
    def is_whole(self) -> bool:
        return self.version is not None and not self.faults


async def reload(door: ControlDoor, generation: Generation, settings: Settings) -> Reloaded:
    """Reads the catalogue from where this generation has it, and brings it to all of its workers."""
    in_force = generation.catalogue
    opened = generation.told
    workers = door.workers_of(generation.number)
    if in_force is None or opened is None or not workers:
        return Reloaded(faults=("no worker serves yet: try again when /health/ready answers 200",))
    try:
        async with asyncio.timeout(READ_WITHIN_S):
            source = await asyncio.to_thread(read_catalogue, opened.settings_of_catalogue(settings))
    except CatalogueError as error:
        return Reloaded(faults=tuple(error.faults))
    except TimeoutError:
        return Reloaded(faults=("the catalogue could not be read in time: look at the disk that it is on",))
    if source.text is not None and len(source.text.encode()) > LONGEST_CATALOGUE:
        return Reloaded(faults=(f"{source.name}: the catalogue is larger than {LONGEST_CATALOGUE // 2**20} MiB",))
    judge, version, faults = await _judged(workers, source, in_force.serial + 1)
    if judge is None or version is None:
        return Reloaded(faults=tuple(faults))
    before = in_force.version
    in_force.source, in_force.version, in_force.serial = source, version, in_force.serial + 1
    behind = await _followed(door, generation)
    pair = await shown_pair(settings.server)
    until = None if pair is None else pair.day
    return Reloaded(version, before, len(door.workers_of(generation.number)), tuple(behind), judge.pid, until)


async def bring_up_to_date(worker: AttachedWorker, generation: Generation | None) -> str | None:
    """Gives a worker the catalogue in force where it has an older one. Returns what is wrong, None where nothing is."""
    in_force = None if generation is None else generation.catalogue
    # Another reload may end while this worker is asked.
    while in_force is not None and worker.serial != in_force.serial:
        serial = in_force.serial
        try:
            answer = await worker.ask(_ask(in_force.source, serial), within_s=FOLLOWED_WITHIN_S)
        except WorkerGone:
            # Whoever comes in its place begins with the catalogue in force.
            return None
        except TimeoutError:
            return f"the worker {worker.pid} did not answer within {FOLLOWED_WITHIN_S:g} s: reload again, or end it"
        if faults := _faults(answer):
            return f"the worker {worker.pid} refused what another took: {'; '.join(faults)}"
        worker.serial = serial
    return None


async def _judged(
    workers: Sequence[AttachedWorker], source: CatalogueSource, serial: int
) -> tuple[AttachedWorker | None, str | None, list[str]]:
    """Who took the catalogue first, and its version; or the faults that it was refused for."""
    deadline = asyncio.get_running_loop().time() + JUDGED_WITHIN_S
    # One that hangs must not keep the others from it.
    each_s = JUDGED_WITHIN_S / min(len(workers), 2)
    for worker in workers:
        if asyncio.get_running_loop().time() >= deadline:
            break
        try:
            answer = await worker.ask(_ask(source, serial), within_s=each_s)
        except (WorkerGone, TimeoutError):
            continue
        if faults := _faults(answer):
            return None, None, faults
        worker.serial = serial
        return worker, str(answer["done"]), []
    return None, None, [_UNKNOWN]


async def _followed(door: ControlDoor, generation: Generation) -> list[str]:
    """What is wrong with those that did not follow."""
    workers = door.workers_of(generation.number)
    told = await asyncio.gather(*(bring_up_to_date(worker, generation) for worker in workers))
    return [wrong for wrong in told if wrong is not None]


def _ask(source: CatalogueSource, serial: int) -> Message:
    return {"ask": "reload", "source": asdict(source), "serial": serial}


def _faults(answer: Message) -> list[str]:
    faults = answer.get("faults", [] if "done" in answer else ["it gave no answer"])
    return [str(fault) for fault in faults] if isinstance(faults, list) else ["it gave no answer"]

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.support.waiting import eventually
from tidegate.routing.configuration import CatalogueError, CatalogueSource
from tidegate.server.children import Child
from tidegate.server.control import LONGEST_CATALOGUE, Message
from tidegate.server.control_door import AttachedWorker, ControlDoor
from tidegate.server.generation import Generation, InForce, Opened
from tidegate.server.reloading import bring_up_to_date, reload
from tidegate.server.supervisor import RootSupervisor
from tidegate.settings import Settings

FIRST = CatalogueSource("catalogue.toml", "first")


class Worker:
    """Serves by the text that it was given. It refuses what `refuses` says, and hangs where it is told to."""

    def __init__(self, text: str = "first", *, refuses: str = "", hangs: bool = False) -> None:
        self.text = text
        self.refuses = refuses
        self.hangs = hangs

    async def reload(self, source: CatalogueSource) -> str:
        if self.hangs:
            await asyncio.Event().wait()
        if source.text == self.refuses:
            raise CatalogueError(["catalogue.toml:1: no"])
        self.text = source.text or ""
        return f"v-{self.text}"

    def report(self) -> dict[str, Any]:
        return {"state": "ready", "catalogue_version": f"v-{self.text}"}

    async def facts(self, request_id: str | None = None) -> dict[str, Any]:
        return {"request_id": request_id}


class Nobody:
    """No process: nothing here ends one."""

    pid = 0

    async def wait(self) -> int:
        return 0

    def send_signal(self, number: int) -> None:
        del number


class Root:
    """A generation whose catalogue is in a file, and a door to its workers."""

    def __init__(self, folder: Path, stack: AsyncExitStack) -> None:
        self.folder = folder
        self._stack = stack
        self.file = folder / "catalogue.toml"
        self.file.write_text("first")
        opened: asyncio.Future[Opened | None] = asyncio.get_running_loop().create_future()
        told = Opened(None, 2, 1, 1, FIRST, "v-first", config=str(self.file))
        opened.set_result(told)
        ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.generation = Generation(1, Child(Nobody(), 0), opened, ended, InForce(FIRST, "v-first"))  # type: ignore[arg-type]
        self.door = ControlDoor(folder, {"catalogue": self._catalogue}, self._greet)

    async def add(self, worker: Worker, *, told: bool = True) -> Worker:
        """Attaches a worker that asked for the catalogue before, or did not."""
        supervisor = RootSupervisor(self.folder, generation=1)
        count = len(self.door.workers)
        if told:
            assert await supervisor.catalogue() is not None
        await self._stack.enter_async_context(supervisor.attached(worker))
        await eventually(lambda: len(self.door.workers) > count)
        return worker

    async def reload(self, text: str) -> Any:
        self.file.write_text(text)
        return await reload(self.door, self.generation, Settings(environment="test"))

    async def _catalogue(self, ask: Message) -> Message:
        del ask
        in_force = self.generation.catalogue
        assert in_force is not None
        return {"done": {"source": {"name": "x", "text": in_force.source.text}, "serial": in_force.serial}}

    async def _greet(self, worker: AttachedWorker) -> None:
        await bring_up_to_date(worker, self.generation)


@pytest.fixture
async def root(tmp_path: Path) -> AsyncIterator[Root]:
    async with AsyncExitStack() as stack:
        made = Root(tmp_path, stack)
        await stack.enter_async_context(made.door)
        yield made


async def test_all_workers_take_it_and_it_is_in_force(root: Root) -> None:
    workers = [await root.add(Worker()) for _ in range(3)]
    reloaded = await root.reload("second")
    assert (reloaded.version, reloaded.before, reloaded.workers, reloaded.faults) == ("v-second", "v-first", 3, ())
    assert {worker.text for worker in workers} == {"second"}
    assert root.generation.catalogue is not None
    assert (root.generation.catalogue.source.text, root.generation.catalogue.serial) == ("second", 2)


async def test_a_fault_changes_nothing_anywhere(root: Root) -> None:
    workers = [await root.add(Worker(refuses="second")) for _ in range(2)]
    reloaded = await root.reload("second")
    assert (reloaded.version, reloaded.faults) == (None, ("catalogue.toml:1: no",))
    assert {worker.text for worker in workers} == {"first"}
    assert root.generation.catalogue == InForce(FIRST, "v-first")


async def test_one_that_refuses_what_another_took_is_named(root: Root) -> None:
    await root.add(Worker())
    await root.add(Worker(refuses="second"))
    reloaded = await root.reload("second")
    assert reloaded.version in ("v-second", None)
    assert not reloaded.is_whole
    if reloaded.version is not None:
        assert "refused what another took" in reloaded.faults[0]


async def test_one_that_hangs_is_passed_over_and_named(root: Root) -> None:
    await root.add(Worker(hangs=True))
    other = await root.add(Worker())
    reloaded = await root.reload("second")
    assert (reloaded.version, other.text) == ("v-second", "second")
    assert ["did not answer" in fault for fault in reloaded.faults] == [True]


async def test_who_booted_beside_a_reload_is_brought_up_to_date_before_it_counts(root: Root) -> None:
    await root.add(Worker())
    late = RootSupervisor(root.folder, generation=1)
    assert await late.catalogue() == CatalogueSource("x", "first")
    await root.reload("second")
    worker = Worker()
    async with late.attached(worker):
        await eventually(lambda: len(root.door.workers) == 2)
        assert worker.text == "second"
    await eventually(lambda: len(root.door.workers) == 1)
    # One that had to read by itself, since nobody told it anything.
    assert (await root.add(Worker(), told=False)).text == "second"
    # One that begins with the catalogue in force is not asked again.
    assert (await root.add(Worker("untouched"))).text == "untouched"


async def test_who_is_brought_up_to_date_while_another_reload_ends_has_the_last(root: Root) -> None:
    class Slow(Worker):
        async def reload(self, source: CatalogueSource) -> str:
            asked.set()
            await may_go_on.wait()
            return await super().reload(source)

    asked, may_go_on = asyncio.Event(), asyncio.Event()
    await root.add(Worker())
    late = RootSupervisor(root.folder, generation=1)
    assert await late.catalogue() is not None
    await root.reload("second")
    worker = Slow()
    async with late.attached(worker), asyncio.timeout(10):
        await asked.wait()
        await root.reload("third")
        may_go_on.set()
        await eventually(lambda: len(root.door.workers) == 2)
        assert worker.text == "third"


async def test_without_a_worker_or_a_readable_catalogue_it_says_what_to_do(root: Root) -> None:
    assert "no worker serves yet" in (await root.reload("second")).faults[0]
    await root.add(Worker())
    assert "larger than" in (await root.reload("x" * (LONGEST_CATALOGUE + 1))).faults[0]
    root.file.unlink()
    reloaded = await reload(root.door, root.generation, Settings(environment="test"))
    assert "cannot be read" in reloaded.faults[0]
    assert root.generation.catalogue == InForce(FIRST, "v-first")

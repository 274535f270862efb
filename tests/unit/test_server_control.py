import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.waiting import eventually
from tidegate.routing.configuration import CatalogueError, CatalogueSource
from tidegate.server.control import SOCKET_NAME, Message, NoRoot, ask_root, decode
from tidegate.server.control_door import AttachedWorker, ControlDoor, WorkerGone
from tidegate.server.supervisor import RootSupervisor


class Process:
    """Takes a catalogue named `good`, refuses `bad`, fails at anything else."""

    def __init__(self) -> None:
        self.has = "first"

    async def reload(self, source: CatalogueSource) -> str:
        if source.name == "bad":
            raise CatalogueError(["line 1: bad"])
        if source.name != "good":
            raise RuntimeError
        self.has = source.text or ""
        return f"version of {self.has}"

    def report(self) -> dict[str, Any]:
        return {"state": "ready", "catalogue_version": self.has}

    async def facts(self, request_id: str | None = None) -> dict[str, Any]:
        return {"request_id": request_id}


def reloading(name: str) -> Message:
    return {"ask": "reload", "source": {"name": name, "text": "second"}, "serial": 2}


async def tell_catalogue(ask: Message) -> Message:
    source = {"name": "given", "text": "text"}
    return {"done": {"source": source, "serial": 7} if ask["generation"] == 1 else None}


@asynccontextmanager
async def opened(folder: Path, greeted: list[int] | None = None) -> AsyncIterator[ControlDoor]:
    async def greet(worker: AttachedWorker) -> None:
        if greeted is not None:
            greeted.append(worker.serial)

    async with ControlDoor(folder, {"catalogue": tell_catalogue}, greet) as door:
        yield door


async def test_a_worker_is_asked_by_the_root_and_answers(tmp_path: Path) -> None:
    async with opened(tmp_path) as door:
        process, supervisor = Process(), RootSupervisor(tmp_path, generation=1)
        async with supervisor.attached(process):
            async with asyncio.timeout(10):
                await door.until_attached(1, 1)
            (worker,) = door.workers_of(1)
            assert await worker.ask(reloading("bad"), within_s=5) == {"faults": ["line 1: bad"]}
            assert process.has == "first"
            assert await worker.ask(reloading("good"), within_s=5) == {"done": "version of second"}
            failed = await worker.ask(reloading("worse"), within_s=5)
            assert "RuntimeError" in failed["faults"][0]
            supervisor.is_retiring = True
            told = await worker.ask({"ask": "report"}, within_s=5)
            assert told == {"done": {"state": "retiring", "catalogue_version": "second"}}
        await eventually(lambda: not door.workers)
        with pytest.raises(WorkerGone):
            await worker.ask({"ask": "report"}, within_s=5)


async def test_the_catalogue_in_force_comes_with_the_serial_that_a_worker_then_attaches_with(tmp_path: Path) -> None:
    greeted: list[int] = []
    async with opened(tmp_path, greeted):
        supervisor = RootSupervisor(tmp_path, generation=1)
        assert await supervisor.catalogue() == CatalogueSource("given", "text")
        async with supervisor.attached(Process()):
            await eventually(lambda: greeted == [7])
        assert await RootSupervisor(tmp_path, generation=2).catalogue() is None


async def test_without_a_root_a_worker_reads_by_itself_and_finds_the_next_root(tmp_path: Path) -> None:
    supervisor = RootSupervisor(tmp_path, generation=1)
    assert await supervisor.catalogue() is None
    async with supervisor.attached(Process()):
        for _ in range(2):
            async with opened(tmp_path) as door, asyncio.timeout(10):
                await door.until_attached(1, 1)


async def test_a_worker_that_is_gone_ends_what_was_asked_of_it(tmp_path: Path) -> None:
    class Slow(Process):
        async def reload(self, source: CatalogueSource) -> str:
            del source
            await asyncio.Event().wait()
            raise AssertionError

    async with opened(tmp_path) as door:
        async with contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(RootSupervisor(tmp_path, generation=1).attached(Slow()))
            async with asyncio.timeout(10):
                await door.until_attached(1, 1)
            (worker,) = door.workers
            with pytest.raises(TimeoutError):
                await worker.ask(reloading("good"), within_s=0.05)
            asking = asyncio.create_task(worker.ask(reloading("good"), within_s=30))
            await asyncio.wait({asking}, timeout=0.05)
            assert not asking.done()
        with pytest.raises(WorkerGone):
            await asking


async def test_what_waits_for_a_database_keeps_no_worker_from_a_reload(tmp_path: Path) -> None:
    ended: list[str] = []

    async def for_ever() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("ended")

    class Slow(Process):
        async def facts(self, request_id: str | None = None) -> dict[str, Any]:
            await for_ever()
            return await super().facts(request_id)

    async def record(told: Message) -> None:
        assert told["by"] == "ada"
        await for_ever()

    async with opened(tmp_path) as door:
        supervisor = RootSupervisor(tmp_path, generation=1)
        supervisor.record_by(record)
        async with supervisor.attached(Slow()):
            async with asyncio.timeout(10):
                await door.until_attached(1, 1)
            (worker,) = door.workers
            for ask in ({"ask": "record", "by": "ada"}, {"ask": "facts"}):
                with pytest.raises(TimeoutError):
                    await worker.ask(ask, within_s=0.05)
            assert await worker.ask(reloading("good"), within_s=5) == {"done": "version of second"}
        # Nothing of it is left behind.
        assert ended == ["ended", "ended"]


async def test_nobody_there_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(NoRoot, match="No server runs in"):
        await asyncio.to_thread(ask_root, tmp_path, {"ask": "report"}, within_s=5)
    async with opened(tmp_path):
        told = await asyncio.to_thread(ask_root, tmp_path, {"ask": "report"}, within_s=5)
        assert told == {"faults": ["there is no such ask"]}


async def test_a_root_that_does_not_answer_is_no_matter_of_who_asks(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener, contextlib.ExitStack() as waiting:
        listener.bind(str(tmp_path / SOCKET_NAME))
        listener.listen(0)
        with contextlib.suppress(BlockingIOError):
            # As many as it takes until the kernel takes no more.
            while True:
                connection = waiting.enter_context(socket.socket(socket.AF_UNIX))
                connection.setblocking(False)
                connection.connect(str(tmp_path / SOCKET_NAME))
        with pytest.raises(NoRoot, match="did not answer within"):
            await asyncio.to_thread(ask_root, tmp_path, {"ask": "report"}, within_s=0.3)


@pytest.mark.parametrize("line", [b"", b"{}", b"[]\n", b"null\n", b"{\n", b'"x"\n'])
def test_only_whole_lines_with_objects_are_taken(line: bytes) -> None:
    with pytest.raises(ValueError, match=r".+"):
        decode(line)

"""The gate of the local model, from a worker's side to a scripted engine behind it, over real sockets in one loop."""

import asyncio
import contextlib
import stat
from functools import partial
from pathlib import Path

import anyio
import pytest
import uvloop

from tests.support.model_engine import call, hold, model, worker
from tests.support.waiting import eventually
from tidegate.admission.model_gate import LONGEST_ADDRESS, SOCKET_NAME, ModelStatus
from tidegate.errors import Overloaded, Unavailable
from tidegate.server.model_door import bind


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / SOCKET_NAME


async def test_two_workers_share_the_slots_first_in_first_out(path: Path) -> None:
    order: list[int] = []
    may_leave = [asyncio.Event() for _ in range(6)]

    async with model(path, slots=2) as at, anyio.create_task_group() as group:
        workers = [worker(path), worker(path)]

        async def one(n: int) -> None:
            async with hold(workers[n % 2]):
                order.append(n)
                await may_leave[n].wait()

        def came(number: int) -> bool:
            return at.slots.in_use + at.slots.waiting == number

        for n in range(6):
            group.start_soon(one, n)
            await eventually(partial(came, n + 1))
        await eventually(lambda: sum(gate.in_use for gate in workers) == 2)
        assert sum(gate.waiting for gate in workers) == 4
        assert await workers[0].status() == ModelStatus(is_ready=True, in_use=2, waiting=4)
        for n in range(6):
            await eventually(partial(order.__contains__, n))
            may_leave[n].set()
    assert order == list(range(6))
    assert [(gate.in_use, gate.waiting) for gate in workers] == [(0, 0), (0, 0)]


async def test_cancelled_in_the_queue_it_leaves_at_once(path: Path) -> None:
    async with model(path, slots=1) as at:
        gate = worker(path)
        async with hold(gate):
            with anyio.CancelScope() as scope:
                async with anyio.create_task_group() as group:

                    async def wait() -> None:
                        async with hold(gate):
                            pytest.fail("there was no slot")

                    group.start_soon(wait)
                    await eventually(lambda: at.slots.waiting == 1)
                    scope.cancel()
            assert gate.waiting == 0
            await eventually(lambda: at.slots.waiting == 0)
            assert at.slots.in_use == 1
        await eventually(lambda: at.slots.in_use == 0)


async def test_a_full_queue_and_a_deadline_are_overloaded(path: Path) -> None:
    async with model(path, slots=1) as at, anyio.create_task_group() as group:
        gate = worker(path, queue_length=1)
        async with hold(gate):

            async def wait() -> None:
                async with hold(gate):
                    pass

            group.start_soon(wait)
            await eventually(lambda: at.slots.waiting == 1)
            with pytest.raises(Overloaded, match="is full") as full:
                async with hold(gate):
                    pass
            with pytest.raises(Overloaded, match=r"within 0\.01 s") as late:
                async with hold(worker(path), deadline_s=0.01):
                    pass
            assert {type(full.value), type(late.value)} == {Overloaded}
        await eventually(lambda: (at.slots.in_use, at.slots.waiting) == (0, 0))


async def test_with_no_queue_a_free_slot_is_still_had(path: Path) -> None:
    async with model(path, slots=1):
        gate = worker(path, queue_length=0)
        async with hold(gate):
            with pytest.raises(Overloaded, match="is full"):
                async with hold(gate):
                    pass


async def test_while_the_model_loads_one_waits_and_is_granted_when_it_answers(path: Path) -> None:
    async with model(path, is_open=False) as at:
        gate = worker(path)
        assert await gate.status() == ModelStatus(is_ready=False, in_use=0, waiting=0)
        with pytest.raises(Unavailable, match="still being loaded"):
            async with hold(gate, deadline_s=0.2):
                pass
        async with anyio.create_task_group() as group:

            async def wait() -> None:
                async with hold(gate) as lease:
                    assert lease.base_url == at.relay.base_url

            group.start_soon(wait)
            await eventually(lambda: at.slots.waiting == 1)
            at.slots.open()


async def test_where_nothing_listens_it_is_unavailable(path: Path) -> None:
    gate = worker(path)
    assert await gate.status() is None
    for leave_file in (False, True):
        if leave_file:
            bind(path).close()
        with pytest.raises(Unavailable, match="is not running"):
            async with hold(gate):
                pass
    assert (gate.in_use, gate.waiting) == (0, 0)


async def test_who_waits_when_the_model_ends_is_told(path: Path) -> None:
    gate = worker(path)
    failed: list[Unavailable] = []

    async def wait() -> None:
        try:
            async with hold(gate):
                pass
        except Unavailable as error:
            failed.append(error)

    async with anyio.create_task_group() as group, model(path, is_open=False) as at:
        group.start_soon(wait)
        await eventually(lambda: at.slots.waiting == 1)
    assert len(failed) == 1


async def test_a_slot_is_granted_anew_only_when_the_engine_has_ended_the_call(path: Path) -> None:
    async with model(path, slots=1) as at, anyio.create_task_group() as group:
        gate = worker(path)
        at.engine.may_end.clear()
        async with hold(gate) as lease, call(lease) as reader:
            await reader.readuntil(b"[DONE]")
        await eventually(lambda: at.engine.hang_ups == 1)
        granted = asyncio.Event()

        async def next_one() -> None:
            async with hold(gate) as lease, call(lease) as reader:
                granted.set()
                await reader.readuntil(b"[DONE]")

        group.start_soon(next_one)
        await eventually(lambda: at.slots.waiting == 1)
        assert (at.engine.now, granted.is_set()) == (1, False)
        at.engine.may_end.set()
        await eventually(granted.is_set)
    assert at.engine.most == 1


async def test_the_socket_is_the_owners_alone_and_its_path_may_be_long(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 60) / ("e" * 60)
    deep.mkdir(parents=True)
    path = deep / SOCKET_NAME
    assert len(str(path)) > LONGEST_ADDRESS
    async with model(path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        async with hold(worker(path)) as lease:
            assert lease.upstream == "local"
        assert [file.name for file in deep.iterdir()] == [SOCKET_NAME]


async def test_a_new_model_takes_the_place_of_one_that_is_still_ending(path: Path) -> None:
    async with model(path) as old, hold(worker(path)), model(path) as new, hold(worker(path)):
        assert (old.slots.in_use, new.slots.in_use) == (1, 1)
    # Both have ended: what is left of their socket is in nobody's way.
    async with model(path), hold(worker(path)):
        pass


def test_it_is_the_same_under_the_workers_own_event_loop(path: Path) -> None:
    """Under uvloop a reader that outlived its socket would end up with the next socket of that number."""

    async def main() -> None:
        async with model(path, slots=1) as at:
            gate = worker(path)
            for _ in range(50):
                async with hold(gate):
                    with anyio.move_on_after(0.002):
                        async with hold(gate):
                            pytest.fail("there was no slot")
                    status = await gate.status()
                    assert status is not None
                    assert status.in_use == 1
            await eventually(lambda: (at.slots.in_use, at.slots.waiting) == (0, 0))

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())


async def test_strangers_at_the_gate_are_shown_out(path: Path) -> None:
    async with model(path) as at:
        for line in (b"GET / HTTP/1.1\r\n", b'{"ask": "everything"}\n', b"x" * 5000, b""):
            reader, writer = await asyncio.open_unix_connection(str(path))
            writer.write(line)
            if not line:
                writer.write_eof()
            with contextlib.suppress(ConnectionError):
                assert await reader.read() == b""
            writer.close()
        assert (at.slots.in_use, at.slots.waiting) == (0, 0)

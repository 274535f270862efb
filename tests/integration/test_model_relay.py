"""Calls on their way to a scripted engine: what passes, what is withheld, and what becomes of them at their end."""

import asyncio
import contextlib
import json
import resource
from pathlib import Path

import anyio
import pytest

from tests.support.model_engine import BODY, EVENT, call, hold, model, worker
from tests.support.waiting import eventually
from tidegate.admission.model_gate import SOCKET_NAME
from tidegate.admission.slots import Lease


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / SOCKET_NAME


async def test_a_stream_passes_byte_for_byte_but_for_the_progress_that_was_asked_for(path: Path) -> None:
    async with model(path) as at, hold(worker(path)) as lease:
        async with call(lease) as reader:
            answer = await reader.read()
        assert json.loads(at.engine.bodies[0]) == {"return_progress": True, "cache_prompt": False, **json.loads(BODY)}
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK")
    done = b"data: [DONE]\n\n"
    assert body == b"%x\r\n%b\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(EVENT), EVENT, len(done), done)


async def test_the_engine_sees_its_own_key_and_no_header_that_keeps_it_working(path: Path) -> None:
    async with model(path) as at, hold(worker(path)) as lease:
        async with call(lease) as reader:
            await reader.read()
        head = at.engine.heads[0].lower()
    assert b"authorization: bearer the engine's own key\r\n" in head
    assert b"connection: close\r\n" in head
    assert b"x-conversation-id" not in head
    assert lease.api_key is not None
    assert lease.api_key.lower().encode() not in head


async def test_a_body_of_many_pieces_arrives_whole(path: Path) -> None:
    body = json.dumps({"messages": "x" * 3_000_000}).encode()
    async with model(path) as at, hold(worker(path)) as lease:
        async with call(lease, body=body) as reader:
            await reader.read()
        await eventually(lambda: at.engine.bodies)
        assert json.loads(at.engine.bodies[0])["messages"] == "x" * 3_000_000


async def test_only_a_holder_may_call(path: Path) -> None:
    async with model(path) as at:
        async with hold(worker(path)) as lease:
            async with call(lease, key="guessed") as reader:
                answer = await reader.read()
            assert answer.startswith(b"HTTP/1.1 401 ")
            head, _, body = answer.partition(b"\r\n\r\n")
            assert f"Content-Length: {len(body)}".encode() in head
        await eventually(lambda: at.slots.in_use == 0)
        async with call(lease) as reader:
            assert (await reader.read()).startswith(b"HTTP/1.1 401 ")
        assert at.engine.most == 0


@pytest.mark.parametrize(
    "head",
    [
        b"POST /v1/x HTTP/1.1\r\nAuthorization: Bearer %b\r\nContent-Length: -1\r\n\r\n",
        b"POST /v1/x HTTP/1.1\r\nAuthorization: Bearer %b\r\nno header\r\n\r\n",
        b"POST /v1/x HTTP/1.1\r\nAuthorization: Bearer %b\r\nX: " + b"x" * 200_000,
        b"\xff\xfe %b",
    ],
)
async def test_what_is_no_http_is_closed_and_the_slot_is_as_good_as_before(head: bytes, path: Path) -> None:
    async with model(path) as at, hold(worker(path)) as lease:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(str(lease.base_url).split(":")[2][:-3]))
        writer.write(head % str(lease.api_key).encode())
        writer.write_eof()
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""
        writer.close()
        assert at.engine.most == 0
        async with call(lease) as answer:
            assert (await answer.read()).endswith(b"[DONE]\n\n\r\n0\r\n\r\n")


async def test_a_second_call_of_a_lease_waits_for_the_end_of_the_first(path: Path) -> None:
    async with model(path) as at, hold(worker(path)) as lease:
        at.engine.may_end.clear()
        async with call(lease) as first:
            await first.readuntil(b"[DONE]")
        await eventually(lambda: at.engine.hang_ups == 1)
        async with call(lease) as second:
            await eventually(lambda: claim_calls(at.slots.holder(str(lease.api_key))) == 2)
            assert at.engine.most == 1
            at.engine.may_end.set()
            await second.read()
        assert at.engine.most == 1
        assert len(at.engine.bodies) == 2


def claim_calls(claim: object) -> int:
    return getattr(claim, "calls", 0)


async def test_a_lease_that_is_left_cuts_its_call_and_frees_its_slot_when_the_engine_ends(path: Path) -> None:
    async with model(path, slots=1) as at:
        at.engine.may_end.clear()
        async with contextlib.AsyncExitStack() as later:
            async with hold(worker(path)) as lease:
                reader = await later.enter_async_context(call(lease))
                await reader.readuntil(b"[DONE]")
            # As when a worker is killed: the lease's connection is gone, whoever still has the call's.
            with contextlib.suppress(ConnectionError):
                await reader.read()
            await eventually(lambda: at.engine.hang_ups == 1)
            assert at.slots.in_use == 1
            at.engine.may_end.set()
            await eventually(lambda: at.slots.in_use == 0)


async def test_a_slow_reader_slows_the_engine_and_may_leave(path: Path) -> None:
    async with model(path, slots=1) as at:
        at.engine.pieces = [b"data: " + b"x" * 65536 + b"\n\n"] * 2000
        async with hold(worker(path)) as lease, call(lease):
            await eventually(lambda: at.engine.sent > 0)
            before = -1
            while before != at.engine.sent:
                before = at.engine.sent
                await asyncio.sleep(0.1)
            # 131 MB are there to be sent; what lies on the way is the sockets' buffers.
            assert at.engine.sent < 30_000_000
        await eventually(lambda: at.slots.in_use == 0)


async def test_an_engine_that_is_gone_is_a_loss(path: Path) -> None:
    async with model(path) as at, hold(worker(path)) as lease:
        at.engine.close()
        async with call(lease) as reader:
            assert await reader.read() == b""
        assert "does not listen" in str(at.losses[0])


async def test_a_call_for_which_there_is_no_descriptor_is_dropped_and_the_model_goes_on(path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    async with model(path) as at, hold(worker(path)) as lease:
        assert lease.base_url is not None
        port = int(lease.base_url.removesuffix("/v1").rpartition(":")[2])
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        await eventually(lambda: at.relay._calls)
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
        try:
            writer.write(f"POST / HTTP/1.1\r\nAuthorization: Bearer {lease.api_key}\r\n\r\n".encode())
            assert await reader.read() == b""
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            writer.close()
        assert at.losses == []
        async with call(lease) as again:
            assert (await again.read()).endswith(b"0\r\n\r\n")


async def test_an_engine_that_never_ends_a_call_is_a_loss(path: Path) -> None:
    async with model(path, stuck_after_s=0.05) as at:
        at.engine.may_end.clear()
        async with hold(worker(path)) as lease, call(lease) as reader:
            await reader.readuntil(b"[DONE]")
        await eventually(lambda: at.losses)
        assert "after a hang-up" in str(at.losses[0])
        at.engine.may_end.set()


async def test_a_call_that_nobody_left_may_take_its_time(path: Path) -> None:
    async with model(path, stuck_after_s=0.05) as at, hold(worker(path)) as lease:
        at.engine.may_end.clear()
        async with call(lease) as reader:
            await reader.readuntil(b"[DONE]")
            await asyncio.sleep(0.2)
            assert at.losses == []
            at.engine.may_end.set()
            assert (await reader.read()).endswith(b"0\r\n\r\n")


async def test_forty_callers_never_come_to_the_engine_more_than_it_has_slots(path: Path) -> None:
    """Hang-ups at every phase among them, and two workers."""
    answers: list[bytes] = []

    async with model(path, slots=3) as at, anyio.create_task_group() as group:
        workers = [worker(path), worker(path)]

        async def one(n: int) -> None:
            async with hold(workers[n % 2]) as lease:
                if n % 4:
                    await complete(lease)
                else:
                    async with call(lease) as reader:
                        if n % 8:
                            await reader.readuntil(b"data: ")

        async def complete(lease: Lease) -> None:
            async with call(lease) as reader:
                answers.append(await reader.read())

        for n in range(40):
            group.start_soon(one, n)
    await eventually(lambda: at.slots.in_use == 0)
    assert at.engine.most <= 3
    assert len(answers) == 30
    assert all(answer.endswith(b"[DONE]\n\n\r\n0\r\n\r\n") for answer in answers)

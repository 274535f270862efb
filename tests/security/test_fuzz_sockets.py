"""Whatever Redis, a worker or the model's gate sends: it is understood, or that connection ends and nobody waits."""

import asyncio
import contextlib
import itertools
import uuid
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.security.fuzzing import assert_linear, fuzzed, mutated
from tidegate.admission.model_gate import Ask, ModelGate, Told
from tidegate.admission.slots import SlotAsk
from tidegate.errors import TidegateError
from tidegate.server.model_door import Door, bind
from tidegate.server.model_slots import ModelSlots
from tidegate.storage.pipeline_wire import Address, ScriptError, StoreGone, Wire, pack

REPLIES = [
    b"+OK\r\n:5\r\n$3\r\nabc\r\n$-1\r\n*-1\r\n",
    b"*3\r\n:1\r\n$0\r\n\r\n*1\r\n+x\r\n",
    b"-NOSCRIPT no such script\r\n-OOM out of memory\r\n",
    b"*3\r\n$7\r\nmessage\r\n$1\r\nc\r\n$1\r\nd\r\n",
    b"-LOADING it reads its file\r\n",
    b"-ERR \xff\r\n",
]


class _Ends(asyncio.Transport):
    """A transport that sends nothing, and notes its end."""

    def __init__(self) -> None:
        super().__init__()
        self.is_ended = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        return

    def abort(self) -> None:
        self.is_ended = True


@fuzzed
@given(mutated(REPLIES), st.integers(0, 4), st.lists(st.integers(0, 80), max_size=3))
async def test_fuzz_replies_are_answers_or_end_the_connection(replies: bytes, asked: int, cuts: list[int]) -> None:
    lost: list[str] = []
    told: list[tuple[bytes, bytes]] = []
    wire = Wire(silent_s=60, on_lost=lost.append, on_message=lambda channel, data: told.append((channel, data)))
    transport = _Ends()
    wire.connection_made(transport)
    futures = [wire.send(pack(("PING",)), instead=lambda: pack(("PING",))) for _ in range(asked)]
    bounds = sorted({0, len(replies), *(cut for cut in cuts if cut < len(replies))})
    for at, end in itertools.pairwise(bounds):
        wire.data_received(replies[at:end])
    assert wire.is_lost == transport.is_ended == bool(lost)
    wire.lose("the end")
    for future in futures:
        assert future.done()
        assert future.exception() is None or isinstance(future.exception(), (ScriptError, StoreGone))


@pytest.mark.parametrize("piece", [b":1\r\n", b"$0\r\n\r\n", b"*1\r\n", b"+", b"a"])
async def test_fuzz_replies_are_read_in_linear_time(piece: bytes) -> None:
    def read(size: int) -> None:
        wire = Wire(silent_s=60, on_lost=lambda _: None)
        wire.connection_made(_Ends())
        for _ in range(min(size // len(piece), 10_000)):
            wire.send(b"")
        stream = piece * (size // len(piece))
        for at in range(0, len(stream), 1024):
            wire.data_received(stream[at : at + 1024])
        wire.lose("the end")

    assert_linear(read, 8 * 1024)


@fuzzed
@given(mutated([b"redis://user:pw@host:6379/3", b"rediss://h?ssl_cert_reqs=none&x=1", b"unix:///p?db=2", b"redis://"]))
def test_fuzz_a_url_of_redis_is_read_or_refused_without_a_word_of_it(written: bytes) -> None:
    text = written.decode("utf-8", "replace")
    with contextlib.suppress(ValueError):
        address = Address.of(text)
        assert "pw" not in repr(address) or "pw" in f"{address.host}{address.path}"


ASKS = [
    msgspec.json.encode(Ask("slot", queue_length=0, flow="key", weight=2, size=3)) + b"\n",
    msgspec.json.encode(Ask("status")) + b"\n",
    msgspec.json.encode(Ask("slot")) + b"\n" + msgspec.json.encode(Ask("place")) + b"\n",
    b"\n",
]
GRANTS = [
    msgspec.json.encode(Told(status="waiting", place=3, retry_ms=2000)) + b"\n",
    msgspec.json.encode(Told(base_url="http://127.0.0.1:1", api_key="k", slot=0)) + b"\n",
    msgspec.json.encode(Told(ready=True, in_use=1, waiting=2)) + b"\n",
    b'{"x":' + b"[" * 1500 + b"\n",
]


@fuzzed
@given(st.lists(mutated([*ASKS, b'{"ask":"slot","x":' + b"[" * 1000 + b"\n"]), min_size=1, max_size=4))
async def test_fuzz_a_door_survives_whoever_comes(tmp_path_factory: pytest.TempPathFactory, asks: list[bytes]) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.sock"
    slots = ModelSlots(1)
    slots.open()
    async with Door(slots, bind(path), lambda claim: Told(base_url="http://x", slot=0)):
        for ask in asks:
            reader, writer = await asyncio.open_unix_connection(path)
            with contextlib.suppress(OSError):
                writer.write(ask)
                writer.write_eof()
                async with asyncio.timeout(10):
                    await reader.read()
            writer.close()
    assert slots.in_use == slots.waiting == 0


async def test_deep_nesting_is_nothing_that_a_worker_or_the_gate_says(tmp_path: Path) -> None:
    """Not by Hypothesis, which allows deeper calls than there are without it."""
    deep = b'{"ask":"slot","status":"waiting","x":' + b"[" * 985 + b"\n"
    path = tmp_path / "deep.sock"
    async with Door(ModelSlots(1), bind(path), lambda claim: Told(slot=0)):
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(deep)
        assert await reader.read() == b""
        writer.close()

    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(deep)
        writer.close()

    path.unlink()
    async with await asyncio.start_unix_server(serve, path):
        gate = ModelGate(path, upstream="local", queue_length=10, queue_deadline_s=10)
        assert await gate.status() is None


@fuzzed
@given(st.lists(mutated(GRANTS), max_size=3))
async def test_fuzz_a_gate_that_is_not_understood_is_unavailable(
    tmp_path_factory: pytest.TempPathFactory, lines: list[bytes]
) -> None:
    path = tmp_path_factory.getbasetemp() / "gate.sock"
    path.unlink(missing_ok=True)

    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.writelines(lines)
        writer.close()

    async with await asyncio.start_unix_server(serve, path):
        gate = ModelGate(path, upstream="local", queue_length=10, queue_deadline_s=10)
        with contextlib.suppress(TidegateError):
            async with gate.hold(SlotAsk(uuid.uuid4()), deadline_s=10) as lease:
                assert isinstance(lease.base_url, str)
        status = await gate.status()
        assert status is None or isinstance(status.is_ready, bool)
    assert gate.in_use == gate.waiting == 0

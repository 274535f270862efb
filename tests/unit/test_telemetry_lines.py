"""Lines go out whole, in order, in batches, bounded; a reader that does not read holds nobody up."""

import asyncio
import os
import threading
import time
from collections.abc import Iterator

import orjson
import pytest

from tests.support.waiting import eventually
from tidegate.telemetry.lines import LineWriter


class Pipe:
    def __init__(self) -> None:
        self.read_end, self.write_end = os.pipe()
        os.set_blocking(self.read_end, False)
        self._open = {self.read_end, self.write_end}

    def taken(self, size: int = 1 << 20) -> bytes:
        try:
            return os.read(self.read_end, size)
        except BlockingIOError:
            return b""

    def close(self, *ends: int) -> None:
        for end in set(ends or self._open) & self._open:
            os.close(end)
            self._open.discard(end)

    def fill(self) -> int:
        """Fills the pipe, and says with how much."""
        os.set_blocking(self.write_end, False)
        filled = 0
        try:
            while True:
                filled += os.write(self.write_end, b"." * 4096)
        except BlockingIOError:
            os.set_blocking(self.write_end, True)
            return filled


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    pipe = Pipe()
    yield pipe
    pipe.close()


def test_without_a_loop_a_line_is_out_at_once(pipe: Pipe) -> None:
    LineWriter(pipe.write_end).write(b"one\n")
    assert pipe.taken() == b"one\n"


async def test_in_a_loop_lines_wait_for_their_batch(pipe: Pipe) -> None:
    writer = LineWriter(pipe.write_end)
    writer.write(b"one\n")
    writer.write(b"two\n")
    assert pipe.taken() == b""
    assert writer.pending_bytes == 8
    await eventually(lambda: writer.pending_bytes == 0)
    assert pipe.taken() == b"one\ntwo\n"


async def test_flush_in_a_loop_is_at_once_and_keeps_the_order(pipe: Pipe) -> None:
    writer = LineWriter(pipe.write_end, interval_s=3600)
    writer.write(b"one\n")
    writer.write(b"two\n")
    writer.flush()
    assert pipe.taken() == b"one\ntwo\n"


async def test_full_batch_goes_out_before_its_time(pipe: Pipe) -> None:
    writer = LineWriter(pipe.write_end, interval_s=3600)
    for _ in range(40):
        writer.write(b"x" * 1023 + b"\n")
    assert len(pipe.taken()) >= 32 * 1024


async def test_reader_that_does_not_read_costs_lines_and_no_time(pipe: Pipe) -> None:
    filled = pipe.fill()
    writer = LineWriter(pipe.write_end, interval_s=0.001, bound_bytes=10_000)
    line = b"x" * 99 + b"\n"
    started = time.process_time()
    for _ in range(1000):
        writer.write(line)
        writer.flush()
    # CPU time, so that a busy machine does not count: far below one blocked write.
    assert time.process_time() - started < 1
    assert writer.pending_bytes <= 10_000 + len(line)
    assert writer.dropped == 1000 - 101
    got = b""

    def read_on() -> bool:
        nonlocal got
        got += pipe.taken()
        return writer.pending_bytes == 0

    await eventually(read_on)
    read_on()
    *lines, notice = got[filled:].splitlines(keepends=True)
    assert lines == [line] * 101
    assert orjson.loads(notice)["dropped"] == 899
    assert writer.dropped == 0


async def test_long_line_waits_until_it_goes_out_whole(pipe: Pipe) -> None:
    writer = LineWriter(pipe.write_end, interval_s=0.001)
    os.write(pipe.write_end, b"unread\n")
    writer.write(b"y" * 10_000 + b"\n")
    writer.flush()
    assert writer.pending_bytes == 10_001
    assert pipe.taken() == b"unread\n"
    await eventually(lambda: writer.pending_bytes == 0)
    assert pipe.taken() == b"y" * 10_000 + b"\n"


async def test_short_lines_of_many_writers_are_never_mixed(pipe: Pipe) -> None:
    """Two writers on one pipe, as two workers have, with a reader that is slower than they."""
    second = os.dup(pipe.write_end)
    writers = [LineWriter(pipe.write_end, interval_s=0.001), LineWriter(second, interval_s=0.001)]
    lines = [[b"%d:%04d:" % (n, i) + b"x" * (37 * i % 1500) + b"\n" for i in range(500)] for n in range(2)]
    for pair in zip(*lines, strict=True):
        for writer, line in zip(writers, pair, strict=True):
            writer.write(line)
    got = b""

    def read_a_little() -> bool:
        nonlocal got
        got += pipe.taken(5000)
        return got.count(b"\n") == 1000

    await eventually(read_a_little, within_s=30, poll_s=0)
    os.close(second)
    for n in range(2):
        assert [line for line in got.splitlines(keepends=True) if line.startswith(b"%d:" % n)] == lines[n]


def test_gone_reader_raises_nothing(pipe: Pipe) -> None:
    writer = LineWriter(pipe.write_end)
    pipe.close(pipe.read_end)
    writer.write(b"one\n")
    writer.flush()
    assert writer.pending_bytes == 0


def test_closed_descriptor_raises_nothing() -> None:
    pipe = Pipe()
    pipe.close()
    writer = LineWriter(pipe.write_end)
    writer.write(b"one\n")
    assert writer.pending_bytes == 0


async def test_non_blocking_descriptor_loses_nothing(pipe: Pipe) -> None:
    filled = pipe.fill()
    os.set_blocking(pipe.write_end, False)
    writer = LineWriter(pipe.write_end, interval_s=0.001)
    writer.write(b"one\n")
    writer.flush()
    got = b""

    def read_on() -> bool:
        nonlocal got
        got += pipe.taken()
        return len(got) == filled + 4

    await eventually(read_on)
    assert got.endswith(b"one\n")


def test_loop_that_ended_leaves_no_line_behind(pipe: Pipe) -> None:
    writer = LineWriter(pipe.write_end, interval_s=3600)

    async def write(line: bytes) -> None:
        writer.write(line)

    asyncio.run(write(b"one\n"))
    asyncio.run(write(b"two\n"))
    writer.flush()
    assert pipe.taken() == b"one\ntwo\n"


async def test_second_loop_has_a_timer_of_its_own(pipe: Pipe) -> None:
    writer = LineWriter(pipe.write_end, interval_s=0.001)

    def first_loop() -> None:
        async def write() -> None:
            writer.write(b"one\n")

        asyncio.run(write())

    thread = threading.Thread(target=first_loop)
    thread.start()
    thread.join()
    writer.write(b"two\n")
    await eventually(lambda: writer.pending_bytes == 0)
    assert pipe.taken() == b"one\ntwo\n"


async def test_threads_may_write_while_a_loop_does(pipe: Pipe) -> None:
    writer = LineWriter(pipe.write_end, interval_s=0.001)
    got = b""
    done = threading.Event()

    def write_some() -> None:
        for n in range(200):
            writer.write(b"t%04d\n" % n)
            writer.flush()
        done.set()

    thread = threading.Thread(target=write_some)
    thread.start()

    def read_on() -> bool:
        nonlocal got
        got += pipe.taken()
        return done.is_set() and got.count(b"\n") == 400

    for n in range(200):
        writer.write(b"l%04d\n" % n)
        await asyncio.sleep(0)
    await eventually(read_on)
    thread.join()
    assert sorted(got.split()) == sorted(b"%s%04d" % (who, n) for who in (b"t", b"l") for n in range(200))


async def test_forked_child_does_not_write_its_parents_lines(pipe: Pipe) -> None:
    writer = LineWriter(pipe.write_end, interval_s=3600)
    writer.write(b"parent\n")
    child = os.fork()
    if child == 0:
        # Only what a fork may do: no loop, no cleaning up.
        os._exit(0 if writer.pending_bytes == 0 else 1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert writer.pending_bytes == 7

import os
import threading
from collections.abc import Iterator

import pytest

from tests.support.waiting import eventually
from tidegate.server.lifeline import has_ended, is_lifeline, watch, watch_in_thread

Pipe = tuple[int, int]


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    reading, writing = os.pipe()
    yield reading, writing
    for descriptor in (reading, writing):
        try:
            os.close(descriptor)
        except OSError:
            continue


def test_the_end_of_the_pipe_is_the_parents(pipe: Pipe) -> None:
    reading, writing = pipe
    assert not has_ended(reading)
    os.close(writing)
    assert has_ended(reading)


async def test_a_loop_is_told_once(pipe: Pipe) -> None:
    reading, writing = pipe
    told: list[bool] = []
    watch(lambda: told.append(True), reading)
    os.write(writing, b"still here")
    os.close(writing)
    await eventually(lambda: told)
    assert told == [True]


def test_a_thread_is_told(pipe: Pipe) -> None:
    reading, writing = pipe
    told = threading.Event()
    watch_in_thread(told.set, reading)
    assert not told.is_set()
    os.close(writing)
    assert told.wait(10)


def test_what_is_no_pipe_tells_nothing() -> None:
    null = os.open(os.devnull, os.O_RDONLY)
    try:
        assert not is_lifeline(null)
        assert not has_ended(null)
    finally:
        os.close(null)
    assert not is_lifeline(null)

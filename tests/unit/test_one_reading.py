"""A volume that hangs holds one thread, however many ask."""

import asyncio
import threading
from collections.abc import Iterator

import pytest

from tidegate.storage.one_reading import OneReading


@pytest.fixture
def answers() -> Iterator[threading.Event]:
    event = threading.Event()
    yield event
    event.set()


async def test_what_hangs_holds_one_thread_and_is_read_anew_once_it_has_answered(answers: threading.Event) -> None:
    calls: list[int] = []

    def read() -> int:
        calls.append(len(calls))
        answers.wait(10)
        return calls[-1]

    reading = OneReading(read)
    failures = await asyncio.gather(*(reading.within(0.01) for _ in range(8)), return_exceptions=True)
    assert {type(failure) for failure in failures} == {TimeoutError}
    with pytest.raises(TimeoutError):
        await reading.within(0.01)
    assert calls == [0]
    answers.set()
    assert await reading.within(60) == 0
    assert await reading.within(60) == 1


async def test_what_hangs_takes_no_thread_of_those_that_all_share_and_holds_up_no_end(answers: threading.Event) -> None:
    readings = [OneReading(lambda: answers.wait(10)) for _ in range(40)]
    before = set(threading.enumerate())
    failures = await asyncio.gather(*(reading.within(0.05) for reading in readings), return_exceptions=True)
    assert {type(failure) for failure in failures} == {TimeoutError}
    began = set(threading.enumerate()) - before
    assert len(began) == len(readings)
    assert all(thread.daemon for thread in began)
    async with asyncio.timeout(5):
        assert await asyncio.to_thread(lambda: "the journal") == "the journal"


async def test_who_leaves_ends_it_for_nobody(answers: threading.Event) -> None:
    reading = OneReading(lambda: answers.wait(10))
    leaver, stayer = asyncio.create_task(reading.within(60)), asyncio.create_task(reading.within(60))
    await asyncio.sleep(0)
    leaver.cancel()
    await asyncio.wait([leaver])
    answers.set()
    assert await stayer is True
    assert leaver.cancelled()


async def test_a_failure_that_nobody_waits_for_is_told_to_nobody(answers: threading.Event) -> None:
    def read() -> None:
        answers.wait(10)
        raise ValueError("gone")

    reading = OneReading(read)
    with pytest.raises(TimeoutError):
        await reading.within(0.01)
    answers.set()
    with pytest.raises(ValueError, match="gone"):
        await reading.within(60)

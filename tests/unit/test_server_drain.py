import asyncio
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.support.waiting import eventually
from tidegate.server.drain import install_drain


@contextmanager
def server_handlers() -> Iterator[list[int]]:
    """As uvicorn does: handlers of its own around the lifespan."""
    received: list[int] = []
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.signal(number, lambda number, _frame: received.append(number)) for number in numbers}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_drains_and_reaches_the_server(number: signal.Signals) -> None:
    with server_handlers() as received, install_drain(linger_s=0) as drain:
        before = drain.draining
        signal.raise_signal(number)
        assert (before, drain.draining) == (False, True)
        assert received == [number]


async def test_the_server_hears_of_it_only_after_the_linger() -> None:
    loop = asyncio.get_running_loop()
    with server_handlers() as received, install_drain(linger_s=0.2) as drain:
        began = loop.time()
        signal.raise_signal(signal.SIGTERM)
        assert drain.draining
        assert received == []
        await eventually(lambda: received)
        assert loop.time() - began >= 0.2
        assert received == [signal.SIGTERM]


async def test_a_second_interrupt_does_not_wait_and_a_second_term_says_nothing_new() -> None:
    with server_handlers() as received, install_drain(linger_s=3600):
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        assert received == []
        signal.raise_signal(signal.SIGINT)
        assert received == [signal.SIGINT]


async def test_the_handlers_are_put_back() -> None:
    with server_handlers() as received:
        before = signal.getsignal(signal.SIGTERM)
        with install_drain(linger_s=0) as drain:
            assert signal.getsignal(signal.SIGTERM) is not before
        assert signal.getsignal(signal.SIGTERM) is before
        signal.raise_signal(signal.SIGTERM)
        assert received == [signal.SIGTERM]
        assert not drain.draining


async def test_in_another_thread_nothing_is_installed() -> None:
    before = signal.getsignal(signal.SIGTERM)
    seen = []

    def elsewhere() -> None:
        with install_drain(linger_s=0) as drain:
            seen.append((drain.draining, signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert seen == [(False, before)]

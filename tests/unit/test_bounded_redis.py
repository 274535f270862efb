"""Asking Redis for what may be missing: a bound, a breaker behind it, and one line for each change of state."""

import asyncio
import logging

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from tidegate.storage.bounded_redis import RETRY_S, BoundedRedis


class Server:
    """Answers, refuses, or says nothing."""

    def __init__(self) -> None:
        self.asked = 0
        self.error: Exception | None = None
        self.is_silent = False

    async def ask(self) -> bytes:
        self.asked += 1
        if self.is_silent:
            await asyncio.Event().wait()
        if self.error is not None:
            raise self.error
        return b"value"


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize("how", ["silent", "refusing", "gone"])
async def test_one_asks_a_redis_that_is_lost_and_the_next_pass_it_by_for_a_while(
    how: str, caplog: pytest.LogCaptureFixture
) -> None:
    server, clock = Server(), Clock()
    bounded = BoundedRedis("a test", within_s=0.01 if how == "silent" else 60, clock=clock)
    with caplog.at_level(logging.WARNING, "tidegate.storage.bounded_redis"):
        assert await bounded.ask(server.ask) == b"value"
        server.is_silent = how == "silent"
        server.error = {"refusing": RedisConnectionError("no"), "gone": OSError("no")}.get(how)
        for _ in range(5):
            assert await bounded.ask(server.ask) is None
        assert server.asked == 2
        clock.now += RETRY_S
        assert [await bounded.ask(server.ask) for _ in range(3)] == [None] * 3
        assert server.asked == 3
        assert len(caplog.records) == 1
        clock.now += RETRY_S
        server.is_silent, server.error = False, None
        assert await bounded.ask(server.ask) == b"value"
        assert await bounded.ask(server.ask) == b"value"
        assert len(caplog.records) == 2


async def test_only_one_tries_whether_it_is_back() -> None:
    server, clock = Server(), Clock()
    bounded = BoundedRedis("a test", within_s=60, clock=clock)
    server.error = OSError("no")
    await bounded.ask(server.ask)
    clock.now += RETRY_S
    server.error, server.is_silent = None, True
    tries = asyncio.create_task(bounded.ask(server.ask))
    await asyncio.sleep(0)
    assert server.asked == 2
    assert await bounded.ask(server.ask) is None
    assert server.asked == 2
    tries.cancel()
    with pytest.raises(asyncio.CancelledError):
        await tries


async def test_what_is_not_redis_fault_is_raised() -> None:
    async def broken() -> None:
        raise ValueError

    with pytest.raises(ValueError, match=r"^$"):
        await BoundedRedis("a test").ask(broken)

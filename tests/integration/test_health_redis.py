"""Redis as a process opens it: bounded in every direction, cleanly closed, a dependency of health."""

import asyncio
import time
import uuid

import pytest
from pydantic import SecretStr
from redis.asyncio import Redis
from redis.exceptions import RedisError

from tests.support.blackhole import BlackHole, DeafPeer
from tests.support.waiting import eventually
from tidegate.settings import Settings
from tidegate.settings.groups import RedisSettings
from tidegate.storage.redis import (
    MOST_CONNECTIONS,
    close_redis,
    key,
    open_redis,
    ping,
    upstream_tag,
    workspace_tag,
)
from tidegate.telemetry.health import HealthBoard


def opened(url: str) -> Redis:
    client = open_redis(Settings(environment="test", redis=RedisSettings(url=SecretStr(url))))
    assert isinstance(client, Redis)
    return client


def test_without_a_url_there_is_none() -> None:
    assert open_redis(Settings(environment="test")) is None


async def test_answers_and_is_closed(redis_url: str, redis_prefix: str) -> None:
    client = opened(redis_url)
    await ping(client)
    await client.set(key(redis_prefix, "d", "x"), "1", ex=60)
    assert await client.get(key(redis_prefix, "d", "x")) == b"1"
    await close_redis(client)
    await close_redis(client)


async def test_more_callers_than_connections_wait_their_turn(redis_url: str) -> None:
    client = opened(redis_url)
    try:
        await asyncio.gather(*(ping(client) for _ in range(MOST_CONNECTIONS * 10)))
        ours = [each for each in await client.client_list() if each["name"] == "tidegate"]
        assert 1 <= len(ours) <= MOST_CONNECTIONS * 2  # another test's server may have its own
    finally:
        await close_redis(client)


@pytest.mark.parametrize("url", ["redis://127.0.0.1:1/0", "rediss://127.0.0.1:1/0", "unix:///nowhere/redis.sock"])
async def test_connection_that_cannot_be_made_is_an_error_at_once(url: str) -> None:
    client = opened(url)
    with pytest.raises((RedisError, OSError)):
        await ping(client)
    await close_redis(client)


@pytest.mark.parametrize("peer", [BlackHole, DeafPeer])
async def test_silent_server_is_an_error_in_bounded_time_and_down_for_health(
    peer: type[BlackHole] | type[DeafPeer],
) -> None:
    async with peer() as silent:
        client = opened(f"redis://127.0.0.1:{silent.port}/0")
        started = time.monotonic()
        with pytest.raises((RedisError, OSError)):
            await ping(client)
        assert time.monotonic() - started < 15
        board = HealthBoard(version="0.1.0")
        board.add("cache", lambda: ping(client), degrades_as="redis")
        assert (await board.results())["cache"].status == "down"
        assert board.degraded == {"redis"}
        await board.aclose()
        await close_redis(client)


async def test_connection_that_was_lost_while_idle_is_replaced(redis_url: str) -> None:
    client, other = opened(redis_url), opened(redis_url)
    try:
        own = await client.client_id()
        await other.client_kill_filter(_id=str(own))
        await eventually(lambda: _gone(other, own))
        await ping(client)
        assert await client.client_id() != own
    finally:
        await close_redis(client)
        await close_redis(other)


async def _gone(client: Redis, number: int) -> bool:
    return all(int(each["id"]) != number for each in await client.client_list())


def test_keys_fall_on_the_slot_of_their_tag() -> None:
    workspace = uuid.UUID(int=1)
    assert key("tidegate", workspace_tag(workspace), "limit", "rpm") == f"tidegate:{{w:{workspace}}}:limit:rpm"
    assert key("tidegate", upstream_tag("openai"), "slots") == "tidegate:{u:openai}:slots"
    for tag in ("", "u:a}b", "u:{a"):
        with pytest.raises(ValueError, match="hash tag"):
            key("tidegate", tag, "x")

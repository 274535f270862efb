"""What changed is told to every process, and a process knows when it may have missed something."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator

import pytest
from pydantic import SecretStr

from tests.support.blackhole import DeafPeer
from tests.support.door import Door
from tests.support.services import Service
from tests.support.subscriptions import kill_subscriptions
from tests.support.waiting import eventually
from tidegate.settings import Settings
from tidegate.settings.groups import RedisSettings
from tidegate.storage.changes import UNANSWERED_S, Changes

LOGGER = "tidegate.storage.changes"


def settings(url: str | None, prefix: str = "tidegate") -> Settings:
    redis = RedisSettings(url=None if url is None else SecretStr(url), key_prefix=prefix)
    return Settings(environment="test", redis=redis)


@pytest.fixture
async def door(redis_service: Service) -> AsyncIterator[Door]:
    async with Door(redis_service.port) as door:
        yield door


@pytest.fixture
def through_door(door: Door, redis_prefix: str) -> Settings:
    return settings(f"redis://127.0.0.1:{door.port}/0", redis_prefix)


async def test_what_one_process_tells_the_others_hear(redis_url: str, redis_prefix: str) -> None:
    ours = settings(redis_url, redis_prefix)
    heard: list[str | None] = []
    others: list[str | None] = []
    async with (
        Changes.running(ours) as changes,
        Changes.running(settings(redis_url, f"{redis_prefix}-other")) as other,
        Changes.publishing(ours) as command,
    ):
        changes.listen("key:", heard.append)
        other.listen("", others.append)
        await eventually(lambda: changes.is_live and other.is_live)
        await command.tell("user:1")
        await command.tell("key:1")
        await eventually(lambda: "key:1" in heard)
        assert heard == [None, "key:1"]
        assert others == [None]
        assert not command.is_live


async def test_a_teller_has_heard_itself_when_it_has_told() -> None:
    heard: list[str | None] = []
    async with Changes.running(settings(None)) as changes:
        changes.listen("key:", heard.append)
        await changes.tell("key:1")
        assert heard == ["key:1"]
        # Nobody else could have told us.
        assert not changes.is_live
        assert changes.vouched_until(5.0) == 5.0


async def test_a_listener_that_fails_keeps_no_other_from_hearing(caplog: pytest.LogCaptureFixture) -> None:
    heard: list[str | None] = []

    def fail(topic: str | None) -> None:
        raise ValueError(topic)

    async with Changes.running(settings(None)) as changes:
        changes.listen("", fail)
        changes.listen("", heard.append)
        with caplog.at_level(logging.ERROR, LOGGER):
            await changes.tell("key:1")
    assert heard == ["key:1"]
    assert len(caplog.records) == 1


async def test_what_was_read_under_a_subscription_is_vouched_for_as_time_goes_on(
    redis_url: str, redis_prefix: str
) -> None:
    before = time.monotonic()
    async with Changes.running(settings(redis_url, redis_prefix)) as changes:
        await eventually(lambda: changes.is_live)
        after = time.monotonic()
        await eventually(lambda: changes.vouched_until(after) > after)
        assert changes.vouched_until(after) <= time.monotonic()
        assert changes.vouched_until(before) == before
        assert changes.gaps == 1


async def test_a_subscription_that_is_killed_is_a_gap_and_stands_again(
    redis_url: str, redis_prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    ours = settings(redis_url, redis_prefix)
    heard: list[str | None] = []
    async with Changes.running(ours) as changes, Changes.publishing(ours) as command:
        changes.listen("key:", heard.append)
        await eventually(lambda: changes.is_live)
        read_at = time.monotonic()
        await eventually(lambda: changes.vouched_until(read_at) > read_at)
        with caplog.at_level(logging.WARNING, LOGGER):
            await kill_subscriptions(redis_url, redis_prefix)
            await eventually(lambda: changes.gaps == 2)
        assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"]
        assert changes.vouched_until(read_at) == read_at
        await eventually(lambda: changes.is_live)
        await command.tell("key:2")
        await eventually(lambda: heard == [None, None, "key:2"])


async def test_a_redis_that_says_nothing_is_a_gap_though_the_connection_stands(
    door: Door, through_door: Settings
) -> None:
    async with Changes.running(through_door) as changes:
        await eventually(lambda: changes.is_live)
        door.hold()
        read_at = time.monotonic()
        await eventually(lambda: not changes.is_live)
        # Nothing that was read while it was held is vouched for by what it says later.
        assert changes.vouched_until(read_at) == read_at
        await eventually(lambda: not changes._stands)
        door.release()
        await eventually(lambda: changes.gaps == 2 and changes.is_live)
        assert changes.vouched_until(read_at) == read_at


async def test_what_was_told_during_a_short_pause_arrives_after_it(door: Door, through_door: Settings) -> None:
    heard: list[str | None] = []
    async with Changes.running(through_door) as changes, Changes.publishing(through_door) as command:
        changes.listen("key:", heard.append)
        await eventually(lambda: changes.is_live)
        await command.tell("key:1")
        door.hold()
        telling = asyncio.create_task(command.tell("key:2"))
        await asyncio.wait({telling}, timeout=UNANSWERED_S / 10)
        assert not telling.done()
        door.release()
        await telling
        await eventually(lambda: heard[-1] == "key:2")


async def test_a_redis_that_is_gone_is_tried_until_it_is_back(door: Door, through_door: Settings) -> None:
    async with Changes.running(through_door) as changes:
        await eventually(lambda: changes.is_live)
        await door.shut()
        await eventually(lambda: not changes.is_live)
        await door.open()
        await eventually(lambda: changes.gaps == 2 and changes.is_live)


async def test_a_teller_that_reaches_no_redis_says_so_once_and_goes_on(
    door: Door, through_door: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    heard: list[str | None] = []
    async with Changes.publishing(through_door) as command:
        command.listen("key:", heard.append)
        await door.shut()
        with caplog.at_level(logging.WARNING, LOGGER):
            await command.tell("key:1")
            await command.tell("key:2")
            assert len(caplog.records) == 1
            await door.open()
            await command.tell("key:3")
            await door.shut()
            await command.tell("key:4")
        assert len(caplog.records) == 2
        assert heard == ["key:1", "key:2", "key:3", "key:4"]
        await door.open()


async def test_a_teller_waits_for_a_silent_redis_longer_than_a_subscriber_does_and_not_for_ever() -> None:
    async with DeafPeer() as peer:
        began = time.monotonic()
        async with Changes.publishing(settings(f"redis://127.0.0.1:{peer.port}/0")) as command:
            await command.tell("key:1")
        assert UNANSWERED_S < time.monotonic() - began < 30

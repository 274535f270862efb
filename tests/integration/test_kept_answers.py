"""Where cached answers are kept, in memory and in Redis: how long, whose, and within which bounds."""

import secrets
import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
from pydantic import SecretStr
from redis.asyncio import Redis

from tidegate.inference.kept_answers import AnswerKey, KeptAnswer, KeptAnswers, MemoryAnswers, RedisAnswers
from tidegate.settings import Settings
from tidegate.settings.groups import RedisSettings
from tidegate.storage.bounded_redis import BoundedRedis
from tidegate.storage.redis import close_redis, open_redis

MOST_BYTES = 20_000
BODY_BYTES = 4_000


@dataclass
class Clock:
    """Ours; Redis has its own, by which it forgets."""

    ahead_s: float = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead_s


@dataclass
class Place:
    """A store of `MOST_BYTES`, and its clock."""

    answers: KeptAnswers
    clock: Clock
    redis: Redis | None = None

    async def keep(self, key: AnswerKey, body: bytes = b"body", ttl_s: float = 60, age_s: float = 0) -> KeptAnswer:
        answer = KeptAnswer(body, "stop", 7, 3, 38_000, self.clock() - age_s)
        await self.answers.keep(key, answer, ttl_s)
        return answer

    async def has(self, key: AnswerKey) -> bool:
        return await self.answers.find(key, 3600) is not None


@pytest.fixture(params=["memory", "redis"])
async def place(request: pytest.FixtureRequest) -> AsyncIterator[Place]:
    clock = Clock()
    if request.param == "memory":
        yield Place(MemoryAnswers(most_bytes=MOST_BYTES, clock=clock), clock)
        return
    redis = opened(request)
    try:
        yield Place(in_redis(request, redis, clock), clock, redis)
    finally:
        await close_redis(redis)


def opened(request: pytest.FixtureRequest) -> Redis:
    url, prefix = request.getfixturevalue("redis_url"), request.getfixturevalue("redis_prefix")
    redis = open_redis(Settings(environment="test", redis=RedisSettings(url=SecretStr(url), key_prefix=prefix)))
    assert isinstance(redis, Redis)
    return redis


def in_redis(request: pytest.FixtureRequest, redis: Redis, clock: Clock) -> RedisAnswers:
    # A busy machine must not be taken for a Redis that is slow.
    bounded = BoundedRedis("a test", within_s=60)
    prefix = request.getfixturevalue("redis_prefix")
    return RedisAnswers(redis, prefix, bounded=bounded, most_bytes=MOST_BYTES, clock=clock)


def a_key(workspace_id: uuid.UUID | None = None) -> AnswerKey:
    return AnswerKey(workspace_id or uuid.uuid4(), secrets.token_hex(32))


async def test_what_is_kept_is_found_by_its_key_alone(place: Place) -> None:
    key = a_key()
    assert await place.answers.find(key, 60) is None
    kept = await place.keep(key)
    assert await place.answers.find(key, 60) == kept
    assert await place.answers.find(AnswerKey(uuid.uuid4(), key.digest), 60) is None
    assert await place.answers.find(AnswerKey(key.workspace_id, "0" * 64), 60) is None


async def test_it_is_no_older_than_its_keeper_and_its_finder_say(place: Place) -> None:
    key = a_key()
    await place.keep(key, ttl_s=60, age_s=30)
    assert await place.answers.find(key, 31) is not None
    assert await place.answers.find(key, 29) is None
    assert await place.answers.find(key, 31) is not None
    old = a_key()
    await place.keep(old, ttl_s=60, age_s=61)
    assert not await place.has(old)


async def test_a_newer_answer_takes_the_olders_place_and_its_room(place: Place) -> None:
    key = a_key()
    for n in range(20):
        await place.keep(key, b"%d" % n + b"x" * BODY_BYTES)
    found = await place.answers.find(key, 60)
    assert found is not None
    assert found.body.startswith(b"19")
    other = a_key(key.workspace_id)
    await place.keep(other, b"x" * BODY_BYTES)
    assert await place.has(key)
    assert await place.has(other)


async def test_room_is_bounded_and_the_rest_is_still_there(place: Place) -> None:
    workspace_id = uuid.uuid4()
    keys = [a_key(workspace_id) for _ in range(12)]
    for n, key in enumerate(keys):
        # In Redis what ends soonest goes first, in memory what was used least lately: here the same.
        await place.keep(key, b"x" * BODY_BYTES, ttl_s=60 + n)
    there = [await place.has(key) for key in keys]
    assert there == [False] * 8 + [True] * 4
    await place.keep(keys[0], b"x" * 2 * MOST_BYTES)
    assert not await place.has(keys[0])


async def test_memory_forgets_first_what_was_used_least_lately() -> None:
    answers = MemoryAnswers(most_bytes=MOST_BYTES)
    place = Place(answers, Clock())
    keys = [a_key() for _ in range(5)]
    for key in keys[:4]:
        await place.keep(key, b"x" * BODY_BYTES)
    assert await place.has(keys[0])
    await place.keep(keys[4], b"x" * BODY_BYTES)
    assert [await place.has(key) for key in keys] == [True, False, True, True, True]
    place.clock.ahead_s = 61
    aged = MemoryAnswers(most_bytes=MOST_BYTES, clock=place.clock)
    await aged.keep(keys[0], KeptAnswer(b"", "stop", 0, 0, None, time.time()), 60)
    assert aged.used_bytes > 0
    assert await aged.find(keys[0], 3600) is None
    assert aged.used_bytes == 0


async def test_in_redis_every_key_has_an_end_and_begins_with_its_workspace(
    request: pytest.FixtureRequest, redis_prefix: str
) -> None:
    redis = opened(request)
    place = Place(in_redis(request, redis, Clock()), Clock(), redis)
    try:
        key = a_key()
        await place.keep(key, ttl_s=60)
        names = [name async for name in redis.scan_iter(match=f"{redis_prefix}:*")]
        assert len(names) == 3
        for name in names:
            assert name.startswith(f"{redis_prefix}:{{w:{key.workspace_id}}}:answer".encode())
            assert 0 < await redis.pttl(name) <= 25 * 3600 * 1000
        assert await redis.pttl(f"{redis_prefix}:{{w:{key.workspace_id}}}:answer:{key.digest}") <= 60_000
    finally:
        await close_redis(redis)


async def test_in_redis_room_is_a_workspaces_own_and_what_ended_gives_its_back(
    request: pytest.FixtureRequest, redis_prefix: str
) -> None:
    redis = opened(request)
    place = Place(in_redis(request, redis, Clock()), Clock(), redis)
    try:
        full, other = uuid.uuid4(), a_key()
        await place.keep(other, b"x" * BODY_BYTES)
        keys = [a_key(full) for _ in range(8)]
        for key in keys:
            await place.keep(key, b"x" * BODY_BYTES)
        assert await place.has(other)
        # As if all had ended: their keys are gone, and their places in the index are of the past.
        base = f"{redis_prefix}:{{w:{full}}}:answer"
        assert await redis.zcard(f"{base}s") == 4
        for key in keys:
            await redis.zadd(f"{base}s", {key.digest: 1}, xx=True)
        last = a_key(full)
        await place.keep(last)
        sizes = await redis.hgetall(f"{base}-sizes")
        assert set(sizes) == {b"", last.digest.encode()}
        assert sizes[b""] == sizes[last.digest.encode()]
        assert await redis.zcard(f"{base}s") == 1
    finally:
        await close_redis(redis)


async def test_in_redis_what_another_program_wrote_is_a_miss(request: pytest.FixtureRequest, redis_prefix: str) -> None:
    redis = opened(request)
    place = Place(in_redis(request, redis, Clock()), Clock(), redis)
    try:
        key = a_key()
        for wrote in (b"", b"\xc1", b"\x90", b"{}", b"text"):
            await redis.set(f"{redis_prefix}:{{w:{key.workspace_id}}}:answer:{key.digest}", wrote, ex=60)
            assert await place.answers.find(key, 60) is None
    finally:
        await close_redis(redis)

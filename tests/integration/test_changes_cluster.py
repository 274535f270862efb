"""What changed is told over a Redis Cluster, whose slots and masters change; plain commands find their master."""

import asyncio
import time
import uuid
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr, ValidationError
from redis.exceptions import ConnectionError as RedisConnectionError

from tests.support.own_cluster import OwnCluster
from tests.support.waiting import eventually
from tidegate.inference.kept_answers import AnswerKey, KeptAnswer, RedisAnswers
from tidegate.lifespan.facts_of_stores import facts_of_redis
from tidegate.server.pools import TO_EACH_NODE, cluster_share
from tidegate.server.refusal import StartRefused
from tidegate.server.shares import max_clients_of
from tidegate.settings import Settings
from tidegate.settings.groups import RedisSettings
from tidegate.storage.bounded_redis import BoundedRedis
from tidegate.storage.changes import Changes
from tidegate.storage.cluster_client import ClusterClient
from tidegate.storage.read_through import CacheKey, ReadBounds, ReadThrough
from tidegate.storage.redis import close_redis, open_redis, ping


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OwnCluster]:
    with OwnCluster.started(tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster


@pytest.fixture
def mortal(tmp_path: Path) -> Iterator[OwnCluster]:
    with OwnCluster.started(tmp_path, replicas=1) as cluster:
        yield cluster


def settings(cluster: OwnCluster, prefix: str, url: str | None = None) -> Settings:
    url = url or cluster.url
    return Settings(environment="test", redis=RedisSettings(url=SecretStr(url), key_prefix=prefix, cluster=True))


async def _has_stood(changes: Changes) -> bool:
    """Its echoes are heard: what is read now is vouched for longer than a gap takes to be noticed without."""
    read_at, gaps = time.monotonic(), changes.gaps
    await eventually(lambda: changes.gaps != gaps or changes.vouched_until(read_at) > read_at + 1.5, within_s=20)
    return changes.gaps == gaps


async def test_what_one_process_tells_the_others_hear_also_after_the_slot_moved(
    cluster: OwnCluster, redis_prefix: str
) -> None:
    ours = settings(cluster, redis_prefix)
    heard: list[str | None] = []
    async with Changes.running(ours) as changes, Changes.publishing(ours) as command:
        changes.listen("key:", heard.append)
        await eventually(partial(_has_stood, changes), within_s=40)
        await command.tell("user:1")
        await command.tell("key:1")
        await eventually(lambda: "key:1" in heard, within_s=40)
        # One gap for each channel that it listens to; no echo is taken for a change.
        assert set(heard) == {None, "key:1"}
        assert not command.is_live
        before, gaps = cluster.owner(f"{redis_prefix}:changes"), changes.gaps
        cluster.move(f"{redis_prefix}:changes", to=cluster.other(before))
        await eventually(lambda: changes.gaps > gaps and changes.is_live, within_s=40)
        await command.tell("key:2")
        await eventually(lambda: "key:2" in heard, within_s=40)


async def test_what_is_told_while_a_master_dies_is_heard_or_is_a_gap(mortal: OwnCluster, redis_prefix: str) -> None:
    dead = mortal.owner(f"{redis_prefix}:changes")
    ours = settings(mortal, redis_prefix, mortal.url_beside(dead))
    async with Changes.running(ours) as changes, Changes.publishing(ours) as command:
        heard: list[str | None] = []
        await eventually(lambda: changes.is_live, within_s=40)
        changes.listen("key:", heard.append)
        mortal.kill(dead)
        await command.tell("key:1")
        await eventually(lambda: "key:1" in heard or not changes.is_live, within_s=40)
        # Nothing is vouched for until it is heard from the new master.
        await eventually(lambda: changes.is_live, within_s=40)
        assert None in heard
        await command.tell("key:2")
        await eventually(lambda: "key:2" in heard, within_s=40)


async def test_values_and_answers_are_kept_at_the_master_of_their_workspace(
    cluster: OwnCluster, redis_prefix: str
) -> None:
    ours = settings(cluster, redis_prefix)
    client = open_redis(ours)
    assert isinstance(client, ClusterClient)
    patient = ReadBounds(redis_s=5.0)
    one = ReadThrough(client, redis_prefix, bounds=patient)
    other = ReadThrough(client, redis_prefix, bounds=patient)
    bounded = BoundedRedis("tests", within_s=5.0)
    answers = RedisAnswers(client, redis_prefix, bounded=bounded, clock=lambda: 1000.0)
    kept = KeptAnswer(b"{}", "stop", 1, 2, 3, 1000.0)
    loaded: list[int] = []
    try:
        await client.ping()
        for number in range(24):
            workspace = uuid.UUID(int=number)

            async def load(number: int = number) -> int:
                loaded.append(number)
                return number

            name = CacheKey(workspace, "usage", "7d")
            for reader in (one, other):
                assert await reader.get(name, load, kind=int, ttl_s=30) == number
            await one.forget(workspace, "usage")
            assert await one.get(name, load, kind=int, ttl_s=30) == number
            assert loaded[-2:] == [number, number]
            await answers.keep(AnswerKey(workspace, "ab"), kept, 60)
            assert await answers.find(AnswerKey(workspace, "ab"), 60) == kept
        assert len(loaded) == 48
        keys = [key.decode() for node in cluster.masters for key in node.client.scan_iter(f"*{redis_prefix}*")]
        # So each step of several keys falls on one slot.
        assert keys
        assert [key for key in keys if not key.startswith(f"{redis_prefix}:{{")] == []
        assert all(any(node.client.scan_iter(f"{redis_prefix}:*")) for node in cluster.masters)
        facts = await facts_of_redis(client)
        assert facts["policy"] == "noeviction"
        assert len(facts["run_id"].split("+")) == 3
        assert abs(facts["clock_ahead_s"]) < 5
        assert await max_clients_of(client) == 10000
    finally:
        await one.aclose()
        await other.aclose()
        await close_redis(client)


async def test_a_master_that_is_away_shows_in_the_ping_and_costs_others_nothing(
    mortal: OwnCluster, redis_prefix: str
) -> None:
    client = open_redis(settings(mortal, redis_prefix))
    assert isinstance(client, ClusterClient)
    try:
        await ping(client)
        dead = mortal.owner(f"{redis_prefix}:{{w:1}}")
        mortal.kill(dead)
        with pytest.raises(RedisConnectionError):
            await client.get(f"{redis_prefix}:{{w:1}}:x")

        async def is_well() -> bool:
            try:
                await ping(client)
            except RedisConnectionError:
                return False
            return True

        await eventually(is_well, within_s=40)
        assert await client.get(f"{redis_prefix}:{{w:1}}:x") is None
    finally:
        await close_redis(client)


async def test_who_leaves_while_it_connects_ends_it_for_nobody_else(cluster: OwnCluster, redis_prefix: str) -> None:
    client = open_redis(settings(cluster, redis_prefix))
    assert isinstance(client, ClusterClient)
    try:
        first = asyncio.create_task(client.ping())
        await asyncio.sleep(0)
        second = asyncio.create_task(client.ping())
        await asyncio.sleep(0)
        first.cancel()
        assert await second
    finally:
        await close_redis(client)
    assert [task for task in asyncio.all_tasks() if "redis" in task.get_name()] == []


@pytest.mark.parametrize("url", [None, "unix:///run/redis", "redis://h:6379/2"])
def test_a_cluster_has_addresses_and_one_database(url: str | None) -> None:
    with pytest.raises(ValidationError, match="without a database but /0"):
        RedisSettings(url=None if url is None else SecretStr(url), cluster=True)


def test_what_a_node_allows_is_shared_or_refused() -> None:
    plain: Any = Settings(environment="test")
    replicas = plain.database.max_replicas
    enough = 2 * replicas * 4 * TO_EACH_NODE + 8
    assert f"x {TO_EACH_NODE} x 2" in cluster_share(plain, workers=4, max_clients=enough).arithmetic
    with pytest.raises(StartRefused, match="to each node"):
        cluster_share(plain, workers=4, max_clients=enough - 1)

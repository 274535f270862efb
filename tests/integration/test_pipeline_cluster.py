"""The pipelined connections to a real Redis Cluster: whose a key is, slots that move, masters that die."""

import asyncio
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.own_cluster import Node, OwnCluster
from tests.support.waiting import eventually
from tidegate.storage.cluster_slots import slot_of
from tidegate.storage.pipeline import NodeGone, ScriptError, StoreGone, Subscription
from tidegate.storage.pipeline_cluster import PipelinedCluster
from tidegate.storage.redis import key, upstream_tag, workspace_tag

# Takes the place of the gate's: it tells which run it was told of, and counts.
COUNT = "return {ARGV[3], redis.call('INCR', KEYS[1] .. ':' .. ARGV[1])}"
SCRIPTS = {"count": COUNT}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OwnCluster]:
    with OwnCluster.started(tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster


@pytest.fixture
def mortal(tmp_path: Path) -> Iterator[OwnCluster]:
    with OwnCluster.started(tmp_path, replicas=1) as cluster:
        yield cluster


def running(cluster: OwnCluster, **options: Any) -> Any:
    return PipelinedCluster.running(
        cluster.url, client_name="tests-cluster", scripts=SCRIPTS, **{"connect_timeout_s": 10.0, **options}
    )


def count(redis: PipelinedCluster, name: str, op: str = "n") -> "asyncio.Future[Any]":
    answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    redis.hand_script(answer, "count", name, op, b"")
    return answer


def run_id(node: Node) -> bytes:
    told: str = node.client.info("server")["run_id"]
    return told.encode()


def keys_of(prefix: str, owner: Node, cluster: OwnCluster, most: int = 500) -> list[str]:
    names = [key(prefix, f"w:{number}") for number in range(most)]
    return [name for name in names if cluster.owner(name) is owner]


async def test_every_call_goes_to_the_master_of_its_key_which_is_told_its_own_run(
    cluster: OwnCluster, redis_prefix: str
) -> None:
    names = [key(redis_prefix, f"w:{number}") for number in range(200)]
    async with running(cluster) as redis:
        answers = await asyncio.gather(*(count(redis, name) for name in names))
        assert [answer[1] for answer in answers] == [1] * 200
        owners = {name: cluster.owner(name) for name in names}
        assert {node.port for node in owners.values()} == {node.port for node in cluster.masters}
        assert [answer[0] for answer in answers] == [run_id(owners[name]) for name in names]
        assert await redis.send("GET", f"{names[7]}:n") == b"1"
        assert redis.redirects == 0
        with pytest.raises(ScriptError, match="WRONGTYPE"):
            await redis.send("LLEN", f"{names[7]}:n")
        assert await redis.ask_each("PING") == [b"PONG"] * 3
        # A tag of each master, the same for whoever looks.
        assert {tag: run.encode() for tag, run in redis.runs().items()} == {
            tag: run_id(cluster.owner(f"{{{tag}}}")) for tag in redis.runs()
        }
        assert len(redis.runs()) == 3
    assert not redis.is_connected
    with pytest.raises(StoreGone):
        count(redis, names[0])


async def test_a_slot_that_moved_is_followed_and_runs_each_call_once(cluster: OwnCluster, redis_prefix: str) -> None:
    name = key(redis_prefix, "w:moving")
    async with running(cluster) as redis:
        assert (await count(redis, name))[1] == 1
        before = cluster.owner(name)
        after = cluster.other(before)
        cluster.move(name, to=after)
        # As many as are sent before the first is told where to.
        answers = await asyncio.gather(*(count(redis, name) for _ in range(50)))
        assert sorted(answer[1] for answer in answers) == list(range(2, 52))
        assert {answer[0] for answer in answers} == {run_id(after)}
        followed = redis.redirects
        assert followed >= 1
        assert (await count(redis, name))[1] == 52
        assert redis.redirects == followed


async def test_while_a_slot_moves_every_step_runs_where_it_goes(cluster: OwnCluster, redis_prefix: str) -> None:
    name = key(redis_prefix, "w:asked")
    async with running(cluster) as redis:
        for op in ("a", "b", "c"):
            await count(redis, name, op)
        to = cluster.other(cluster.owner(name))
        owner = cluster.begin_move(name, to=to)
        assert await count(redis, name, "d") == [run_id(to), 1]
        assert cluster.carry(name, owner, to=to, most=2) == 2
        assert (await count(redis, name, "d"))[1] == 2
        while cluster.carry(name, owner, to=to):
            pass
        assert sorted([(await count(redis, name, op))[1] for op in ("a", "b", "c")]) == [2, 2, 2]
        cluster.end_move(name, owner, to=to)
        assert (await count(redis, name, "a"))[1] == 3
        assert redis.redirects >= 6


async def test_a_dead_master_is_away_for_its_own_keys_until_its_replica_is_promoted(
    mortal: OwnCluster, redis_prefix: str
) -> None:
    async with running(mortal) as redis:
        lost: list[str] = []
        redis.on_lost.append(lambda: lost.append("all"))
        dead = mortal.owner(key(redis_prefix, "w:1"))
        before = redis.runs()
        theirs, others = key(redis_prefix, "w:1"), [key(redis_prefix, f"w:{n}") for n in range(2, 40)]
        others = [name for name in others if mortal.owner(name) is not dead]
        await count(redis, theirs)
        mortal.kill(dead)

        async def is_away() -> bool:
            try:
                await count(redis, theirs)
            except NodeGone:
                return True
            return False

        await eventually(is_away)
        answers = await asyncio.gather(*(count(redis, name) for name in others), return_exceptions=True)
        # Until the others know of it the rest is served; then all of it is down for a moment, as by Redis' default.
        assert any(isinstance(answer, list) for answer in answers)

        async def is_served() -> bool:
            try:
                async with asyncio.timeout(1):
                    return bool(await count(redis, theirs))
            except (StoreGone, TimeoutError):
                return False

        await eventually(is_served, within_s=30, poll_s=0.05)
        promoted = mortal.owner(theirs, asked=mortal.alive()[0])
        assert promoted is not dead
        assert (await count(redis, theirs))[0] == run_id(promoted)
        await eventually(lambda: len(redis.runs()) == 3, within_s=10)
        assert len(set(before.values()) & set(redis.runs().values())) == 2
        assert lost == []


async def test_a_cluster_that_is_down_is_gone_for_all_keys(mortal: OwnCluster, redis_prefix: str) -> None:
    async with running(mortal) as redis:
        for node in mortal.nodes[3:]:
            mortal.kill(node)
        mortal.kill(mortal.masters[0])

        async def is_down() -> bool:
            try:
                await count(redis, keys_of(redis_prefix, mortal.masters[1], mortal, 30)[0])
            except NodeGone:
                return False
            except StoreGone as error:
                return "CLUSTERDOWN" in str(error)
            return False

        await eventually(is_down, within_s=30, poll_s=0.05)


async def test_nodes_that_all_die_are_a_loss_and_a_cluster_that_was_never_there_is_no_error(
    tmp_path: Path, redis_prefix: str
) -> None:
    lost: list[str] = []
    with OwnCluster.started(tmp_path) as cluster:
        url = cluster.url
        async with running(cluster) as redis:
            redis.on_lost.append(lambda: lost.append("all"))
            for node in cluster.masters:
                cluster.kill(node)
            await eventually(lambda: not redis.is_connected, within_s=40)
            assert (lost, redis.run_id, redis.runs()) == (["all"], None, {})
            with pytest.raises(StoreGone) as caught:
                count(redis, key(redis_prefix, "w:1"))
            assert not isinstance(caught.value, NodeGone)
    async with PipelinedCluster.running(url, client_name="x", scripts=SCRIPTS, connect_timeout_s=0.5) as redis:
        assert not redis.is_connected
        with pytest.raises(StoreGone):
            redis.send("PING")


async def test_what_a_script_publishes_on_one_node_is_heard_on_every_other(
    cluster: OwnCluster, redis_prefix: str
) -> None:
    heard: list[bytes] = []
    async with running(cluster) as redis:
        for number in range(3):
            ears = Subscription.running(
                cluster.url,
                redis_prefix,
                [f"{redis_prefix}:grants:w1"],
                lambda _, payload: heard.append(payload),
                lambda: None,
                dial=redis.dial,
            )
            async with ears:
                heard.clear()
                for node in cluster.masters:
                    node.client.publish(f"{redis_prefix}:grants:w1", str(number))
                await eventually(lambda: len(heard) == 3, within_s=40)


@pytest.mark.parametrize("name", ["foo", "{foo}:bar", "x{}{foo}", "{}", "a{b", "", "p:{u:köy}:t", "{a}{b}", "{{a}}"])
def test_a_key_falls_on_the_slot_that_redis_says(cluster: OwnCluster, name: str) -> None:
    assert slot_of(name) == cluster.masters[0].ask("CLUSTER KEYSLOT", name)


def test_tags_are_what_keys_fall_by(redis_prefix: str) -> None:
    workspace = workspace_tag(uuid.uuid4())
    assert slot_of(key(redis_prefix, workspace, "a")) == slot_of(key(redis_prefix, workspace, "b", "{d}"))
    assert slot_of(key(redis_prefix, upstream_tag("x"))) == slot_of("{u:x}")

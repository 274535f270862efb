"""The gate's store on a Redis Cluster: the same as on one server, while slots move and masters die too."""

import asyncio
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest
import redis
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.integration.test_gate_stores_model import GateMachine
from tests.support.gate_racer import BUDGET, CLUSTER, SEAT, SLOTS, Racers
from tests.support.gate_stores import SEEDING, TOTAL, TwinStores
from tests.support.own_cluster import OwnCluster
from tests.support.waiting import eventually
from tidegate.admission.desk import Desk
from tidegate.admission.epoch import life_of
from tidegate.admission.redis_store import RedisStore, script_source
from tidegate.admission.renewal import Renewal
from tidegate.admission.store import Asked, Check, Held, Seat, Seeding, Spent
from tidegate.storage.pipeline import ScriptError, StoreGone
from tidegate.storage.pipeline_cluster import PipelinedCluster

EXAMPLES = 15
LOOK = Check(BUDGET.counter, "calendar", "cost", BUDGET.amount, 0, False)
SILENCE = (StoreGone, ScriptError, TimeoutError)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OwnCluster]:
    with OwnCluster.started(tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster


@pytest.fixture
def mortal(tmp_path: Path) -> Iterator[OwnCluster]:
    # The other masters serve on meanwhile, so that what is judged alone is the dead one's.
    with OwnCluster.started(tmp_path, replicas=1, options=("--cluster-require-full-coverage", "no")) as cluster:
        yield cluster


def pipe_to(cluster: OwnCluster) -> AbstractAsyncContextManager[PipelinedCluster]:
    return PipelinedCluster.running(
        cluster.url, client_name="tests", scripts={"gate": script_source()}, connect_timeout_s=10
    )


def store_of(pipe: PipelinedCluster, prefix: str) -> RedisStore:
    return RedisStore(pipe, prefix, told=lambda *_: None, alerted=lambda *_: None)


def test_random_operations_on_a_cluster_keep_to_the_model(cluster: OwnCluster, redis_prefix: str) -> None:
    with redis.RedisCluster.from_url(cluster.url) as client:
        opened: list[TwinStores] = []

        def open_stores() -> TwinStores:
            opened.append(TwinStores(client, f"{redis_prefix}-{len(opened)}"))
            return opened[-1]

        class Machine(GateMachine):
            pass

        Machine.open_stores = staticmethod(open_stores)
        run_state_machine_as_test(
            Machine,
            settings=settings(
                max_examples=EXAMPLES,
                deadline=None,
                suppress_health_check=list(HealthCheck),
                phases=(Phase.generate,),
                database=None,
            ),
        )
        assert len(opened) >= EXAMPLES


async def test_two_hundred_racing_on_a_cluster_spend_at_most_the_last_cent(
    cluster: OwnCluster, redis_prefix: str
) -> None:
    seeding = Seeding(BUDGET.counter, 0, 0, BUDGET.amount, 3_000)
    async with pipe_to(cluster) as pipe:
        store = store_of(pipe, redis_prefix)
        assert await store.seed("w:1", seeding)
        with Racers.ready(CLUSTER + cluster.url, redis_prefix, ["cent"] * 4) as racers:
            racers.begin()
            results = await asyncio.to_thread(racers.results)
        used = (await store.take("w:1", "test", Asked("look", (LOOK,)))).used[0]
    assert not any(result["lost"] for result in results)
    assert used == seeding.used + sum(result["spent"] for result in results) <= BUDGET.amount


async def test_four_processes_on_a_cluster_never_hold_more_than_there_is(
    cluster: OwnCluster, redis_prefix: str
) -> None:
    """The caller's tag and the upstream's are on two masters."""
    assert cluster.owner("{w:3}") is not cluster.owner("{count}") or cluster.owner("{w:3}") is not cluster.owner(
        "{u:3}"
    )
    with Racers.ready(CLUSTER + cluster.url, redis_prefix, ["slots"] * 4) as racers:
        racers.begin()
        results = await asyncio.to_thread(racers.results)
    assert 1 < max(result["most_slots"] for result in results) <= SLOTS.amount
    assert max(result["most_seats"] for result in results) <= SEAT.capacity
    with redis.RedisCluster.from_url(cluster.url) as client:
        assert client.hget(f"{redis_prefix}:{{u:3}}:t", "n") == b"0"


async def test_a_tag_whose_slot_moves_in_use_begins_anew_where_it_goes(cluster: OwnCluster, redis_prefix: str) -> None:
    tag = "w:moving"
    async with pipe_to(cluster) as pipe:
        store = store_of(pipe, redis_prefix)
        life = life_of(pipe, redis_prefix)
        assert await store.seed(tag, SEEDING)
        for number in range(3):
            reply = await store.take(tag, "w1", Asked(f"e{number}", (TOTAL,), Seat(2, 9, f"f{number}")))
            assert reply.said == "taken"
        name = f"{redis_prefix}:{{{tag}}}"
        to = cluster.other(cluster.owner(name))
        first = await life()
        owner = cluster.begin_move(name, to=to)
        # From now on every step is done where the slot goes, and what was is declared and seeded there.
        assert (await store.take(tag, "w1", Asked("e4", (TOTAL,)))).said == "unseeded"
        moving = await life()
        assert moving != first
        assert (await store.attend(tag, "w1", ())).entries == 0
        held = tuple(Held(f"e{number}", (TOTAL,), Seat(2, 9)) for number in range(2))
        await store.declare(tag, "w1", held, ())
        assert await store.seed(tag, Seeding("total", 0, 0, 1000, 300))
        assert (await store.take(tag, "w1", Asked("e4", (TOTAL,)))).used == (600,)
        # The rest of what it left behind comes after it, over what was begun: untrue, and begun anew once more.
        while cluster.carry(name, owner, to=to):
            pass
        assert (await store.take(tag, "w1", Asked("e5", (TOTAL,)))).said == "unseeded"
        await store.declare(tag, "w1", (*held, Held("e4", (TOTAL,), None)), ())
        assert await store.seed(tag, Seeding("total", 0, 0, 1000, 300))
        cluster.end_move(name, owner, to=to)
        assert (await store.take(tag, "w1", Asked("e5", (TOTAL,)))).used == (700,)
        await eventually(lambda: pipe.layout not in (first, moving))
        assert await life() not in (first, moving)
        assert pipe.redirects > 3


async def test_one_dead_master_stops_no_other_and_what_is_held_is_known_to_its_successor(
    mortal: OwnCluster, redis_prefix: str
) -> None:
    seat = Seat(4, 9, "flow")
    async with pipe_to(mortal) as pipe:
        left: list[bool] = []
        desk = Desk("w1", on_change=left.append)
        desk.shared = store_of(pipe, redis_prefix)
        desk.answer_within_s = 1.0
        renewal = Renewal(desk, pipe, prefix=redis_prefix)
        pipe.on_connected.append(renewal.wake)
        pipe.on_lost.append(lambda: desk.leave("the connection was lost"))
        dead = mortal.owner(f"{redis_prefix}:{{u:1}}")
        other = next(f"u:{n}" for n in range(2, 90) if mortal.owner(f"{redis_prefix}:{{u:{n}}}") is not dead)
        await renewal.begin()
        running = asyncio.create_task(renewal.run())
        try:
            for n in range(3):
                assert (await desk.take("u:1", Asked(f"e{n}", (), seat))).seat == "held"
            await desk.take(other, Asked("o1", (), seat))
            mortal.kill(dead)
            await eventually(lambda: len(pipe.runs()) == 2)
            # At once, by this worker's share.
            assert (await desk.take("u:1", Asked("alone", (), seat))).seat == "held"
            assert desk.judged_alone >= 1

            async def knows_what_is_held() -> bool:
                try:
                    return (await desk.shared.attend("u:1", "w1", ())).entries == 4  # type: ignore[union-attr]
                except SILENCE:
                    return False

            await eventually(knows_what_is_held, within_s=40, poll_s=0.1)
            assert left == []
            assert (await desk.take("u:1", Asked("fifth", (), seat))).seat == "queued"
            alone = desk.judged_alone
            await desk.take(other, Asked("o2", (), seat))
            assert desk.judged_alone == alone
            for entry in ("e0", "e1", "e2", "alone", "fifth"):
                desk.release("u:1", entry, Spent())
            assert (await desk.shared.attend("u:1", "w1", ())).entries == 0
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

"""The hang-ups once more, against the real server: uvicorn alone, and two workers of gunicorn on shared stores."""

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import psutil
import pytest
from sqlalchemy import text

from tests.support import services
from tests.support.behaviours import stalled
from tests.support.blackhole import BlackHole
from tests.support.caller import Caller
from tests.support.client import RawClient
from tests.support.phases import HANG_UP_WITHIN_S, PHASES, Phase, Scene, hung_up, phase_catalogue
from tests.support.server import GatewayPlan, GatewayProcess
from tests.support.services import Service
from tests.support.upstream import ScriptedUpstream
from tests.support.waiting import eventually
from tidegate.storage.database import Database

_MOST_TRIES = 100


@dataclass
class Served:
    gateway: GatewayProcess
    scene: Scene
    upstream: ScriptedUpstream

    async def pid_of(self, label: str) -> int:
        """The worker that served this request, by its access line."""

        def logged() -> int | None:
            lines = self.gateway.lines()
            return next((line["pid"] for line in lines if line.get("request_id") == label and "status" in line), None)

        pid = await eventually(logged, what=f"the access line of {label}", poll_s=0.02)
        assert pid is not None
        return pid


@pytest.fixture(scope="module", params=["uvicorn", "gunicorn"])
def stores(request: pytest.FixtureRequest) -> Iterator[dict[str, Any]]:
    """None for one process; a PostgreSQL database and a Redis prefix for two workers."""
    if request.param == "uvicorn":
        yield {}
        return
    postgres: Service = request.getfixturevalue("postgres_service")
    redis: Service = request.getfixturevalue("redis_service")
    database_url = services.create_database(postgres)
    prefix = database_url.rpartition("/")[2].replace("_", "-")
    try:
        yield {"database_url": database_url, "redis_url": services.redis_url(redis), "redis_prefix": prefix}
    finally:
        services.drop_database(postgres, database_url)
        services.delete_keys(services.redis_url(redis), prefix)


@pytest.fixture(scope="module")
async def served(stores: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    async with ScriptedUpstream(send_buffer=16 * 1024) as upstream, BlackHole() as hole:
        catalogue = phase_catalogue(upstream, hole)
        workers = 2 if stores else 1
        environment = "production" if stores else "test"
        plan = GatewayPlan(catalogue=catalogue, workers=workers, environment=environment, **stores)
        async with GatewayProcess(tmp_path_factory.mktemp("served"), plan) as gateway:
            caller = Caller(gateway.base_url)
            yield Served(gateway, Scene(caller, upstream, hole, workers=workers), upstream)
            await one_entry_each(caller, upstream)


async def one_entry_each(caller: Caller, upstream: ScriptedUpstream) -> None:
    """No label has two entries, and every entry is terminal."""
    labels = [entry["request_id"] for entry in await caller.entries()]
    assert len(labels) == len(set(labels))


@pytest.mark.parametrize("how", ["fin", "rst"])
@pytest.mark.parametrize("phase", PHASES, ids=lambda phase: phase.name)
async def test_a_hang_up_gives_everything_back_and_settles_once(
    phase: Phase, how: Literal["fin", "rst"], served: Served
) -> None:
    scene, label = served.scene, f"{phase.name}-{how}"
    async with RawClient(scene.caller.base_url, receive_buffer=phase.receive_buffer) as client:
        await scene.reach(phase, client, label)
        if how == "fin":
            client.hang_up()
        else:
            client.reset()
        await eventually(lambda: scene.has_let_go(label), within_s=HANG_UP_WITHIN_S)
    if phase.is_queued:
        await scene.caller.entry(label, within_s=HANG_UP_WITHIN_S)
        await scene.release()
    await the_slot_is_free(served, phase, label)
    assert len(scene.seen(label)) == phase.calls
    hung_up(await scene.caller.entry(label), phase)
    await nothing_is_left(served)


async def the_slot_is_free(served: Served, phase: Phase, label: str) -> None:
    """The worker's only slot of that upstream serves the next request at once."""
    scene = served.scene
    if scene.workers == 1:
        await serves_at_once(scene, phase, f"{label}-after")
        return
    pid = await served.pid_of(label)
    for n in range(_MOST_TRIES):
        await serves_at_once(scene, phase, f"{label}-after-{n}")
        if await served.pid_of(f"{label}-after-{n}") == pid:
            return
    raise AssertionError(f"the worker {pid} took none of {_MOST_TRIES} requests")


async def serves_at_once(scene: Scene, phase: Phase, label: str) -> None:
    if phase.model != "hole":
        reply = await scene.caller.chat(label, headers={"x-tidegate-deadline-ms": "2000"})
        assert (reply.status, reply.is_done) == (200, True), reply
        return
    async with RawClient(scene.caller.base_url) as client:
        await scene.caller.ask(client, label, model="hole")
        await eventually(lambda: scene.hole.knocking() == 1, within_s=HANG_UP_WITHIN_S)
        client.hang_up()
        await eventually(lambda: scene.hole.knocking() == 0, within_s=HANG_UP_WITHIN_S)


async def nothing_is_left(served: Served) -> None:
    """No connection to the upstream but idle ones, no database connection in a transaction."""
    workers = served.scene.workers
    await eventually(lambda: len(served.upstream.open_connections) <= workers and served.upstream.in_flight == 0)
    url = served.gateway.plan.database_url
    if url is None:
        return
    database = await Database.open(url)
    busy = text(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        " AND application_name = 'tidegate' AND state NOT IN ('idle')"
    )
    try:

        async def idle() -> bool:
            async with database.session() as session:
                return bool((await session.execute(busy)).scalar_one() == 0)

        await eventually(idle, poll_s=0.05)
    finally:
        await database.aclose()


async def test_workers_hold_no_descriptor_more_after_many_hang_ups(served: Served) -> None:
    """Fifty at once, in mid-stream and in the queue; then as many open sockets as before."""
    scene = served.scene
    await scene.caller.chat("warm")
    scene.upstream.enqueue(stalled(after=1))
    before = descriptors(served.gateway)
    clients = []
    try:
        for n in range(50):
            client = await RawClient(scene.caller.base_url).__aenter__()
            clients.append(client)
            await scene.caller.ask(client, f"many-{n}", model="telling")
        for client in clients:
            await client.head()
    finally:
        for n, client in enumerate(clients):
            client.hang_up() if n % 2 else client.reset()
            await client.__aexit__(None, None, None)
    await eventually(lambda: descriptors(served.gateway) <= before + 2 * scene.workers)
    assert (await scene.caller.chat("after-many")).is_done


def descriptors(gateway: GatewayProcess) -> int:
    """Open sockets of the workers."""
    workers = [process for process in gateway.tree() if process.cmdline()[:1] == ["tidegate: worker"]]
    assert workers
    return sum(len(psutil.Process(worker.pid).net_connections("tcp")) for worker in workers)

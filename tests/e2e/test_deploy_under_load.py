"""Everything that is done to a server at a deploy, one thing after the other, under load and behind a real nginx.

Of two servers in production one is reloaded, replaced, recycled and stopped, the other stays. Not one of the requests
that go on meanwhile may notice, and the ledger has each of them once, with its very tokens.

Beside the other tests it asks 40 times a second at most; with half of what the machine bears, alone:

    TIDEGATE_DEPLOY_MOST_RATE=10000 pytest tests/e2e/test_deploy_under_load.py -s
"""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from tests.support.behaviours import Completion, Echo, Usage
from tests.support.caller import Caller, catalogue_of
from tests.support.limited import held_in_redis
from tests.support.nginx import Nginx
from tests.support.schema import bring_to_head
from tests.support.server import LOOPBACK, GatewayPlan, GatewayProcess
from tests.support.unbroken_load import UnbrokenLoad
from tests.support.upstream import ScriptedUpstream
from tests.support.waiting import eventually
from tidegate.server.control import ask_root
from tidegate.storage.database import Database

STREAMS = 200
WORKERS = 2
PROMPT_TOKENS = 11
# A token every half second: a stream lasts 3 to 5 s.
GAP_S = 0.5
# Requests a second: at least so many that each step meets some, at most what leaves other tests their part.
SLOWEST, FASTEST = 5.0, float(os.environ.get("TIDEGATE_DEPLOY_MOST_RATE", "40"))


class Echoing(ScriptedUpstream):
    """Says each word of the request back. It sees thousands, and would count those in flight anew for each."""

    def __init__(self) -> None:
        said = Completion(usage=Usage(prompt=PROMPT_TOKENS))
        super().__init__(Echo(like=said))
        self.by_model["slow"] = Echo(like=Completion(usage=Usage(prompt=PROMPT_TOKENS), gap_s=GAP_S))

    @property
    def in_flight(self) -> int:
        return sum(connection.requests[-1].in_flight for connection in self.open_connections if connection.requests)


@dataclass(frozen=True)
class Deployment:
    """Two servers and what they share. `catalogue` and `env_file` are read by the one that changes alone."""

    changing: GatewayProcess
    staying: GatewayProcess
    catalogue: Path
    env_file: Path

    async def report(self) -> dict[str, Any]:
        """What the root of the server that changes says of itself and of its workers."""
        told = await asyncio.to_thread(ask_root, self.changing.data_dir, {"ask": "report"}, within_s=20)
        done: dict[str, Any] = told["done"]
        return done

    async def serving(self, generation: int) -> set[int]:
        """The pids of a generation's workers that take new requests."""
        workers = (await self.report())["workers"]
        return {worker["pid"] for worker in workers if (worker["generation"], worker["state"]) == (generation, "ready")}


def catalogue(upstream: ScriptedUpstream, *models: str) -> str:
    plain = {"base_url": upstream.base_url, "max_concurrency": 1000, "count": "deltas"}
    return catalogue_of({"plain": plain}, {model: f"plain/{model}" for model in models})


@asynccontextmanager
async def deployed(folder: Path, upstream: ScriptedUpstream, stores: dict[str, str]) -> AsyncIterator[Deployment]:
    file, env_file = folder / "tidegate.toml", folder / "env"
    file.write_text(catalogue(upstream, "slow", "quick"))
    env_file.write_text("TIDEGATE_SERVER__MAX_REQUESTS=0\n")
    both = {"TIDEGATE_HTTP__TRUSTED_PROXIES": LOOPBACK, "TIDEGATE_DATABASE__MAX_REPLICAS": "2"}
    files = {"TIDEGATE_CONFIG_TOML": "", "TIDEGATE_CONFIG": str(file), "TIDEGATE_ENV_FILE": str(env_file)}

    def plan(catalogue: str, variables: dict[str, str]) -> GatewayPlan:
        production = GatewayPlan(catalogue=catalogue, workers=WORKERS, environment="production", drain_s=30)
        return GatewayPlan(**{**vars(production), **stores, "variables": variables})

    changing = GatewayProcess(folder / "changing", plan("", both | files))
    staying = GatewayProcess(folder / "staying", plan(file.read_text(), both))
    await bring_to_head(stores["database_url"])
    async with AsyncExitStack() as stack:
        for gateway in (changing, staying):
            # Before it starts: one that cannot is ended too.
            stack.push_async_exit(gateway)
        async with asyncio.TaskGroup() as tasks:
            for gateway in (changing, staying):
                tasks.create_task(gateway.start())
        yield Deployment(changing, staying, file, env_file)


async def reloaded(deployment: Deployment, upstream: ScriptedUpstream) -> None:
    """HUP: another catalogue in the same workers."""
    before = await deployment.report()
    deployment.catalogue.write_text(catalogue(upstream, "slow", "quick", "new"))
    deployment.changing.signal(signal.SIGHUP)

    async def all_serve_by_another() -> bool:
        now = await deployment.report()
        versions = {worker["catalogue_version"] for worker in now["workers"]}
        assert {worker["pid"] for worker in now["workers"]} == {worker["pid"] for worker in before["workers"]}
        return len(versions) == 1 and before["catalogue_version"] not in versions

    await eventually(all_serve_by_another, within_s=30, poll_s=0.1)
    assert (await Caller(deployment.changing.base_url).chat("of-new", model="new")).is_done


async def replaced(deployment: Deployment, *, max_requests: int) -> None:
    """USR2: other workers, by another env file; the root is the same. The old ones still have streams then."""
    before = await deployment.report()
    deployment.env_file.write_text(f"TIDEGATE_SERVER__MAX_REQUESTS={max_requests}\n")
    deployment.changing.signal(signal.SIGUSR2)

    async def another_generation_serves_alone() -> bool:
        now = await deployment.report()
        serving = [worker["generation"] for worker in now["workers"] if worker["state"] == "ready"]
        return now["generation"] == before["generation"] + 1 and set(serving) == {now["generation"]}

    await eventually(another_generation_serves_alone, within_s=90, poll_s=0.2)
    after = await deployment.report()
    assert after["pid"] == before["pid"] == deployment.changing.pid
    assert len(await deployment.serving(after["generation"])) >= WORKERS


async def recycled(deployment: Deployment) -> None:
    """Worn workers, as the new env file says: others come, by themselves and in the same generation."""
    generation = (await deployment.report())["generation"]
    seen: set[int] = set()

    async def two_were_replaced() -> bool:
        workers = (await deployment.report())["workers"]
        seen.update(worker["pid"] for worker in workers if worker["generation"] == generation)
        return len(seen) >= WORKERS + 2 and {worker["generation"] for worker in workers} == {generation}

    await eventually(two_were_replaced, within_s=90, poll_s=0.2)
    assert (await deployment.report())["generation"] == generation
    assert len(await deployment.serving(generation)) >= WORKERS


async def entries_of(url: str) -> dict[str, list[tuple[Any, ...]]]:
    """What the ledger has of each label, besides the one request that was no part of the load."""
    asked = "SELECT request_id, outcome, status, input_tokens, output_tokens, usage_source FROM ledger_entries"
    database = await Database.open(url)
    found: dict[str, list[tuple[Any, ...]]] = {}
    try:
        async with database.session() as session:
            for label, *entry in await session.execute(text(f"{asked} WHERE request_id <> 'of-new'")):
                found.setdefault(label, []).append(tuple(entry))
    finally:
        await database.aclose()
    return found


@pytest.mark.timeout(600)
async def test_a_reload_a_replacement_recycling_and_a_stop_are_noticed_by_nobody(
    tmp_path: Path, postgres_url: str, redis_url: str, redis_prefix: str
) -> None:
    stores = {"database_url": postgres_url, "redis_url": redis_url, "redis_prefix": redis_prefix}
    async with Echoing() as upstream, deployed(tmp_path, upstream, stores) as deployment:
        ports = [deployment.changing.port, deployment.staying.port]
        async with (
            Nginx(tmp_path, ports) as nginx,
            UnbrokenLoad(Caller(nginx.base_url), streams=STREAMS) as load,
        ):
            await load.is_full()
            bearable = await load.bearable_rate()
            load.rate = min(FASTEST, max(SLOWEST, bearable / 2))
            sys.stdout.write(f"{load.rate:.0f} requests a second beside {STREAMS} streams; {bearable:.0f} are borne\n")
            load.phase = "reload"
            await reloaded(deployment, upstream)
            load.phase = "replacement"
            # Each worker is worn after some four seconds.
            await replaced(deployment, max_requests=max(20, int(load.rate)))
            load.phase = "recycling"
            await recycled(deployment)
            load.phase = "stop"
            assert await deployment.changing.stop() == 0
            load.phase = "one server"
            await load.goes_on(streams=20, short=10)
        assert load.faults == []
        assert load.ended[True] + load.ended[False] == len(load.asked) > 3 * STREAMS

        async def entries() -> dict[str, list[tuple[Any, ...]]]:
            found = await entries_of(postgres_url)
            return found if len(found) >= len(load.asked) else {}

        found = await eventually(entries, within_s=30, poll_s=0.2)
        right = {name: [("completed", 200, PROMPT_TOKENS, words, "provider")] for name, words in load.asked.items()}
        wrong = [(name, found.get(name)) for name in right | found if found.get(name) != right.get(name)]
        assert wrong == []
        await eventually(lambda: held_in_redis(redis_url, redis_prefix) == {}, within_s=30, poll_s=0.2)
        assert upstream.closed_early == []
        # The model was asked once for each, and for the one of the new catalogue.
        assert len(upstream.requests) == len(load.asked) + 1
        assert "[alert]" not in nginx.errors()

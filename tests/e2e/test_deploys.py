"""Deploys of the real gateway in production, under load: nothing is lost, whatever is replaced."""

import signal
from functools import partial
from pathlib import Path
from typing import Any

import orjson
import pytest
from sqlalchemy import text

from tests.support.behaviours import stalled
from tests.support.caller import Caller, catalogue_of, content
from tests.support.client import RawClient
from tests.support.server import GatewayPlan, GatewayProcess
from tests.support.steady_load import SteadyLoad
from tests.support.upstream import ScriptedUpstream
from tests.support.waiting import eventually
from tests.support.wire import Gate
from tidegate.server.control import ask_root
from tidegate.storage.database import Database


class Deployed:
    """A production plan on real stores, its catalogue and env file in files of the test's."""

    def __init__(self, folder: Path, request: pytest.FixtureRequest, upstream: ScriptedUpstream) -> None:
        self.catalogue = folder / "tidegate.toml"
        self.env_file = folder / "env"
        self._base_url = upstream.base_url
        self.write("m", "echo")
        self.env_file.write_text("TIDEGATE_LOG_LEVEL=warning\n")
        stores = {"database_url": "postgres_url", "redis_url": "redis_url", "redis_prefix": "redis_prefix"}
        self.stores: dict[str, Any] = {name: request.getfixturevalue(fixture) for name, fixture in stores.items()}

    def write(self, *models: str) -> None:
        upstreams = {"echo": {"provider": "echo"}, "plain": {"base_url": self._base_url, "count": "deltas"}}
        attempts = {model: "echo/echo" if model != "m" else "plain/m" for model in models}
        self.catalogue.write_text(catalogue_of(upstreams, attempts))

    def plan(self, *, workers: int = 2, drain_s: float = 20, **variables: str) -> GatewayPlan:
        files = {"TIDEGATE_CONFIG_TOML": "", "TIDEGATE_CONFIG": str(self.catalogue)}
        files |= {"TIDEGATE_ENV_FILE": str(self.env_file)}
        return GatewayPlan(
            catalogue="",
            workers=workers,
            environment="production",
            drain_s=drain_s,
            variables={**files, **variables},
            **self.stores,
        )


@pytest.fixture
def deployed(tmp_path: Path, request: pytest.FixtureRequest, upstream: ScriptedUpstream) -> Deployed:
    return Deployed(tmp_path, request, upstream)


def report(gateway: GatewayProcess) -> dict[str, Any]:
    told: dict[str, Any] = ask_root(gateway.data_dir, {"ask": "report"}, within_s=10)["done"]
    return told


def pids(gateway: GatewayProcess) -> set[int]:
    return {worker["pid"] for worker in report(gateway)["workers"]}


async def rows(url: str, statement: str) -> list[tuple[Any, ...]]:
    database = await Database.open(url)
    try:
        async with database.session() as session:
            return [tuple(row) for row in await session.execute(text(statement))]
    finally:
        await database.aclose()


async def test_reload_replacement_and_recycling_lose_nothing(
    tmp_path: Path, upstream: ScriptedUpstream, deployed: Deployed
) -> None:
    plan = deployed.plan(TIDEGATE_SERVER__MAX_REQUESTS="150")
    gate = Gate()
    async with GatewayProcess(tmp_path, plan) as gateway, RawClient(gateway.base_url) as stream:
        caller = Caller(gateway.base_url)
        await eventually(lambda: len(pids(gateway)) == 2, within_s=30)
        upstream.enqueue(stalled(after=2, at=gate))
        await caller.ask(stream, "stream")
        await stream.head()
        await content(stream)
        asked = 0

        async def ask(client: RawClient) -> None:
            nonlocal asked
            asked += 1
            await caller.ask(client, f"load-{asked}", model="echo", stream=False)

        async with SteadyLoad(gateway.base_url, ask) as load:
            deployed.write("m", "echo", "new")
            version = orjson.loads((await gateway.command("reload", "--json")).stdout)["version"]
            assert {worker["catalogue_version"] for worker in report(gateway)["workers"]} == {version}
            assert (await caller.chat("of-new", model="new")).is_done

            first = pids(gateway)
            await eventually(lambda: len(pids(gateway) - first) >= 1, within_s=40)

            deployed.env_file.write_text("TIDEGATE_LOG_LEVEL=info\n")
            gateway.signal(signal.SIGUSR2)
            await eventually(lambda: report(gateway)["generation"] == 2, within_s=60)
            second = {worker["pid"] for worker in report(gateway)["workers"] if worker["generation"] == 2}
            assert len(second) >= 2
            states = {worker["state"] for worker in report(gateway)["workers"] if worker["generation"] == 1}
            assert states <= {"retiring", "gone"}
            gate.open()
            assert (await stream.body()).endswith(b"[DONE]\n\n")
            stream.hang_up()
            await eventually(lambda: {worker["generation"] for worker in report(gateway)["workers"]} == {2})
        assert (load.faults, load.answered) == ([], asked)
        assert asked > 150
        assert gateway.exit_code is None
        audit = orjson.loads((await gateway.command("audit", "--action", "settings.reloaded", "--json")).stdout)
        assert [event["actor"]["kind"] for event in audit] == ["system", "command"]
        assert audit[1]["subject"]["name"] == str(deployed.catalogue)
    found = await rows(plan.database_url or "", "SELECT outcome, count(*) FROM ledger_entries GROUP BY outcome")
    assert found == [("completed", asked + 2)]


async def test_what_outlasts_the_drain_of_a_replaced_worker_is_told_and_settled(
    tmp_path: Path, upstream: ScriptedUpstream, deployed: Deployed
) -> None:
    plan = deployed.plan(workers=1, drain_s=0.5)
    async with GatewayProcess(tmp_path, plan) as gateway, RawClient(gateway.base_url) as stream:
        caller = Caller(gateway.base_url)
        upstream.enqueue(stalled(after=2))
        await caller.ask(stream, "cut")
        await stream.head()
        await content(stream)
        gateway.signal(signal.SIGUSR2)
        events = [event async for event in stream.events() if not event.is_comment]
        assert events[-1].json["error"]["code"] == "draining"
        assert not any(event.is_done for event in events)
        await eventually(partial(_has_left, gateway), within_s=20)
        entry = await caller.entry("cut")
        assert (entry["outcome"], entry["error_code"], entry["output_tokens"]) == ("interrupted", "draining", 2)


def _has_left(gateway: GatewayProcess) -> bool:
    return {worker["generation"] for worker in report(gateway)["workers"]} == {2}


async def test_a_release_whose_database_is_behind_does_not_come(
    tmp_path: Path, upstream: ScriptedUpstream, deployed: Deployed
) -> None:
    async with GatewayProcess(tmp_path, deployed.plan(workers=1)) as gateway:
        await rows_changed(gateway, "UPDATE alembic_version SET version_num = '0001'")
        before = pids(gateway)
        gateway.signal(signal.SIGUSR2)
        await eventually(lambda: "the new generation did not come" in gateway.output(), within_s=30)
        assert pids(gateway) == before
        assert "tidegate migrate" in gateway.output("stderr")
        assert (await Caller(gateway.base_url).chat("after", model="echo")).is_done


async def rows_changed(gateway: GatewayProcess, statement: str) -> None:
    database = await Database.open(gateway.plan.database_url or "")
    try:
        async with database.transaction() as session:
            await session.execute(text(statement))
    finally:
        await database.aclose()

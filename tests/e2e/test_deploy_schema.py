"""A deploy changes the schema first: the release before works on while it does, and again where it is taken back."""

from pathlib import Path

import pytest

from tests.support.caller import Caller
from tests.support.release_before import ReleaseBefore, release_before
from tests.support.server import ADMIN_EMAIL, ADMIN_PASSWORD, GatewayPlan, GatewayProcess
from tests.support.stand_in import ECHO
from tidegate.storage.migrate import migrate, pending


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return release_before(tmp_path_factory.mktemp("before"))


async def use(gateway: GatewayProcess, label: str) -> None:
    """A request by the key, settled; a log-in; and what it lists."""
    caller = Caller(gateway.base_url)
    reply = await caller.chat(label, model="echo")
    assert (reply.status, reply.is_done) == (200, True)
    assert (await caller.entry(label))["outcome"] == "completed"
    log_in = await caller.call("POST", "/auth/login", json={"email": ADMIN_EMAIL, "password": ADMIN_PASSWORD})
    assert log_in.status == 200, log_in.body
    signed_in = Caller(gateway.base_url, api_key=log_in.json["access_token"])
    assert label in {entry["request_id"] for entry in await signed_in.entries()}


async def test_the_release_before_works_on_while_the_schema_changes(
    database_url: str, tmp_path: Path, source: Path
) -> None:
    before = ReleaseBefore(tmp_path, plan_on(database_url), source)
    before.migrate()
    missing = await pending(database_url)
    assert missing
    async with before:
        await use(before, "as-it-was")
        assert await migrate(database_url) == missing
        await use(before, "under-way")
    after = GatewayProcess(tmp_path, plan_on(database_url))
    async with after:
        await use(after, "deployed")
        labels = [entry["request_id"] for entry in await Caller(after.base_url).entries()]
    assert labels == ["deployed", "under-way", "as-it-was"]
    assert_calm(before, after)


async def test_a_deploy_is_taken_back_by_starting_the_release_before(
    postgres_url: str, tmp_path: Path, source: Path
) -> None:
    await migrate(postgres_url)
    before = ReleaseBefore(tmp_path, plan_on(postgres_url), source)
    assert before.is_that_release()
    async with before:
        await use(before, "taken-back")
    assert_calm(before)


def plan_on(database_url: str) -> GatewayPlan:
    # By its variable: the plan's own field would be migrated by the present code.
    return GatewayPlan(catalogue=ECHO, environment="production", variables={"TIDEGATE_DATABASE__URL": database_url})


def assert_calm(*gateways: GatewayProcess) -> None:
    lines = [line for gateway in gateways for line in gateway.lines()]
    assert not [line for line in lines if line["level"] in ("error", "critical")]

"""A revoked key is refused by every worker within a second of being told, whatever becomes of the telling."""

import asyncio
import itertools
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from pydantic import SecretStr

from tests.support.caller import Caller
from tests.support.server import _SECRETS as SECRETS_OF_GATEWAYS
from tests.support.server import GatewayPlan, GatewayProcess
from tests.support.stand_in import ECHO
from tests.support.subscriptions import kill_subscriptions
from tests.support.waiting import eventually
from tidegate.accounts.keys import ApiKeys, CreatedKey
from tidegate.accounts.schemas import NewKey
from tidegate.auth.keyring import Keyring
from tidegate.settings import RedisSettings, Settings
from tidegate.storage.changes import Changes, key_topic
from tidegate.storage.database import Database

WITHIN_S = 1.0
# For so long after that every answer must be a refusal: an older look-up would last 30 s.
LOOKED_AT_S = 2.0
CALLERS = 6


@dataclass(frozen=True)
class Answer:
    label: str
    sent_at: float
    status: int


class Workers:
    """Two workers of gunicorn, one key, and its callers."""

    def __init__(self, gateway: GatewayProcess, database: Database, changes: Changes, key: CreatedKey) -> None:
        self.gateway = gateway
        self.keys = _keys(database)
        self.changes = changes
        self.key = key
        self._caller = Caller(gateway.base_url, key.secret)
        self._labels = (f"r-{n}" for n in itertools.count())

    async def ask(self) -> Answer:
        label, sent_at = next(self._labels), time.monotonic()
        reply = await self._caller.call("GET", "/v1/models", headers={"x-request-id": label})
        return Answer(label, sent_at, reply.status)

    async def ask_until(self, when: float) -> list[Answer]:
        """Asks on, several at once, until `when`."""

        async def asking() -> list[Answer]:
            answers = []
            while time.monotonic() < when:
                answers.append(await self.ask())
            return answers

        return [answer for each in await asyncio.gather(*(asking() for _ in range(CALLERS))) for answer in each]

    async def known_to_both(self) -> None:
        async def both_have_served() -> bool:
            answers = await asyncio.gather(*(self.ask() for _ in range(CALLERS)))
            assert {answer.status for answer in answers} == {200}
            return len(self.pids_of(200)) == 2

        await eventually(both_have_served, within_s=60)

    def pids_of(self, status: int) -> set[int]:
        """The workers that gave this answer, by their access lines."""
        lines = self.gateway.lines()
        return {line["pid"] for line in lines if line.get("status") == status and line.get("path") == "/v1/models"}


def _keys(database: Database) -> ApiKeys:
    kid, _, secret = SECRETS_OF_GATEWAYS["TIDEGATE_AUTH__API_KEY_PEPPERS"].partition(":")
    return ApiKeys(database, Keyring({kid: secret.encode()}))


@asynccontextmanager
async def two_workers(folder: Path, stores: dict[str, str]) -> AsyncIterator[Workers]:
    plan = GatewayPlan(
        catalogue=ECHO,
        workers=2,
        environment="production",
        database_url=stores["database_url"],
        redis_url=stores["redis_url"],
        redis_prefix=stores["redis_prefix"],
    )
    redis = RedisSettings(url=SecretStr(stores["redis_url"]), key_prefix=stores["redis_prefix"])
    async with GatewayProcess(folder, plan) as gateway:
        database = await Database.open(stores["database_url"])
        try:
            key = await _keys(database).create(NewKey(name="to be revoked"))
            async with Changes.publishing(Settings(environment="test", redis=redis)) as changes:
                workers = Workers(gateway, database, changes, key)
                await workers.known_to_both()
                yield workers
        finally:
            await database.aclose()


@pytest.fixture
def stores(postgres_url: str, redis_url: str, redis_prefix: str) -> dict[str, str]:
    return {"database_url": postgres_url, "redis_url": redis_url, "redis_prefix": redis_prefix}


@pytest.mark.parametrize("telling", ["is heard", "comes just after a loss", "is lost with the subscriptions"])
async def test_a_revoked_key_is_refused_by_every_worker_within_a_second(
    tmp_path: Path, stores: dict[str, str], telling: str
) -> None:
    async with two_workers(tmp_path, stores) as workers:
        if telling == "comes just after a loss":
            assert await kill_subscriptions(stores["redis_url"], stores["redis_prefix"]) == 2
        await workers.keys.revoke(workers.key.prefix)
        if telling == "is lost with the subscriptions":
            # Nobody tells them anything: that they may have missed something must do.
            assert await kill_subscriptions(stores["redis_url"], stores["redis_prefix"]) == 2
        else:
            await workers.changes.tell(key_topic(workers.key.id))
        told_at = time.monotonic()
        answers = await workers.ask_until(told_at + WITHIN_S + LOOKED_AT_S)
        late = [answer for answer in answers if answer.sent_at >= told_at + WITHIN_S]
        assert {answer.status for answer in late} == {401}
        await eventually(lambda: workers.pids_of(401) == workers.pids_of(200))


@pytest.mark.parametrize("command", ["revoke", "rotate"])
async def test_a_command_ends_a_key_in_every_worker_within_a_second(
    tmp_path: Path, stores: dict[str, str], command: str
) -> None:
    async with two_workers(tmp_path, stores) as workers:
        asking = asyncio.create_task(workers.ask_until(time.monotonic() + 60))
        done = await workers.gateway.command("keys", command, workers.key.prefix, "--json")
        ended_at = time.monotonic()
        assert json.loads(done.stdout)["id"] == str(workers.key.id)
        answers = await workers.ask_until(ended_at + WITHIN_S + LOOKED_AT_S)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        late = [answer for answer in answers if answer.sent_at >= ended_at + WITHIN_S]
        assert {answer.status for answer in late} == {401}
        await eventually(lambda: workers.pids_of(401) == workers.pids_of(200))


async def test_a_key_in_use_goes_on_through_the_loss_of_every_subscription(
    tmp_path: Path, stores: dict[str, str]
) -> None:
    async with two_workers(tmp_path, stores) as workers:
        asking = asyncio.create_task(workers.ask_until(time.monotonic() + 2))
        for _ in range(5):
            await kill_subscriptions(stores["redis_url"], stores["redis_prefix"])
        assert {answer.status for answer in await asking} == {200}

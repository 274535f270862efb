"""A revoked key is refused by every worker within a second of being told, whatever becomes of the telling."""

import asyncio
import itertools
import json
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from pydantic import SecretStr

from tests.support import services
from tests.support.caller import Caller
from tests.support.server import _SECRETS as SECRETS_OF_GATEWAYS
from tests.support.server import GatewayPlan, GatewayProcess
from tests.support.services import Service
from tests.support.stand_in import ECHO
from tests.support.subscriptions import kill_subscriptions
from tests.support.waiting import eventually
from tidegate.accounts.api_keys.keys import ApiKeys, CreatedKey
from tidegate.accounts.schemas import NewKey
from tidegate.auth.keyring import Keyring
from tidegate.settings import Settings
from tidegate.settings.groups import RedisSettings
from tidegate.storage.changes import Changes, key_topic
from tidegate.storage.database import Database

WITHIN_S = 1.0
# For so long after that every answer must be a refusal: an older look-up would last 30 s.
LOOKED_AT_S = 2.0
CALLERS = 6
# How long each of them waits between an answer and its next request: at full speed they only keep the machine busy.
PACE_S = 0.04


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
        self._labels = (f"{key.prefix}-{n}" for n in itertools.count())
        self._since = len(gateway.lines())

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
                await asyncio.sleep(PACE_S)
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
        lines = self.gateway.lines()[self._since :]
        return {line["pid"] for line in lines if line.get("status") == status and line.get("path") == "/v1/models"}


def _keys(database: Database) -> ApiKeys:
    kid, _, secret = SECRETS_OF_GATEWAYS["TIDEGATE_AUTH__API_KEY_PEPPERS"].partition(":")
    return ApiKeys(database, Keyring({kid: secret.encode()}))


@dataclass(frozen=True)
class Served:
    """One gateway for all of this file: each test has a key of its own."""

    gateway: GatewayProcess
    stores: dict[str, Any]

    @asynccontextmanager
    async def workers(self) -> AsyncIterator[Workers]:
        redis = RedisSettings(url=SecretStr(self.stores["redis_url"]), key_prefix=self.stores["redis_prefix"])
        database = await Database.open(self.stores["database_url"])
        try:
            key = await _keys(database).create(NewKey(name="to be revoked"))
            async with Changes.publishing(Settings(environment="test", redis=redis)) as changes:
                workers = Workers(self.gateway, database, changes, key)
                await workers.known_to_both()
                yield workers
        finally:
            await database.aclose()


@pytest.fixture(scope="module")
def stores(postgres_service: Service, redis_service: Service) -> Iterator[dict[str, Any]]:
    database_url = services.create_database(postgres_service)
    url, prefix = services.redis_url(redis_service), database_url.rpartition("/")[2].replace("_", "-")
    try:
        yield {"database_url": database_url, "redis_url": url, "redis_prefix": prefix}
    finally:
        services.drop_database(postgres_service, database_url)
        services.delete_keys(url, prefix)


@pytest.fixture(scope="module")
async def served(tmp_path_factory: pytest.TempPathFactory, stores: dict[str, Any]) -> AsyncIterator[Served]:
    plan = GatewayPlan(catalogue=ECHO, workers=2, environment="production", **stores)
    async with GatewayProcess(tmp_path_factory.mktemp("revocation"), plan) as gateway:
        yield Served(gateway, stores)


@pytest.mark.parametrize("telling", ["is heard", "comes just after a loss", "is lost with the subscriptions"])
async def test_a_revoked_key_is_refused_by_every_worker_within_a_second(
    served: Served, stores: dict[str, Any], telling: str
) -> None:
    async with served.workers() as workers:
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
async def test_a_command_ends_a_key_in_every_worker_within_a_second(served: Served, command: str) -> None:
    async with served.workers() as workers:
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
    served: Served, stores: dict[str, Any]
) -> None:
    async with served.workers() as workers:
        asking = asyncio.create_task(workers.ask_until(time.monotonic() + 2))
        for _ in range(5):
            await kill_subscriptions(stores["redis_url"], stores["redis_prefix"])
        assert {answer.status for answer in await asking} == {200}

"""Two workers on a Redis Cluster: they serve, share their limits, and hear of revoked keys; also when a master dies."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from pydantic import SecretStr

from tests.support import services
from tests.support.behaviours import Completion, Usage
from tests.support.caller import catalogue_of
from tests.support.limited import LimitedGateway, LimitedKey, a_meter
from tests.support.own_cluster import OwnCluster
from tests.support.server import _SECRETS as SECRETS_OF_GATEWAYS
from tests.support.server import GatewayPlan
from tests.support.services import Service
from tests.support.upstream import ScriptedUpstream
from tests.support.waiting import eventually
from tidegate.accounts.api_keys.keys import ApiKeys
from tidegate.accounts.schemas import NewKey
from tidegate.auth.keyring import Keyring
from tidegate.settings import Settings
from tidegate.settings.groups import RedisSettings
from tidegate.storage.changes import Changes, key_topic


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[OwnCluster]:
    folder = tmp_path / "cluster"
    folder.mkdir()
    with OwnCluster.started(folder, replicas=1) as cluster:
        yield cluster


@pytest.fixture
def database_url(postgres_service: Service) -> Iterator[str]:
    url = services.create_database(postgres_service)
    yield url
    services.drop_database(postgres_service, url)


@pytest.fixture
async def gateway(cluster: OwnCluster, database_url: str, tmp_path: Path) -> AsyncIterator[LimitedGateway]:
    folder = tmp_path / "gateway"
    folder.mkdir()
    async with ScriptedUpstream() as upstream:
        upstream.default = Completion(usage=Usage(completion=5))
        catalogue = catalogue_of(
            {"plain": {"base_url": upstream.base_url, "count": "deltas", "breaker": "off", "max_concurrency": 500}},
            {"m": {"attempts": ["plain/m"], "price": {"input": "1.00", "output": "1000.00"}}},
        )
        plan = GatewayPlan(
            catalogue=catalogue,
            workers=2,
            database_url=database_url,
            redis_url=cluster.url,
            variables={"TIDEGATE_REDIS__CLUSTER": "true"},
        )
        async with LimitedGateway.running(folder, plan) as running:
            yield running


async def revoked_keys_are_refused(gateway: LimitedGateway, cluster: OwnCluster) -> None:
    """By both workers, within a second."""
    kid, _, pepper = SECRETS_OF_GATEWAYS["TIDEGATE_AUTH__API_KEY_PEPPERS"].partition(":")
    keys = ApiKeys(gateway.database, Keyring({kid: pepper.encode()}))
    created = await keys.create(NewKey(name="to be revoked"))
    revoked = LimitedKey(created.id, created.secret)
    assert {one.status for one in await gateway.ask_at_once(revoked, 20)} == {200}
    redis = RedisSettings(url=SecretStr(cluster.url), cluster=True)
    async with Changes.publishing(Settings(environment="test", redis=redis)) as changes:
        await keys.revoke(created.prefix)
        await changes.tell(key_topic(created.id))
    told_at = time.monotonic()
    answers = []
    while time.monotonic() < told_at + 2:
        is_late = time.monotonic() >= told_at + 1
        asked = await gateway.ask_at_once(revoked, 6)
        answers += asked if is_late else []
    assert {one.status for one in answers} == {401}


async def test_two_workers_share_limits_and_hear_of_revoked_keys_and_a_dead_master_is_no_500(
    gateway: LimitedGateway, cluster: OwnCluster
) -> None:
    key = await gateway.key(a_meter("requests", 10, "minute"))
    answers = await gateway.ask_at_once(key, 40)
    assert Counter(one.status for one in answers) == {200: 10, 429: 30}

    spender = await gateway.key(a_meter("cost", "0.06", "total"))
    answers = await gateway.ask_at_once(spender, 60)
    assert {one.status for one in answers} == {200, 429}

    await revoked_keys_are_refused(gateway, cluster)
    names = [name for node in cluster.masters for name in node.client.scan_iter(count=1000)]
    # Whatever was written, by whichever part: each key has its tag.
    assert names
    assert [name for name in names if not name.startswith(b"tidegate:{")] == []

    free = await gateway.key()
    dead = cluster.masters[1]
    seen: Counter[int] = Counter()
    cluster.kill(dead)
    until = time.monotonic() + 12
    while time.monotonic() < until:
        seen.update(one.status for one in await gateway.ask_at_once(free, 6))
        await asyncio.sleep(0.1)
    assert set(seen) <= {200, 429, 503}, seen
    assert seen[200] > 0

    async def is_whole() -> bool:
        return cluster.is_well() and (await gateway.ask(free)).status == 200

    await eventually(is_whole, within_s=30)
    # What was spent is still known: it is seeded from the ledger at the new master.

    async def spender_is_refused() -> bool:
        return {one.status for one in await gateway.ask_at_once(spender, 10)} == {429}

    await eventually(spender_is_refused, within_s=30, poll_s=0.3)
    fresh = await gateway.key(a_meter("requests", 10, "minute"))
    answers = await gateway.ask_at_once(fresh, 40)
    assert Counter(one.status for one in answers) == {200: 10, 429: 30}

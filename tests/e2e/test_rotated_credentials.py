"""Passwords of PostgreSQL and Redis change under a gateway of production: no restart, no refusal, nothing blocked."""

from collections.abc import Iterator
from pathlib import Path

import asyncpg  # type: ignore[import-untyped]
import httpx2
import orjson
import psutil
import pytest
import redis as redis_client

from tests.support.own_postgres import OwnPostgres
from tests.support.own_redis import OwnRedis
from tests.support.server import GatewayPlan, GatewayProcess
from tests.support.services import LOOPBACK, ServiceUnavailable
from tests.support.waiting import eventually

CATALOGUE = """
[upstreams.echo]
provider = "echo"
[upstreams.vllm]
provider = "openai"
base_url = "http://vllm.internal:8000/v1"
[[models]]
name = "echo"
attempts = ["echo/echo", "vllm/echo"]
"""
ACCESS = f"host all rotating {LOOPBACK}/32 scram-sha-256"
# It waits until they are gone.
_LET_GO = "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE usename = 'rotating'"
FIRST, SECOND, THIRD = "first-Kq7Zr2Xw9Lm4", "second-Tn8Vb3HcPd6", "third-Yw5Jf8Rg1Ns"


class Stores:
    """What they take, and the files in which that stands."""

    def __init__(self, folder: Path, postgres: OwnPostgres, redis: OwnRedis) -> None:
        self.files = {"TIDEGATE_DATABASE": folder / "database", "TIDEGATE_REDIS": folder / "redis"}
        self._postgres = postgres
        self._redis = redis

    @property
    def variables(self) -> dict[str, str]:
        return {
            "TIDEGATE_DATABASE__URL": f"postgresql+asyncpg://rotating@{LOOPBACK}:{self._postgres.port}/postgres",
            "TIDEGATE_REDIS__URL": f"redis://rotating@{LOOPBACK}:{self._redis.port}/0",
            **{f"{name}__PASSWORD_FILE": str(path) for name, path in self.files.items()},
        }

    def tell(self, password: str) -> None:
        """As a vault's agent does."""
        for path in self.files.values():
            new = path.with_suffix(".new")
            new.touch(mode=0o600)
            new.write_text(password)
            new.replace(path)

    async def take(self, password: str, *, database_alone: bool = False) -> None:
        """From now on, and everybody has to log in again."""
        connection = await asyncpg.connect(f"postgresql://postgres@{LOOPBACK}:{self._postgres.port}/postgres")
        try:
            if await connection.fetchval("SELECT 1 FROM pg_roles WHERE rolname = 'rotating'") is None:
                await connection.execute("CREATE ROLE rotating LOGIN SUPERUSER")
            await connection.execute(f"ALTER ROLE rotating PASSWORD '{password}'")
            await connection.execute(
                "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE usename = 'rotating'"
            )
        finally:
            await connection.close()
        if database_alone:
            return
        with redis_client.Redis(LOOPBACK, self._redis.port) as admin:
            # To delete a user ends its connections.
            admin.acl_deluser("rotating")
            everything = {"keys": ["*"], "channels": ["*"], "categories": ["+@all"]}
            admin.acl_setuser("rotating", enabled=True, passwords=[f"+{password}"], **everything)


@pytest.fixture
def stores(tmp_path: Path) -> Iterator[Stores]:
    try:
        with OwnPostgres.started(ACCESS) as postgres, OwnRedis.started(tmp_path / "redis-server") as redis:
            yield Stores(tmp_path, postgres, redis)
    except ServiceUnavailable as error:
        pytest.skip(str(error))


async def test_passwords_change_and_the_gateway_serves_on(tmp_path: Path, stores: Stores) -> None:
    stores.tell(FIRST)
    await stores.take(FIRST)
    # The database's URL is no part of the plan: that would be migrated past the command.
    plan = GatewayPlan(catalogue=CATALOGUE, workers=2, environment="production", variables=stores.variables)
    gateway = GatewayProcess(tmp_path, plan)
    applied = await gateway.command("migrate", "--json")
    assert orjson.loads(applied.stdout)["applied"]
    # None is kept of a worker that ends.
    limits = httpx2.Limits(max_keepalive_connections=0)
    async with gateway, httpx2.AsyncClient(base_url=gateway.base_url, trust_env=False, limits=limits) as client:

        async def is_well() -> bool:
            answer = (await client.get("/health")).json()
            return all(check["status"] == "ok" for check in answer["checks"].values()) and not answer.get("degraded")

        async def answer() -> httpx2.Response:
            body = {"model": "echo", "messages": [{"role": "user", "content": "hello"}]}
            headers = {"authorization": f"Bearer {gateway.api_key}"}
            return await client.post("/v1/chat/completions", json=body, headers=headers)

        def begun() -> list[int]:
            return [line["pid"] for line in gateway.lines() if line["event"] == "Application startup complete."]

        async def answered() -> bool:
            return (await answer()).status_code == 200

        await eventually(lambda: len(begun()) == 2, within_s=30)
        await eventually(is_well, within_s=30)
        before = {process.pid for process in gateway.tree()}
        stores.tell(SECOND)
        await stores.take(SECOND)
        assert (await answer()).status_code == 200
        await eventually(is_well, within_s=30)
        assert (await answer()).status_code == 200
        # A connection of its own: the command's.
        listed = await gateway.command("workspaces", "list", "--json")
        assert len(orjson.loads(listed.stdout)) == 1
        assert {process.pid for process in gateway.tree()} == before
        # Between the two changes a worker ends: the one in its place begins without a database.
        await stores.take(THIRD, database_alone=True)
        psutil.Process(begun()[0]).kill()
        await eventually(lambda: len(begun()) == 3, within_s=30)
        assert gateway.exit_code is None
        stores.tell(THIRD)
        await stores.take(THIRD)
        await eventually(is_well, within_s=30)
        await eventually(answered, within_s=30)
        told = [line["event"] for line in gateway.lines() if line["level"] in ("warning", "error")]
    assert "password_file_unusable" not in told
    open_ones = [event for event in told if "in the clear" in event]
    assert len(open_ones) == 1
    assert "upstreams.vllm.base_url (vllm.internal)" in open_ones[0]
    assert "TIDEGATE" not in open_ones[0]
    assert not [secret for secret in (FIRST, SECOND, THIRD) if secret in gateway.output()]

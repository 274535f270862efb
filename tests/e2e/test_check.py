"""`tidegate check` on real servers: 25 of 25 in production, and what is broken there is named."""

import asyncio
import shutil
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg  # type: ignore[import-untyped]
import orjson
import pytest
import redis as redis_client

from tests.support.own_redis import OwnRedis
from tests.support.server import GatewayPlan, GatewayProcess
from tests.support.stand_in import ECHO
from tests.support.waiting import NeverHappened, eventually

ORIGIN = "https://app.example.com"
# `echo` costs nothing; the real one is never called.
CATALOGUE = (
    ECHO
    + """
[upstreams.far]
provider = "openai"
base_url = "http://127.0.0.1:9/v1"
api_key = "env:UPSTREAM_KEY"
[[models]]
name = "far"
attempts = ["far/m"]
"""
)
needs_redis = pytest.mark.skipif(
    not (shutil.which("redis-server") or shutil.which("valkey-server")), reason="no Redis of its own on PATH"
)


class Checked:
    """One run of the command."""

    def __init__(self, code: int, told: dict[str, Any]) -> None:
        self.code = code
        self.told = told
        self.items = {item["id"]: item for item in told["items"]}
        self.faulty = {item["id"]: item["verdict"] for item in told["items"] if item["verdict"] != "pass"}

    def evidence(self, item: str) -> str:
        evidence: str = self.items[item]["evidence"]
        return evidence


async def checked(gateway: GatewayProcess, *arguments: str, key: bool = True) -> Checked:
    path = gateway.folder / "key"
    path.write_text(gateway.api_key + "\n")
    named = ("--key-file", str(path)) if key else ()
    done = await gateway.command("check", "--json", *named, *arguments, check=False)
    assert done.stdout, done.stderr
    assert gateway.api_key not in done.stdout + done.stderr
    return Checked(done.returncode, orjson.loads(done.stdout))


async def faulty_is(gateway: GatewayProcess, expected: dict[str, str]) -> Checked:
    """A run in which these alone are no pass. A machine that starves a loop for half a second is asked again."""
    last: list[Checked] = []

    async def is_so() -> bool:
        last.append(await checked(gateway))
        return last[-1].faulty == expected

    try:
        await eventually(is_so, within_s=150, poll_s=2)
    except NeverHappened:
        raise AssertionError({item: last[-1].items[item] for item in last[-1].faulty}) from None
    return last[-1]


@asynccontextmanager
async def in_production(folder: Path, postgres_url: str, redis_prefix: str) -> AsyncIterator[tuple[Any, OwnRedis]]:
    plan: dict[str, Any] = {
        "environment": "production",
        "workers": 3,
        "database_url": postgres_url,
        "redis_prefix": redis_prefix,
        "variables": {"TIDEGATE_HTTP__CORS_ORIGINS": ORIGIN, "TIDEGATE_HTTP__TRUSTED_PROXIES": "10.0.0.0/8"},
    }
    with OwnRedis.started(folder / "redis") as redis:
        gateway = GatewayProcess(folder, GatewayPlan(catalogue=CATALOGUE, redis_url=redis.url, **plan))
        async with gateway:
            yield gateway, redis


async def execute(url: str, statement: str) -> None:
    connection = await asyncpg.connect(url.replace("+asyncpg", ""), timeout=10)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


@needs_redis
async def test_production_passes_25_of_25_and_what_is_broken_there_is_named(
    tmp_path: Path, postgres_url: str, redis_prefix: str
) -> None:
    async with in_production(tmp_path, postgres_url, redis_prefix) as (gateway, redis):
        whole = await faulty_is(gateway, {})
        assert (whole.code, whole.told["passed"], whole.told["workers"]) == (0, 25, 3)
        assert (whole.told["environment"], whole.told["settings_differ_in"]) == ("production", [])
        assert list(whole.items) == [f"{section}.{item}" for section in range(1, 6) for item in range(1, 6)]
        assert "3 workers x (5 + 5) x 2 = 60" in whole.evidence("2.2")
        assert "3 workers by one Redis" in whole.evidence("3.4")
        assert whole.evidence("4.1").startswith("live")
        assert whole.evidence("4.5").startswith("live")
        assert "postgresql by asyncpg" in whole.evidence("2.1")
        assert ORIGIN in whole.evidence("3.1")
        assert "under gunicorn" in whole.evidence("5.1")
        # Without a key the ledger says it.
        read = await checked(gateway, key=False)
        assert read.evidence("4.1").startswith("read from the ledger")
        assert read.evidence("4.5").startswith("read from the ledger")

        await execute(postgres_url, "UPDATE alembic_version SET version_num = '0001'")
        behind = await faulty_is(gateway, {"2.3": "fail"})
        assert behind.code == 1
        assert "run tidegate migrate" in behind.evidence("2.3")
        head = whole.evidence("2.3").split()[2].strip(",")
        await execute(postgres_url, f"UPDATE alembic_version SET version_num = '{head}'")

        with redis_client.Redis.from_url(redis.url) as client:
            client.config_set("maxmemory-policy", "allkeys-lru")
            evicting = await faulty_is(gateway, {"3.4": "fail"})
            assert "allkeys-lru" in evicting.evidence("3.4")
            client.config_set("maxmemory-policy", "noeviction")

        first, *_ = [process for process in gateway.tree() if process.cmdline()[:1] == ["tidegate: worker"]]
        first.send_signal(signal.SIGSTOP)
        try:
            held = await checked(gateway)
        finally:
            first.send_signal(signal.SIGCONT)
        assert held.items["2.4"]["verdict"] == "fail"
        assert f"worker {first.pid} did not answer" in held.evidence("2.4")
        assert held.items["5.1"]["verdict"] == "fail"

        redis.kill()
        lost = await checked(gateway)
        assert {"2.5", "3.4", "5.3"} <= set(lost.faulty)
        assert "lost Redis" in lost.evidence("3.4")
        redis.start()


async def test_a_server_of_development_is_told_what_production_lacks(tmp_path: Path) -> None:
    variables = {
        "TIDEGATE_HTTP__CORS_ORIGINS": "*",
        "TIDEGATE_HTTP__TRUSTED_PROXIES": "*",
        "TIDEGATE_AUTH__JWT_KEYS": "short:Kq7Zr2Xw9Lm4Tn8Vb3Hc5Jd1Pf6Ry0Gs",
    }
    async with GatewayProcess(tmp_path, GatewayPlan(catalogue=CATALOGUE, variables=variables)) as gateway:
        expected = {"2.2": "not_applicable", "2.5": "partial", "3.1": "fail", "3.2": "fail", "3.5": "fail"}
        expected |= {"5.1": "partial", "5.2": "fail"}
        found = await faulty_is(gateway, expected)
        assert found.code == 1
        assert "TIDEGATE_HTTP__TRUSTED_PROXIES" in found.evidence("5.2")
        shown = await gateway.command("check", check=False)
        assert shown.returncode == 1
        assert shown.stdout.startswith("test, version ")
        assert "3 Security: " in shown.stdout
        assert "\x1b[" not in shown.stdout
        for secret in (gateway.api_key, gateway.admin_password, "Kq7Zr2Xw9Lm4Tn8Vb3Hc5Jd1Pf6Ry0Gs"):
            assert secret not in shown.stdout + shown.stderr + str(found.told)
        other = await checked(gateway, "--model", "far")
        assert other.faulty["4.1"] == "unknown"
        assert "502" in other.evidence("4.1")


async def test_without_a_server_it_says_what_to_do(tmp_path: Path) -> None:
    gateway = GatewayProcess(tmp_path, GatewayPlan(catalogue=CATALOGUE))
    done = await asyncio.wait_for(gateway.command("check", check=False), 60)
    assert (done.returncode, done.stdout) == (1, "")
    assert "start it (tidegate serve)" in done.stderr
    done = await gateway.command("check", "--model", "echo", check=False)
    assert (done.returncode, "--key-file" in done.stderr) == (2, True)

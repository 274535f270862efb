"""The real gateway's start: the banner of development, the silence of the others, the lines of production."""

import shlex
import signal
from pathlib import Path

import orjson

from tests.support.client import RawClient
from tests.support.server import GatewayPlan, GatewayProcess
from tests.support.stand_in import ECHO, not_started
from tests.support.waiting import eventually

# What the banner is for: nothing given, everything made up. An empty variable counts as absent.
_NOTHING_GIVEN = {f"TIDEGATE_BOOTSTRAP__{name}": "" for name in ("ADMIN_EMAIL", "ADMIN_PASSWORD", "API_KEY")}


def development() -> GatewayPlan:
    return GatewayPlan(catalogue=ECHO, environment="development", variables=_NOTHING_GIVEN, cold=True)


def curl_line(printed: str) -> list[str]:
    (line,) = [line for line in printed.splitlines() if line.startswith("curl ")]
    return shlex.split(line)


async def test_development_prints_what_was_made_once_and_a_line_that_streams(tmp_path: Path) -> None:
    async with not_started(GatewayProcess(tmp_path, development())) as gateway:
        await gateway.start()
        await eventually(lambda: "curl -N" in gateway.output())
        printed = gateway.output("stdout")
        key = (gateway.data_dir / "first-key").read_text().strip()
        assert printed.count(key) == 1
        assert f"{gateway.base_url}/v1" in printed
        assert "admin@" in printed
        command = curl_line(printed)
        assert command[:3] == ["curl", "-N", f"{gateway.base_url}/v1/chat/completions"]
        assert command[4] == f"Authorization: Bearer $(cat {gateway.data_dir}/first-key)"
        async with RawClient(gateway.base_url) as client:
            headers = {"authorization": f"Bearer {key}"}
            await client.send("POST", "/v1/chat/completions", headers=headers, json=orjson.loads(command[-1]))
            assert (await client.head()).status == 200
            contents = [event.content async for event in client.events()]
        assert len([content for content in contents if content]) > 3
        assert await gateway.stop() == 0
        await _a_second_start_shows_no_secret(gateway, key, len(printed))


async def _a_second_start_shows_no_secret(gateway: GatewayProcess, key: str, shown: int) -> None:
    await gateway.start()
    await eventually(lambda: gateway.output("stdout").count("curl -N") == 2)
    printed = gateway.output("stdout")[shown:]
    assert key not in printed
    assert "password" not in printed
    assert gateway.base_url in printed
    assert await gateway.stop() == 0


async def test_what_was_given_is_never_printed(tmp_path: Path) -> None:
    async with GatewayProcess(tmp_path, GatewayPlan(catalogue=ECHO, environment="development")) as gateway:
        await eventually(lambda: "curl -N" in gateway.output())
        printed = gateway.output()
        assert gateway.api_key not in printed
        assert gateway.admin_password not in printed
        assert "Bearer YOUR_KEY" in printed


async def test_the_test_environment_prints_no_banner(tmp_path: Path) -> None:
    async with GatewayProcess(tmp_path, GatewayPlan(catalogue=ECHO, variables=_NOTHING_GIVEN)) as gateway:
        await eventually(lambda: any(line["event"] == "ready" for line in gateway.lines()))
        assert "curl" not in gateway.output()
        assert (gateway.data_dir / "first-key").read_text().strip() not in gateway.output()


async def test_production_speaks_json_alone_and_serves_under_gunicorn(
    tmp_path: Path, postgres_url: str, redis_url: str, redis_prefix: str
) -> None:
    plan = GatewayPlan(
        catalogue=ECHO,
        workers=2,
        environment="production",
        database_url=postgres_url,
        redis_url=redis_url,
        redis_prefix=redis_prefix,
        cold=True,
    )
    async with GatewayProcess(tmp_path, plan) as gateway:
        async with RawClient(gateway.base_url) as client:
            body = {"model": "echo", "messages": [{"role": "user", "content": "high tide"}]}
            headers = {"authorization": f"Bearer {gateway.api_key}"}
            await client.send("POST", "/v1/chat/completions", headers=headers, json=body)
            assert (await client.head()).status == 200
            assert b"high tide" in await client.body()
        gateway.signal(signal.SIGTERM)
        assert await gateway.ended() == 0
    lines = [orjson.loads(line) for line in gateway.output().splitlines() if line]
    assert {line["process"] for line in lines} == {"root", "prepare", "arbiter", "worker"}
    assert any(line["logger"] == "gunicorn.error" for line in lines)
    assert all({"ts", "level", "event", "logger", "process", "pid"} <= line.keys() for line in lines)

"""The gateway as a process: it starts, answers, stops, is killed and starts again, and leaves nothing behind."""

import signal
from pathlib import Path

import psutil
import pytest

from tests.support.client import RawClient
from tests.support.server import GatewayPlan, GatewayProcess, answers, catalogue
from tests.support.upstream import ScriptedUpstream


async def _says(gateway: GatewayProcess) -> str:
    body = {"model": "echo", "stream": True, "messages": [{"role": "user", "content": "one two three"}]}
    async with RawClient(gateway.base_url) as client:
        headers = {"authorization": f"Bearer {gateway.api_key}"}
        await client.send("POST", "/v1/chat/completions", json=body, headers=headers)
        head = await client.head()
        assert head.status == 200, await client.body()
        return "".join([event.content async for event in client.events()])


async def test_one_worker_starts_answers_and_stops(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    async with GatewayProcess(tmp_path, GatewayPlan(catalogue=catalogue(upstream.base_url, ["echo"]))) as gateway:
        assert await _says(gateway) == "one two three"
        assert gateway.pid in [process.pid for process in gateway.tree()]
        assert await gateway.stop() == 0
        assert gateway.tree() == []
    assert any(line.get("level") for line in gateway.lines())


async def test_workers_on_postgresql_and_redis(
    tmp_path: Path, upstream: ScriptedUpstream, postgres_url: str, redis_url: str, redis_prefix: str
) -> None:
    plan = GatewayPlan(
        catalogue=catalogue(upstream.base_url, ["echo"]),
        environment="production",
        workers=2,
        database_url=postgres_url,
        redis_url=redis_url,
        redis_prefix=redis_prefix,
    )
    async with GatewayProcess(tmp_path, plan) as gateway:
        assert await _says(gateway) == "one two three"
        titles = [" ".join(process.cmdline()) for process in gateway.tree()]
        assert sum("worker" in title for title in titles) == 2
        assert await gateway.stop() == 0


@pytest.mark.parametrize("root_alone", [False, True])
async def test_a_killed_gateway_leaves_nothing_and_starts_again(
    tmp_path: Path, upstream: ScriptedUpstream, root_alone: bool
) -> None:
    async with GatewayProcess(tmp_path, GatewayPlan(catalogue=catalogue(upstream.base_url, ["echo"]))) as gateway:
        await gateway.kill9(root_alone=root_alone)
        assert gateway.exit_code == -signal.SIGKILL
        await gateway.assert_nothing_left()
        assert await answers(gateway.base_url, "/health/live") == 0
        await gateway.start()
        assert await _says(gateway) == "one two three"


async def test_a_start_that_is_refused_says_why(tmp_path: Path) -> None:
    gateway = GatewayProcess(tmp_path, GatewayPlan(catalogue="[upstreams.x]\nprovider = 'nobody'\n"))
    with pytest.raises(AssertionError, match="the gateway ended with 1"):
        await gateway.start()
    assert gateway.tree() == []


async def test_what_is_left_behind_is_found_and_ended(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    gateway = GatewayProcess(tmp_path, GatewayPlan(catalogue=catalogue(upstream.base_url, ["echo"])))
    with psutil.Popen(["sleep", "600"], cwd=gateway.folder) as stray:
        with pytest.raises(AssertionError, match=r"processes were left behind: .*sleep 600"):
            await gateway.assert_nothing_left(within_s=0.1)
        assert stray.wait(10) == -signal.SIGKILL


async def test_the_command_sees_the_gateways_settings(tmp_path: Path) -> None:
    gateway = GatewayProcess(tmp_path, GatewayPlan(catalogue=""))
    assert "serve" in (await gateway.command("--help")).stdout
    assert (await gateway.command("keys", "list", "--no-such-option", check=False)).returncode == 2

"""The process tree of `tidegate serve`: who is in it, and that nothing of it is left, whatever ended it."""

import asyncio
import signal
import sys
from functools import partial
from pathlib import Path
from typing import Any

import orjson
import psutil
import pytest

from tests.support.client import ConnectionEnded, RawClient
from tests.support.server import GatewayPlan
from tests.support.stand_in import ECHO, LOCAL, StandIn, kill, not_started
from tests.support.waiting import eventually

# Both are only read: the stand-ins open neither.
_STORES = {
    "TIDEGATE_DATABASE__URL": "postgresql+asyncpg://tide@127.0.0.1:1/tide",
    "TIDEGATE_REDIS__URL": "redis://127.0.0.1:1",
}


def gunicorn(**fields: Any) -> GatewayPlan:
    return GatewayPlan(**{"catalogue": ECHO, "workers": 2, "environment": "production", "variables": _STORES, **fields})


def single(**fields: Any) -> GatewayPlan:
    return GatewayPlan(**{"catalogue": ECHO, **fields})


async def open_stream(client: RawClient, *, seconds: float) -> None:
    await client.send("GET", f"/stream?seconds={seconds}")
    assert (await client.head()).status == 200
    assert (await client.piece()).startswith(b"word")


def parent(process: psutil.Process) -> int:
    return process.ppid()


async def test_development_is_a_root_with_one_worker_and_the_model(tmp_path: Path) -> None:
    async with StandIn(tmp_path, single(catalogue=LOCAL, cold=True)) as gateway:
        (root,) = gateway.titled("root")
        worker = await gateway.one_titled("worker")
        model = await gateway.one_titled("model")
        assert root.pid == gateway.pid
        assert len(gateway.tree()) == 3
        assert parent(worker) == parent(model) == root.pid
        assert len({psutil.Process(each.pid).pid for each in (root, worker, model)}) == 3
        assert await gateway.worker_pid() == worker.pid


async def test_the_root_imports_neither_fastapi_nor_sqlalchemy() -> None:
    program = "import sys, tidegate.cli.serve, tidegate.server.root; print(*sys.modules)"
    running = await asyncio.create_subprocess_exec(sys.executable, "-c", program, stdout=asyncio.subprocess.PIPE)
    modules = (await running.communicate())[0].decode().split()
    assert "tidegate.server.root" in modules
    assert {"fastapi", "sqlalchemy", "starlette", "uvicorn", "gunicorn"}.isdisjoint(modules)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_stop_lets_a_stream_end_and_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    async with StandIn(tmp_path, single(catalogue=LOCAL, drain_s=20)) as gateway, RawClient(gateway.base_url) as client:
        await open_stream(client, seconds=1)
        gateway.signal(number)
        assert (await client.body()).endswith(b"done\n")
        assert await gateway.ended() == 0
        await gateway.assert_nothing_left()
        assert gateway.noted("ends") == ["stream ended", "lifespan ended"]


async def test_what_outlasts_the_drain_is_cut_and_the_lifespan_still_ends(tmp_path: Path) -> None:
    async with StandIn(tmp_path, single(drain_s=0.5)) as gateway, RawClient(gateway.base_url) as client:
        await open_stream(client, seconds=60)
        gateway.signal(signal.SIGTERM)
        with pytest.raises(ConnectionEnded):
            await client.body()
        assert await gateway.ended() == 0
        assert gateway.noted("ends") == ["stream was cut", "lifespan ended"]


async def test_a_second_interrupt_hurries(tmp_path: Path) -> None:
    async with StandIn(tmp_path, single(drain_s=300)) as gateway, RawClient(gateway.base_url) as client:
        await open_stream(client, seconds=300)
        gateway.signal(signal.SIGINT)
        await eventually(lambda: "stopping" in gateway.output())
        gateway.signal(signal.SIGINT)
        assert await gateway.ended() == 0
        await gateway.assert_nothing_left()
        assert gateway.noted("ends") == ["stream was cut", "lifespan ended"]


async def test_an_interrupt_in_development_prints_one_quiet_line(tmp_path: Path) -> None:
    async with StandIn(tmp_path, single(environment="development")) as gateway:
        await eventually(lambda: "curl -N" in gateway.output())
        before = gateway.output()
        gateway.signal(signal.SIGINT)
        assert await gateway.ended() == 0
        said = gateway.output("stdout").removeprefix(before.split("\n\n\n")[0]).strip().splitlines()
        assert [line for line in said if "stopping" in line] == said[-1:]
        assert gateway.output("stderr") == ""


async def test_a_killed_root_takes_its_tree_along_but_lets_the_stream_end(tmp_path: Path) -> None:
    plan = single(catalogue=LOCAL, drain_s=20, cold=True)
    async with StandIn(tmp_path, plan) as gateway, RawClient(gateway.base_url) as client:
        await open_stream(client, seconds=1)
        await gateway.kill9(root_alone=True)
        assert (await client.body()).endswith(b"done\n")
        await gateway.assert_nothing_left()
        assert gateway.noted("ends") == ["stream ended", "lifespan ended"]


async def test_after_a_killed_root_the_next_one_waits_for_the_port(tmp_path: Path) -> None:
    async with StandIn(tmp_path, single(variables={"TIDEGATE_SERVER__LINGER_S": "2"})) as gateway:
        await gateway.kill9(root_alone=True)
        await gateway.start()
        assert await gateway.worker_pid() in {process.pid for process in gateway.titled("worker")}


async def test_a_worker_that_dies_alone_ends_the_server(tmp_path: Path) -> None:
    async with StandIn(tmp_path, single(catalogue=LOCAL)) as gateway:
        kill((await gateway.one_titled("worker")).pid)
        assert await gateway.ended() == 1
        await gateway.assert_nothing_left()
        assert "the server ended by itself (SIGKILL)" in gateway.output("stderr")


async def test_a_signal_without_a_meaning_changes_nothing(tmp_path: Path) -> None:
    async with StandIn(tmp_path, single()) as gateway:
        gateway.signal(signal.SIGUSR1)
        await eventually(partial(_says, gateway, "SIGUSR1 is not supported"))
        assert (await gateway.get("/health/ready"))[0] == 200


async def test_a_stop_before_the_server_is_ready_leaves_nothing(tmp_path: Path) -> None:
    async with not_started(StandIn(tmp_path, single(catalogue=LOCAL))) as gateway:
        gateway.spawn()
        await gateway.one_titled("model")
        gateway.signal(signal.SIGTERM)
        assert await gateway.ended() == 0
        await gateway.assert_nothing_left()


async def test_while_it_lingers_the_server_answers_but_is_not_ready(tmp_path: Path) -> None:
    plan = single(variables={"TIDEGATE_SERVER__LINGER_S": "3600"})
    async with StandIn(tmp_path, plan) as gateway:
        gateway.signal(signal.SIGTERM)
        await eventually(lambda: _status_is(gateway, "/health/ready", 503))
        assert (await gateway.get("/who"))[0] == 200
        gateway.signal(signal.SIGINT)
        assert await gateway.ended() == 0


def _says(gateway: StandIn, words: str) -> bool:
    return words in gateway.output()


async def _status_is(gateway: StandIn, path: str, status: int) -> bool:
    return (await gateway.get(path))[0] == status


async def test_what_readiness_waits_for_is_said_once(tmp_path: Path) -> None:
    async with not_started(StandIn(tmp_path, single())) as gateway:
        gateway.tell("unready")
        gateway.spawn()
        await eventually(lambda: "still waiting for: tide" in gateway.output(), within_s=60)
        (gateway.data_dir / "unready").unlink()
        await eventually(lambda: '"ready"' in gateway.output())
        assert gateway.output().count("still waiting") == 1
        assert await gateway.stop() == 0


async def test_production_is_gunicorn_under_the_root(tmp_path: Path) -> None:
    async with StandIn(tmp_path, gunicorn(catalogue=LOCAL, cold=True)) as gateway:
        arbiter = await gateway.one_titled("arbiter")
        await eventually(partial(_has_started, gateway, 2), within_s=30)
        workers = gateway.titled("worker")
        assert parent(arbiter) == gateway.pid
        assert [parent(worker) for worker in workers] == [arbiter.pid] * 2
        assert parent(await gateway.one_titled("model")) == gateway.pid
        assert len(gateway.tree()) == 5
        assert orjson.loads((await gateway.get("/who"))[1])["pool"] == [2, 3]
        await _a_killed_worker_is_replaced(gateway, arbiter)
        await _a_worker_that_cannot_boot_does_not_stop_the_others(gateway)
    for line in gateway.output().splitlines():
        if line:
            assert {"ts", "level", "event", "logger", "pid"} <= orjson.loads(line).keys()
    events = [line["event"] for line in gateway.lines()]
    assert "ready" in events
    assert any(event.startswith("Booting worker") for event in events)


async def _a_killed_worker_is_replaced(gateway: StandIn, arbiter: psutil.Process) -> None:
    before = {worker.pid for worker in gateway.titled("worker")}
    victim = before.pop()
    kill(victim)
    await eventually(lambda: len({w.pid for w in gateway.titled("worker")} - {victim}) == 2, within_s=30)
    assert [process.pid for process in gateway.titled("arbiter")] == [arbiter.pid]
    assert before < {worker.pid for worker in gateway.titled("worker")}


async def _a_worker_that_cannot_boot_does_not_stop_the_others(gateway: StandIn) -> None:
    await eventually(partial(_has_started, gateway, 3), within_s=30)
    gateway.tell("fail-to-start")
    victim, survivor = (worker.pid for worker in gateway.titled("worker"))
    kill(victim)
    await eventually(lambda: "told to fail" in gateway.output(), within_s=30)
    assert survivor in {worker.pid for worker in gateway.titled("worker")}
    assert await gateway.worker_pid() > 0
    (gateway.data_dir / "fail-to-start").unlink()
    await eventually(partial(_has_started, gateway, 4), within_s=30)


def _has_started(gateway: StandIn, workers: int) -> bool:
    return gateway.output().count("Application startup complete") >= workers


async def test_gunicorn_drains_streams_when_it_is_stopped(tmp_path: Path) -> None:
    async with StandIn(tmp_path, gunicorn(drain_s=20)) as gateway, RawClient(gateway.base_url) as client:
        await eventually(partial(_has_started, gateway, 2), within_s=30)
        await open_stream(client, seconds=1)
        gateway.signal(signal.SIGTERM)
        assert (await client.body()).endswith(b"done\n")
        assert await gateway.ended() == 0
        await gateway.assert_nothing_left()
        assert sorted(gateway.noted("ends")) == ["lifespan ended", "lifespan ended", "stream ended"]


async def test_gunicorn_hurries_too(tmp_path: Path) -> None:
    async with StandIn(tmp_path, gunicorn(workers=1, drain_s=300)) as gateway, RawClient(gateway.base_url) as client:
        await open_stream(client, seconds=300)
        gateway.signal(signal.SIGINT)
        await eventually(lambda: "Shutting down" in gateway.output())
        gateway.signal(signal.SIGINT)
        assert await gateway.ended() == 0
        await gateway.assert_nothing_left()
        assert gateway.noted("ends") == ["stream was cut", "lifespan ended"]


async def test_a_killed_root_ends_gunicorn_and_lets_the_stream_end(tmp_path: Path) -> None:
    async with StandIn(tmp_path, gunicorn(drain_s=20)) as gateway, RawClient(gateway.base_url) as client:
        await eventually(partial(_has_started, gateway, 2), within_s=30)
        await open_stream(client, seconds=1)
        await gateway.kill9(root_alone=True)
        assert (await client.body()).endswith(b"done\n")
        await gateway.assert_nothing_left()
        assert sorted(gateway.noted("ends")) == ["lifespan ended", "lifespan ended", "stream ended"]


async def test_a_killed_arbiter_ends_the_server_and_lets_the_stream_end(tmp_path: Path) -> None:
    async with StandIn(tmp_path, gunicorn(drain_s=20)) as gateway, RawClient(gateway.base_url) as client:
        await eventually(partial(_has_started, gateway, 2), within_s=30)
        await open_stream(client, seconds=1)
        kill((await gateway.one_titled("arbiter")).pid)
        assert (await client.body()).endswith(b"done\n")
        assert await gateway.ended() == 1
        await gateway.assert_nothing_left()
        assert "the server ended by itself (SIGKILL)" in gateway.output("stderr")
        assert sorted(gateway.noted("ends")) == ["lifespan ended", "lifespan ended", "stream ended"]

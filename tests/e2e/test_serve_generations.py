"""Replacing what runs, around a stand-in app: generations by SIGUSR2, and worn workers. Nothing is lost by it."""

import contextlib
import resource
import signal
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import orjson
import psutil

from tests.support.client import RawClient
from tests.support.server import GatewayPlan
from tests.support.stand_in import ECHO, LOCAL, StandIn, kill
from tests.support.steady_load import SteadyLoad
from tests.support.waiting import eventually
from tidegate.server.control import ask_root

# Both are only read: the stand-ins open neither.
_STORES = {
    "TIDEGATE_DATABASE__URL": "postgresql+asyncpg://tide@127.0.0.1:1/tide",
    "TIDEGATE_REDIS__URL": "redis://127.0.0.1:1",
}


def gunicorn(*, variables: dict[str, str] | None = None, **fields: Any) -> GatewayPlan:
    given = {**_STORES, **(variables or {})}
    return GatewayPlan(
        **{"catalogue": ECHO, "workers": 2, "environment": "production", "variables": given, "drain_s": 20, **fields}
    )


async def who(client: RawClient) -> None:
    await client.send("GET", "/who")


async def open_stream(client: RawClient, *, seconds: float) -> None:
    await client.send("GET", f"/stream?seconds={seconds}")
    assert (await client.head()).status == 200
    assert (await client.piece()).startswith(b"word")


def says(gateway: StandIn, words: str, times: int = 1) -> bool:
    return gateway.output().count(words) >= times


def attached(gateway: StandIn) -> int:
    return len(ask_root(gateway.data_dir, {"ask": "report"}, within_s=10)["done"]["workers"])


def serves(worker: psutil.Process, client: RawClient) -> bool:
    return client.local_port in {port for each in worker.net_connections("inet") for port in each.raddr[1:]}


def env_file(folder: Path, **variables: str) -> dict[str, str]:
    path = folder / "env"
    path.write_text("".join(f"{name}={value}\n" for name, value in variables.items()))
    return {"TIDEGATE_ENV_FILE": str(path)}


async def prefix_of(gateway: StandIn) -> str:
    told: str = orjson.loads((await gateway.get("/who"))[1])["prefix"]
    return told


async def test_a_new_generation_takes_over_and_nobody_notices(tmp_path: Path) -> None:
    plan = gunicorn(catalogue=LOCAL, variables=env_file(tmp_path, TIDEGATE_REDIS__KEY_PREFIX="old"))
    async with StandIn(tmp_path, plan) as gateway, RawClient(gateway.base_url) as client:
        await gateway.one_titled("model")
        before = {title: {each.pid for each in gateway.titled(title)} for title in ("root", "model", "arbiter")}
        await open_stream(client, seconds=4)
        async with SteadyLoad(gateway.base_url, who) as load:
            env_file(tmp_path, TIDEGATE_REDIS__KEY_PREFIX="new")
            gateway.signal(signal.SIGUSR2)
            await eventually(lambda: len(gateway.titled("arbiter")) == 2, within_s=30)
            gateway.signal(signal.SIGUSR2)
            await eventually(partial(says, gateway, "the new generation serves"), within_s=30)
            assert (await client.body()).endswith(b"done\n")
            client.hang_up()
            await eventually(partial(says, gateway, "a generation has left"), within_s=30)
            assert await prefix_of(gateway) == "new"
        assert load.faults == []
        assert load.told_to_close > 0
        assert {orjson.loads(body)["prefix"] for body in load.bodies} == {"old", "new"}
        assert says(gateway, "a new generation is coming already")
        # No descriptor is closed twice.
        assert not says(gateway, "Error while closing")
        assert {process.pid for process in gateway.titled("root")} == before["root"] == {gateway.pid}
        assert {process.pid for process in gateway.titled("model")} == before["model"]
        assert len(gateway.titled("arbiter")) == 1
        assert before["arbiter"].isdisjoint({process.pid for process in gateway.titled("arbiter")})
        await eventually(lambda: gateway.noted("recorded"))
        assert [orjson.loads(line)["signal"] for line in gateway.noted("recorded")] == ["SIGUSR2"]
    assert "stream was cut" not in gateway.noted("ends")


async def test_a_third_generation_comes_once_the_first_has_left(tmp_path: Path) -> None:
    async with StandIn(tmp_path, gunicorn()) as gateway, RawClient(gateway.base_url) as client:
        (first,) = gateway.titled("arbiter")
        await open_stream(client, seconds=3)
        gateway.signal(signal.SIGUSR2)
        await eventually(partial(says, gateway, "the new generation serves"), within_s=30)
        gateway.signal(signal.SIGUSR2)
        await eventually(partial(says, gateway, "waits for an older one to leave"), within_s=30)
        assert first in gateway.titled("arbiter")
        assert not says(gateway, "a new generation starts", 2)
        assert (await client.body()).endswith(b"done\n")
        client.hang_up()
        await eventually(partial(says, gateway, "the new generation serves", 2), within_s=30)
        told = gateway.output()
        assert told.index("a generation has left") < told.rindex("a new generation starts")


async def test_a_stop_while_a_generation_waits_to_come_starts_none(tmp_path: Path) -> None:
    async with StandIn(tmp_path, gunicorn()) as gateway, RawClient(gateway.base_url) as client:
        await open_stream(client, seconds=2)
        gateway.signal(signal.SIGUSR2)
        await eventually(partial(says, gateway, "the new generation serves"), within_s=30)
        gateway.signal(signal.SIGUSR2)
        await eventually(partial(says, gateway, "waits for an older one to leave"), within_s=30)
        gateway.signal(signal.SIGTERM)
        assert (await client.body()).endswith(b"done\n")
        assert await gateway.ended() == 0
        await gateway.assert_nothing_left()
        assert not says(gateway, "a new generation starts", 2)


async def test_one_process_is_replaced_too(tmp_path: Path) -> None:
    plan = GatewayPlan(catalogue=ECHO, drain_s=20)
    async with StandIn(tmp_path, plan) as gateway, RawClient(gateway.base_url) as client:
        old = await gateway.worker_pid()
        await open_stream(client, seconds=2)
        async with SteadyLoad(gateway.base_url, who, kept=1, fresh=1) as load:
            gateway.signal(signal.SIGUSR2)
            await eventually(partial(says, gateway, "the new generation serves"), within_s=30)
            assert (await client.body()).endswith(b"done\n")
            client.hang_up()
            new = await gateway.one_titled("worker", other_than=old)
        assert load.faults == []
        assert await gateway.worker_pid() == new.pid


async def test_a_generation_that_cannot_come_leaves_the_old_one_serving(tmp_path: Path) -> None:
    (tmp_path / "tidegate.toml").write_text(ECHO)
    given = env_file(tmp_path) | {"TIDEGATE_CONFIG_TOML": "", "TIDEGATE_CONFIG": str(tmp_path / "tidegate.toml")}
    async with StandIn(tmp_path, gunicorn(workers=4, variables=given)) as gateway:
        await eventually(lambda: attached(gateway) == 4)
        processes = {process.pid for process in gateway.tree()}
        env_file(tmp_path, TIDEGATE_LIMITS__ON_STORE_FAILURE="perhaps", TIDEGATE_HTTP__NO_SUCH="1")
        await _is_not_replaced(gateway, 1)
        assert {name for name in ("ON_STORE_FAILURE", "NO_SUCH") if name in gateway.output("stderr")} == {
            "ON_STORE_FAILURE",
            "NO_SUCH",
        }
        env_file(tmp_path)
        (tmp_path / "tidegate.toml").write_text(ECHO.replace("attempts", "attempt"))
        await _is_not_replaced(gateway, 2)
        assert "tidegate.toml:3: models.0.attempt" in gateway.output("stderr")
        (tmp_path / "tidegate.toml").write_text(ECHO)
        gateway.tell("fail-to-start")
        await _is_not_replaced(gateway, 3)
        # Nobody who looks at the log is shown gunicorn's own faults.
        assert "HaltServer" not in gateway.output()
        (gateway.data_dir / "fail-to-start").unlink()
        (tmp_path / "env").unlink()
        await _is_not_replaced(gateway, 4)
        assert {process.pid for process in gateway.tree()} == processes
        # What failed does not stand in the way of what comes next.
        env_file(tmp_path, TIDEGATE_REDIS__KEY_PREFIX="new")
        gateway.signal(signal.SIGUSR2)
        await eventually(partial(says, gateway, "the new generation serves"), within_s=30)
        await eventually(partial(_prefix_is, gateway, "new"), within_s=30)


async def _is_not_replaced(gateway: StandIn, times: int) -> None:
    gateway.signal(signal.SIGUSR2)
    await eventually(partial(says, gateway, "the new generation did not come", times), within_s=30)
    assert (await gateway.get("/health/ready"))[0] == 200


async def _prefix_is(gateway: StandIn, prefix: str) -> bool:
    return await prefix_of(gateway) == prefix


async def test_a_generation_whose_workers_never_report_is_given_up_and_what_it_was_asked_is_answered(
    tmp_path: Path,
) -> None:
    async with StandIn(tmp_path, gunicorn(variables={"COMES_WITHIN_S": "2"})) as gateway:
        await eventually(lambda: len(gateway.titled("worker")) == 2)
        before = {process.pid for process in gateway.tree()}
        gateway.tell("unattached")
        async with SteadyLoad(gateway.base_url, who) as load:
            gateway.signal(signal.SIGUSR2)
            await eventually(partial(says, gateway, "the new generation did not come"), within_s=30)
            await eventually(partial(says, gateway, "a generation has left"), within_s=30)
        assert load.faults == []
        assert {process.pid for process in gateway.tree()} == before


class Unset(StandIn):
    """Without variables that stand above the env file's."""

    def _environ(self) -> dict[str, str]:
        above = ("TIDEGATE_DATA_DIR", "TIDEGATE_SERVER__WORKERS")
        return {name: value for name, value in super()._environ().items() if name not in above}


async def test_what_the_root_keeps_is_named_where_it_differs(tmp_path: Path) -> None:
    plan = GatewayPlan(catalogue=ECHO, variables=env_file(tmp_path), cold=True)
    async with Unset(tmp_path, plan) as gateway:
        elsewhere = tmp_path / "elsewhere"
        env_file(tmp_path, TIDEGATE_DATA_DIR=str(elsewhere), TIDEGATE_SERVER__WORKERS="3")
        gateway.signal(signal.SIGUSR2)
        await eventually(partial(says, gateway, "the new generation serves"), within_s=30)
        (warned,) = [line["settings"] for line in gateway.lines() if "until the next start" in line["event"]]
        assert warned == ["TIDEGATE_DATA_DIR", "TIDEGATE_SERVER__WORKERS"]
        assert not elsewhere.exists()


async def test_a_stop_while_a_generation_comes_ends_both(tmp_path: Path) -> None:
    async with StandIn(tmp_path, gunicorn()) as gateway, RawClient(gateway.base_url) as client:
        await open_stream(client, seconds=1)
        gateway.signal(signal.SIGUSR2)
        await eventually(lambda: len(gateway.titled("arbiter")) == 2, within_s=30)
        gateway.signal(signal.SIGTERM)
        assert (await client.body()).endswith(b"done\n")
        assert await gateway.ended() == 0
        await gateway.assert_nothing_left()
        assert "stream was cut" not in gateway.noted("ends")


async def test_workers_that_die_meanwhile_do_not_stop_a_replacement(tmp_path: Path) -> None:
    async with StandIn(tmp_path, gunicorn()) as gateway:
        (old,) = gateway.titled("arbiter")
        victim = old.children()[0].pid
        gateway.signal(signal.SIGUSR2)
        new = await eventually(lambda: next((each for each in gateway.titled("arbiter") if each != old), None))
        assert new is not None
        kill(victim)
        coming = await eventually(partial(_children, new), within_s=30)
        kill(coming[0].pid)
        await eventually(partial(says, gateway, "a generation has left"), within_s=40)
        assert [process.pid for process in gateway.titled("arbiter")] == [new.pid]
        assert await gateway.worker_pid() in {process.pid for process in _children(new)}


def _children(process: psutil.Process) -> list[psutil.Process]:
    """The workers that it has by now."""
    found = []
    for each in process.children():
        with contextlib.suppress(psutil.Error):
            found += [each] if each.cmdline()[:1] == ["tidegate: worker"] else []
    return found


async def test_worn_workers_are_replaced_and_nobody_notices(tmp_path: Path) -> None:
    plan = gunicorn(variables={"TIDEGATE_SERVER__MAX_REQUESTS": "40"})
    async with StandIn(tmp_path, plan) as gateway, RawClient(gateway.base_url) as client:
        await eventually(lambda: len(gateway.titled("worker")) == 2)
        first = {worker.pid for worker in gateway.titled("worker")}
        await open_stream(client, seconds=2)
        fewest = len(first)
        async with SteadyLoad(gateway.base_url, who) as load:

            def all_are_new() -> bool:
                nonlocal fewest
                now = {worker.pid for worker in gateway.titled("worker")}
                fewest = min(fewest, len(now))
                return len(now - first) >= 2 and not now & first

            await eventually(partial(says, gateway, "retires: others take its place"), within_s=30)
            assert (await client.body()).endswith(b"done\n")
            client.hang_up()
            await eventually(all_are_new, within_s=40, poll_s=0.02)
        assert (load.faults, fewest) == ([], 2)
        answered = Counter(orjson.loads(body)["pid"] for body in load.bodies)
        assert len(answered) >= 4
        assert says(gateway, "retires: others take its place", 2)
    assert "stream was cut" not in gateway.noted("ends")


async def test_where_no_worker_can_be_started_the_others_serve_on(tmp_path: Path) -> None:
    async with StandIn(tmp_path, gunicorn()) as gateway, RawClient(gateway.base_url) as client:
        await eventually(lambda: attached(gateway) == 2)
        (arbiter,) = gateway.titled("arbiter")
        await open_stream(client, seconds=3)
        (idle,) = [each.pid for each in gateway.titled("worker") if not serves(each, client)]
        limits = arbiter.rlimit(resource.RLIMIT_NOFILE)
        arbiter.rlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
        kill(idle)
        await eventually(partial(says, gateway, "a worker could not be started"), within_s=30)
        assert (await client.body()).endswith(b"done\n")
        arbiter.rlimit(resource.RLIMIT_NOFILE, limits)
        await eventually(lambda: attached(gateway) == 2, within_s=30)
        assert idle not in {each.pid for each in gateway.titled("worker")}
        assert gateway.exit_code is None


async def test_signals_to_the_arbiter_that_are_the_roots_change_nothing(tmp_path: Path) -> None:
    async with StandIn(tmp_path, gunicorn()) as gateway:
        await eventually(lambda: len(gateway.titled("worker")) == 2)
        (arbiter,) = gateway.titled("arbiter")
        before = {process.pid for process in gateway.tree()}
        numbers = (signal.SIGHUP, signal.SIGUSR1, signal.SIGTTIN, signal.SIGTTOU, signal.SIGWINCH)
        for n, number in enumerate(numbers, 1):
            arbiter.send_signal(number)
            for worker in arbiter.children():
                worker.send_signal(number)
            await eventually(partial(says, gateway, "this signal is the root's to take", n))
        assert {process.pid for process in gateway.tree()} == before
        assert (await gateway.get("/who"))[0] == 200

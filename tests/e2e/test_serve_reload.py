"""Reloading the catalogue, and the control socket, around a stand-in app: all workers or none, and nobody hurts it."""

import os
import signal
import socket
import stat
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import orjson
import pytest

from tests.e2e.test_serve_generations import gunicorn, says, who
from tests.support.server import GatewayPlan
from tests.support.stand_in import ECHO, StandIn, kill
from tests.support.steady_load import SteadyLoad
from tests.support.waiting import eventually
from tidegate.server.control import SOCKET_NAME, NoRoot, ask_root
from tidegate.server.control_door import MOST_VISITORS
from tidegate.storage.unix_socket import LONGEST_ADDRESS, short_address

OTHER = ECHO.replace('name = "echo"', 'name = "other"')


@asynccontextmanager
async def gateway_with_file(folder: Path, **fields: Any) -> AsyncIterator[tuple[StandIn, Path]]:
    catalogue = folder / "tidegate.toml"
    catalogue.write_text(ECHO)
    given = {"TIDEGATE_CONFIG_TOML": "", "TIDEGATE_CONFIG": str(catalogue)}
    async with StandIn(folder, gunicorn(variables=given, **fields)) as gateway:
        await eventually(lambda: len(workers(gateway)) == 2, within_s=30)
        yield gateway, catalogue


def report(gateway: StandIn) -> dict[str, Any]:
    told: dict[str, Any] = ask_root(gateway.data_dir, {"ask": "report"}, within_s=10)["done"]
    return told


def workers(gateway: StandIn) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = report(gateway)["workers"]
    return found


def versions(gateway: StandIn) -> set[str | None]:
    """Of the workers that are there; None for one that leaves just now."""
    return {worker.get("catalogue_version") for worker in workers(gateway)}


async def test_a_reload_reaches_every_worker_and_the_next_ones(tmp_path: Path) -> None:
    async with gateway_with_file(tmp_path) as (gateway, catalogue):
        (before,) = versions(gateway)
        pids = {worker["pid"] for worker in workers(gateway)}
        async with SteadyLoad(gateway.base_url, who) as load:
            catalogue.write_text(OTHER)
            done = orjson.loads((await gateway.command("reload", "--json")).stdout)
            (now,) = versions(gateway)
            assert now != before
            assert done == {"version": now, "before": before, "workers": 2, "faults": []}
            catalogue.write_text(ECHO)
            gateway.signal(signal.SIGHUP)
            await eventually(lambda: versions(gateway) == {before})
        assert load.faults == []
        assert {worker["pid"] for worker in workers(gateway)} == pids == {p.pid for p in gateway.titled("worker")}
        kill(min(pids))
        catalogue.write_text("half of a fi")
        await eventually(lambda: len({worker["pid"] for worker in workers(gateway)} - {min(pids)}) == 2, within_s=30)
        assert versions(gateway) == {before}
        told = report(gateway)
        assert (told["pid"], told["generation"], told["workers_expected"]) == (gateway.pid, 1, 2)
        await eventually(lambda: len(gateway.noted("recorded")) == 2)
        by_command, by_signal = map(orjson.loads, gateway.noted("recorded"))
        assert (by_command["by"] is None, by_command["signal"], by_signal["by"]) == (False, None, None)
        assert by_command["details"] == {"version": {"from": before, "to": now}, "workers": 2}
        assert by_signal["signal"] == "SIGHUP"


async def test_a_catalogue_with_a_fault_changes_nothing_anywhere(tmp_path: Path) -> None:
    async with gateway_with_file(tmp_path) as (gateway, catalogue):
        before = versions(gateway)
        catalogue.write_text(ECHO.replace("provider", "provides").replace("attempts", "attempt"))
        done = await gateway.command("reload", check=False)
        assert done.returncode == 1
        assert f"{catalogue}:2: upstreams.echo.provides" in done.stderr
        assert f"{catalogue}:5: models.0.attempt" in done.stderr
        assert "Nothing was changed." in done.stderr
        gateway.signal(signal.SIGHUP)
        await eventually(partial(says, gateway, "catalogue not reloaded", 2))
        catalogue.unlink()
        done = await gateway.command("reload", "--json", check=False)
        assert (done.returncode, orjson.loads(done.stdout)["version"]) == (1, None)
        assert "cannot be read" in done.stdout
        assert versions(gateway) == before
        assert gateway.noted("recorded") == []


@pytest.mark.parametrize("how", ["refuse", "hang"])
async def test_a_worker_that_does_not_follow_is_named_and_the_new_catalogue_stays(tmp_path: Path, how: str) -> None:
    async with gateway_with_file(tmp_path) as (gateway, catalogue):
        (before,) = versions(gateway)
        # The first of them judges.
        pids = sorted(worker["pid"] for worker in workers(gateway))
        gateway.tell(how, str(pids[1]))
        catalogue.write_text(OTHER)
        done = await gateway.command("reload", check=False)
        assert done.returncode == 1
        assert f"worker {pids[1]}" in done.stderr
        assert "is in force, but not in every worker" in done.stderr
        now = report(gateway)["catalogue_version"]
        assert now != before
        kill(pids[1])
        await eventually(lambda: versions(gateway) == {now} and len(workers(gateway)) == 2, within_s=30)


async def test_reloads_at_once_are_done_one_after_the_other(tmp_path: Path) -> None:
    async with gateway_with_file(tmp_path) as (gateway, catalogue):
        catalogue.write_text(OTHER)
        for _ in range(3):
            gateway.signal(signal.SIGHUP)
        assert (await gateway.command("reload")).returncode == 0
        assert len(versions(gateway)) == 1


async def test_without_a_server_a_reload_says_so(tmp_path: Path) -> None:
    gateway = StandIn(tmp_path, GatewayPlan(catalogue=ECHO))
    gateway.data_dir.mkdir()
    for _ in range(2):
        done = await gateway.command("reload", check=False)
        assert (done.returncode, done.stderr.count("\n")) == (1, 1)
        assert f"No server runs in {gateway.data_dir}" in done.stderr
        # What a killed root leaves behind is no server either.
        with short_address(gateway.data_dir / SOCKET_NAME) as address, socket.socket(socket.AF_UNIX) as left:
            if not os.path.lexists(address):
                left.bind(address)


async def test_a_killed_roots_socket_is_replaced_and_a_long_path_works(tmp_path: Path) -> None:
    folder = tmp_path / ("deep" * 25)
    folder.mkdir()
    plan = GatewayPlan(catalogue=ECHO)
    async with StandIn(folder, plan) as gateway:
        path = gateway.data_dir / SOCKET_NAME
        assert len(str(path)) > LONGEST_ADDRESS
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        await gateway.kill9()
        with pytest.raises(NoRoot):
            report(gateway)
        await gateway.start()
        await eventually(lambda: len(workers(gateway)) == 1)
        assert (await gateway.command("reload")).returncode == 0
    assert not path.exists()


@contextmanager
def connection(gateway: StandIn) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as opened, short_address(gateway.data_dir / SOCKET_NAME) as address:
        opened.settimeout(10)
        opened.connect(address)
        yield opened


async def test_who_misbehaves_at_the_control_socket_hurts_nobody(tmp_path: Path) -> None:
    async with gateway_with_file(tmp_path) as (gateway, _):
        before = {process.pid for process in gateway.tree()}
        attach = b'{"ask":"attach","pid":1,"generation":1,"serial":1}\n'
        for line in (
            *(b"\n", b"[]\n", b"{}\n", b"\xff\xfe\n", b'{"ask":"nothing"}\n', b'{"ask":["reload"]}\n'),
            *(b'{"ask":"catalogue"}\n', b'{"ask":"catalogue","generation":"x"}\n', b'{"ask":"attach","pid":"x"}\n'),
            *(b"[" * 100_000 + b"\n", b'{"ask":"' + b"x" * 1_000_000, attach + b"no answer\n", b"half a line"),
        ):
            with connection(gateway) as opened:
                try:
                    opened.sendall(line)
                    opened.shutdown(socket.SHUT_WR)
                    while opened.recv(65536):
                        pass
                except ConnectionError:
                    continue
        with ExitStack() as stack:
            for _ in range(MOST_VISITORS + 8):
                stack.enter_context(connection(gateway))
        assert len(workers(gateway)) == 2
        with connection(gateway) as opened:
            # A worker that says that it serves, and answers nothing.
            opened.sendall(attach)
            await eventually(lambda: 1 in {worker["pid"] for worker in workers(gateway)})
            assert next(worker for worker in workers(gateway) if worker["pid"] == 1)["state"] == "silent"
        await eventually(lambda: len(workers(gateway)) == 2)
        assert {process.pid for process in gateway.tree()} == before
        assert "Traceback" not in gateway.output()
        assert (await gateway.command("reload")).returncode == 0

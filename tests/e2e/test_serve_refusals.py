"""A start that is refused says each fault on a line, without a traceback, and leaves nothing behind."""

import asyncio
import socket
from pathlib import Path

import orjson
import pytest

from tests.support.server import GatewayPlan, GatewayProcess
from tests.support.stand_in import ECHO, StandIn, not_started, refusal


async def test_a_port_in_use_is_named_with_a_way_out(tmp_path: Path) -> None:
    gateway = GatewayProcess(tmp_path, GatewayPlan(catalogue=ECHO, cold=True))
    with socket.create_server(("127.0.0.1", gateway.port)):
        (line,) = await refusal(gateway)
    assert line.startswith(f"port {gateway.port} on 127.0.0.1 is in use; choose another: make serve PORT=")
    assert "tidegate serve --port" in line


async def test_a_host_that_is_not_ours_is_named(tmp_path: Path) -> None:
    plan = GatewayPlan(catalogue=ECHO, variables={"TIDEGATE_SERVER__HOST": "192.0.2.1"})
    (line,) = await refusal(GatewayProcess(tmp_path, plan))
    assert line == "TIDEGATE_SERVER__HOST: 192.0.2.1 is no address of this machine"


async def test_a_data_directory_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    gateway = GatewayProcess(
        tmp_path, GatewayPlan(catalogue=ECHO, variables={"TIDEGATE_DATA_DIR": f"{tmp_path}/file/var"})
    )
    (line,) = await refusal(gateway)
    assert "Traceback" not in gateway.output()
    assert line.startswith(f"TIDEGATE_DATA_DIR: {tmp_path}/file/var cannot be written (Not a directory)")
    assert "--data-dir" in line


async def test_a_data_directory_has_one_root(tmp_path: Path) -> None:
    async with StandIn(tmp_path, GatewayPlan(catalogue=ECHO)) as gateway:
        variables = {"TIDEGATE_DATA_DIR": str(gateway.data_dir)}
        second = GatewayProcess(tmp_path / "second", GatewayPlan(catalogue=ECHO, variables=variables))
        (line,) = await refusal(second)
        assert f"held by another tidegate serve (pid {gateway.pid})" in line
        assert (await gateway.get("/who"))[0] == 200


async def test_every_faulty_variable_is_named_at_once(tmp_path: Path) -> None:
    variables = {"TIDEGATE_SERVER__PORT": "high", "TIDEGATE_SERVER__DRAIN_S": "-1", "TIDEGATE_SERVER__LINGERS": "1"}
    lines = await refusal(GatewayProcess(tmp_path, GatewayPlan(catalogue=ECHO, variables=variables)))
    assert {line.split(":")[0] for line in lines} == set(variables)


async def test_a_catalogue_with_a_typing_error_is_shown_its_place(tmp_path: Path) -> None:
    typed = ECHO.replace("provider", "provder")
    lines = await refusal(GatewayProcess(tmp_path, GatewayPlan(catalogue=typed)))
    assert any("provder" in line and "provider" in line for line in lines)


@pytest.mark.parametrize("flags", [("--port", "70000"), ("--workers", "0"), ("--workers", "many"), ("--porridge",)])
async def test_a_wrong_flag_is_a_usage_error(tmp_path: Path, flags: tuple[str, ...]) -> None:
    gateway = GatewayProcess(tmp_path, GatewayPlan(catalogue=ECHO))
    done = await gateway.command("serve", *flags, check=False)
    assert done.returncode == 2
    assert flags[0] in done.stderr


async def test_several_workers_need_shared_stores_in_development_too(tmp_path: Path) -> None:
    lines = await refusal(GatewayProcess(tmp_path, GatewayPlan(catalogue=ECHO, workers=2)))
    assert [line.split(":")[0] for line in lines] == ["TIDEGATE_REDIS__URL", "TIDEGATE_DATABASE__URL"]


async def test_a_database_that_is_behind_is_refused_in_json_in_production(tmp_path: Path, postgres_url: str) -> None:
    gateway = GatewayProcess(tmp_path, GatewayPlan(catalogue=ECHO, environment="production", database_url=postgres_url))
    (line,) = await refusal(gateway)
    assert "Traceback" not in gateway.output()
    fault = orjson.loads(line)
    assert "tidegate migrate" in fault["event"]
    assert fault["level"] == "error"


async def test_a_database_that_does_not_answer_is_refused(tmp_path: Path) -> None:
    url = "postgresql+asyncpg://tide:secret@127.0.0.1:1/tide"
    (line,) = await refusal(GatewayProcess(tmp_path, GatewayPlan(catalogue=ECHO, database_url=url)))
    assert "TIDEGATE_DATABASE__URL" in line
    assert "secret" not in line


async def test_a_pool_that_cannot_fit_is_refused_with_its_numbers(tmp_path: Path, postgres_url: str) -> None:
    variables = {"TIDEGATE_DATABASE__MAX_REPLICAS": "10000"}
    gateway = GatewayProcess(tmp_path, GatewayPlan(catalogue=ECHO, database_url=postgres_url, variables=variables))
    await gateway.command("migrate")
    (line,) = await refusal(gateway)
    assert "10000 x 1 workers" in line
    assert "TIDEGATE_DATABASE__MAX_REPLICAS" in line


async def test_a_worker_that_cannot_boot_ends_the_start(tmp_path: Path) -> None:
    gateway = StandIn(tmp_path, GatewayPlan(catalogue=ECHO))
    gateway.tell("fail-to-start")
    assert await refusal(gateway) == ["the server ended by itself (exit code 3)"]
    assert "told to fail" in gateway.output("stdout")


async def test_two_starts_at_once_on_one_port_leave_one_server(tmp_path: Path) -> None:
    gateways = [StandIn(tmp_path / name, GatewayPlan(catalogue=ECHO)) for name in ("one", "two")]
    async with not_started(gateways[0]), not_started(gateways[1]):
        gateways[1].port = gateways[0].port
        for gateway in gateways:
            gateway.spawn()
        ended, _ = await asyncio.wait(
            [asyncio.create_task(gateway.ended(), name=str(index)) for index, gateway in enumerate(gateways)],
            return_when=asyncio.FIRST_COMPLETED,
        )
        loser = gateways[int(next(iter(ended)).get_name())]
        winner = gateways[1 - gateways.index(loser)]
        assert "is in use" in loser.output("stderr")
        await winner.one_titled("worker")
        assert (await winner.get("/who"))[0] == 200
        assert await winner.stop() == 0

"""The real server by TLS, under uvicorn and under gunicorn: hang-ups, drains, renewed certificates, refused starts."""

import asyncio
import re
import shutil
import signal
import ssl
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, Literal

import orjson
import pytest

from tests.e2e.test_serve_generations import attached, gunicorn, open_stream, says, who
from tests.support import services
from tests.support.blackhole import BlackHole
from tests.support.caller import Caller
from tests.support.client import RawClient
from tests.support.phases import HANG_UP_WITHIN_S, PHASES, Phase, Scene, hung_up, phase_catalogue
from tests.support.server import LOOPBACK, GatewayPlan, GatewayProcess, answers, free_port
from tests.support.services import Service
from tests.support.stand_in import ECHO, StandIn, kill, refusal
from tests.support.steady_load import SteadyLoad
from tests.support.tls_front import Certificate, certificate_for
from tests.support.upstream import ScriptedUpstream
from tests.support.waiting import eventually
from tidegate.server.control import ask_root

How = Literal["goodbye", "fin", "rst"]
NAME = "localhost"
PLAYED = [phase for phase in PHASES if phase.name not in ("queued", "kept-alive-by-comments")]
MID_STREAM = next(phase for phase in PHASES if phase.name == "mid-stream")


def variables(certificate: Certificate) -> dict[str, str]:
    return {
        "TIDEGATE_SERVER__TLS_CERTIFICATE": str(certificate.path),
        "TIDEGATE_SERVER__TLS_KEY": str(certificate.key_path),
    }


def renew(certificate: Certificate, folder: Path, **valid: float) -> Certificate:
    """Puts a new pair for the same name in place of this one."""
    folder.mkdir(exist_ok=True)
    new = certificate_for(NAME, folder, **valid)
    shutil.copy(new.key_path, certificate.key_path)
    shutil.copy(new.path, certificate.path)
    return new


def two_without(gateway: StandIn, pid: int) -> bool:
    report = ask_root(gateway.data_dir, {"ask": "report"}, within_s=10)["done"]
    pids = {worker["pid"] for worker in report["workers"]}
    return len(pids) == 2 and pid not in pids


def der(certificate: Certificate) -> bytes:
    return ssl.PEM_cert_to_DER_cert(certificate.path.read_text())


async def shown(base_url: str) -> bytes:
    async with RawClient(base_url) as client:
        return client.server_certificate


@dataclass
class Served:
    gateway: GatewayProcess
    scene: Scene


@asynccontextmanager
async def serving(folder: Path, **fields: Any) -> AsyncIterator[Served]:
    async with ScriptedUpstream(send_buffer=16 * 1024) as upstream, BlackHole() as hole:
        given = variables(certificate_for(NAME, folder))
        plan = GatewayPlan(catalogue=phase_catalogue(upstream, hole), variables=given, **fields)
        async with GatewayProcess(folder, plan) as gateway:
            yield Served(gateway, Scene(Caller(gateway.base_url), upstream, hole, workers=plan.workers))


@pytest.fixture(scope="module")
async def served_by_uvicorn(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    async with serving(tmp_path_factory.mktemp("uvicorn")) as served:
        yield served


@pytest.fixture(scope="module")
def stores(postgres_service: Service, redis_service: Service) -> Iterator[dict[str, str]]:
    url = services.create_database(postgres_service)
    prefix = url.rpartition("/")[2].replace("_", "-")
    redis_url = services.redis_url(redis_service)
    try:
        yield {"database_url": url, "redis_url": redis_url, "redis_prefix": prefix}
    finally:
        services.drop_database(postgres_service, url)
        services.delete_keys(redis_url, prefix)


@pytest.fixture(scope="module")
async def served_by_gunicorn(stores: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    async with serving(tmp_path_factory.mktemp("gunicorn"), workers=2, environment="production", **stores) as served:
        yield served


HOW = pytest.mark.parametrize("how", ["goodbye", "fin", "rst"])


@HOW
@pytest.mark.parametrize("phase", PLAYED, ids=lambda phase: phase.name)
async def test_a_hang_up_closes_the_upstream(phase: Phase, how: How, served_by_uvicorn: Served) -> None:
    await hangs_up(served_by_uvicorn, phase, how)


@HOW
async def test_a_hang_up_reaches_every_worker(how: How, served_by_gunicorn: Served) -> None:
    for n in range(4):
        await hangs_up(served_by_gunicorn, MID_STREAM, how, f"-{n}")


async def hangs_up(served: Served, phase: Phase, how: How, more: str = "") -> None:
    scene, label = served.scene, f"{phase.name}-{how}{more}"
    async with RawClient(scene.caller.base_url, receive_buffer=phase.receive_buffer) as client:
        await scene.reach(phase, client, label)
        {"goodbye": client.say_goodbye, "fin": client.hang_up, "rst": client.reset}[how]()
        await eventually(lambda: scene.has_let_go(label), within_s=HANG_UP_WITHIN_S)
    assert len(scene.seen(label)) == phase.calls
    hung_up(await scene.caller.entry(label), phase)


async def test_what_is_asked_by_tls_is_told_so(served_by_gunicorn: Served, served_by_uvicorn: Served) -> None:
    for served in (served_by_gunicorn, served_by_uvicorn):
        base_url = served.gateway.base_url
        trusting = ssl.create_default_context(cafile=served.gateway.plan.variables["TIDEGATE_SERVER__TLS_CERTIFICATE"])
        async with RawClient(base_url.replace(LOOPBACK, NAME), tls=trusting) as client:
            await client.send("GET", "/health/live")
            head = await client.head()
        assert (head.status, "strict-transport-security" in head.headers) == (200, True)
        assert await answers(base_url.replace("https", "http"), "/health/live") == 0


async def test_a_running_stream_ends_and_an_idle_connection_holds_up_no_stop(tmp_path: Path) -> None:
    certificate = certificate_for(NAME, tmp_path)
    async with StandIn(tmp_path, gunicorn(variables=variables(certificate))) as gateway, AsyncExitStack() as stack:
        idle, running = [await stack.enter_async_context(RawClient(gateway.base_url)) for _ in range(2)]
        await who(idle)
        assert (await idle.head()).status == 200
        await idle.body()
        await open_stream(running, seconds=1)
        began = time.monotonic()
        gateway.signal(signal.SIGTERM)
        assert (await running.body()).endswith(b"done\n")
        assert await gateway.ended() == 0
        # A client that keeps an idle connection does not read the goodbye: the loop alone would wait 30 s for its own.
        assert time.monotonic() - began < 15


async def test_a_renewed_certificate_is_shown_and_no_connection_is_lost(tmp_path: Path) -> None:
    certificate = certificate_for(NAME, tmp_path)
    first = der(certificate)
    async with (
        StandIn(tmp_path, gunicorn(variables=variables(certificate))) as gateway,
        RawClient(gateway.base_url) as standing,
    ):
        await open_stream(standing, seconds=2)
        async with SteadyLoad(gateway.base_url, who) as load:
            assert {await shown(gateway.base_url) for _ in range(8)} == {first}
            second = renew(certificate, tmp_path / "second", until_days=30)
            done = await gateway.command("reload", "--json")
            until = orjson.loads(done.stdout)["certificate_until"]
            assert until == (datetime.now(UTC) + timedelta(days=30)).date().isoformat()
            assert {await shown(gateway.base_url) for _ in range(8)} == {der(second)}
            third = renew(certificate, tmp_path / "third")
            gateway.signal(signal.SIGHUP)
            await eventually(partial(says, gateway, "catalogue reloaded", 2))
            assert {await shown(gateway.base_url) for _ in range(8)} == {der(third)}
        assert load.faults == []
        assert load.answered > 0
        assert standing.server_certificate == first
        assert (await standing.body()).endswith(b"done\n")


async def test_a_bad_pair_changes_nothing_and_is_named(tmp_path: Path) -> None:
    certificate = certificate_for(NAME, tmp_path)
    key = certificate.key_path.read_text()
    async with StandIn(tmp_path, gunicorn(variables=variables(certificate))) as gateway:
        await eventually(lambda: attached(gateway) == 2, within_s=30)
        # A later one than the server began with, which the arbiter has seen: it forked after that.
        good = der(renew(certificate, tmp_path / "renewed"))
        await gateway.command("reload")
        before = await gateway.worker_pid()
        kill(before)
        await eventually(lambda: two_without(gateway, before), within_s=30)
        other = certificate_for("other", tmp_path)
        shutil.copy(other.path, certificate.path)
        done = await gateway.command("reload", check=False)
        assert done.returncode == 1
        assert done.stderr.startswith(f"TIDEGATE_SERVER__TLS_KEY: the key in {certificate.key_path} is not that of")
        assert done.stderr.endswith("Nothing was changed.\n")
        assert {await shown(gateway.base_url) for _ in range(8)} == {good}
        # Whoever takes a dead worker's place shows what there was.
        old = await gateway.worker_pid()
        kill(old)
        await eventually(partial(says, gateway, "the certificate on disk is not shown"), within_s=30)
        await eventually(lambda: attached(gateway) == 2, within_s=30)
        assert {await shown(gateway.base_url) for _ in range(8)} == {good}
        shutil.copy(other.key_path, certificate.key_path)
        await gateway.command("reload")
        assert {await shown(gateway.base_url) for _ in range(8)} == {der(other)}
        secret = key.splitlines()[1]
        assert secret not in gateway.output()


async def test_workers_are_replaced_and_no_request_is_lost(tmp_path: Path) -> None:
    certificate = certificate_for(NAME, tmp_path)
    async with StandIn(tmp_path, gunicorn(variables=variables(certificate))) as gateway:
        async with SteadyLoad(gateway.base_url, who, fresh=4) as load:
            gateway.signal(signal.SIGUSR2)
            await eventually(partial(says, gateway, "the old one retires"), within_s=60)
            await eventually(lambda: len(gateway.titled("arbiter")) == 1, within_s=60)
        assert load.faults == []
        assert load.told_to_close > 0


async def test_both_ports_speak_it_and_the_printed_line_works(tmp_path: Path) -> None:
    certificate, port = certificate_for("gateway.example", tmp_path), free_port()
    given = {**variables(certificate), "TIDEGATE_SERVER__MANAGEMENT_PORT": str(port)}
    plan = GatewayPlan(catalogue=ECHO, environment="development", variables=given)
    async with GatewayProcess(tmp_path, plan) as gateway:
        printed = await eventually(lambda: re.search(r"curl -N .*", gateway.output()))
        assert printed
        management = f"https://{LOOPBACK}:{port}"
        assert f"dashboard  {management}/\n" in gateway.output()
        assert await answers(management, "/health/ready") == 200
        line = printed[0].replace("YOUR_KEY", gateway.api_key)
        asked = await asyncio.to_thread(subprocess.run, line, shell=True, capture_output=True, timeout=60)
        assert b"[DONE]" in asked.stdout, asked
        checked = await gateway.command("check", "--json", check=False)
        found = {item["id"]: item["verdict"] for item in orjson.loads(checked.stdout)["items"]}
        assert [found[number] for number in ("1.3", "5.3", "5.5")] == ["pass"] * 3
        renew(certificate, tmp_path / "renewed")
        checked = await gateway.command("check", check=False)
        assert checked.returncode != 0
        assert f"another certificate than {certificate.path} holds now: run `tidegate reload`" in checked.stderr


async def test_a_start_with_a_certificate_of_the_past_is_refused(tmp_path: Path) -> None:
    certificate = certificate_for(NAME, tmp_path, since_days=3, until_days=-1)
    (line,) = await refusal(GatewayProcess(tmp_path, GatewayPlan(catalogue=ECHO, variables=variables(certificate))))
    day = (datetime.now(UTC) - timedelta(days=1)).date().isoformat()
    told = f"the certificate in {certificate.path} ended on {day}: renew it"
    assert line == f"TIDEGATE_SERVER__TLS_CERTIFICATE: {told}"

"""The management port of the real server: under uvicorn and under gunicorn, behind a proxy, and in what it prints."""

import re
import socket
from pathlib import Path
from typing import Any

import orjson
import pytest

from tests.support.client import RawClient
from tests.support.server import LOOPBACK, GatewayPlan, GatewayProcess, free_port
from tests.support.stand_in import ECHO, refusal
from tests.support.waiting import eventually

_OF_MANAGEMENT = ("/", "/api/keys", "/api/usage", "/api/requests", "/api/limits")


async def _ask(base_url: str, method: str, path: str, **more: Any) -> tuple[int, bytes]:
    async with RawClient(base_url) as client:
        await client.send(method, path, **more)
        head = await client.head()
        return head.status, await client.body()


async def _check(gateway: GatewayProcess, management_url: str) -> None:
    """Management answers on its own port alone, whatever a caller says of ports; models, sign-in and health on both."""
    key = {"authorization": f"Bearer {gateway.api_key}"}
    of_management = management_url.rpartition(":")[2]
    disguise = {"host": f"{LOOPBACK}:{of_management}", "x-forwarded-port": of_management, "x-forwarded-proto": "http"}
    for path in _OF_MANAGEMENT:
        for headers in (key, {**key, **disguise}):
            status, body = await _ask(gateway.base_url, "GET", path, headers=headers)
            assert (status, orjson.loads(body)["error"]["code"]) == (404, "not_found"), path
        assert (await _ask(management_url, "GET", path, headers=key))[0] == 200, path
    for method, body in (("POST", b"{"), ("POST", b"[]"), ("DELETE", b""), ("PATCH", b'{"name": 7}')):
        sent = {"headers": {**key, "content-type": "application/json"}, "body": body}
        of_keys, of_nothing = [
            (await _ask(gateway.base_url, method, at, **sent))[0] for at in ("/api/keys", "/nothing")
        ]
        assert of_keys == of_nothing, f"{method} {body!r} tells what is there"
    credentials = {"email": gateway.admin_email, "password": gateway.admin_password}
    for base_url in (gateway.base_url, management_url):
        assert (await _ask(base_url, "GET", "/health/ready"))[0] == 200
        assert (await _ask(base_url, "GET", "/health"))[0] == 200
        assert (await _ask(base_url, "GET", "/v1/models", headers=key))[0] == 200
        assert (await _ask(base_url, "POST", "/auth/login", json=credentials))[0] == 200
    chat = {"model": "echo", "messages": [{"role": "user", "content": "high tide"}]}
    status, body = await _ask(gateway.base_url, "POST", "/v1/chat/completions", headers=key, json=chat)
    assert status == 200
    assert b"high tide" in body


async def test_under_uvicorn_a_free_port_is_taken_and_shown(tmp_path: Path) -> None:
    variables = {"TIDEGATE_SERVER__MANAGEMENT_PORT": "0", "TIDEGATE_HTTP__TRUSTED_PROXIES": LOOPBACK}
    plan = GatewayPlan(catalogue=ECHO, environment="development", variables=variables)
    async with GatewayProcess(tmp_path, plan) as gateway:
        shown = await eventually(lambda: re.search(r"management (http://\S+:\d+)/api", gateway.output()))
        assert shown
        assert f"dashboard  {shown[1]}/" in gateway.output()
        await _check(gateway, shown[1])
        assert (await _ask(gateway.base_url, "GET", "/docs"))[0] == 404
        assert (await _ask(shown[1], "GET", "/docs"))[0] == 200


async def test_under_gunicorn_every_worker_tells_the_ports_apart(
    tmp_path: Path, postgres_url: str, redis_url: str, redis_prefix: str
) -> None:
    port = free_port()
    plan = GatewayPlan(
        catalogue=ECHO,
        workers=2,
        environment="production",
        database_url=postgres_url,
        redis_url=redis_url,
        redis_prefix=redis_prefix,
        variables={
            "TIDEGATE_SERVER__HOST": "0.0.0.0",
            "TIDEGATE_SERVER__MANAGEMENT_HOST": LOOPBACK,
            "TIDEGATE_SERVER__MANAGEMENT_PORT": str(port),
        },
    )
    async with GatewayProcess(tmp_path, plan) as gateway:
        ready = await eventually(lambda: [line for line in gateway.lines() if line["event"] == "ready"])
        assert ready[0]["management_url"] == f"http://{LOOPBACK}:{port}"
        for _ in range(4):
            await _check(gateway, f"http://{LOOPBACK}:{port}")


async def test_a_management_port_in_use_ends_the_start(tmp_path: Path) -> None:
    with socket.create_server((LOOPBACK, 0)) as taken:
        port = taken.getsockname()[1]
        variables = {"TIDEGATE_SERVER__MANAGEMENT_PORT": str(port)}
        (line,) = await refusal(GatewayProcess(tmp_path, GatewayPlan(catalogue=ECHO, variables=variables)))
    assert line.startswith(f"port {port} on {LOOPBACK} is in use; choose another: TIDEGATE_SERVER__MANAGEMENT_PORT=")


@pytest.mark.parametrize("port", ["70000", "many"])
async def test_a_wrong_management_port_is_named(tmp_path: Path, port: str) -> None:
    variables = {"TIDEGATE_SERVER__MANAGEMENT_PORT": port}
    (line,) = await refusal(GatewayProcess(tmp_path, GatewayPlan(catalogue=ECHO, variables=variables)))
    assert line.startswith("TIDEGATE_SERVER__MANAGEMENT_PORT: ")

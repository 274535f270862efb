"""Bad input gets a clear error in the envelope, and a start that cannot be is refused in plain lines."""

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.caller import CHAT, Caller, Json, Reply, catalogue_of, made_key, reply_of
from tests.support.client import RawClient
from tests.support.server import GatewayPlan, GatewayProcess
from tests.support.upstream import ScriptedUpstream

LIMIT = 100_000
GOOD: Json = {"model": "m", "messages": [{"role": "user", "content": "Hello"}]}
UNKNOWN_KEY = "tg_testkey2_QhX4c0m8Tn2vKp6wRz9bLd3fJs7gYu1eAi5oVk0xWqE"
WRONG_KEY = "tg_testkey1_AAAAAAAAAn2vKp6wRz9bLd3fJs7gYu1eAi5oVk0xWqE"


@pytest.fixture(scope="module")
async def upstream() -> AsyncIterator[ScriptedUpstream]:
    async with ScriptedUpstream() as server:
        yield server


@pytest.fixture(scope="module")
async def gateway(
    upstream: ScriptedUpstream, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[GatewayProcess]:
    catalogue = catalogue_of({"plain": {"base_url": upstream.base_url}}, {"m": "plain/m", "gpt-4.1": "plain/gpt"})
    plan = GatewayPlan(catalogue=catalogue, variables={"TIDEGATE_HTTP__MAX_BODY_BYTES": str(LIMIT)})
    async with GatewayProcess(tmp_path_factory.mktemp("served"), plan) as started:
        yield started


@pytest.fixture
async def caller(gateway: GatewayProcess, upstream: ScriptedUpstream) -> AsyncIterator[Caller]:
    """Nothing that is refused reaches the upstream or the ledger, and the gateway goes on."""
    caller = Caller(gateway.base_url)
    requests, entries = len(upstream.requests), len(await caller.entries())
    yield caller
    assert len(upstream.requests) == requests
    assert len(await caller.entries()) == entries


def refused(reply: Reply, status: int, code: str, *words: str, param: str | None = None) -> None:
    assert (reply.status, reply.error["code"]) == (status, code), reply.body
    assert reply.head.headers["content-type"] == "application/json"
    assert reply.error["param"] == param
    for word in words:
        assert word in reply.error["message"]


def with_(**fields: object) -> bytes:
    return json.dumps({**GOOD, **fields}).encode()


BODIES: dict[str, tuple[bytes, str | None]] = {
    "broken-json": (b'{"model": "m", ', None),
    "nothing": (b"", None),
    "no-object": (b"[1]", None),
    "a-number": (b"7", None),
    "invalid-utf-8": (b'{"model": "m", "messages": [{"role": "user", "content": "\xff\xfe"}]}', None),
    "nested-too-deep": (b'{"model": "m", "messages": ' + b"[" * 5000 + b"]" * 5000 + b"}", None),
    "two-values": (b'{"model": "m", "messages": []} {}', None),
    "no-model": (json.dumps({"messages": GOOD["messages"]}).encode(), "model"),
    "model-of-another-type": (with_(model=7), "model"),
    "empty-model": (with_(model=""), "model"),
    "no-messages": (b'{"model": "m"}', "messages"),
    "empty-messages": (with_(messages=[]), "messages"),
    "messages-of-another-type": (with_(messages="Hello"), "messages"),
    "unknown-role": (with_(messages=[{"role": "wizard", "content": "x"}]), "messages[0].role"),
    "content-of-another-type": (with_(messages=[{"role": "user", "content": 7}]), "messages[0].content"),
    "stream-as-a-word": (with_(stream="yes"), "stream"),
    "negative-limit": (with_(max_tokens=-1), "max_tokens"),
    "temperature-too-high": (with_(temperature=9), "temperature"),
}


@pytest.mark.parametrize("body", BODIES)
async def test_a_body_that_is_no_chat_request_is_a_400(body: str, caller: Caller) -> None:
    data, param = BODIES[body]
    reply = await caller.call("POST", CHAT, body=data, headers={"content-type": "application/json"})
    assert (reply.status, reply.error["code"]) == (400, "invalid_request"), reply.body
    if param is not None:
        assert reply.error["param"].startswith(param)
    assert reply.error["type"] == "invalid_request_error"


async def test_an_unknown_model_is_told_with_those_that_are_there(caller: Caller, gateway: GatewayProcess) -> None:
    refused(await caller.chat("unknown", model="gpt-5"), 404, "model_not_found", "'gpt-5'", "m, gpt-4.1", param="model")
    held = Caller(gateway.base_url, await made_key(gateway, models=("gpt-4.1",)))
    reply = await held.chat("held", model="gpt-5")
    refused(reply, 404, "model_not_found", "gpt-4.1", param="model")
    assert "m," not in reply.error["message"]
    refused(await held.chat("held"), 403, "model_not_allowed", "gpt-4.1", param="model")


async def test_a_caller_who_cannot_be_known_is_a_401(caller: Caller, gateway: GatewayProcess) -> None:
    async def with_headers(**headers: str) -> Reply:
        async with RawClient(gateway.base_url) as client:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            await client.send("POST", CHAT, json=GOOD, headers=named)
            return await reply_of(client)

    expired = await made_key(gateway, expired=True)
    revoked = await made_key(gateway, revoked=True)
    refused(await with_headers(), 401, "missing_credentials")
    refused(await with_headers(authorization="Basic YTpi"), 401, "missing_credentials")
    for key in (UNKNOWN_KEY, WRONG_KEY, expired, revoked, "tg_short"):
        for headers in ({"authorization": f"Bearer {key}"}, {"x_api_key": key}):
            reply = await with_headers(**headers)
            refused(reply, 401, "invalid_api_key")
            assert reply.head.headers["www-authenticate"]
            assert key not in reply.body.decode()
    refused(await with_headers(authorization="Bearer no.such.token"), 401, "invalid_token")
    both = await with_headers(authorization=f"Bearer {caller.api_key}", x_api_key=UNKNOWN_KEY)
    assert both.status == 401
    same = await caller.call("GET", "/v1/models", headers={"x-api-key": caller.api_key})
    assert same.status == 200


async def test_a_body_over_the_limit_is_a_413(caller: Caller, gateway: GatewayProcess) -> None:
    large = with_(padding="x" * LIMIT)
    reply = await caller.call("POST", CHAT, body=large)
    refused(reply, 413, "request_too_large", str(LIMIT), "TIDEGATE_HTTP__MAX_BODY_BYTES")
    assert reply.error["type"] == "request_too_large"

    headers = {**caller.credentials(), "content-length": str(10**12), "expect": "100-continue"}
    async with RawClient(gateway.base_url) as client:
        await client.send("POST", CHAT, headers=headers)
        refused(await reply_of(client), 413, "request_too_large")

    async with RawClient(gateway.base_url) as client:
        lines = [f"POST {CHAT} HTTP/1.1", "host: gateway", "transfer-encoding: chunked"]
        lines += [f"{name}: {value}" for name, value in caller.credentials().items()]
        await client.send_raw("\r\n".join([*lines, "", ""]).encode())
        for start in range(0, len(large), 10_000):
            piece = large[start : start + 10_000]
            await client.send_raw(b"%x\r\n%b\r\n" % (len(piece), piece))
        refused(await reply_of(client), 413, "request_too_large")


async def test_what_is_nowhere_and_what_is_not_allowed_have_the_envelope(caller: Caller) -> None:
    refused(await caller.call("GET", "/v1/nothing"), 404, "not_found", "/v1/nothing")
    reply = await caller.call("DELETE", CHAT)
    refused(reply, 405, "method_not_allowed")
    assert "POST" in reply.head.headers["allow"]


async def test_what_is_no_http_has_the_envelope(caller: Caller, gateway: GatewayProcess) -> None:
    async with RawClient(gateway.base_url) as client:
        await client.send_raw(b"HELLO\r\n\r\n")
        reply = await reply_of(client)
    refused(reply, 400, "invalid_request")


# Starts that are refused


async def refused_start(gateway: GatewayProcess) -> str:
    """Starts it and waits for its end: exit code 1, and no traceback; what it says."""
    gateway.spawn()
    code = await gateway.ended(within_s=60)
    await gateway.assert_nothing_left()
    said = gateway.output()
    assert code == 1, said
    assert "Traceback" not in said
    return said


async def test_a_port_in_use_stops_the_start(gateway: GatewayProcess, tmp_path: Path) -> None:
    second = GatewayProcess(tmp_path, GatewayPlan(catalogue=gateway.plan.catalogue))
    second.port = gateway.port
    said = await refused_start(second)
    assert f"port {gateway.port} on 127.0.0.1 is in use" in said
    assert (await Caller(gateway.base_url).call("GET", "/health/live")).status == 200


async def test_a_typing_error_in_the_configuration_stops_the_start(tmp_path: Path) -> None:
    file = tmp_path / "gateway.toml"
    text = catalogue_of({"plain": {"base_url": "http://127.0.0.1:9/v1"}}, {"m": "plain/m"})
    file.write_text(text.replace("base_url", "max_concurency = 3\nbase_url"))
    variables = {"TIDEGATE_CONFIG": str(file), "TIDEGATE_CONFIG_TOML": ""}
    said = await refused_start(GatewayProcess(tmp_path, GatewayPlan(catalogue="", variables=variables)))
    assert f"{file}:3" in said or "line 3" in said, said
    assert "max_concurency" in said
    assert "max_concurrency" in said


async def test_every_faulty_variable_is_named_at_once(tmp_path: Path) -> None:
    variables = {"TIDEGATE_SERVER__WORKER": "2", "TIDEGATE_SERVER__DRAIN_S": "soon", "TIDEGATE_REDIS__URL": "http://x"}
    said = await refused_start(GatewayProcess(tmp_path, GatewayPlan(catalogue="", variables=variables)))
    for name in (*variables, "TIDEGATE_SERVER__WORKERS"):
        assert name in said

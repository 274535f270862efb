"""What the gateway can be made to call: upstreams and the webhook of its operator, and nothing that anybody else says.

A canary listens on loopback, where a request forged at the server would go: nobody may connect to it.
"""

import asyncio
import socket
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any, Final

import pytest

from tests.security.attacked import Attacked, plan_for, with_variables
from tests.security.routes import routes
from tests.support.behaviours import Answer
from tests.support.server import LOOPBACK, GatewayPlan, GatewayProcess, catalogue
from tests.support.smtp import MailServer
from tests.support.stand_in import ECHO
from tests.support.upstream import ScriptedUpstream
from tests.support.waiting import eventually

METADATA: Final = (
    "169.254.169.254",
    "[::ffff:169.254.169.254]",
    "[::ffff:a9fe:a9fe]",
    "[64:ff9b::a9fe:a9fe]",
    "[fd00:ec2::254]",
    "[fe80::1]",
    "100.100.100.200",
    "168.63.129.16",
    "0.0.0.0",
    "[::]",
    "224.0.0.1",
    "0251.0376.0251.0376",
    "169.254.169.0254",
)
# No address to who reads them, one to who resolves them: refused where the connection would be made.
AS_NUMBERS: Final = ("2852039166", "0xa9fea9fe", "0251.16689662", "169.16689662")
HEADERS: Final = (
    "Host",
    "X-Forwarded-Host",
    "X-Forwarded-For",
    "Forwarded",
    "Referer",
    "Origin",
    "X-Original-URL",
    "X-Upstream-URL",
    "X-Base-URL",
    "OpenAI-Base-URL",
    "X-Tidegate-Upstream",
    "X-Tidegate-Session",
    "X-Tidegate-Tags",
    "Proxy",
    "Via",
)
ENVIRONMENT: Final = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy")


class Canary:
    """Counts who connects. What it is asked it answers by a redirect to itself, so that following counts too."""

    def __init__(self) -> None:
        self.connections = 0
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://{LOOPBACK}:{self.port}/canary"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
        writer.close()


@pytest.fixture(scope="module")
async def canary() -> AsyncIterator[Canary]:
    canary = Canary()
    server = await asyncio.start_server(canary.serve, LOOPBACK, 0)
    canary.port = server.sockets[0].getsockname()[1]
    yield canary
    server.close()
    await server.wait_closed()


@pytest.fixture(scope="module")
async def attacked(
    models: ScriptedUpstream, mail: MailServer, canary: Canary, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Attacked]:
    """Its environment names the canary as its proxy; `metadata-N` are models at addresses that are never called."""
    plan = with_variables(
        plan_for(models, mail),
        **dict.fromkeys(ENVIRONMENT, canary.url.removesuffix("/canary")),
        TIDEGATE_ALERTS__WEBHOOK_URL=f"{models.base_url.removesuffix('/v1')}/hook",
        TIDEGATE_ALERTS__WEBHOOK_SECRET="webhook-secret-0123456789-abcdefghijkl",
    )
    more = "".join(
        f'\n[upstreams.metadata-{n}]\nprovider = "openai"\nbase_url = "http://{host}/v1"\n'
        f'[[models]]\nname = "metadata-{n}"\nattempts = ["metadata-{n}/m"]\n'
        for n, host in enumerate(AS_NUMBERS)
    )
    plan = replace(plan, catalogue=plan.catalogue + more)
    async with Attacked.open(tmp_path_factory.mktemp("attacked"), plan) as attacked:
        yield attacked
    # The gateway has ended: nothing is still on its way.
    assert canary.connections == 0


async def test_no_text_of_a_caller_is_an_address_to_call(attacked: Attacked, canary: Canary) -> None:
    tried = 0
    forms = (canary.url, f"//{LOOPBACK}:{canary.port}/", f"{LOOPBACK}:{canary.port}", f"openai/{canary.url}")
    for route in routes():
        for parameter in route.parameters:
            if parameter.is_text and parameter.where in ("query", "body", "header"):
                is_a_password = parameter.schema.get("format") == "password"
                for text in forms[: 2 if parameter.where == "body" and not is_a_password else 1]:
                    options: dict[str, Any] = {}
                    if parameter.where == "query":
                        options["params"] = {parameter.name: text}
                    elif parameter.where == "header":
                        options["headers"] = {parameter.name: text}
                    if route.body is not None:
                        place = parameter.place if parameter.where == "body" else ()
                        options["json"] = route.sample(place, text if place else None)
                    answer = await attacked.call(route.method, route.url(), by="admin", **options)
                    assert answer.status_code < 500, f"{route} {parameter.name}: {answer.text}"
                    tried += 1
    assert tried > 100
    assert canary.connections == 0


async def test_no_parameter_or_header_of_inference_is_an_address_to_call(
    attacked: Attacked, models: ScriptedUpstream, canary: Canary
) -> None:
    said = [{"role": "user", "content": "hi"}]
    picture = [{"type": "image_url", "image_url": {"url": canary.url}}, {"type": "text", "text": canary.url}]
    named = (
        "base_url",
        "api_base",
        "api_url",
        "endpoint",
        "url",
        "proxy",
        "callback",
        "webhook",
        "webhook_url",
        "host",
    )
    bodies: list[dict[str, Any]] = [
        {"messages": [{"role": "user", "content": picture}]},
        *({"messages": said, name: canary.url} for name in named),
        {"messages": said, "metadata": {"url": canary.url}, "user": canary.url},
        {"messages": said, "tools": [{"type": "mcp", "server_url": canary.url}]},
        {"messages": said, "extra_headers": {"Host": LOOPBACK}, "extra_body": {"base_url": canary.url}},
    ]
    before = len(models.requests)
    for body in bodies:
        answer = await attacked.call("POST", "/v1/chat/completions", by="caller", json={"model": "m", **body})
        assert answer.status_code in (200, 400), answer.text
    for name in HEADERS:
        value = f"http={canary.url}" if name == "X-Tidegate-Tags" else canary.url.partition("://")[2].partition("/")[0]
        answer = await attacked.call(
            "POST", "/v1/chat/completions", by="caller", json={"model": "m", "messages": said}, headers={name: value}
        )
        assert answer.status_code in (200, 400), f"{name}: {answer.text}"
        target = f"http://{value}/v1/chat/completions"
        assert (await attacked.call("GET", f"/{target}", by="caller")).status_code == 404
    # They went where the catalogue says, to nowhere else.
    assert len(models.requests) > before + len(bodies) // 2
    assert {received.path for received in models.requests[before:]} == {"/v1/chat/completions"}
    assert canary.connections == 0


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_where_an_upstream_redirects_to_is_not_called(
    attacked: Attacked, models: ScriptedUpstream, canary: Canary, status: int
) -> None:
    models.enqueue(Answer(status=status, headers=(("location", canary.url), ("refresh", f"0;url={canary.url}"))))
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
    answer = await attacked.call("POST", "/v1/chat/completions", by="caller", json=body)
    assert answer.status_code == 502
    assert "location" not in answer.headers
    assert canary.connections == 0


async def test_where_the_webhook_redirects_to_is_not_called(
    attacked: Attacked, models: ScriptedUpstream, canary: Canary
) -> None:
    limit = {"scope": "workspace", "meter": "requests", "window": "day", "amount": 1, "action": "alert"}
    assert (await attacked.call("POST", "/api/limits", by="warden", json=limit)).status_code == 201
    body = {"model": "echo", "messages": [{"role": "user", "content": "hi"}]}
    hooked = len([received for received in models.requests if received.path == "/hook"])
    models.enqueue(Answer(status=307, headers=(("location", canary.url),)))

    async def is_told() -> bool:
        # Its limit is known to the road within seconds.
        assert (await attacked.call("POST", "/v1/chat/completions", by="theirs", json=body)).status_code == 200
        return len([received for received in models.requests if received.path == "/hook"]) > hooked

    await eventually(is_told, within_s=30, poll_s=0.1)
    assert canary.connections == 0


async def test_an_address_that_is_written_as_a_number_is_not_called_either(attacked: Attacked) -> None:
    body = {"messages": [{"role": "user", "content": "hi"}]}
    for n, host in enumerate(AS_NUMBERS):
        assert socket.gethostbyname(host) == "169.254.169.254"
        model = {"model": f"metadata-{n}", **body}
        async with asyncio.timeout(5):
            answer = await attacked.call("POST", "/v1/chat/completions", by="caller", json=model)
        assert answer.status_code == 502, host
        assert "link-local" in answer.json()["error"]["message"], host


async def test_a_start_is_refused_whose_catalogue_names_an_address_that_is_never_called(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    several = "".join(
        f'[upstreams.u{n}]\nprovider = "openai"\nbase_url = "http://{host}/v1"\n' for n, host in enumerate(METADATA)
    )
    others = 'provider = "openai"\nbase_url = '
    several += f'[upstreams.file]\n{others}"file:///etc/passwd"\n[upstreams.gopher]\n{others}"gopher://127.0.0.1/x"\n'
    several += f'[upstreams.name]\n{others}"https://user@169.254.169.254/"\n'
    gateway = GatewayProcess(tmp_path_factory.mktemp("refused"), GatewayPlan(catalogue=several + ECHO))
    done = await gateway.command("config", "validate", check=False)
    assert done.returncode != 0
    for name in (*(f"u{n}" for n in range(len(METADATA))), "file", "gopher", "name"):
        assert f"upstreams.{name}.base_url" in done.stdout + done.stderr, f"{name} is not refused: {done.stderr}"
    known = GatewayProcess(
        tmp_path_factory.mktemp("taken"), GatewayPlan(catalogue=catalogue("http://10.1.2.3:8000/v1", ["m"]))
    )
    assert (await known.command("config", "validate", check=False)).returncode == 0

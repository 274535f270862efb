"""SQL in every text that a route takes, and lines in everything that is logged.

The texts are found in the app's own document, so a new parameter is tried without anyone adding it. On both databases:
what one takes for text another may run.
"""

import asyncio
import itertools
import os
import pty
import re
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import IO, Any, Final

import httpx2
import orjson
import pytest

from tests.security.attacked import Attacked, plan_for
from tests.security.routes import Parameter, Route, routes
from tests.security.things import make_things
from tests.support.behaviours import refusal
from tests.support.client import RawClient
from tests.support.databases import Databases
from tests.support.server import GatewayPlan, GatewayProcess
from tests.support.smtp import MailServer
from tests.support.upstream import ScriptedUpstream
from tests.support.waiting import eventually

MARK: Final = "zq7x"
SQL: Final = (
    f"{MARK}' OR '1'='1",
    f"{MARK}\\'; SELECT pg_sleep(60); --",
    f"{MARK}'; DROP TABLE users; --",
    f"{MARK}') UNION SELECT password_hash FROM users --",
    f'{MARK}" OR ""="',
    "_%_",
    "%",
    f"{MARK}%' OR email LIKE '%",
)
# As SQL each does something: one is true of every row, one is an error.
ADDRESSES: Final = ("'or'1'='1'--@example.com", "_____@example.com", "o'brien@example.com", "%@example.com")
HEADERS: Final = (
    "X-Request-ID",
    "User-Agent",
    "X-Forwarded-For",
    "X-Tidegate-Session",
    "X-Tidegate-Tags",
    "X-Tidegate-End-User",
    "Referer",
)
# What a line of log may not hold as it came: lines, terminal codes, the ends of JSON.
LINES: Final = (
    f"{MARK}\n" + '{"ts":"2026-01-01T00:00:00.000Z","level":"error","event":"forged"}',
    f"{MARK}\r\n127.0.0.1 - - forged",
    f'{MARK}","level":"critical","forged":"yes',
    f"{MARK}\x1b[2J\x1b]0;forged\x07\x1b[8m",
    f"{MARK}\u2028forged\u0085forged\x9b31m",
    f"{MARK}\u202eforged",
    f"{MARK}%0d%0aforged%1b[2J",
    f"{MARK}${{jndi:ldap://127.0.0.1/x}} %s %n {{0.__class__}}",
)
_FIRST: Final = ["ts", "level", "event", "logger", "process", "pid"]
_CONTROL: Final = re.compile(rb"[\x00-\x09\x0b-\x1f\x7f]")
# Of a terminal: colours, which are the renderer's own, are taken away first; C1 is told in UTF-8.
_COLOURS: Final = re.compile(rb"\x1b\[[0-9;]*m")
_TERMINAL: Final = re.compile(rb"[\x00-\x09\x0b-\x0c\x0e-\x1f\x7f]|\xc2[\x80-\x9f]")


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest) -> Iterator[str | None]:
    """None for the gateway's own file."""
    if request.param == "sqlite":
        yield None
        return
    databases: Databases = request.getfixturevalue("postgres_databases")
    with databases.lent() as url:
        yield url


@pytest.fixture(scope="module")
async def attacked(
    url: str | None, models: ScriptedUpstream, mail: MailServer, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Attacked]:
    plan = replace(plan_for(models, mail), database_url=url)
    async with Attacked.open(tmp_path_factory.mktemp("attacked"), plan) as attacked:
        yield attacked


def texts() -> Iterator[tuple[Route, Parameter]]:
    for route in routes():
        for parameter in route.parameters:
            if parameter.is_text and parameter.where in ("path", "query", "body", "header"):
                yield route, parameter


def payloads(parameter: Parameter) -> Sequence[str]:
    if parameter.schema.get("format") == "password":
        # It is hashed, and never compared by a database: each costs a tenth of a second.
        return SQL[:1]
    return (*SQL, *ADDRESSES) if parameter.schema.get("format") == "email" or parameter.name == "owner" else SQL


async def said_in(attacked: Attacked, route: Route, parameter: Parameter, text: str) -> httpx2.Response:
    options: dict[str, Any] = {}
    path = route.url()
    if parameter.where == "path":
        path = route.url({parameter.name: httpx2.QueryParams({"": text}).__str__()[1:].replace("+", "%20")})
    elif parameter.where == "query":
        options["params"] = {parameter.name: text}
    elif parameter.where == "header":
        options["headers"] = {parameter.name: text.encode()}
    if route.body is not None:
        options["json"] = route.sample(parameter.place, text) if parameter.where == "body" else route.sample()
    return await attacked.call(route.method, path, by="admin", **options)


async def rows(attacked: Attacked) -> dict[str, list[str]]:
    return {name: rows for name, rows in (await attacked.dump()).items() if not name.startswith("ledger_")}


async def test_no_text_of_any_route_is_run_by_the_database(attacked: Attacked, url: str | None) -> None:
    await make_things(attacked)
    before = await rows(attacked)
    tried = 0
    for route, parameter in texts():
        # What is PostgreSQL's alone need not be said to SQLite.
        for text in payloads(parameter)[:: 1 if url else 2]:
            answer = await said_in(attacked, route, parameter, text)
            what = f"{text!r} as {parameter.name} ({parameter.where}) of {route}: {answer.text[:300]}"
            assert answer.status_code < 500, what
            tried += 1
            if answer.is_success and parameter.where == "query" and "data" in answer.json():
                others = [row for row in answer.json()["data"] if orjson.dumps(text) not in orjson.dumps(row)]
                assert others == [], f"other rows were found by {what}"
    assert tried > 200
    after = await rows(attacked)
    # What was named so is there under that name; nothing that was there before has changed or is gone.
    lost = {name: sorted(set(before[name]) - set(after[name])) for name in before}
    assert not {name: gone for name, gone in lost.items() if gone}
    made = [row for name in after for row in set(after[name]) - set(before[name])]
    assert any("DROP TABLE users" in row for row in made)
    assert (await attacked.call("GET", "/api/users", by="admin")).status_code == 200


async def test_no_header_is_run_by_the_database(attacked: Attacked) -> None:
    before = await rows(attacked)
    body = {"model": "echo", "messages": [{"role": "user", "content": "hi"}]}
    for name, text in itertools.product(HEADERS, SQL):
        sent = {name: text.encode()}
        chat = await attacked.call("POST", "/v1/chat/completions", by="caller", json=body, headers=sent)
        token = {"refresh_token": f"{name} {SQL.index(text)}"}
        failed = await attacked.call("POST", "/auth/refresh", json=token, headers=sent)
        assert (chat.status_code < 500, failed.status_code) == (True, 401), f"{name}: {text}"
    assert await rows(attacked) == before
    found = await attacked.call("GET", "/api/requests", by="caller", params={"session_id": SQL[0]})
    assert found.status_code == 200


async def speak(gateway: GatewayProcess, text: str, upstream: ScriptedUpstream, key: str) -> None:
    """Says a text in every place that a log could take it from."""
    raw = text.encode()
    chat = {"model": text, "messages": [{"role": "user", "content": text}], "user": text}
    bodies: list[tuple[str, Any]] = [
        ("/auth/login", {"email": text, "password": text}),
        ("/auth/login", {text: text}),
        ("/auth/password/forgot", {"email": f"{MARK}@example.com", text: text}),
        ("/v1/chat/completions", chat),
        ("/v1/chat/completions", {**chat, "model": "m", "user": "u"}),
        ("/api/keys", {"name": text}),
    ]
    upstream.enqueue(refusal(500, text))
    async with httpx2.AsyncClient(base_url=gateway.base_url, trust_env=False, timeout=60) as client:
        for path, body in bodies:
            await client.post(path, json=body, headers={"Authorization": f"Bearer {key}"})
        quoted = httpx2.QueryParams({"": text}).__str__()[1:]
        for path in (f"/{quoted}", f"/v1/models/{quoted}", f"/api/keys?owner={quoted}", f"/assets/{quoted}"):
            await client.get(path, headers={"Authorization": f"Bearer {key}"})
    for name in (b"user-agent", b"x-request-id", b"referer", b"x-forwarded-for", b"authorization", b"x-tidegate-tags"):
        async with asyncio.timeout(30), RawClient(gateway.base_url) as one:
            await one.send_raw(b"GET /nowhere HTTP/1.1\r\nhost: x\r\n" + name + b": " + raw + b"\r\n\r\n")
            await one.head()
    async with asyncio.timeout(30), RawClient(gateway.base_url) as one:
        await one.send_raw(b"GET /" + raw + b" HTTP/1.1\r\nhost: x\r\n\r\n")
        await one.head()


async def at_the_end(gateway: GatewayProcess, output: Any) -> bytes:
    """All that was printed, once the line of a last request is among it."""
    async with RawClient(gateway.base_url) as client:
        await client.send("GET", "/nowhere", headers={"x-request-id": "the-last"})
        await client.head()
    await eventually(lambda: b"the-last" in output())
    printed: bytes = output()
    return printed


async def test_every_line_of_log_is_one_object_with_its_own_fields(
    attacked: Attacked, models: ScriptedUpstream
) -> None:
    for text in LINES:
        await speak(attacked.gateway, text, models, attacked.credentials["caller"])
    printed = await at_the_end(attacked.gateway, lambda: attacked.gateway.output().encode())
    assert printed.count(MARK.encode()) >= 20
    assert not _CONTROL.search(printed), _CONTROL.findall(printed)
    events = set()
    for line in printed.decode().split("\n"):
        if line.strip():
            said = orjson.loads(line)
            assert list(said)[:6] == _FIRST, line
            assert not {"forged", "critical"} & {*said, said["level"], said["event"]}, line
            events.add(said["event"])
    assert "request" in events


class AtATerminal(GatewayProcess):
    """A gateway in development, whose output is a terminal's. `printed` is what was read of it."""

    def __init__(self, folder: Path, plan: GatewayPlan) -> None:
        super().__init__(folder, plan)
        self._reading, self._writing = pty.openpty()
        os.set_blocking(self._reading, False)
        self._read = b""

    def printed(self) -> bytes:
        try:
            while piece := os.read(self._reading, 1 << 16):
                self._read += piece
        except OSError:
            # Nothing more by now, or nobody holds the other end any more.
            pass
        return self._read

    def close(self) -> None:
        for end in (self._reading, self._writing):
            os.close(end)

    def output(self, stream: str = "both") -> str:
        return self.printed().decode("utf-8", "replace")

    @contextmanager
    def _log(self, name: str) -> Iterator[IO[bytes]]:
        with os.fdopen(os.dup(self._writing), "wb") as terminal:
            yield terminal


async def test_a_terminal_is_shown_no_control_character_of_a_callers(models: ScriptedUpstream, tmp_path: Path) -> None:
    plan = plan_for(models)
    gateway = AtATerminal(tmp_path, replace(plan, environment="development"))
    try:
        async with gateway:
            for text in LINES:
                await speak(gateway, text, models, gateway.api_key)
                # A terminal that nobody reads stops who writes to it.
                gateway.printed()
            printed = await at_the_end(gateway, gateway.printed)
        assert printed.count(MARK.encode()) >= 20
        shown = _COLOURS.sub(b"", printed.replace(b"\r\n", b"\n"))
        assert not [shown[max(0, one.start() - 80) : one.end() + 20] for one in _TERMINAL.finditer(shown)]
        forged = (b'{"ts"', b"127.0.0.1 - -", b"forged")
        assert not [line for line in shown.split(b"\n") if line.startswith(forged)]
    finally:
        gateway.close()

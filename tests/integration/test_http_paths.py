"""Tricks with paths, methods and forwarded addresses: none reaches what the plain request does not."""

import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.client import RawClient
from tests.support.edge import EdgeApp
from tests.support.road import Road, open_road
from tests.support.server import API_KEY, in_process_server
from tests.support.stand_in import ECHO
from tidegate.server.http_server import uvicorn_config
from tidegate.settings import Settings
from tidegate.settings.groups import HttpSettings

ID = "00000000-0000-4000-8000-000000000000"
REFUSED = {400, 401, 404, 405}


@pytest.fixture
async def road(tmp_path: Path) -> AsyncIterator[Road]:
    async with open_road(tmp_path, ECHO) as road:
        yield road


async def ask(url: str, method: str, path: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
    async with RawClient(url) as client:
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        await client.send(method, path, headers={"connection": "close"} | sent)
        head = await client.head()
        return head.status, head.headers, b"" if method == "HEAD" else await client.body()


async def protected(road: Road) -> list[str]:
    """The paths that answer nobody."""
    document = (await road.caller.call("GET", "/openapi.json")).json
    paths = [re.sub(r"\{[^}]*\}", ID, path) for path, told in document["paths"].items() if "get" in told]
    found = [path for path in paths if (await ask(road.base_url, "GET", path))[0] == 401]
    assert {"/api/keys", "/api/requests", "/v1/models", "/auth/me"} <= set(found)
    return found


def tricks(path: str) -> list[str]:
    first, _, rest = path[1:].partition("/")
    last = path.rpartition("/")[2]
    return [
        f"/{path}",
        f"//{path}",
        f"/.{path}",
        f"/..{path}",
        f"/v1/..{path}",
        f"/health/..{path}",
        f"/health/live/..;{path}",
        f"/assets/%2e%2e{path}",
        f"/%2e{path}",
        f"/{first}/./{rest}",
        f"/{first}//{rest}",
        f"/{first}%2f{rest}",
        f"/{first}%2F{rest}",
        f"/{first}%5c{rest}",
        f"/{first}\\{rest}",
        f"/{first}%252f{rest}",
        f"/{first};x=y/{rest}",
        f"{path};x=y",
        f"{path}/",
        f"{path}//",
        f"{path}/.",
        f"{path}.",
        f"{path}..",
        f"{path}%20",
        f"{path}%09",
        f"{path}%0a",
        f"{path}%0d%0a",
        f"{path}%00",
        f"{path}%23",
        f"{path}%3f",
        f"{path}.json",
        path.upper(),
        f"/{first}/{last.capitalize()}",
        path.replace("a", "%61").replace("v", "%76"),
        path.replace("a", "\uff41").encode().decode("latin-1"),
        f"http://evil.example{path}",
    ]


async def test_no_spelling_of_a_path_gets_nobody_past_its_authorisation(road: Road) -> None:
    for path in await protected(road):
        for trick in tricks(path):
            status, headers, _ = await ask(road.base_url, "GET", trick)
            assert status in REFUSED, f"{trick}: {status}"
            assert "location" not in headers, trick


@pytest.mark.parametrize(
    "path", ["/api/keys%0a", "/api/keys/", "//api/keys", "/API/keys", "/api/keys;x=y", "/api/./keys"]
)
async def test_a_path_that_only_resembles_a_route_is_not_that_route(road: Road, path: str) -> None:
    status, headers, _ = await ask(road.base_url, "GET", path, authorization=f"Bearer {API_KEY}")
    assert status in (400, 404)
    assert "location" not in headers


@pytest.mark.parametrize(
    "path", ["/v1/chat/completions/", "/auth/login/", "/health/", "//evil.example", "//evil.example/%2e%2e"]
)
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_nothing_is_redirected(road: Road, method: str, path: str) -> None:
    status, headers, _ = await ask(road.base_url, method, path, host="evil.example")
    assert status in (404, 405)
    assert "location" not in headers
    assert "evil.example" not in str(headers)


@pytest.mark.parametrize("method", ["TRACE", "CONNECT", "PROPFIND", "PURGE", "MKCOL", "OPTIONS", "HEAD"])
async def test_methods_of_other_trades_do_nothing(road: Road, method: str) -> None:
    for path in ("/api/keys", "/v1/chat/completions"):
        status, headers, body = await ask(road.base_url, method, path, x_secret="told-to-nobody")
        assert status in (400, 405)
        assert b"told-to-nobody" not in body
        assert "told-to-nobody" not in str(headers)


@pytest.mark.parametrize("name", ["x-http-method-override", "x-http-method", "x-method-override"])
async def test_no_header_changes_the_method(road: Road, name: str) -> None:
    authorization = f"Bearer {API_KEY}"
    for method, wanted, path in (("GET", "DELETE", f"/api/keys/{ID}"), ("POST", "GET", "/v1/models")):
        plain = await ask(road.base_url, method, path, authorization=authorization)
        assert plain[0] == 405
        for query in ("", f"?_method={wanted}"):
            async with RawClient(road.base_url) as client:
                await client.send(method, path + query, headers={"authorization": authorization, name: wanted})
                assert (await client.head()).status == plain[0]


@pytest.mark.parametrize("name", ["x-original-url", "x-rewrite-url", "x-forwarded-prefix", "x-forwarded-path"])
async def test_no_header_changes_the_path(road: Road, name: str) -> None:
    async with RawClient(road.base_url) as client:
        await client.send("GET", "/nowhere", headers={name: "/health/live"})
        assert (await client.head()).status == 404
    async with RawClient(road.base_url) as client:
        await client.send("GET", "/api/keys", headers={name: "/health/live"})
        assert (await client.head()).status == 401


@pytest.mark.parametrize(
    ("forwarded", "seen"),
    [
        (["203.0.113.9, 192.0.2.7"], "203.0.113.9"),
        (["1.1.1.1, 203.0.113.9, 192.0.2.7"], "203.0.113.9"),
        (["127.0.0.1, 203.0.113.9, 192.0.2.7"], "203.0.113.9"),
        (["1.1.1.1", "203.0.113.9, 192.0.2.7"], "203.0.113.9"),
        (["203.0.113.9"], "203.0.113.9"),
        (["1.1.1.1, 203.0.113.9"], "203.0.113.9"),
        ([], "127.0.0.1"),
    ],
)
async def test_behind_two_proxies_the_address_is_what_the_outer_one_saw(forwarded: list[str], seen: str) -> None:
    settings = Settings(environment="test", http=HttpSettings(trusted_proxies=("127.0.0.1", "192.0.2.0/24")))
    async with in_process_server(uvicorn_config(EdgeApp(settings), settings)) as url, RawClient(url) as client:
        lines = "".join(f"x-forwarded-for: {value}\r\n" for value in forwarded)
        await client.send_raw(f"GET /client HTTP/1.1\r\nhost: x\r\n{lines}\r\n".encode())
        assert (await client.head()).status == 200
        assert (await client.body()).decode() == f"{seen} http"


async def test_who_is_no_proxy_is_believed_nothing() -> None:
    settings = Settings(environment="test", http=HttpSettings(trusted_proxies=("192.0.2.0/24",)))
    async with in_process_server(uvicorn_config(EdgeApp(settings), settings)) as url:
        _, _, body = await ask(url, "GET", "/client", x_forwarded_for="192.0.2.7", x_forwarded_proto="https")
    assert body == b"127.0.0.1 http"

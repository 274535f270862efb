"""Paths that a proxy, a file system or a careless check reads in another way: none is a way around authorisation.

Beside them: methods and paths that headers name, files outside the page's folder, and the port of management.
"""

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterator
from typing import Final

import pytest

from tests.security.attacked import Attacked, plan_for, with_variables
from tests.security.routes import Route, callers_routes, routes
from tests.support.client import ConnectionEnded, RawClient
from tests.support.server import free_port
from tests.support.upstream import ScriptedUpstream

INSIDE: Final = ("BEGIN", "root:x:", "[project]", "import tidegate", "SQLite format", "jwt_keys")
FILES: Final = (
    "/etc/passwd",
    "../etc/passwd",
    "../files.py",
    "../pages/front.html",
    "..%2ffiles.py",
    "%2e%2e/files.py",
    "%2e%2e%2ffiles.py",
    "..%252ffiles.py",
    "..\\files.py",
    "..%5cfiles.py",
    "....//files.py",
    "..;/files.py",
    "%c0%ae%c0%ae/files.py",
    "page.css/../../files.py",
    "page.css%00.py",
    ".",
    "..",
    "",
    "%2fetc%2fpasswd",
    "file:///etc/passwd",
    "CON",
    "page.css::$DATA",
    "PAGE.CSS",
    "__init__.py",
)
# Headers by which some servers are told of another path or method than the request's own.
ELSEWHERE: Final = (
    "X-Original-URL: {path}",
    "X-Rewrite-URL: {path}",
    "X-Forwarded-URI: {path}",
    "X-Forwarded-Prefix: {path}",
    "X-HTTP-Method-Override: {method}",
    "X-HTTP-Method: {method}",
    "X-Method-Override: {method}",
    "X-Custom-IP-Authorization: 127.0.0.1",
    "X-Forwarded-For: 127.0.0.1",
    "X-Forwarded-Host: localhost",
    "X-ProxyUser-Ip: 127.0.0.1",
)


def tricks(path: str) -> Iterator[str]:
    """The same path to somebody."""
    head, _, last = path.rpartition("/")
    yield from (
        path + "/",
        path + "//",
        path + "/.",
        path + "/x/..",
        path + "?",
        path + "%20",
        path + "%00",
        path + ";x=y",
    )
    yield from (path + ".json", path + "/x.css", path + "%2f", path + "#x", path + "~", path + "%3f")
    yield from ("/" + path, "/." + path, "/x/.." + path, "/%2e" + path, "/health/.." + path, "/assets/.." + path)
    yield from ("/health%2f.." + path, "/assets/%2e%2e" + path, "/health;x" + path, "/\\" + path, "/%5c" + path)
    yield from (
        path.upper(),
        path.title(),
        f"{head}//{last}",
        f"{head}/%2e/{last}",
        f"{head}%2f{last}",
        f"{head}\\{last}",
    )
    yield from (path.replace("a", "%61"), path.replace("a", "%2561"), path.replace("k", "\u212a"))
    yield f"http://x{path}"


async def status_of(url: str, head: str) -> tuple[int, bytes]:
    async with asyncio.timeout(30), RawClient(url) as client:
        await client.send_raw(head.encode() + b"\r\n\r\n")
        try:
            status = (await client.head()).status
            return status, await client.body() if "HEAD" not in head[:4] else b""
        except ConnectionEnded:
            return 0, b""


def asked_for() -> list[Route]:
    """Every route that wants a credential and is read, each path once."""
    found = {route.path: route for route in callers_routes() if route.method == "GET"}
    assert len(found) > 12
    return list(found.values())


async def test_no_way_to_write_a_path_opens_a_route_without_a_credential(attacked: Attacked) -> None:
    opened = []
    async with RawClient(attacked.gateway.base_url) as client:
        for route in asked_for():
            for path in tricks(route.url()):
                if "#" in path or not path.isascii():
                    status, body = await status_of(attacked.gateway.base_url, f"GET {path} HTTP/1.1\r\nhost: x")
                else:
                    await client.send_raw(f"GET {path} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
                    head = await client.head()
                    status, body = head.status, await client.body()
                if status not in (400, 401, 404, 405) or b'"type":"error"' not in body:
                    opened.append((path, status, body[:100]))
    assert opened == []


async def test_no_header_names_another_path_or_method(attacked: Attacked) -> None:
    before = await attacked.dump()
    for header, target in itertools.product(ELSEWHERE, ("/", "/health", "/nowhere", "/auth/me", "/api/keys")):
        for method, other in (("GET", "POST"), ("POST", "GET"), ("OPTIONS", "GET"), ("HEAD", "DELETE")):
            line = header.format(path="/api/users", method=other)
            status, body = await status_of(
                attacked.gateway.base_url, f"{method} {target} HTTP/1.1\r\nhost: x\r\n{line}\r\ncontent-length: 0"
            )
            assert status in (200, 400, 401, 404, 405), f"{method} {target} {line}: {status}"
            assert b"member@example.com" not in body, f"{method} {target} {line}"
            assert status != 200 or target in ("/", "/health"), f"{method} {target} {line}"
    assert await attacked.dump() == before


async def test_no_method_but_its_own_reaches_a_route(attacked: Attacked) -> None:
    before = await attacked.dump()
    paths = {route.url(): {one.method for one in routes() if one.path == route.path} for route in routes()}
    for path, known in paths.items():
        for method in {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "TRACK", "DEBUG"} - known:
            status, body = await status_of(
                attacked.gateway.base_url, f"{method} {path} HTTP/1.1\r\nhost: x\r\ncontent-length: 0"
            )
            # 401: another route has this method and a path with a parameter, which wants a credential.
            assert status in (400, 401, 405), f"{method} {path}: {status} {body[:100]!r}"
    assert await attacked.dump() == before


async def test_no_name_of_a_file_leads_out_of_the_pages_folder(attacked: Attacked) -> None:
    for prefix, name in itertools.product(("/assets/", "/assets//", "/"), FILES):
        status, body = await status_of(attacked.gateway.base_url, f"GET {prefix}{name} HTTP/1.1\r\nhost: x")
        is_the_page = prefix == "/" and name in ("", ".", "..")
        assert status in (400, 404) or is_the_page, f"{prefix}{name}: {status}"
        assert not [mark for mark in INSIDE if mark.encode() in body], f"{prefix}{name}"


@pytest.fixture(scope="module")
async def with_two_ports(models: ScriptedUpstream, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Attacked]:
    plan = with_variables(plan_for(models), TIDEGATE_SERVER__MANAGEMENT_PORT=str(free_port()))
    async with Attacked.open(tmp_path_factory.mktemp("ports"), plan) as attacked:
        yield attacked


async def test_no_path_and_no_header_reaches_management_from_the_public_port(with_two_ports: Attacked) -> None:
    attacked = with_two_ports
    port = attacked.gateway.plan.variables["TIDEGATE_SERVER__MANAGEMENT_PORT"]
    admin = f"authorization: Bearer {attacked.credentials['admin']}"
    managing = [route for route in asked_for() if route.path.startswith("/api/")]
    assert managing
    for route in managing:
        inside = await attacked.call("GET", f"http://127.0.0.1:{port}{route.url()}", by="admin")
        assert inside.status_code in (200, 404)
        assert inside.status_code == 200 or "{" in route.path
        for path in (route.url(), *tricks(route.url())):
            status, body = await status_of(attacked.gateway.base_url, f"GET {path} HTTP/1.1\r\nhost: x\r\n{admin}")
            assert status in (400, 404), f"{path}: {status} {body[:100]!r}"
        for said in (
            f"host: x:{port}",
            f"host: x\r\nx-forwarded-port: {port}",
            f"host: x\r\nx-forwarded-host: x:{port}",
        ):
            status, body = await status_of(
                attacked.gateway.base_url, f"GET {route.url()} HTTP/1.1\r\n{said}\r\n{admin}"
            )
            assert status in (400, 404), f"{said}: {status} {body[:100]!r}"

"""What every answer tells a browser, whoever answers: a route, the edge, the framework, or nobody."""

import time
from collections.abc import AsyncIterator

import pytest
from fastapi import FastAPI
from starlette.responses import HTMLResponse, PlainTextResponse, Response, StreamingResponse

from tests.support.edge import Answer, EdgeApp, call, scope_of
from tests.support.stand_in import ECHO
from tidegate.app import create_app
from tidegate.http.docs import policy_for
from tidegate.http.security_headers import security_headers
from tidegate.settings import Settings
from tidegate.settings.groups import HttpSettings

ORIGIN = "https://app.example.com"
STRICT = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"


def app() -> EdgeApp:
    made = EdgeApp(Settings(environment="test", http=HttpSettings(cors_origins=(ORIGIN,), allowed_hosts=("a.test",))))

    @made.get("/page")
    async def page() -> HTMLResponse:
        return HTMLResponse("<!doctype html>")

    @made.get("/own")
    async def own() -> Response:
        headers = {"Content-Security-Policy": "default-src 'self'", "Cache-Control": "max-age=60"}
        return HTMLResponse("<!doctype html>", headers=headers)

    @made.get("/stream")
    async def stream() -> StreamingResponse:
        async def pieces() -> AsyncIterator[bytes]:
            yield b"data: x\n\n"

        return StreamingResponse(pieces(), media_type="text/event-stream", headers={"Cache-Control": "no-cache"})

    @made.get("/nothing", status_code=204)
    async def nothing() -> None: ...

    return made


HOST = [(b"host", b"a.test")]
PREFLIGHT = [*HOST, (b"origin", ORIGIN.encode()), (b"access-control-request-method", b"POST")]
FOREIGN = [*HOST, (b"origin", b"https://evil.example"), (b"access-control-request-method", b"POST")]


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("GET", "/ok", HOST, 200),
        ("GET", "/page", HOST, 200),
        ("GET", "/stream", HOST, 200),
        ("GET", "/nothing", HOST, 204),
        ("GET", "/boom", HOST, 500),
        ("GET", "/dependency-boom", HOST, 500),
        ("GET", "/overloaded", HOST, 503),
        ("GET", "/nowhere", HOST, 404),
        ("DELETE", "/ok", HOST, 405),
        ("POST", "/ask", HOST, 422),
        ("GET", "/silent/x", HOST, 500),
        ("POST", "/size", [*HOST, (b"content-length", b"999999999")], 413),
        ("GET", "/ok", [(b"host", b"evil.example")], 400),
        ("OPTIONS", "/ok", PREFLIGHT, 200),
        ("OPTIONS", "/ok", FOREIGN, 400),
    ],
)
async def test_every_answer_has_them(method: str, path: str, headers: list[tuple[bytes, bytes]], status: int) -> None:
    answer = await call(app(), method, path, headers=headers)
    assert answer.status == status
    assert answer.values("x-content-type-options") == ["nosniff"]
    assert answer.values("referrer-policy") == ["no-referrer"]
    assert answer.values("cross-origin-resource-policy") == ["same-origin"]
    assert answer.values("content-security-policy") == [STRICT]
    assert answer.values("cache-control") == (["no-cache"] if path == "/stream" else ["no-store"])
    assert answer.values("strict-transport-security") == []
    assert answer.values("server") == []
    is_page = path == "/page"
    assert bool(answer.values("cross-origin-opener-policy")) is is_page
    assert bool(answer.values("permissions-policy")) is is_page


async def test_what_an_answer_says_of_itself_stands() -> None:
    answer = await call(app(), "GET", "/own", headers=HOST)
    assert answer.values("content-security-policy") == ["default-src 'self'"]
    assert answer.values("cache-control") == ["max-age=60"]
    assert answer.values("cross-origin-opener-policy") == ["same-origin"]


@pytest.mark.parametrize(("proto", "is_encrypted"), [(b"https", True), (b"http", False)])
async def test_strict_transport_is_told_where_the_request_came_encrypted(proto: bytes, is_encrypted: bool) -> None:
    behind = EdgeApp(Settings(environment="test", http=HttpSettings(trusted_proxies=("192.0.2.1",))))
    answer = await call(behind, "GET", "/ok", headers=[(b"x-forwarded-proto", proto)])
    told = ["max-age=31536000; includeSubDomains"] if is_encrypted else []
    assert answer.values("strict-transport-security") == told


def test_a_stream_of_the_road_pays_little_for_them() -> None:
    headers = [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-store"), *[(b"x-a", b"b")] * 8]
    scope = scope_of()
    began = time.perf_counter()
    for _ in range(1000):
        security_headers(scope, headers)
    # Measured: 0.6 µs each.
    assert time.perf_counter() - began < 0.1


def development() -> FastAPI:
    return create_app(Settings(environment="development", config_toml=ECHO))


async def docs(path: str) -> tuple[Answer, dict[str, str]]:
    answer = await call(development(), "GET", path)
    (policy,) = answer.values("content-security-policy")
    return answer, dict(part.split(" ", 1) for part in policy.split("; "))


@pytest.mark.parametrize("path", ["/docs", "/redoc"])
async def test_the_pages_of_the_reference_may_load_what_they_name_and_nothing_else(path: str) -> None:
    answer, policy = await docs(path)
    assert answer.status == 200
    assert policy["default-src"] == policy["frame-ancestors"] == "'none'"
    assert "unsafe" not in policy["script-src"]
    assert "'self'" not in policy["script-src"]
    assert "*" not in "".join(policy.values())
    page = answer.body.decode()
    loaded = [part.split('"')[0] for part in page.split('src="')[1:]]
    hosts = [f"https://{url.split('/')[2]}" for url in loaded if url.startswith("https://")]
    assert hosts
    assert all(host in policy["script-src"].split() for host in hosts)
    # An inline script without its hash would not run, silently.
    assert policy["script-src"].count("sha256-") == page.count("<script>")


def test_a_policy_is_of_the_page_as_it_is() -> None:
    page = '<link rel="stylesheet" href="https://cdn.test/a.css"><script src="https://js.test/b.js"></script>'
    policy = policy_for(page + "<script>\nrun()\n</script>")
    # printf '\nrun()\n' | openssl dgst -sha256 -binary | base64
    assert "script-src https://cdn.test https://js.test 'sha256-X8AAKgaI44zC2JgsZRJ4adpbl777tdE6qoD0mpUQwV4='" in policy


async def test_every_other_answer_of_development_has_the_strict_policy() -> None:
    for path in ("/openapi.json", "/nowhere", "/docs/oauth2-redirect"):
        assert (await call(development(), "GET", path)).values("content-security-policy") == [STRICT]


async def test_an_answer_that_is_used_again_is_not_written_to() -> None:
    kept = PlainTextResponse("kept")
    made = EdgeApp(Settings(environment="test"))
    made.mount("/kept", kept)
    for _ in range(2):
        assert len((await call(made, "GET", "/kept/")).values("x-content-type-options")) == 1

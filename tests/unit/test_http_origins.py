"""Who may call from a web page, and whose word on the client's address is taken."""

import pytest
from starlette.types import Receive, Scope, Send

from tests.support.edge import Answer, EdgeApp, call
from tidegate.errors import Overloaded
from tidegate.http.middleware import with_edge
from tidegate.settings import Settings
from tidegate.settings.groups import HttpSettings

ORIGIN = "https://app.example.com"


def app(**http: tuple[str, ...]) -> EdgeApp:
    return EdgeApp(Settings(environment="test", http=HttpSettings.model_validate(http)))


async def preflight(origin: str, method: str = "POST", headers: str = "authorization, x-stainless-lang") -> Answer:
    asked = {
        "origin": origin,
        "access-control-request-method": method,
        "access-control-request-headers": headers,
    }
    raw = [(name.encode(), value.encode()) for name, value in asked.items()]
    return await call(app(cors_origins=(ORIGIN,)), "OPTIONS", "/v1/ask", headers=raw)


async def test_named_origin_is_let_in() -> None:
    answer = await preflight(ORIGIN)
    assert answer.status == 200
    assert answer.header("access-control-allow-origin") == ORIGIN
    assert "authorization" in (answer.header("access-control-allow-headers") or "")
    assert answer.header("access-control-allow-credentials") is None


@pytest.mark.parametrize(
    "origin",
    [
        "https://evil.example",
        "https://app.example.com.evil.example",
        "http://app.example.com",
        "null",
        "NULL",
        ORIGIN + ":8443",
        ORIGIN + "/",
        ORIGIN + ".",
        ORIGIN + "\x00.evil.example",
        ORIGIN.upper(),
        "https://evil.example/" + ORIGIN,
        "https://app.example.com@evil.example",
        "https://appXexample.com",
        "https://sub.app.example.com",
        "file://",
        f"{ORIGIN}, https://evil.example",
    ],
)
async def test_refused_preflight_has_the_envelope(origin: str) -> None:
    answer = await preflight(origin)
    assert answer.status == 400
    assert answer.header("access-control-allow-origin") is None
    assert answer.error["code"] == "invalid_request"
    assert "origin" in answer.error["message"]
    assert answer.values("content-type") == ["application/json"]
    assert answer.values("content-length") == [str(len(answer.body))]
    assert answer.json["request_id"] == answer.header("x-request-id")


@pytest.mark.parametrize("origin", [ORIGIN, "https://evil.example", "null"])
@pytest.mark.parametrize(("method", "path"), [("GET", "/ok"), ("POST", "/ask"), ("GET", "/boom"), ("OPTIONS", "/ok")])
async def test_no_page_of_another_origin_may_use_its_visitors_cookies(method: str, path: str, origin: str) -> None:
    headers = [(b"origin", origin.encode()), (b"cookie", b"session=visitor")]
    if method == "OPTIONS":
        headers.append((b"access-control-request-method", b"GET"))
    answer = await call(app(cors_origins=(ORIGIN,)), method, path, headers=headers)
    assert answer.values("access-control-allow-credentials") == []
    assert answer.header("access-control-allow-origin") == (ORIGIN if origin == ORIGIN else None)
    assert answer.values("cross-origin-resource-policy") == ["same-origin"]


@pytest.mark.parametrize("origin", ["null", "https://evil.example"])
async def test_page_of_another_origin_can_read_no_answer(origin: str) -> None:
    answer = await call(app(cors_origins=(ORIGIN,)), "GET", "/ok", headers=[(b"origin", origin.encode())])
    assert answer.status == 200
    assert answer.header("access-control-allow-origin") is None


async def test_method_that_no_route_has_is_refused() -> None:
    assert (await preflight(ORIGIN, method="TRACE")).status == 400


@pytest.mark.parametrize(("path", "status"), [("/ok", 200), ("/boom", 500), ("/nowhere", 404)])
async def test_page_of_a_named_origin_can_read_answers_and_errors(path: str, status: int) -> None:
    answer = await call(app(cors_origins=(ORIGIN,)), "GET", path, headers=[(b"origin", ORIGIN.encode())])
    assert answer.status == status
    assert answer.header("access-control-allow-origin") == ORIGIN
    assert "X-Request-ID" in (answer.header("access-control-expose-headers") or "")


async def test_page_of_a_named_origin_can_read_errors_raised_outside_the_framework() -> None:
    """The hot routes have no stack of FastAPI's around them."""

    async def refuses(scope: Scope, receive: Receive, send: Send) -> None:
        raise Overloaded("No slot came free.")

    async def breaks(scope: Scope, receive: Receive, send: Send) -> None:
        raise ValueError

    settings = Settings(environment="test", http=HttpSettings(cors_origins=(ORIGIN,)))
    for road, status in ((refuses, 503), (breaks, 500)):
        answer = await call(with_edge(road, settings), "POST", "/v1/ask", headers=[(b"origin", ORIGIN.encode())])
        assert (answer.status, answer.starts) == (status, 1)
        assert answer.header("access-control-allow-origin") == ORIGIN
        assert answer.json["request_id"] == answer.header("x-request-id")


async def test_page_of_a_named_origin_can_read_that_its_body_is_too_large() -> None:
    answer = await call(
        app(cors_origins=(ORIGIN,)),
        "POST",
        "/size",
        headers=[(b"origin", ORIGIN.encode()), (b"content-length", b"999999999")],
    )
    assert (answer.status, answer.header("access-control-allow-origin")) == (413, ORIGIN)


async def test_without_origins_nobody_is_let_in() -> None:
    headers = [(b"origin", ORIGIN.encode()), (b"access-control-request-method", b"GET")]
    answer = await call(app(), "OPTIONS", "/ok", headers=headers)
    assert answer.status == 405
    assert answer.error["code"] == "method_not_allowed"
    assert answer.header("access-control-allow-origin") is None


async def client_seen(peer: str | None, forwarded: list[str], trusted: tuple[str, ...], proto: str = "") -> str:
    headers = [(b"x-forwarded-for", value.encode()) for value in forwarded]
    if proto:
        headers.append((b"x-forwarded-proto", proto.encode()))
    client = (peer, 1) if peer else None
    return (await call(app(trusted_proxies=trusted), "GET", "/client", headers=headers, client=client)).body.decode()


PROXIES = ("10.0.0.0/8", "192.0.2.7", "2001:db8::/32")


@pytest.mark.parametrize(
    ("peer", "forwarded", "seen"),
    [
        pytest.param("10.0.0.1", ["203.0.113.9"], "203.0.113.9", id="one proxy"),
        pytest.param("10.0.0.1", ["203.0.113.9, 192.0.2.7"], "203.0.113.9", id="two proxies"),
        pytest.param("10.0.0.1", ["203.0.113.9", "192.0.2.7"], "203.0.113.9", id="two proxies, two headers"),
        pytest.param("10.0.0.1", ["1.1.1.1, 203.0.113.9, 192.0.2.7"], "203.0.113.9", id="forged in front"),
        pytest.param("10.0.0.1", ["10.9.9.9, 203.0.113.9"], "203.0.113.9", id="forged as a proxy"),
        pytest.param("203.0.113.9", ["1.1.1.1"], "203.0.113.9", id="untrusted peer"),
        pytest.param("192.0.2.8", ["1.1.1.1"], "192.0.2.8", id="neighbour of a trusted address"),
        pytest.param("10.0.0.1", [], "10.0.0.1", id="a proxy that says nothing"),
        pytest.param("::ffff:10.0.0.1", ["203.0.113.9"], "203.0.113.9", id="dual stack"),
        pytest.param("::ffff:203.0.113.9", ["1.1.1.1"], "::ffff:203.0.113.9", id="dual stack, untrusted"),
        pytest.param("2001:db8::5", ["2001:db9::1"], "2001:db9::1", id="IPv6"),
        pytest.param(None, ["1.1.1.1"], "None", id="unix socket"),
    ],
)
async def test_client_address(peer: str | None, forwarded: list[str], seen: str) -> None:
    assert (await client_seen(peer, forwarded, PROXIES)).split()[0] == seen


async def test_network_written_by_one_of_its_hosts_is_that_network() -> None:
    assert (await client_seen("10.0.0.9", ["203.0.113.9"], ("10.0.0.1/24",))).split()[0] == "203.0.113.9"


async def test_scheme_is_believed_of_a_proxy_alone() -> None:
    assert (await client_seen("10.0.0.1", ["203.0.113.9"], PROXIES, "https")).split()[1] == "https"
    assert (await client_seen("203.0.113.9", ["1.1.1.1"], PROXIES, "https")).split()[1] == "http"


async def test_without_proxies_no_header_is_believed() -> None:
    assert (await client_seen("127.0.0.1", ["1.1.1.1"], (), "https")).split() == ["127.0.0.1", "http"]

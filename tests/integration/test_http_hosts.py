"""Which hosts are answered, on the real server: what a rebound page's request looks like from here."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import orjson
import pytest

from tests.support.client import RawClient
from tests.support.edge import EdgeApp, call, scope_of
from tests.support.server import in_process_server
from tidegate.errors import InvalidRequest
from tidegate.http.context import RequestContext
from tidegate.http.entrance import Entrance
from tidegate.server.http_server import uvicorn_config
from tidegate.settings import Settings
from tidegate.settings.groups import HttpSettings

NAMES = ("gateway.example.com", "*.internal.example.com", "ported.example.com:8443", "[2001:db8::1]")


def settings(*hosts: str, proxies: tuple[str, ...] = ()) -> Settings:
    return Settings(environment="test", http=HttpSettings(allowed_hosts=hosts, trusted_proxies=proxies))


@asynccontextmanager
async def serving(*hosts: str, proxies: tuple[str, ...] = ()) -> AsyncIterator[str]:
    own = settings(*hosts, proxies=proxies)
    async with in_process_server(uvicorn_config(EdgeApp(own), own)) as url:
        yield url


async def status(url: str, host: str, **headers: str) -> int:
    async with RawClient(url) as client:
        await client.send("GET", "/ok", headers={"host": host} | headers)
        return (await client.head()).status


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("gateway.example.com", 200),
        ("gateway.example.com:8000", 200),
        ("Gateway.Example.COM", 200),
        ("gateway.example.com.", 200),
        ("a.internal.example.com", 200),
        ("a.b.internal.example.com:1", 200),
        ("ported.example.com:8443", 200),
        ("[2001:db8::1]", 200),
        ("ported.example.com", 400),
        ("ported.example.com:80", 400),
        ("internal.example.com", 400),
        ("evilinternal.example.com", 400),
        ("example.com", 400),
        ("evil.example", 400),
        ("gateway.example.com.evil.example", 400),
        ("gateway.example.com..", 400),
        ("localhost", 400),
        ("*.internal.example.com", 400),
        ("127.0.0.2", 400),
        ("[::1]", 400),
        ("", 400),
    ],
)
async def test_the_hosts_that_are_named_are_answered_and_no_other(host: str, expected: int) -> None:
    async with serving(*NAMES) as url:
        assert await status(url, host) == expected


async def test_a_refused_host_is_told_in_the_envelope_before_anything_runs() -> None:
    async with serving(*NAMES) as url, RawClient(url) as client:
        await client.send("GET", "/boom", headers={"host": "evil.example"})
        head = await client.head()
        told = orjson.loads(await client.body())
    assert (head.status, told["error"]["code"]) == (400, "invalid_request")
    assert "TIDEGATE_HTTP__ALLOWED_HOSTS" in told["error"]["message"]
    assert "evil" not in told["error"]["message"]
    assert head.headers["x-request-id"] == told["request_id"]


async def test_an_orchestrator_probes_by_the_address_that_it_connects_to() -> None:
    async with serving(*NAMES) as url:
        assert await status(url, "127.0.0.1") == 200
        assert await status(url, "127.0.0.1:1") == 200
        assert await status(url, "[::ffff:127.0.0.1]") == 200


@pytest.mark.parametrize("name", ["x-forwarded-host", "forwarded", "x-host", "x-original-host", "x-http-host-override"])
async def test_what_a_proxy_forwards_as_a_host_is_never_believed(name: str) -> None:
    forwarded = "host=gateway.example.com" if name == "forwarded" else "gateway.example.com"
    async with serving(*NAMES, proxies=("127.0.0.1",)) as url:
        assert await status(url, "evil.example", **{name: forwarded}) == 400
        assert await status(url, "gateway.example.com", **{name: "evil.example"}) == 200


@pytest.mark.parametrize("host", ["evil.example", "localhost:8000", "127.0.0.2"])
async def test_without_names_any_host_is_answered(host: str) -> None:
    async with serving() as url:
        assert await status(url, host) == 200


@pytest.mark.parametrize("sent", [b"", b"host: gateway.example.com\r\nhost: evil.example\r\n", b"host: a b\r\n"])
@pytest.mark.parametrize("names", [(), NAMES], ids=["any", "named"])
async def test_missing_and_several_hosts_are_refused(names: tuple[str, ...], sent: bytes) -> None:
    async with serving(*names) as url, RawClient(url) as client:
        await client.send_raw(b"GET /ok HTTP/1.1\r\n" + sent + b"\r\n")
        assert (await client.head()).status == 400


async def test_http_1_0_without_a_host_names_none() -> None:
    async with serving(*NAMES) as url, RawClient(url) as client:
        await client.send_raw(b"GET /ok HTTP/1.0\r\n\r\n")
        assert (await client.head()).status == 400


async def test_a_default_port_is_that_of_the_scheme() -> None:
    entrance = Entrance(("a.example.com:443", "b.example.com:80"))

    def passes(host: bytes, scheme: str) -> bool:
        scope = {**scope_of(headers=[(b"host", host)]), "scheme": scheme}
        try:
            entrance.judge(scope, RequestContext.of(scope))
        except InvalidRequest:
            return False
        return True

    assert passes(b"a.example.com", "https")
    assert not passes(b"a.example.com", "http")
    assert passes(b"b.example.com", "http")
    assert not passes(b"b.example.com", "https")


async def test_a_unix_socket_has_no_address_that_a_host_could_be() -> None:
    scope = {**scope_of(headers=[(b"host", b"127.0.0.1")]), "server": ("/run/tidegate.sock", None)}
    with pytest.raises(InvalidRequest):
        Entrance(NAMES).judge(scope, RequestContext.of(scope))


@pytest.mark.parametrize("path", ["/api/keys\n", "/ok\x00", "/ok\x7f", "/\u2028"])
async def test_control_characters_in_a_path_are_refused(path: str) -> None:
    answer = await call(EdgeApp(settings()), "GET", path)
    assert (answer.status, answer.error["code"]) == (400, "invalid_request")


@pytest.mark.parametrize("bad", ["https://a.example.com", "a.example.com/", "*", "*.", "a b", "a.*.example.com", "a:b"])
def test_what_is_no_host_is_refused_at_the_start(bad: str) -> None:
    with pytest.raises(ValueError, match="is no host"):
        HttpSettings(allowed_hosts=("gateway.example.com", bad))


def test_every_host_that_the_settings_take_can_be_judged() -> None:
    assert HttpSettings.model_validate({"allowed_hosts": ", ".join(NAMES)}).allowed_hosts == NAMES
    Entrance(NAMES)

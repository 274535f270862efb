"""Whose address a gateway sees behind a real nginx, with the configuration that we give as an example."""

import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import httpx2
import pytest

from tests.support.edge import EdgeApp
from tests.support.nginx import Nginx, Site
from tests.support.server import LOOPBACK, free_port, in_process_server
from tidegate.server.http_server import uvicorn_config
from tidegate.settings import Settings
from tidegate.settings.groups import HttpSettings

# By which the servers tell the proxies from the clients, which are all on this machine.
INNER = "127.0.0.9"
OUTER = "127.0.0.8"
TLS = Path(__file__).parents[1] / "support" / "tls"
FORGED = {
    "X-Forwarded-For": "198.51.100.1, 127.0.0.9",
    "X-Forwarded-Proto": "https",
    "X-Forwarded-Host": "evil.example",
    "Forwarded": 'for=198.51.100.1;proto=https;host="evil.example"',
    "X-Real-IP": "198.51.100.1",
}


@asynccontextmanager
async def proxied(folder: Path, *sites: Site, trusted: tuple[str, ...]) -> AsyncIterator[Nginx]:
    """An app behind as many nginx as there are sites, the inner one first; yields the outer one."""
    settings = Settings(environment="test", data_dir=folder, http=HttpSettings(trusted_proxies=trusted))
    async with AsyncExitStack() as stack:
        app = uvicorn_config(EdgeApp(settings), settings)
        app.lifespan = "off"
        base_url = await stack.enter_async_context(in_process_server(app))
        server = int(base_url.rpartition(":")[2])
        nginx = None
        for site in sites:
            nginx = await stack.enter_async_context(Nginx(folder, [server], site))
            server = nginx.port
        assert nginx is not None
        yield nginx


async def who(url: str, headers: Mapping[str, str] | None = None, *, uds: str | None = None) -> str:
    """The client's address and the scheme, as the app saw them."""
    trusting = ssl.create_default_context()
    trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE
    transport = httpx2.AsyncHTTPTransport(uds=uds, verify=trusting)
    async with httpx2.AsyncClient(transport=transport, timeout=20) as client:
        answer = await client.get(f"{url}/client", headers=headers)
        assert answer.status_code == 200, answer.text
        return answer.text


async def test_the_client_s_own_address_is_seen_and_nothing_that_it_forged(tmp_path: Path) -> None:
    async with proxied(tmp_path, Site(source=INNER), trusted=(INNER,)) as nginx:
        assert await who(nginx.base_url) == "127.0.0.1 http"
        assert await who(nginx.base_url, FORGED) == "127.0.0.1 http"
        for junk in ("junk", "unknown,,", "127.0.0.9", "[::1", '"', "1" * 4000):
            assert await who(nginx.base_url, {"X-Forwarded-For": junk}) == "127.0.0.1 http"


async def test_behind_two_proxies_it_is_the_client_s_still(tmp_path: Path) -> None:
    outer, inner = Site(source=OUTER), Site(source=INNER, scheme="$http_x_forwarded_proto")
    async with proxied(tmp_path, inner, outer, trusted=(INNER, OUTER)) as nginx:
        assert await who(nginx.base_url) == "127.0.0.1 http"
        assert await who(nginx.base_url, FORGED) == "127.0.0.1 http"
    # The outer one is not ours: it is as far as what is said can be believed.
    async with proxied(tmp_path, inner, outer, trusted=(INNER,)) as nginx:
        assert await who(nginx.base_url, FORGED) == f"{OUTER} http"


async def test_a_network_of_proxies_is_trusted_as_one(tmp_path: Path) -> None:
    outer, inner = Site(source=OUTER), Site(source=INNER)
    async with proxied(tmp_path, inner, outer, trusted=("127.0.0.8/31",)) as nginx:
        assert await who(nginx.base_url, FORGED) == "127.0.0.1 http"


async def test_a_proxy_that_nobody_named_is_believed_nothing(tmp_path: Path) -> None:
    async with proxied(tmp_path, Site(source=INNER), trusted=("10.0.0.0/8",)) as nginx:
        assert await who(nginx.base_url, FORGED) == f"{INNER} http"
    async with proxied(tmp_path, Site(source=INNER), trusted=()) as nginx:
        assert await who(nginx.base_url, FORGED) == f"{INNER} http"


async def test_a_client_over_ipv6_and_one_over_a_socket_of_unix(tmp_path: Path) -> None:
    port, path = free_port(), tmp_path / "nginx.sock"
    site = Site(source=INNER, listen=(f"[::1]:{port}", f"unix:{path}"))
    async with proxied(tmp_path, site, trusted=(INNER,)) as nginx:
        assert await who(f"http://[::1]:{port}") == "::1 http"
        assert await who(f"http://[::1]:{port}", FORGED) == "::1 http"
        # It has no address; the proxy is the last that has one.
        assert await who("http://gateway", FORGED, uds=str(path)) == f"{INNER} http"
        assert nginx.errors().count("[emerg]") == 0


async def test_the_scheme_is_the_one_that_the_client_speaks_to_the_first_proxy(tmp_path: Path) -> None:
    port = free_port()
    by_tls = f"{LOOPBACK}:{port} ssl; ssl_certificate {TLS}/certificate.pem; ssl_certificate_key {TLS}/key.pem"
    outer = Site(source=OUTER, listen=(by_tls,))
    inner = Site(source=INNER, scheme="$http_x_forwarded_proto")
    async with proxied(tmp_path, inner, outer, trusted=(INNER, OUTER)) as nginx:
        assert await who(f"https://{LOOPBACK}:{port}", {"X-Forwarded-Proto": "http"}) == "127.0.0.1 https"
        assert await who(nginx.base_url, {"X-Forwarded-Proto": "https"}) == "127.0.0.1 http"


@pytest.mark.parametrize(("sent", "is_kept"), [("order-4711", True), ("not a label", False), ("x" * 129, False)])
async def test_one_request_id_for_nginx_and_the_gateway(tmp_path: Path, sent: str, is_kept: bool) -> None:
    async with proxied(tmp_path, Site(source=INNER), trusted=(INNER,)) as nginx, httpx2.AsyncClient() as client:
        answer = await client.get(f"{nginx.base_url}/ok", headers={"X-Request-ID": sent})
        label = answer.headers["x-request-id"]
        assert (label == sent) is is_kept
        assert len(label) == 32 or is_kept

"""Where a webhook is posted to: the address that its name resolves to when it is called, and no redirect's."""

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx2
import pytest
from pydantic import SecretStr
from starlette.types import Receive, Scope, Send

from tests.support.server import in_process_server
from tests.support.waiting import eventually
from tidegate.admission.alerts import Alerts
from tidegate.admission.store import Alert
from tidegate.settings.groups import AlertsSettings
from tidegate.upstream.addresses import AddressRefused, Found, allowed_addresses
from tidegate.upstream.openai import open_client
from tidegate.upstream.transport import UpstreamTransport

SECRET = "webhook-secret-0123456789-abcdefghijkl"
ALERT = Alert("budget", 80, 8 * 10**9, 10 * 10**9)


class Hooks:
    """Takes what is posted; /away redirects, /endless answers without end."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, ...]] = []
        self.left = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["type"] == "http"
        hosts = [value.decode() for name, value in scope["headers"] if name == b"host"]
        self.heard.append((scope["path"], *hosts))
        status = {"/away": 307, "/endless": 200}.get(scope["path"], 204)
        headers = [(b"location", b"/taken")] if status == 307 else []
        await send({"type": "http.response.start", "status": status, "headers": headers})
        if scope["path"] == "/endless":
            await send({"type": "http.response.body", "body": b"x" * 65536, "more_body": True})
            # Until the sender has closed the connection.
            while (await receive())["type"] != "http.disconnect":
                pass
            self.left = True
        await send({"type": "http.response.body"})


@asynccontextmanager
async def told_of(url: str) -> AsyncIterator[Alerts]:
    settings = AlertsSettings(webhook_url=SecretStr(url), webhook_secret=SecretStr(SECRET))
    async with (
        open_client() as client,
        Alerts.running(settings, client, lambda _: None, pauses_s=(0,)) as alerts,
    ):
        alerts.tell("w:1", (ALERT,))
        yield alerts


class NameServer:
    """Says these addresses of any name, the first list first, and the last one for ever."""

    def __init__(self, *answers: tuple[str, ...]) -> None:
        self.asked: list[str] = []
        self._answers = list(answers)

    async def __call__(self, host: str, port: int) -> list[Found]:
        self.asked.append(host)
        addresses = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in addresses]


async def test_a_webhook_of_ones_own_machine_is_told_under_its_name() -> None:
    hooks = Hooks()
    async with in_process_server(hooks) as url:
        named = url.replace("127.0.0.1", "localhost")
        async with told_of(f"{named}/taken") as alerts:
            await eventually(lambda: hooks.heard)
        assert alerts.dropped == 0
    assert hooks.heard == [("/taken", named.removeprefix("http://"))]


async def test_a_redirect_is_not_followed() -> None:
    hooks = Hooks()
    async with in_process_server(hooks) as url, told_of(f"{url}/away") as alerts:
        await eventually(lambda: alerts.dropped == 1)
        assert [path for path, _ in hooks.heard] == ["/away"]


async def test_an_answer_without_end_is_not_read() -> None:
    hooks = Hooks()
    async with in_process_server(hooks) as url, told_of(f"{url}/endless") as alerts:
        await eventually(lambda: hooks.left)
    assert alerts.dropped == 0


@pytest.mark.parametrize("host", ["169.254.169.254", "2852039166", "0xa9fea9fe", "0", "[::ffff:169.254.169.254]"])
async def test_metadata_is_never_called_however_its_address_is_written(
    host: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with told_of(f"http://{host}:1/latest/meta-data") as alerts:
        await eventually(lambda: alerts.dropped == 1)
    (line,) = [r.msg for r in caplog.records if isinstance(r.msg, dict) and r.msg["event"] == "alert_not_delivered"]
    assert line["reason"] in ("ConnectError", "UnsupportedProtocol")


async def test_a_name_that_resolves_elsewhere_the_next_time_is_not_called_there() -> None:
    hooks = Hooks()
    names = NameServer(("127.0.0.1",), ("169.254.169.254",))
    async with (
        in_process_server(hooks) as url,
        httpx2.AsyncClient(transport=UpstreamTransport(keepalive_s=0, find=names), trust_env=False) as client,
    ):
        port = url.rpartition(":")[2]
        assert (await client.get(f"http://rebinds.test:{port}/taken")).status_code == 204
        with pytest.raises(httpx2.ConnectError, match="link-local"):
            await client.get(f"http://rebinds.test:{port}/taken")
    # Asked once a request: what was judged is what is connected to.
    assert names.asked == ["rebinds.test"] * 2
    assert hooks.heard == [("/taken", f"rebinds.test:{port}")]


async def test_what_is_allowed_of_a_name_is_called_and_the_next_where_one_does_not_answer() -> None:
    hooks = Hooks()
    names = NameServer(("169.254.169.254", "127.0.0.9", "127.0.0.1"))
    async with (
        in_process_server(hooks) as url,
        httpx2.AsyncClient(transport=UpstreamTransport(keepalive_s=0, find=names), trust_env=False) as client,
    ):
        assert (await client.get(f"http://mixed.test:{url.rpartition(':')[2]}/taken")).status_code == 204


async def test_a_name_of_nothing_but_what_is_never_called_is_refused() -> None:
    with pytest.raises(AddressRefused, match=r"0\.0\.0\.0 is the address of no host"):
        await allowed_addresses("x.test", 80, find=NameServer(("0.0.0.0", "224.0.0.1")))

import signal
from pathlib import Path

import pytest
from starlette.types import Receive, Scope, Send

from tidegate.server.http_server import GracefulServer, uvicorn_config
from tidegate.settings import Settings


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """Never called."""


class Listening(GracefulServer):
    hurried = False

    def hurry(self) -> None:
        super().hurry()
        self.hurried = True


def server(tmp_path: Path) -> Listening:
    return Listening(uvicorn_config(app, Settings(environment="test", data_dir=tmp_path)), drain_s=30)


@pytest.mark.parametrize(
    ("signals", "hurries"),
    [
        ([signal.SIGTERM], False),
        ([signal.SIGINT], False),
        ([signal.SIGTERM, signal.SIGTERM], False),
        ([signal.SIGTERM, signal.SIGINT], True),
        ([signal.SIGINT, signal.SIGINT], True),
    ],
)
def test_only_a_second_interrupt_hurries(tmp_path: Path, signals: list[signal.Signals], hurries: bool) -> None:
    stopping = server(tmp_path)
    for number in signals:
        stopping.handle_exit(number, None)
    assert stopping.should_exit
    assert stopping.hurried is hurries


def test_the_servers_own_proxy_headers_and_access_lines_are_off(tmp_path: Path) -> None:
    config = server(tmp_path).config
    assert (config.proxy_headers, config.access_log, config.server_header) == (False, False, False)
    assert config.lifespan == "on"

"""Our protocol by TLS, on the loop that serves: what a connection may hold, how it is closed, and who is waited for."""

import asyncio
import contextlib
import os
import socket
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from starlette.types import Receive, Scope, Send

from tests.support.client import RawClient
from tests.support.tls_front import certificate_for
from tests.support.waiting import eventually
from tidegate.http.protocol import TidegateHttpProtocol
from tidegate.http.tls_transport import TlsTransport
from tidegate.server.certificate import Entrance
from tidegate.server.http_server import GracefulServer, uvicorn_config
from tidegate.settings import Settings

# More than the kernel keeps of a loopback connection, by much.
BIG = 16 * 1024 * 1024
PIECE = b"x" * 65536


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, bool]]:
    return "asyncio", {"use_uvloop": True}


@dataclass
class App:
    """Sends /flood for as long as somebody is there, /big at once and in one piece, /close as the last of its
    connection; /begun one large piece, and never the next.
    """

    heard: list[str] = field(default_factory=list)
    sent: int = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        if scope["path"] == "/flood":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            gone = asyncio.ensure_future(receive())
            while not gone.done():
                await send({"type": "http.response.body", "body": PIECE, "more_body": True})
                self.sent += len(PIECE)
            self.heard.append((await gone)["type"])
            return
        if scope["path"] == "/begun":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"x" * BIG, "more_body": True})
            self.heard.append((await receive())["type"])
            return
        body = b"x" * BIG if scope["path"] == "/big" else b"ok"
        headers = [(b"content-length", b"%d" % len(body))]
        headers += [] if scope["path"] == "/" else [(b"connection", b"close")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})


class Server(GracefulServer):
    kept_idle_s = 0.2
    handshake_awaited_s = 0.5

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class Attentive(TidegateHttpProtocol):
    look_every_s = 0.1


class Patient(Server):
    handshake_awaited_s = 60.0


@dataclass
class Served:
    server: Server
    app: App
    base_url: str
    serving: "asyncio.Task[None]"

    @property
    def port(self) -> int:
        return int(self.base_url.rpartition(":")[2])

    @property
    def connections(self) -> list[TidegateHttpProtocol]:
        found = self.server.server_state.connections
        return [each for each in found if isinstance(each, TidegateHttpProtocol)]


@asynccontextmanager
async def by_tls(
    folder: Path, kind: type[Server] = Server, http: type[TidegateHttpProtocol] = TidegateHttpProtocol
) -> AsyncIterator[Served]:
    made = certificate_for("localhost", folder)
    app = App()
    config = uvicorn_config(app, Settings(environment="test"), Entrance(made.path, made.key_path))
    config.lifespan, config.http = "off", http
    server = kind(config, drain_s=20)
    with socket.socket(proto=socket.IPPROTO_TCP) as listener:
        listener.bind(("127.0.0.1", 0))
        task = asyncio.create_task(server.serve([listener]))
        await eventually(lambda: server.started and server.servers)
        try:
            yield Served(server, app, f"https://127.0.0.1:{listener.getsockname()[1]}", task)
        finally:
            server.hurry()
            await eventually(task.done, within_s=20)


class Silent:
    """A client that shook hands, asked once, and then neither reads nor says anything: not even TLS' goodbye."""

    def __init__(self, port: int) -> None:
        plain = socket.create_connection(("127.0.0.1", port), timeout=10)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        self.connection = context.wrap_socket(plain)

    def ask(self, path: str) -> bytes:
        self.connection.sendall(f"GET {path} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
        return self.connection.recv(65536)


async def test_the_loop_is_the_one_that_serves(tmp_path: Path) -> None:
    assert type(asyncio.get_running_loop()).__module__.startswith("uvloop")
    async with by_tls(tmp_path) as served, RawClient(served.base_url) as client:
        await client.send("GET", "/")
        assert (await client.head()).status == 200
        (connection,) = served.connections
        assert isinstance(connection.transport, TlsTransport)
        assert connection.scheme == "https"


async def test_what_waits_for_a_slow_reader_is_bounded(tmp_path: Path) -> None:
    async with by_tls(tmp_path) as served, RawClient(served.base_url, receive_buffer=4096) as slow:
        await slow.send("GET", "/flood")
        await slow.head()
        (connection,) = served.connections
        await eventually(lambda: connection.flow.write_paused)
        held = connection.transport.get_write_buffer_size()
        # One piece is written whole past the mark, which is as high as in the clear; the loop's own is at 512 KiB.
        assert held < 4 * len(PIECE)
        slow.say_goodbye()
        await eventually(lambda: served.app.heard == ["http.disconnect"], within_s=2)


async def test_a_goodbye_behind_what_nobody_reads_is_heard_at_once(tmp_path: Path) -> None:
    async with by_tls(tmp_path) as served:
        client = await asyncio.to_thread(Silent, served.port)
        with client.connection:
            await asyncio.to_thread(client.ask, "/flood")
            (connection,) = served.connections
            await eventually(lambda: connection.flow.write_paused)
            client.connection.setblocking(False)
            with contextlib.suppress(ssl.SSLError):
                # It says its goodbye, reads nothing more, and holds the connection open.
                client.connection.unwrap()
            await eventually(lambda: served.app.heard == ["http.disconnect"], within_s=2)


async def test_a_fin_behind_what_nobody_reads_is_heard(tmp_path: Path) -> None:
    async with by_tls(tmp_path) as served:
        client = await asyncio.to_thread(Silent, served.port)
        with client.connection:
            await asyncio.to_thread(client.ask, "/flood")
            (connection,) = served.connections
            await eventually(lambda: connection.flow.write_paused)
            # No goodbye, and the connection stands: the loop tells of it only once the client has read the rest.
            with socket.socket(fileno=os.dup(client.connection.fileno())) as below:
                below.shutdown(socket.SHUT_WR)
            await eventually(lambda: served.app.heard == ["http.disconnect"], within_s=2)
            assert connection.transport.is_closing()


async def test_a_fin_behind_one_large_piece_is_heard(tmp_path: Path) -> None:
    async with by_tls(tmp_path, http=Attentive) as served:
        client = await asyncio.to_thread(Silent, served.port)
        with client.connection:
            await asyncio.to_thread(client.ask, "/begun")
            (connection,) = served.connections
            assert not connection.flow.write_paused
            with socket.socket(fileno=os.dup(client.connection.fileno())) as below:
                below.shutdown(socket.SHUT_WR)
            await eventually(lambda: served.app.heard == ["http.disconnect"], within_s=2)


async def test_who_goes_on_reading_has_the_longer_for_it(tmp_path: Path) -> None:
    async with by_tls(tmp_path) as served:
        client = await asyncio.to_thread(Silent, served.port)
        with client.connection:
            await asyncio.to_thread(client.ask, "/big")
            (connection,) = served.connections
            await eventually(connection.transport.is_closing)
            # From here on, whatever the loop tells of what waits: 24 bytes.
            until = connection._unread_until(0.0)
            assert until < 2 * connection.read_within_s
            for _ in range(256):
                await asyncio.to_thread(client.connection.recv, 65536)
            await eventually(lambda: connection._unread_until(0.0) > until + 60)


async def test_a_connection_is_closed_though_its_client_says_no_goodbye(tmp_path: Path) -> None:
    async with by_tls(tmp_path) as served:
        client = await asyncio.to_thread(Silent, served.port)
        with client.connection:
            assert (await asyncio.to_thread(client.ask, "/close")).startswith(b"HTTP/1.1 200")
            await eventually(lambda: not served.connections, within_s=10)


async def test_who_reads_slowly_gets_the_last_of_an_answer(tmp_path: Path) -> None:
    async with by_tls(tmp_path) as served, RawClient(served.base_url, receive_buffer=16 * 1024) as slow:
        await slow.send("GET", "/big")
        head = await slow.head()
        (connection,) = served.connections
        await eventually(connection.transport.is_closing)
        # Meanwhile one whose answer was delivered is closed.
        other = await asyncio.to_thread(Silent, served.port)
        with other.connection:
            await asyncio.to_thread(other.ask, "/close")
            await eventually(lambda: len(served.connections) == 1, within_s=10)
        assert served.connections == [connection]
        assert (head.headers["connection"], len(await slow.body())) == ("close", BIG)


@asynccontextmanager
async def knocking(port: int) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection that has not shaken hands."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def test_who_shakes_hands_is_served_by_a_server_that_retires(tmp_path: Path) -> None:
    async with by_tls(tmp_path, Patient) as served:
        async with knocking(served.port) as (reader, writer):
            await eventually(served.server._handshakes.are_under_way)
            served.server.retire()
            # It would have ended by now, had it nobody to wait for.
            await asyncio.wait({served.serving}, timeout=0.5)
            assert not served.serving.done()
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            await writer.start_tls(context)
            writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
        await eventually(served.serving.done)


async def test_who_never_shakes_hands_holds_up_no_retirement(tmp_path: Path) -> None:
    async with by_tls(tmp_path) as served, knocking(served.port):
        await eventually(served.server._handshakes.are_under_way)
        served.server.retire()
        await eventually(served.serving.done)

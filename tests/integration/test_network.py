"""The upstream's network: TLS that is checked, turns for others, deadlines that are seen whatever comes."""

import asyncio
import contextlib
import socket
import ssl
import threading
from collections.abc import Callable
from pathlib import Path
from typing import cast

import anyio
import httpx2
import pytest
import uvloop

from tidegate.upstream.network import UpstreamStream
from tidegate.upstream.transport import UpstreamTransport

_TLS = Path(__file__).parent.parent / "support" / "tls"
_ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello"


class _Transport:
    """What of a transport a stream that is only read asks."""

    def __init__(self) -> None:
        self.is_paused = False

    def abort(self) -> None:
        pass

    def is_read(self) -> bool:
        return not self.is_paused

    def pause_reading(self) -> None:
        self.is_paused = True

    def resume_reading(self) -> None:
        self.is_paused = False


def a_stream() -> UpstreamStream:
    stream = UpstreamStream()
    stream.connection_made(cast("asyncio.BaseTransport", _Transport()))
    return stream


async def test_a_deadline_is_seen_though_data_never_stops_coming() -> None:
    stream = a_stream()

    async def feed() -> None:
        while True:
            stream.data_received(b"x" * 100)
            await asyncio.sleep(0)

    feeding = asyncio.create_task(feed())
    reads = 0
    with anyio.move_on_after(0.05) as scope:
        while reads < 300_000:
            await stream.read()
            reads += 1
    feeding.cancel()
    assert scope.cancelled_caught, reads


async def test_others_have_their_turn_while_much_is_read() -> None:
    stream = a_stream()
    stream.data_received(b"x" * 200_000)
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    counting = asyncio.create_task(count())
    left = 200_000
    while left:
        left -= len(await stream.read())
    counting.cancel()
    assert turns >= 10


async def test_a_connection_that_broke_is_told_behind_what_it_brought() -> None:
    stream = a_stream()
    stream.data_received(b"last words")
    stream.connection_lost(ConnectionResetError("reset"))
    assert await stream.read() == b"last words"
    with pytest.raises(httpx2.ReadError, match="reset"):
        await stream.read()


async def test_what_nobody_reads_stops_the_reading_of_the_socket_and_reading_it_starts_it_again() -> None:
    stream, transport = UpstreamStream(), _Transport()
    stream.connection_made(cast("asyncio.BaseTransport", transport))
    came = [b"%d" % number * 10_000 for number in range(10)]
    for data in came[:6]:
        stream.data_received(data)
    assert transport.is_read()
    for data in came[6:]:
        stream.data_received(data)
    assert not transport.is_read()
    got = b""
    while not transport.is_read():
        got += await stream.read()
    left = sum(map(len, came)) - len(got)
    assert 0 < left < 16 * 1024
    while len(got) < sum(map(len, came)):
        got += await stream.read()
    assert got == b"".join(came)


async def test_what_is_closed_holds_nothing_and_is_at_its_end() -> None:
    stream = a_stream()
    stream.data_received(b"x" * 100_000)
    stream.close()
    assert await stream.read() == b""


@pytest.fixture
async def tls_server() -> asyncio.Server:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(_TLS / "certificate.pem", _TLS / "key.pem")

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await reader.readuntil(b"\r\n\r\n"):
                writer.write(_ANSWER)
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            writer.transport.abort()

    return await asyncio.start_server(answer, "127.0.0.1", 0, ssl=context)


async def test_tls_is_spoken_kept_and_checked(tls_server: asyncio.Server) -> None:
    port = tls_server.sockets[0].getsockname()[1]
    trusting = ssl.create_default_context(cafile=str(_TLS / "certificate.pem"))
    async with tls_server:
        async with httpx2.AsyncClient(
            transport=UpstreamTransport(keepalive_s=60, ssl_context=trusting), timeout=None
        ) as client:
            for _ in range(3):
                assert (await client.get(f"https://localhost:{port}/")).text == "hello"
        async with httpx2.AsyncClient(transport=UpstreamTransport(keepalive_s=60), timeout=None) as client:
            with pytest.raises(httpx2.ConnectError, match="certificate"):
                await client.get(f"https://localhost:{port}/")


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_what_comes_before_the_handshake_is_never_read_as_an_answer(
    new_loop: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    """Somebody on the way answers in the clear before the upstream does by TLS."""
    answers = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    answers.load_cert_chain(_TLS / "certificate.pem", _TLS / "key.pem")
    trusting = ssl.create_default_context(cafile=str(_TLS / "certificate.pem"))
    tries = 30

    def upstream(listener: socket.socket) -> None:
        for _ in range(tries):
            connection, _ = listener.accept()
            with contextlib.suppress(OSError), connection:
                connection.settimeout(5)
                connection.sendall(_ANSWER)
                with answers.wrap_socket(connection, server_side=True) as secured:
                    secured.recv(65536)
                    secured.sendall(_ANSWER)

    async def main(port: int) -> None:
        for _ in range(tries):
            transport = UpstreamTransport(keepalive_s=60, ssl_context=trusting)
            async with httpx2.AsyncClient(transport=transport, timeout=None) as client:
                with pytest.raises(httpx2.ConnectError):
                    await client.get(f"https://localhost:{port}/")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        playing = threading.Thread(target=upstream, args=(listener,), daemon=True)
        playing.start()
        with asyncio.Runner(loop_factory=new_loop) as runner:
            runner.run(main(listener.getsockname()[1]))
        playing.join(10)


@pytest.mark.parametrize("name", ["a..example.com", f"{'a' * 64}.example.com"])
async def test_a_name_that_cannot_be_looked_up_is_told_as_one(name: str) -> None:
    async with httpx2.AsyncClient(transport=UpstreamTransport(keepalive_s=60), timeout=None) as client:
        with pytest.raises(httpx2.ConnectError, match="its name"):
            await client.get(f"http://{name}/")

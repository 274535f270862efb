"""A server whose place others take: what it still answers, what it closes, and what it tells its clients."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest
from starlette.types import Receive, Scope, Send

from tests.support.client import ConnectionEnded, RawClient
from tests.support.waiting import eventually
from tests.support.wire import Gate
from tidegate.http.protocol import TidegateHttpProtocol
from tidegate.server.http_server import GracefulServer, uvicorn_config
from tidegate.settings import Settings

GET = b"GET %s HTTP/1.1\r\nhost: x\r\n\r\n"
DRAIN_S = 20.0


class App:
    """Answers /held once its gate is open, /begun likewise after its head and a first piece; elsewhere at once."""

    def __init__(self) -> None:
        self.gate = Gate()
        self.asked: list[str] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        del receive
        if scope["type"] == "lifespan":
            return
        self.asked.append(scope["path"])
        is_begun = scope["path"] == "/begun"
        if scope["path"] == "/held":
            await self.gate.passed()
        headers = [] if is_begun else [(b"content-length", b"2")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        if is_begun:
            await send({"type": "http.response.body", "body": b"a", "more_body": True})
            await self.gate.passed()
        await send({"type": "http.response.body", "body": b"ok"})


class Retiring(GracefulServer):
    kept_idle_s = 0.5

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@dataclass
class Served:
    server: Retiring
    app: App
    base_url: str
    serving: "asyncio.Task[None]"

    def client(self) -> RawClient:
        return RawClient(self.base_url)

    async def retires(self) -> None:
        """Tells it to, and waits until it takes no more connections."""
        self.server.retire()
        await eventually(lambda: not any(listening.is_serving() for listening in self.server.servers))

    @property
    def waiting(self) -> int:
        """How many requests wait behind another on their connection."""
        connections = self.server.server_state.connections
        return sum(len(each.pipeline) for each in connections if isinstance(each, TidegateHttpProtocol))

    async def ends(self) -> None:
        async with asyncio.timeout(15):
            await self.serving


@asynccontextmanager
async def serving(drain_s: float = DRAIN_S) -> AsyncIterator[Served]:
    app = App()
    config = uvicorn_config(app, Settings(environment="test"))
    config.lifespan = "off"
    server = Retiring(config, drain_s=drain_s)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        task = asyncio.create_task(server.serve([listener]))
        await eventually(lambda: server.started)
        served = Served(server, app, f"http://127.0.0.1:{listener.getsockname()[1]}", task)
        try:
            yield served
        finally:
            app.gate.open()
            server.hurry()
            await served.ends()


async def whole(client: RawClient) -> tuple[int, str | None, bytes]:
    head = await client.head()
    return head.status, head.headers.get("connection"), await client.body()


async def test_a_request_on_a_kept_connection_is_served_and_told_to_be_the_last() -> None:
    async with serving() as served, served.client() as client:
        await client.send_raw(GET % b"/one")
        assert await whole(client) == (200, None, b"ok")
        await served.retires()
        await client.send_raw(GET % b"/two")
        assert await whole(client) == (200, "close", b"ok")
        assert await client.closed_by_server()
        await served.ends()
        assert served.app.asked == ["/one", "/two"]


async def test_an_answer_that_has_not_begun_says_that_it_is_the_last() -> None:
    async with serving() as served, served.client() as client:
        await client.send_raw(GET % b"/held")
        await eventually(lambda: served.app.asked)
        await served.retires()
        served.app.gate.open()
        assert await whole(client) == (200, "close", b"ok")


async def test_behind_an_answer_that_had_begun_the_next_request_is_served() -> None:
    async with serving() as served, served.client() as client:
        await client.send_raw(GET % b"/begun")
        head = await client.head()
        await served.retires()
        served.app.gate.open()
        assert (head.headers.get("connection"), await client.body()) == (None, b"aok")
        await client.send_raw(GET % b"/next")
        assert await whole(client) == (200, "close", b"ok")
        await served.ends()


async def test_of_pipelined_requests_all_are_served_and_only_the_last_says_so() -> None:
    async with serving() as served, served.client() as client:
        await client.send_raw(GET % b"/held")
        await eventually(lambda: served.app.asked)
        await served.retires()
        await client.send_raw(GET % b"/second" + GET % b"/third")
        await eventually(lambda: served.waiting == 2)
        served.app.gate.open()
        said = [await whole(client) for _ in range(3)]
        assert [connection for _, connection, _ in said] == [None, None, "close"]
        await served.ends()


async def test_an_idle_connection_is_closed_after_a_while_and_no_new_one_is_taken() -> None:
    loop = asyncio.get_running_loop()
    async with serving() as served, served.client() as silent, served.client() as used:
        await used.send_raw(GET % b"/one")
        assert (await whole(used))[1] is None
        await served.retires()
        began = loop.time()
        assert await silent.closed_by_server()
        assert await used.closed_by_server()
        assert loop.time() - began > served.server.kept_idle_s / 2
        with pytest.raises(OSError, match=r"[Cc]onne"):
            async with served.client():
                pass
        await served.ends()


async def test_half_a_request_is_waited_for() -> None:
    async with serving() as served, served.client() as client, served.client() as silent:
        await client.send_raw((GET % b"/slow")[:-2])
        await eventually(lambda: len(served.server.server_state.connections) == 2)
        await served.retires()
        # By then the first would have been closed too, had it been idle.
        assert await silent.closed_by_server()
        await client.send_raw(b"\r\n")
        assert await whole(client) == (200, "close", b"ok")


async def test_a_request_whose_bytes_wait_in_the_socket_is_served() -> None:
    async with serving() as served, served.client() as client:
        await client.send_raw(GET % b"/one")
        await whole(client)
        (connection,) = served.server.server_state.connections
        assert isinstance(connection, TidegateHttpProtocol)
        connection.transport.pause_reading()
        async with served.client() as silent:
            await eventually(lambda: len(served.server.server_state.connections) == 2)
            await client.send_raw(GET % b"/two")
            await served.retires()
            # By then the other would have been closed too: by all that was read it was idle as long.
            assert await silent.closed_by_server()
        connection.transport.resume_reading()
        assert await whole(client) == (200, "close", b"ok")


async def test_what_outlasts_the_drain_is_cut() -> None:
    async with serving(drain_s=0.2) as served, served.client() as client:
        await client.send_raw(GET % b"/begun")
        await client.head()
        await served.retires()
        with pytest.raises(ConnectionEnded):
            await client.body()
        await served.ends()


async def test_told_to_stop_meanwhile_it_stops() -> None:
    async with serving() as served, served.client() as client:
        await client.send_raw(GET % b"/begun")
        await client.head()
        await served.retires()
        served.server.hurry()
        await served.ends()

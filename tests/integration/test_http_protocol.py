"""A connection whose client stops in the middle, says nothing, or sends more than its turn: on a real socket."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from urllib.parse import urlsplit

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from tests.support.client import RawClient
from tests.support.server import in_process_server
from tests.support.waiting import eventually
from tidegate.http import protocol
from tidegate.http.protocol import TidegateHttpProtocol

REQUEST = b"GET /%s HTTP/1.1\r\nhost: x\r\n\r\n"
POST = b"POST /%s HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n"
CHUNKED = b"POST /ok HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
MIB = 1 << 20
# More than the kernel keeps of a loopback connection.
BIG = 16 * MIB


class Hasty(TidegateHttpProtocol):
    """Bounds of tenths of a second."""

    head_within_s = 0.2
    body_idle_s = 0.3
    body_grace_s = 0.6
    silent_for_s = 0.4
    look_every_s = 0.05


class App:
    """Streams for ever on /stream and notes what it hears then, on /flood as fast as it is read; answers at once
    elsewhere, the body read or not, on /big with much.
    """

    def __init__(self) -> None:
        self.heard: dict[str, list[str]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["type"] == "http"
        heard = self.heard.setdefault(scope["path"], [])
        if scope["path"] != "/early":
            while (message := await receive())["type"] == "http.request" and message["more_body"]:
                heard.append("body")
            heard.append(message["type"])
            if message["type"] == "http.disconnect":
                return
        answer = b"x" * BIG if scope["path"] == "/big" else b"ok"
        is_stream = scope["path"] in ("/stream", "/flood")
        headers = [] if is_stream else [(b"content-length", b"%d" % len(answer))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        if scope["path"] == "/flood":
            gone = asyncio.ensure_future(receive())
            while not gone.done():
                await send({"type": "http.response.body", "body": b"x" * 65536, "more_body": True})
            heard.append((await gone)["type"])
            return
        if scope["path"] == "/stream":
            await send({"type": "http.response.body", "body": b"first", "more_body": True})
            heard.append((await receive())["type"])
            return
        await send({"type": "http.response.body", "body": answer})


@asynccontextmanager
async def serving(app: App, http: type[TidegateHttpProtocol] = TidegateHttpProtocol) -> AsyncIterator[str]:
    # No keep-alive timer of uvicorn's ends anything here.
    config = uvicorn.Config(
        app,
        http=http,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        timeout_keep_alive=600,
        timeout_graceful_shutdown=2,
    )
    async with in_process_server(config) as url:
        yield url


async def streaming(client: RawClient) -> None:
    await client.send("GET", "/stream")
    assert (await client.head()).status == 200
    assert await client.piece() == b"first"


async def told(app: App) -> None:
    await eventually(lambda: app.heard["/stream"][-1] == "http.disconnect", within_s=2)


@pytest.mark.parametrize(
    "behind",
    [
        pytest.param(REQUEST % b"next", id="a request"),
        pytest.param(POST % (b"next", 500_000) + b"x" * 400_000, id="a body past the high-water mark"),
        pytest.param(REQUEST % b"next" * protocol.MOST_PIPELINED, id="as many as may be"),
    ],
)
async def test_a_hang_up_reaches_a_stream_behind_which_something_is_pipelined(behind: bytes) -> None:
    app = App()
    async with serving(app) as url, RawClient(url) as client:
        await streaming(client)
        await client.send_raw(behind)
        # It was taken in: only then does uvicorn stop reading.
        async with RawClient(url) as other:
            await other.send_raw(REQUEST % b"other")
            assert (await other.head()).status == 200
        client.hang_up()
        await told(app)
        assert "/next" not in app.heard


@pytest.mark.parametrize(
    "behind",
    [
        pytest.param(REQUEST % b"next" * (protocol.MOST_PIPELINED + 1), id="too many"),
        pytest.param(POST % (b"next", 4 * MIB) + b"x" * (2 * MIB), id="too large"),
        pytest.param((POST % (b"next", 400_000) + b"x" * 400_000) * 3, id="too large together"),
    ],
)
async def test_who_pipelines_too_much_behind_a_stream_is_cut_off(behind: bytes) -> None:
    app = App()
    async with serving(app) as url, RawClient(url) as client:
        await streaming(client)
        with suppress(ConnectionError):
            await client.send_raw(behind)
        await told(app)
        assert await client.closed_by_server()
        assert "/next" not in app.heard


async def test_what_is_pipelined_is_answered_in_turn() -> None:
    app = App()
    async with serving(app) as url, RawClient(url) as client:
        await client.send_raw(REQUEST % b"a" * 10 + POST % (b"b", 300_000) + b"x" * 300_000 + REQUEST % b"c")
        for _ in range(12):
            assert (await client.head()).status == 200
            assert await client.body() == b"ok"
        assert list(app.heard) == ["/a", "/b", "/c"]


@pytest.mark.parametrize(
    ("begun", "says"),
    [
        pytest.param(b"GET /ok HTTP/1.1\r\nhost:", b"headers did not come within 0.2 s", id="a head"),
        pytest.param(POST % (b"ok", 10) + b"12345", b"body stopped coming for 0.3 s", id="a body"),
        pytest.param(
            b"POST /ok HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n",
            b"body stopped coming for 0.3 s",
            id="a chunked body",
        ),
        pytest.param(REQUEST % b"ok" + b"GET /ok HTT", b"headers did not come within 0.2 s", id="a second head"),
    ],
)
async def test_what_was_begun_and_does_not_go_on_is_a_408_and_the_end(begun: bytes, says: bytes) -> None:
    async with serving(App(), Hasty) as url, RawClient(url) as client:
        await client.send_raw(begun)
        if begun.startswith(REQUEST % b"ok"):
            assert (await client.head()).status == 200
            await client.body()
        head = await client.head()
        body = await client.body()
        assert (head.status, head.headers["connection"]) == (408, "close")
        assert b'"code":"request_timeout"' in body
        assert says in body
        assert await client.closed_by_server()


async def test_a_head_that_drips_is_a_408() -> None:
    async with serving(App(), Hasty) as url, RawClient(url) as client:

        async def drip() -> None:
            await client.send_raw(b"GET /ok HTTP/1.1\r\nx: ")
            while True:
                await client.send_raw(b"y")
                await asyncio.sleep(0.02)

        dripping = asyncio.create_task(drip())
        assert (await client.head()).status == 408
        dripping.cancel()
        await asyncio.wait([dripping])


@pytest.mark.parametrize(
    ("head", "drop"),
    [
        pytest.param(POST % (b"ok", 10_000), b"x", id="a body"),
        pytest.param(CHUNKED, b"1\r\nx\r\n", id="chunks of a byte"),
        pytest.param(CHUNKED + b"1;x=", b"y", id="a chunk's extension without end"),
    ],
)
async def test_a_body_that_drips_is_a_408(head: bytes, drop: bytes) -> None:
    async with serving(App(), Hasty) as url, RawClient(url) as client:

        async def drip() -> None:
            await client.send_raw(head)
            while True:
                await client.send_raw(drop)
                await asyncio.sleep(0.02)

        dripping = asyncio.create_task(drip())
        assert (await client.head()).status == 408
        assert b"slower than" in await client.body()
        dripping.cancel()
        await asyncio.wait([dripping])


async def test_a_body_that_comes_slowly_enough_to_be_one_is_not_cut() -> None:
    async with serving(App(), Hasty) as url, RawClient(url) as client:
        # 8 KiB are worth 8 s more.
        await client.send_raw(POST % (b"ok", 8192 + 60) + b"x" * 8192)
        for _ in range(60):
            await client.send_raw(b"x")
            await asyncio.sleep(0.02)
        assert (await client.head()).status == 200


@pytest.mark.parametrize("said", [b"", REQUEST % b"ok", POST % (b"early", 10) + b"12345"])
async def test_a_connection_on_which_nothing_is_asked_is_closed(said: bytes) -> None:
    async with serving(App(), Hasty) as url, RawClient(url) as client:
        if said:
            await client.send_raw(said)
            assert (await client.head()).status == 200
            await client.body()
        await client.send_raw(b"\r\n" if not said.endswith(b"5") else b"6")
        assert await client.closed_by_server()


async def test_an_answer_that_is_not_read_holds_no_connection_for_ever() -> None:
    lost = asyncio.Event()

    class Impatient(Hasty):
        read_within_s = 0.2
        slowest_read_bytes_s = float("inf")

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            lost.set()

    async with serving(App(), Impatient) as url:
        address = urlsplit(url)
        with socket.create_connection((address.hostname, address.port)) as client:
            client.sendall(b"GET /big HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
            await asyncio.wait_for(lost.wait(), 10)


class Brisk(Hasty):
    """A reader has half a second to take what fills no more than one socket."""

    read_within_s = 0.5
    slowest_read_bytes_s = float("inf")


async def test_who_stops_reading_in_the_middle_of_an_answer_is_cut_off() -> None:
    app = App()
    async with serving(app, Brisk) as url, RawClient(url, receive_buffer=16 * 1024) as client:
        await client.send_raw(REQUEST % b"flood")
        assert (await client.head()).status == 200
        await eventually(lambda: app.heard["/flood"] == ["http.request", "http.disconnect"])


async def test_who_reads_slowly_is_not_cut_off_in_the_middle() -> None:
    app = App()
    async with serving(app, Brisk) as url, RawClient(url, receive_buffer=16 * 1024) as client:
        await client.send_raw(REQUEST % b"flood")
        assert (await client.head()).status == 200
        loop = asyncio.get_running_loop()
        until = loop.time() + 4 * Brisk.read_within_s
        while loop.time() < until:
            # Enough at a time that the server writes on each time.
            for _ in range(64):
                assert await client.piece()
            await asyncio.sleep(0.05)
        assert app.heard["/flood"] == ["http.request"]


async def test_an_answer_that_is_read_late_comes_whole_though_its_connection_is_being_closed() -> None:
    async with serving(App(), Hasty) as url, RawClient(url) as client:
        await client.send_raw(b"GET /big HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        assert (await client.head()).status == 200
        # What would end a connection that is not being closed has passed once this one is.
        async with RawClient(url) as silent:
            assert await silent.closed_by_server()
        assert len(await client.body()) == BIG
        assert await client.closed_by_server()


async def test_a_stream_and_connections_that_are_kept_are_not_cut() -> None:
    app = App()
    async with (
        serving(app, Hasty) as url,
        RawClient(url) as stream,
        RawClient(url) as kept,
        RawClient(url) as answered_early,
        RawClient(url) as silent,
    ):
        await streaming(stream)
        for client, said in ((kept, REQUEST % b"ok"), (answered_early, POST % (b"early", 10) + b"x" * 10)):
            await client.send_raw(said)
            assert (await client.head()).status == 200
            await client.body()
        await stream.send_raw(b"GET /behind HTTP/1.1\r\nhost:")
        # Every bound has passed once this one is closed for its silence.
        for _ in range(2):
            async with RawClient(url) as later:
                assert await later.closed_by_server()
        assert await silent.closed_by_server()
        for client in (kept, answered_early):
            await client.send_raw(REQUEST % b"ok")
            assert (await client.head()).status == 200
        assert app.heard["/stream"] == ["http.request"]
        stream.hang_up()
        await told(app)

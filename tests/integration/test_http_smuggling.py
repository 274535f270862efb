"""Requests that two servers could read in two ways, and what stands behind them: nothing of it becomes a request."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import orjson
import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from tests.support.client import RawClient
from tests.support.server import in_process_server
from tests.support.waiting import eventually
from tidegate.http.protocol import TidegateHttpProtocol

Seen = list[tuple[str, str, bytes]]
BEHIND = b"GET /smuggled HTTP/1.1\r\nhost: x\r\n\r\n"
HEAD = b"POST /first HTTP/1.1\r\nhost: x\r\n"
CHUNKED = HEAD + b"transfer-encoding: chunked\r\n\r\n"


class App:
    """Reads the whole body of each request, and notes what it got."""

    def __init__(self) -> None:
        self.seen: Seen = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = b""
        while (message := await receive())["type"] == "http.request":
            body += message["body"]
            if not message["more_body"]:
                break
        else:
            return
        self.seen.append((scope["method"], scope["path"], body))
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})


@asynccontextmanager
async def serving(app: App) -> AsyncIterator[str]:
    config = uvicorn.Config(
        app,
        http=TidegateHttpProtocol,
        ws="none",
        lifespan="off",
        log_config=None,
        server_header=False,
        timeout_graceful_shutdown=2,
    )
    async with in_process_server(config) as url:
        yield url


REFUSED = {
    "length and coding": HEAD + b"content-length: 4\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "coding and length": HEAD + b"transfer-encoding: chunked\r\ncontent-length: 4\r\n\r\n0\r\n\r\n",
    "two lengths": HEAD + b"content-length: 0\r\ncontent-length: 5\r\n\r\n",
    "two equal lengths": HEAD + b"content-length: 0\r\ncontent-length: 0\r\n\r\n",
    "a list of lengths": HEAD + b"content-length: 0, 0\r\n\r\n",
    "a length with a sign": HEAD + b"content-length: +0\r\n\r\n",
    "a length that is empty": HEAD + b"content-length:\r\n\r\n",
    "a length past 64 bits": HEAD + b"content-length: 99999999999999999999\r\n\r\n",
    "another coding": HEAD + b"transfer-encoding: xchunked\r\n\r\n0\r\n\r\n",
    "no coding": HEAD + b"transfer-encoding: identity\r\n\r\n",
    "a coding before": HEAD + b"transfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "identity before": HEAD + b"transfer-encoding: identity, chunked\r\n\r\n0\r\n\r\n",
    "a coding behind": HEAD + b"transfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    "an empty coding before": HEAD + b"transfer-encoding: ,chunked\r\n\r\n0\r\n\r\n",
    "a coding with a parameter": HEAD + b"transfer-encoding: chunked;q=1\r\n\r\n0\r\n\r\n",
    "a coding in quotes": HEAD + b'transfer-encoding: "chunked"\r\n\r\n0\r\n\r\n',
    "two codings": HEAD + b"transfer-encoding: identity\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "twice chunked": HEAD + b"transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunked in HTTP/1.0": b"POST /first HTTP/1.0\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "a vertical tab": HEAD + b"transfer-encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
    "a folded header": HEAD + b"transfer-encoding:\r\n chunked\r\n\r\n0\r\n\r\n",
    "a folded length": HEAD + b"x: y\r\n content-length: 0\r\n\r\n",
    "a blank before the colon": HEAD + b"content-length : 0\r\n\r\n",
    "a tab before the colon": HEAD + b"content-length\t: 0\r\n\r\n",
    "a blank before the first header": b"GET /first HTTP/1.1\r\n host: x\r\n\r\n",
    "bare LF": b"GET /first HTTP/1.1\nhost: x\n\n",
    "bare LF in the headers": b"GET /first HTTP/1.1\r\nhost: x\nx: y\r\n\r\n",
    "bare CR in a value": b"GET /first HTTP/1.1\r\nhost: x\r\nx: a\rb: c\r\n\r\n",
    "NUL in a value": b"GET /first HTTP/1.1\r\nhost: x\r\nx: a\x00b\r\n\r\n",
    "a control character in a value": b"GET /first HTTP/1.1\r\nhost: x\r\nx: a\x01b\r\n\r\n",
    "NUL in a name": b"GET /first HTTP/1.1\r\nhost: x\r\nx\x00: a\r\n\r\n",
    "a name that is none": b"GET /first HTTP/1.1\r\nhost: x\r\nx(y): a\r\n\r\n",
    "no name": b"GET /first HTTP/1.1\r\nhost: x\r\n: a\r\n\r\n",
    "a chunk with bare LF": CHUNKED + b"1\nx\n0\n\n",
    "a chunk's extension with bare LF": CHUNKED + b"1;a\nx\r\n0\r\n\r\n",
    "a chunk's size in C": CHUNKED + b"0x1\r\nx\r\n0\r\n\r\n",
    "a chunk's size with a blank": CHUNKED + b"1 \r\nx\r\n0\r\n\r\n",
    "a chunk's size below zero": CHUNKED + b"-1\r\nx\r\n0\r\n\r\n",
    "a chunk's size past 64 bits": CHUNKED + b"ffffffffffffffff1\r\nx",
    "a chunk longer than it says": CHUNKED + b"1\r\nxy\r\n0\r\n\r\n",
    "a length in the trailers": CHUNKED + b"0\r\ncontent-length: 5\r\n\r\n",
    "no host": b"GET /first HTTP/1.1\r\n\r\n",
    "two hosts": b"GET /first HTTP/1.1\r\nhost: x\r\nhost: x\r\n\r\n",
    "a host that is none": b"GET /first HTTP/1.1\r\nhost: x/y@z\r\n\r\n",
    "another host in the target": b"GET http://y/first HTTP/1.1\r\nhost: x\r\n\r\n",
    "another port in the target": b"GET http://x:81/first HTTP/1.1\r\nhost: x\r\n\r\n",
    "a name in the target": b"GET http://x@y/first HTTP/1.1\r\nhost: x\r\n\r\n",
    "another scheme": b"GET gopher://x/first HTTP/1.1\r\nhost: x\r\n\r\n",
    "a target without a path": b"GET http://x HTTP/1.1\r\nhost: x\r\n\r\n",
    "a target that is none": b"GET first HTTP/1.1\r\nhost: x\r\n\r\n",
    "a star": b"GET * HTTP/1.1\r\nhost: x\r\n\r\n",
    "a fragment": b"GET /first#/second HTTP/1.1\r\nhost: x\r\n\r\n",
    "a target that is not ASCII": b"GET /f\xc3\xbcr HTTP/1.1\r\nhost: x\r\n\r\n",
    "CONNECT": b"CONNECT x:80 HTTP/1.1\r\nhost: x\r\n\r\n",
    "HTTP/0.9": b"GET /first\r\n\r\n",
    "HTTP/2": b"GET /first HTTP/2.0\r\nhost: x\r\n\r\n",
    "HTTP/2's preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "HTTP/1.2": b"GET /first HTTP/1.2\r\nhost: x\r\n\r\n",
    "a method of nobody's": b"get /first HTTP/1.1\r\nhost: x\r\n\r\n",
}


@pytest.mark.parametrize("sent", [pytest.param(sent, id=name) for name, sent in REFUSED.items()])
async def test_what_is_read_in_two_ways_is_refused_and_so_is_all_behind_it(sent: bytes) -> None:
    app = App()
    async with serving(app) as url, RawClient(url) as client:
        await client.send_raw(sent + BEHIND)
        head = await client.head()
        body = orjson.loads(await client.body())
        assert (head.status, body["error"]["code"]) == (400, "invalid_request")
        assert (head.headers["connection"], head.headers["x-content-type-options"]) == ("close", "nosniff")
        assert "server" not in head.headers
        assert await client.closed_by_server()
    assert app.seen == []


TAKEN = {
    "a length": (HEAD + b"content-length: 2 \r\n\r\nab", ("POST", "/first", b"ab")),
    "chunks": (CHUNKED + b"1\r\na\r\n1\r\nb\r\n0\r\n\r\n", ("POST", "/first", b"ab")),
    "chunks in capitals": (
        HEAD + b"Transfer-Encoding: Chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n",
        ("POST", "/first", b"ab"),
    ),
    "extensions of chunks": (CHUNKED + b"2;a=b;c\r\nab\r\n0;d\r\n\r\n", ("POST", "/first", b"ab")),
    "trailers": (CHUNKED + b"2\r\nab\r\n0\r\nx: y\r\n\r\n", ("POST", "/first", b"ab")),
    "a body of GET": (
        b"GET /first HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\nab",
        ("GET", "/first", b"ab"),
    ),
    "the host in the target": (b"GET http://X/first HTTP/1.1\r\nhost: x\r\n\r\n", ("GET", "/first", b"")),
    "empty lines before": (b"\r\n\r\nGET /first HTTP/1.1\r\nhost: x\r\n\r\n", ("GET", "/first", b"")),
    "a length under another name": (
        b"GET /first HTTP/1.1\r\nhost: x\r\ncontent_length: 9\r\n\r\n",
        ("GET", "/first", b""),
    ),
    "an upgrade": (
        b"GET /first HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n",
        ("GET", "/first", b""),
    ),
    "an upgrade with a body": (
        HEAD
        + b"connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AA\r\ncontent-length: 2\r\n\r\nab",
        ("POST", "/first", b"ab"),
    ),
    "an upgrade with chunks": (
        HEAD + b"connection: upgrade\r\nupgrade: h2c\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n",
        ("POST", "/first", b"ab"),
    ),
}


@pytest.mark.parametrize("at_once", [True, False], ids=["at once", "byte by byte"])
@pytest.mark.parametrize(("sent", "seen"), [pytest.param(*case, id=name) for name, case in TAKEN.items()])
async def test_what_is_read_in_one_way_is_served_and_what_is_behind_it_is_the_next(
    sent: bytes, seen: tuple[str, str, bytes], at_once: bool
) -> None:
    app = App()
    behind = b"GET /second HTTP/1.1\r\nhost: x\r\n\r\n"
    async with serving(app) as url, RawClient(url) as client:
        for piece in [sent + behind] if at_once else [bytes([byte]) for byte in sent + behind]:
            await client.send_raw(piece)
        for _ in range(2):
            assert (await client.head()).status == 200
            assert await client.body() == b"ok"
    assert app.seen == [seen, ("GET", "/second", b"")]


async def test_the_body_of_an_upgrade_that_comes_later_is_its_body_and_no_request() -> None:
    app = App()
    async with serving(app) as url, RawClient(url) as client:
        await client.send_raw(HEAD + b"connection: upgrade\r\nupgrade: h2c\r\ncontent-length: %d\r\n\r\n" % len(BEHIND))
        async with RawClient(url) as other:
            await other.send_raw(b"GET /other HTTP/1.1\r\nhost: x\r\n\r\n")
            await other.head()
        await client.send_raw(BEHIND)
        assert (await client.head()).status == 200
    assert app.seen[1:] == [("POST", "/first", BEHIND)]


async def test_many_upgrades_in_one_piece_are_cut_off() -> None:
    app = App()
    async with serving(app) as url, RawClient(url) as client:
        await client.send_raw(b"GET /first HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n" * 800)
        assert await client.closed_by_server()


@pytest.mark.parametrize("behind", [b"", b"\r\n"], ids=["at once", "after a blank line"])
async def test_what_is_pipelined_behind_the_last_request_is_never_served(behind: bytes) -> None:
    app = App()
    async with serving(app) as url, RawClient(url) as client:
        await client.send_raw(b"GET /first HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n" + behind + BEHIND)
        assert (await client.head()).status == 200
        assert await client.body() == b"ok"
        assert await client.closed_by_server()
        async with RawClient(url) as other:
            await other.send_raw(b"GET /other HTTP/1.1\r\nhost: x\r\n\r\n")
            await other.head()
        await eventually(lambda: ("GET", "/other", b"") in app.seen)
    assert [path for _, path, _ in app.seen] == ["/first", "/other"]


async def test_http_1_0_needs_no_host() -> None:
    app = App()
    async with serving(app) as url, RawClient(url) as client:
        await client.send_raw(b"GET /first HTTP/1.0\r\n\r\n")
        assert (await client.head()).status == 200
    assert app.seen == [("GET", "/first", b"")]

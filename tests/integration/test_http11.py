"""HTTP/1.1 to an upstream that is played byte by byte, on asyncio's loop and on uvloop, behind httpx2's client."""

import asyncio
import gzip
import ssl
from collections.abc import AsyncIterator

import httpx2
import pytest

from tests.support.raw_upstream import LOOPBACK, RawUpstream, body_of, exchange, sent
from tests.support.waiting import eventually
from tidegate.upstream.openai import UpstreamClient
from tidegate.upstream.transport import UpstreamTransport

OK = b"HTTP/1.1 200 OK\r\n"
HELLO = OK + b"Content-Length: 5\r\n\r\nhello"


@pytest.fixture(scope="module", params=[False, True], ids=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, bool]]:
    return "asyncio", {"use_uvloop": request.param}


@pytest.fixture
async def upstream() -> AsyncIterator[RawUpstream]:
    async with RawUpstream() as server:
        yield server


@pytest.fixture
async def client() -> AsyncIterator[UpstreamClient]:
    transport = UpstreamTransport(keepalive_s=60, ssl_context=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
    async with UpstreamClient(transport=transport, timeout=None, trust_env=False) as opened:
        yield opened


async def test_a_request_goes_out_as_it_is(client: UpstreamClient, upstream: RawUpstream) -> None:
    headers = {"user-agent": "t", "accept": "a", "accept-encoding": "identity", "connection": "keep-alive"}
    sending = asyncio.create_task(
        client.post(upstream.url + "/chat?a=b%20c", content=b"hi", headers={**headers, "X-One": "1"})
    )
    peer = await upstream.peer()
    head, body = await peer.request()
    assert head.startswith(b"POST /v1/chat?a=b%20c HTTP/1.1\r\n")
    assert f"host: {LOOPBACK}:{upstream.port}\r\n".encode() in head.lower()
    assert b"X-One: 1\r\n" in head
    assert body == b"hi"
    await peer.say(OK, b"Set-Cookie: a\r\nset-cookie: b\r\nContent-Length: 5\r\n", b"\r\n", b"he", b"llo")
    response = await sending
    assert (response.text, response.http_version, response.reason_phrase) == ("hello", "HTTP/1.1", "OK")
    assert response.headers.get_list("set-cookie") == ["a", "b"]


async def test_a_body_of_unknown_length_goes_out_in_chunks(client: UpstreamClient, upstream: RawUpstream) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield b"one"
        yield b""
        yield b"and two"

    sending = asyncio.create_task(client.post(upstream.url, content=pieces()))
    peer = await upstream.peer()
    head, body = await peer.request()
    assert b"content-length" not in head.lower()
    assert body == b"3\r\none\r\n7\r\nand two\r\n0\r\n\r\n"
    await peer.say(HELLO)
    assert (await sending).text == "hello"


@pytest.mark.parametrize("length", [1, 3])
async def test_a_body_of_another_length_than_said_is_not_sent(
    length: int, client: UpstreamClient, upstream: RawUpstream
) -> None:
    with pytest.raises(httpx2.LocalProtocolError):
        await client.post(upstream.url, content=b"hi", headers={"content-length": str(length)})
    await (await upstream.peer()).closed()


async def test_what_a_head_cannot_carry_opens_no_connection(client: UpstreamClient, upstream: RawUpstream) -> None:
    with pytest.raises(httpx2.LocalProtocolError):
        await client.get(upstream.url, headers=[(b"x", b"a\r\nEvil: b")])
    with pytest.raises(httpx2.UnsupportedProtocol):
        await client.get("ftp://localhost/")
    assert upstream.connections == 0


async def test_a_connection_is_used_again(client: UpstreamClient, upstream: RawUpstream) -> None:
    peer = await exchange(client, upstream, None, HELLO)
    chunked = OK + b"Transfer-Encoding: chunked\r\n\r\n"
    await exchange(client, upstream, peer, chunked, b"5\r\nhello\r\n", b"0\r\nT: t\r\n\r\n")
    await exchange(client, upstream, peer, b"HTTP/1.1 100 Continue\r\n\r\n", HELLO)
    await exchange(client, upstream, peer, HELLO)
    assert upstream.connections == 1


@pytest.mark.parametrize(
    "said",
    [
        OK + b"Content-Length: 5\r\nConnection: close\r\n\r\nhello",
        b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello",
        HELLO + b"and more",
        HELLO + HELLO,
        OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\nX",
    ],
    ids=["close", "1.0", "garbage", "an answer too many", "garbage behind chunks"],
)
async def test_a_connection_that_may_not_go_on_is_closed(
    said: bytes, client: UpstreamClient, upstream: RawUpstream
) -> None:
    peer = await exchange(client, upstream, None, said)
    await peer.closed()
    await exchange(client, upstream, None, HELLO)
    assert upstream.connections == 2


async def test_a_request_that_asks_for_the_end_gets_it(client: UpstreamClient, upstream: RawUpstream) -> None:
    sending = asyncio.create_task(client.get(upstream.url, headers={"connection": "close"}))
    peer = await upstream.peer()
    await peer.head()
    await peer.say(HELLO)
    await sending
    await peer.closed()


@pytest.mark.parametrize("event", ["bytes", "end"])
async def test_an_idle_connection_to_which_something_happens_is_not_used_again(
    event: str, client: UpstreamClient, upstream: RawUpstream
) -> None:
    peer = await exchange(client, upstream, None, HELLO)
    transport = client._transport
    assert isinstance(transport, UpstreamTransport)
    [place] = transport._origins.values()
    [(idle, _)] = place.idle
    if event == "bytes":
        await peer.say(b"HTTP/1.1 408 Request Timeout\r\n\r\n")
    else:
        peer.close()
    await eventually(lambda: not idle.is_reusable)
    await exchange(client, upstream, None, HELLO)
    assert upstream.connections == 2


async def test_a_body_without_framing_ends_with_the_connection(client: UpstreamClient, upstream: RawUpstream) -> None:
    sending = asyncio.create_task(client.get(upstream.url))
    peer = await upstream.peer()
    await peer.head()
    await peer.say(OK + b"\r\nhel", b"lo")
    peer.close()
    assert (await sending).text == "hello"


async def test_encoded_bodies_are_decoded_by_the_client(client: UpstreamClient, upstream: RawUpstream) -> None:
    body = gzip.compress(b"hello" * 100)
    sending = asyncio.create_task(client.get(upstream.url))
    peer = await upstream.peer()
    await peer.head()
    await peer.say(OK + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(body), body)
    assert (await sending).content == b"hello" * 100


async def test_what_comes_together_is_given_together(client: UpstreamClient, upstream: RawUpstream) -> None:
    sending = sent(client, upstream.url)
    peer = await upstream.peer()
    await peer.request()
    await peer.say(OK + b"Transfer-Encoding: chunked\r\n\r\n")
    response = await sending
    chunks = aiter(body_of(response))
    for _ in range(2):
        await peer.say(b"1\r\na\r\n1\r\nb\r\n1\r\nc\r\n")
        assert await anext(chunks) == b"abc"
    await response.aclose()


@pytest.mark.parametrize("complete", [True, False])
async def test_an_answer_closed_early_keeps_its_connection_where_it_was_complete(
    complete: bool, client: UpstreamClient, upstream: RawUpstream
) -> None:
    sending = sent(client, upstream.url)
    peer = await upstream.peer()
    await peer.request()
    await peer.say(HELLO if complete else HELLO[:-1])
    response = await sending
    await response.aclose()
    if complete:
        await exchange(client, upstream, peer, OK + b"Content-Length: 3\r\n\r\nyou")
    else:
        await peer.closed()

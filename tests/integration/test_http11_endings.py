"""How an exchange with an upstream may end: broken, too early, too slow, cancelled. Whatever it was, it is closed."""

import asyncio
import ssl
from collections.abc import AsyncIterator

import httpx2
import pytest

from tests.support.blackhole import BlackHole, DeafPeer
from tests.support.raw_upstream import RawPeer, RawUpstream, body_of, exchange, sent
from tests.support.waiting import eventually
from tidegate.upstream.openai import UpstreamClient
from tidegate.upstream.transport import ANEW, KeptConnectionBroke, UpstreamTransport

OK = b"HTTP/1.1 200 OK\r\n"
HELLO = OK + b"Content-Length: 5\r\n\r\nhello"
LARGE = b"x" * 20_000_000


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


async def test_a_kept_connection_that_breaks_before_it_answers_says_so(
    client: UpstreamClient, upstream: RawUpstream
) -> None:
    for ending in (RawPeer.close, RawPeer.reset):
        peer = await exchange(client, upstream, None, HELLO)
        sending = sent(client, upstream.url)
        await peer.request()
        ending(peer)
        with pytest.raises(KeptConnectionBroke):
            await sending


WAITED_IN_VAIN = b"HTTP/1.1 408 Request Timeout\r\nConnection: %s\r\nContent-Length: 0\r\n\r\n"


@pytest.mark.parametrize("said", [b"close", b"foo, Close"])
async def test_a_kept_connection_that_was_waited_on_in_vain_counts_as_broken(
    said: bytes, client: UpstreamClient, upstream: RawUpstream
) -> None:
    # On the way as the request goes out: before it was read, and before all of it was taken.
    for body in (b"hi", LARGE):
        peer = await exchange(client, upstream, None, HELLO)
        sending = sent(client, upstream.url, body)
        await peer.head()
        await peer.say(WAITED_IN_VAIN % said)
        with pytest.raises(KeptConnectionBroke, match="408"):
            await sending
        await peer.closed()


async def test_a_408_of_a_new_connection_or_of_one_that_goes_on_is_the_answer(
    client: UpstreamClient, upstream: RawUpstream
) -> None:
    sending = sent(client, upstream.url)
    peer = await upstream.peer()
    await peer.request()
    await peer.say(WAITED_IN_VAIN % b"close")
    response = await sending
    assert response.status_code == 408
    await response.aclose()
    peer = await exchange(client, upstream, None, HELLO)
    sending = sent(client, upstream.url)
    await peer.request()
    await peer.say(WAITED_IN_VAIN % b"keep-alive")
    response = await sending
    assert response.status_code == 408
    await response.aclose()


async def test_one_that_breaks_while_it_answers_is_not_taken_for_stale(
    client: UpstreamClient, upstream: RawUpstream
) -> None:
    peer = await exchange(client, upstream, None, HELLO)
    sending = sent(client, upstream.url)
    await peer.request()
    await peer.say(OK)
    peer.close()
    with pytest.raises(httpx2.RemoteProtocolError) as caught:
        await sending
    assert not isinstance(caught.value, KeptConnectionBroke)


async def test_a_new_connection_that_breaks_is_not_taken_for_a_kept_one(
    client: UpstreamClient, upstream: RawUpstream
) -> None:
    await exchange(client, upstream, None, HELLO)
    request = httpx2.Request("POST", upstream.url, content=b"hi", extensions={ANEW: True})
    sending = asyncio.create_task(client.send(request, stream=True))
    peer = await upstream.peer()
    await peer.request()
    peer.close()
    with pytest.raises(httpx2.RemoteProtocolError, match="without an answer") as caught:
        await sending
    assert not isinstance(caught.value, KeptConnectionBroke)
    assert upstream.connections == 2


@pytest.mark.parametrize(
    ("said", "ending", "error"),
    [
        (HELLO[:-1], RawPeer.close, httpx2.RemoteProtocolError),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n4\r\nhell\r\n", RawPeer.close, httpx2.RemoteProtocolError),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n4\r\nhell\r\nZ\r\n", None, httpx2.RemoteProtocolError),
    ],
    ids=["short", "no last chunk", "a bad size"],
)
async def test_a_body_that_breaks_off_is_told_behind_what_came(
    said: bytes, ending: object, error: type[Exception], client: UpstreamClient, upstream: RawUpstream
) -> None:
    sending = sent(client, upstream.url)
    peer = await upstream.peer()
    await peer.request()
    await peer.say(said)
    response = await sending
    if callable(ending):
        ending(peer)
    chunks = aiter(body_of(response))
    assert await anext(chunks) == b"hell"
    with pytest.raises(error):
        await anext(chunks)
    await response.aclose()
    await peer.closed()


@pytest.mark.parametrize(
    "said",
    [b"HTTP/1.1 101 X\r\nUpgrade: a\r\nConnection: upgrade\r\n\r\n", b"SSH-2.0\r\n", OK + b"A: " + b"b" * 70_000],
)
async def test_what_is_no_answer_closes_the_connection(
    said: bytes, client: UpstreamClient, upstream: RawUpstream
) -> None:
    sending = sent(client, upstream.url)
    peer = await upstream.peer()
    await peer.request()
    await peer.say(said)
    with pytest.raises(httpx2.RemoteProtocolError):
        await sending
    await peer.closed()


async def test_an_answer_that_comes_before_the_request_was_taken_counts(
    client: UpstreamClient, upstream: RawUpstream
) -> None:
    for ending in (None, RawPeer.close):
        sending = sent(client, upstream.url, LARGE)
        peer = await upstream.peer()
        await peer.head()
        await peer.say(b"HTTP/1.1 413 Too Large\r\nContent-Length: 5\r\n\r\nlarge")
        if ending is not None:
            ending(peer)
        response = await sending
        assert response.status_code == 413
        assert await response.aread() == b"large"
        await response.aclose()
        # Half of a request is in it: no other may follow.
        await peer.closed()


async def test_an_informational_answer_does_not_stop_the_request(client: UpstreamClient, upstream: RawUpstream) -> None:
    sending = sent(client, upstream.url, LARGE)
    peer = await upstream.peer()
    await peer.head()
    await peer.say(b"HTTP/1.1 100 Continue\r\n\r\n")
    async with asyncio.timeout(30):
        assert len(await peer._reader.readexactly(len(LARGE))) == len(LARGE)
    await peer.say(HELLO)
    response = await sending
    assert await response.aread() == b"hello"
    await exchange(client, upstream, peer, HELLO)


async def test_a_slow_reader_slows_its_upstream_and_gets_everything(
    client: UpstreamClient, upstream: RawUpstream
) -> None:
    sending = sent(client, upstream.url)
    peer = await upstream.peer()
    await peer.request()
    await peer.say(OK + b"Content-Length: %d\r\n\r\n" % len(LARGE))
    response = await sending
    connection = body_of(response)._connection
    assert connection is not None
    stream = connection._stream
    peer.writer.write(LARGE)
    await eventually(lambda: stream._is_paused)
    # What may come past the mark is one read of the loop's.
    assert 64 * 1024 < stream._unread <= 64 * 1024 + 256 * 1024
    assert peer.writer.transport.get_write_buffer_size() > 0
    size = 0
    async for data in body_of(response):
        assert len(data) <= 16 * 1024
        size += len(data)
    assert size == len(LARGE)
    await response.aclose()
    await exchange(client, upstream, peer, HELLO)


async def test_each_phase_has_its_timeout_and_closes(client: UpstreamClient, upstream: RawUpstream) -> None:
    async with BlackHole() as hole:
        with pytest.raises(httpx2.ConnectTimeout):
            await sent(client, hole.base_url, connect=0.05)
        await eventually(lambda: hole.knocking() == 0)
    async with DeafPeer() as deaf:
        with pytest.raises(httpx2.WriteTimeout):
            await sent(client, deaf.base_url, LARGE, write=0.05)
        await eventually(lambda: deaf._transports)
        await eventually(lambda: deaf.established() == 0)
    sending = sent(client, upstream.url, read=0.05)
    peer = await upstream.peer()
    with pytest.raises(httpx2.ReadTimeout):
        await sending
    await peer.closed()
    sending = sent(client, upstream.url, read=0.5)
    peer = await upstream.peer()
    await peer.request()
    await peer.say(HELLO[:-1])
    response = await sending
    with pytest.raises(httpx2.ReadTimeout):
        await response.aread()
    await peer.closed()


async def test_a_connection_that_cannot_be_made_is_said(client: UpstreamClient) -> None:
    async with RawUpstream() as gone:
        url = gone.url
    with pytest.raises(httpx2.ConnectError, match="Connect"):
        await sent(client, url)


async def test_an_address_that_is_never_called_is_not_connected_to(client: UpstreamClient) -> None:
    with pytest.raises(httpx2.ConnectError, match="link-local"):
        await sent(client, "http://169.254.169.254/latest/meta-data")


async def cancelled(task: "asyncio.Task[httpx2.Response]") -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_cancelled_in_any_phase_it_closes_at_once(client: UpstreamClient, upstream: RawUpstream) -> None:
    async with BlackHole() as hole:
        sending = sent(client, hole.base_url)
        await eventually(hole.knocking)
        await cancelled(sending)
        await eventually(lambda: hole.knocking() == 0)
    async with DeafPeer() as deaf:
        sending = sent(client, deaf.base_url, LARGE)
        # Accepted there, not only by the kernel: what is half accepted as the peer ends is closed by nobody.
        await eventually(lambda: deaf._transports)
        await cancelled(sending)
        await eventually(lambda: deaf.established() == 0)
    # In a handshake that the other side never answers.
    sending = sent(client, upstream.url.replace("http", "https"))
    peer = await upstream.peer()
    assert await peer._reader.read(1)
    await cancelled(sending)
    await peer.closed()
    # Before the answer, and in its middle.
    sending = sent(client, upstream.url)
    peer = await upstream.peer()
    await peer.request()
    await cancelled(sending)
    await peer.closed()
    sending = sent(client, upstream.url)
    peer = await upstream.peer()
    await peer.request()
    await peer.say(HELLO[:-1])
    response = await sending
    body = body_of(response)
    assert await anext(body) == b"hell"
    reading = asyncio.create_task(body.__anext__())
    await asyncio.sleep(0)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    await peer.closed()


async def test_a_client_that_closes_closes_what_is_idle_then_and_later(upstream: RawUpstream) -> None:
    transport = UpstreamTransport(keepalive_s=60, ssl_context=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
    async with UpstreamClient(transport=transport, timeout=None) as client:
        idle = await exchange(client, upstream, None, HELLO)
        sending = sent(client, upstream.url)
        await idle.request()
        await idle.say(HELLO)
        response = await sending
        other = await exchange(client, upstream, None, HELLO)
    await other.closed()
    await response.aclose()
    await idle.closed()
    with pytest.raises(RuntimeError, match="closed"):
        await client.send(httpx2.Request("GET", upstream.url), stream=True)

"""An OpenAI-compatible upstream behind a transport in memory: what it is sent, and how each failure is told."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import httpx2
import pytest
from pydantic import SecretStr

from tests.unit.samples import a_call, a_plan
from tests.unit.virtual_time import in_virtual_time, now
from tidegate.admission.slots import Lease
from tidegate.errors import InvalidRequest, UpstreamError, UpstreamTimeout
from tidegate.upstream.deadlines import Deadlines
from tidegate.upstream.openai import OpenAIProvider
from tidegate.upstream.provider import UpstreamRequest
from tidegate.upstream.transport import ANEW, KeptConnectionBroke

SECRET = "sk-secret-0123456789"
OK = {"content-type": "text/event-stream"}


class Body(httpx2.AsyncByteStream):
    """A body in pieces, which may break off, and knows when it was closed."""

    def __init__(self, *pieces: bytes, error: Exception | None = None) -> None:
        self.pieces = pieces
        self.error = error
        self.is_closed = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self.pieces:
            yield piece
        if self.error is not None:
            raise self.error

    async def aclose(self) -> None:
        self.is_closed = True


class Transport(httpx2.AsyncBaseTransport):
    """Answers each request with the next of its script: a response, or an error before or after the body was sent."""

    def __init__(self, *script: httpx2.Response | Exception) -> None:
        self.script = list(script)
        self.requests: list[httpx2.Request] = []

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        self.requests.append(request)
        following = self.script.pop(0)
        if isinstance(following, httpx2.ConnectError | httpx2.ConnectTimeout):
            raise following
        await request.aread()
        if isinstance(following, Exception):
            raise following
        assert isinstance(following, httpx2.Response)
        return following


def a_request(*, streamed: bool = True, api_key: str | None = None, lease: Lease | None = None) -> UpstreamRequest:
    [planned] = a_plan("one/gpt").attempts
    upstream = replace(planned.upstream, api_key=SecretStr(api_key) if api_key else None)
    return UpstreamRequest(
        attempt=replace(planned, upstream=upstream),
        lease=lease or Lease("one", 0),
        path="/chat/completions",
        body=a_call().body,
        streamed=streamed,
        asks_usage=False,
        headers=[(b"x-request-id", b"r-1")],
        deadlines=Deadlines("one", total_s=600),
    )


async def opened(transport: Transport, request: UpstreamRequest) -> bytes:
    """The body of the answer."""
    async with httpx2.AsyncClient(transport=transport) as client, OpenAIProvider(client).open(request) as answer:
        return b"".join([piece async for piece in answer])


async def failed(request: UpstreamRequest, *script: httpx2.Response | Exception) -> tuple[UpstreamError, Transport]:
    transport = Transport(*script)
    with pytest.raises(UpstreamError) as caught:
        await opened(transport, request)
    return caught.value, transport


@in_virtual_time
async def test_it_is_sent_the_body_as_it_is_and_only_headers_of_ours() -> None:
    transport, request = Transport(httpx2.Response(200, headers=OK, stream=Body(b"a", b"b"))), a_request(api_key=SECRET)
    assert await opened(transport, request) == b"ab"
    [sent] = transport.requests
    assert (sent.method, str(sent.url)) == ("POST", "http://127.0.0.1:1/v1/chat/completions")
    assert sent.content == request.body
    assert request.was_sent
    assert dict(sent.headers) == {
        "host": "127.0.0.1:1",
        "content-type": "application/json",
        "content-length": str(len(request.body)),
        "accept": "text/event-stream",
        "accept-encoding": "identity",
        "user-agent": "tidegate",
        "x-request-id": "r-1",
        "authorization": f"Bearer {SECRET}",
    }
    assert sent.extensions["timeout"] == {"connect": 5, "write": 10}


@in_virtual_time
async def test_without_a_key_none_is_sent_and_one_not_streamed_asks_for_json() -> None:
    transport = Transport(httpx2.Response(200, stream=Body()))
    await opened(transport, a_request(streamed=False))
    [sent] = transport.requests
    assert "authorization" not in sent.headers
    assert sent.headers["accept"] == "application/json"


@in_virtual_time
async def test_a_lease_that_says_where_to_call_is_followed() -> None:
    transport = Transport(httpx2.Response(200, stream=Body()))
    lease = Lease("one", 0, base_url="http://127.0.0.1:2/v1", api_key="model-key")
    await opened(transport, a_request(api_key=SECRET, lease=lease))
    [sent] = transport.requests
    assert (str(sent.url), sent.headers["host"]) == ("http://127.0.0.1:2/v1/chat/completions", "127.0.0.1:2")
    assert (sent.headers["authorization"], sent.headers["connection"]) == ("Bearer model-key", "close")


@in_virtual_time
async def test_the_headers_deadline_runs_for_streams_alone() -> None:
    async def wait_behind(request: UpstreamRequest) -> None:
        with request.deadlines:
            await opened(Transport(httpx2.Response(200, stream=Body())), request)
            await asyncio.Event().wait()

    for streamed, due in ((True, 60), (False, 600)):
        began = now()
        with pytest.raises(UpstreamTimeout) as caught:
            await wait_behind(a_request(streamed=streamed))
        assert caught.value.phase == ("headers" if streamed else "total")
        assert now() - began == due


@pytest.mark.parametrize(
    ("content_type", "is_stream"),
    [
        ("text/event-stream", True),
        ("text/event-stream; charset=utf-8", True),
        ("Text/Event-Stream", True),
        ("application/json", False),
        (None, False),
    ],
)
@in_virtual_time
async def test_an_answer_tells_what_it_is(content_type: str | None, is_stream: bool) -> None:
    headers = {
        "x-request-id": "up-1",
        "retry-after": "7",
        "x-ratelimit-remaining-tokens": "5",
        "set-cookie": "secret",
        "openai-organization": "o",
    } | ({"content-type": content_type} if content_type else {})
    transport = Transport(httpx2.Response(429, headers=headers, stream=Body()))
    async with httpx2.AsyncClient(transport=transport) as client, OpenAIProvider(client).open(a_request()) as answer:
        assert (answer.status, answer.is_event_stream, answer.request_id) == (429, is_stream, "up-1")
        assert answer.passed_headers == {
            "X-Tidegate-Upstream-request-id": "up-1",
            "X-Tidegate-Upstream-retry-after": "7",
            "X-Tidegate-Upstream-ratelimit-remaining-tokens": "5",
        }


@pytest.mark.parametrize("leaves_by", [None, ZeroDivisionError])
@in_virtual_time
async def test_the_answer_is_closed_however_it_is_left(leaves_by: type[Exception] | None) -> None:
    body = Body(b"a", b"b")
    provider = OpenAIProvider(httpx2.AsyncClient(transport=Transport(httpx2.Response(200, stream=body))))

    async def leave() -> None:
        async with provider.open(a_request()):
            if leaves_by is not None:
                raise leaves_by

    if leaves_by is None:
        await leave()
    else:
        with pytest.raises(leaves_by):
            await leave()
    assert body.is_closed


@in_virtual_time
async def test_an_upstream_that_cannot_be_connected_to_was_told_nothing() -> None:
    request = a_request()
    error, transport = await failed(request, httpx2.ConnectError("Connection refused"))
    assert error.message == "The upstream 'one' cannot be connected to: Connection refused."
    assert (error.reached, request.was_sent, len(transport.requests)) == (False, False, 1)


@pytest.mark.parametrize(
    ("script", "phase", "seconds", "reached"),
    [(httpx2.ConnectTimeout("t"), "connect", 5, False), (httpx2.WriteTimeout("t"), "write", 10, True)],
)
@in_virtual_time
async def test_connecting_and_writing_have_their_own_timeouts(
    script: Exception, phase: str, seconds: float, reached: bool
) -> None:
    error, transport = await failed(a_request(), script)
    assert isinstance(error, UpstreamTimeout)
    assert (error.phase, error.http_status, error.reached) == (phase, 504, reached)
    assert f"within {seconds:g} s" in error.message
    assert len(transport.requests) == 1, "a timeout is not tried again"


CLOSED = [httpx2.RemoteProtocolError("closed"), httpx2.ReadError("reset"), httpx2.WriteError("broken pipe")]


@in_virtual_time
async def test_a_kept_connection_that_broke_as_it_was_used_is_tried_once_more_on_a_new_one() -> None:
    broke = KeptConnectionBroke("closed")
    transport = Transport(broke, httpx2.Response(200, stream=Body(b"a")))
    assert await opened(transport, a_request()) == b"a"
    assert [request.content for request in transport.requests] == [a_request().body] * 2
    assert [request.extensions[ANEW] for request in transport.requests] == [False, True]
    error, transport = await failed(a_request(), broke, httpx2.ReadError("reset"))
    assert (error.http_status, error.reached, len(transport.requests)) == (502, True, 2)
    assert error.message.startswith("The upstream 'one' closed the connection: ")
    request = a_request()
    error, _ = await failed(request, broke, httpx2.ConnectError("Connection refused"))
    assert (error.reached, request.was_sent) == (False, False), "what broke was never begun there"


@pytest.mark.parametrize("closed", CLOSED)
@in_virtual_time
async def test_a_new_connection_that_breaks_is_not_tried_again(closed: Exception) -> None:
    error, transport = await failed(a_request(), closed)
    assert (error.http_status, error.reached, len(transport.requests)) == (502, True, 1)


@in_virtual_time
async def test_an_answer_that_breaks_off_is_the_upstreams_fault() -> None:
    for reason in CLOSED:
        error, _ = await failed(a_request(), httpx2.Response(200, stream=Body(b"a", error=reason)))
        assert error.message.startswith("The upstream 'one' broke off its answer: ")


@in_virtual_time
async def test_a_key_that_no_header_can_carry_is_not_shown() -> None:
    wrong = httpx2.LocalProtocolError(f"Illegal header value b'Bearer {SECRET}\\n'")
    error, transport = await failed(a_request(api_key=SECRET), wrong)
    assert SECRET not in error.message
    assert (error.reached, len(transport.requests)) == (False, 1)


def test_what_a_provider_checks_is_asked_of_every_body() -> None:
    def check(body: bytes) -> None:
        raise InvalidRequest(body.decode())

    client = httpx2.AsyncClient(transport=Transport())
    OpenAIProvider(client).check(b"anything")
    with pytest.raises(InvalidRequest, match="tools"):
        OpenAIProvider(client, check=check).check(b"tools")
    assert OpenAIProvider(client, streams_only=True).streams_only
    assert not OpenAIProvider(client).streams_only

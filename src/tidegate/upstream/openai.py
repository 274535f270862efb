"""Upstreams that speak the OpenAI API over HTTP: OpenAI, vLLM, Ollama, llama.cpp and the local model.

Connect and write time-outs are the client's, all others `Deadlines`'. A connection that was kept alive may be closed by
the upstream just as it is used: such a request was never begun there, so it is sent once more on a new one.
"""

import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any, cast

import httpx2

from tidegate.errors import UpstreamError, UpstreamTimeout
from tidegate.upstream.echoed_key import without_key
from tidegate.upstream.provider import Answer, UpstreamRequest
from tidegate.upstream.transport import ANEW, STALE_WITHIN_S, KeptConnectionBroke, UpstreamTransport

_LONGEST_ID = 256
_KEEPALIVE_S = 60.0
_PASSED = frozenset({b"x-request-id", b"retry-after"})
_PASSED_PREFIX = b"x-ratelimit-"


class UpstreamClient(httpx2.AsyncClient):
    """An `AsyncClient` whose `send` of a stream goes straight to its transport.

    Redirects, flows of authentication, hooks and cookies are not wanted of an upstream; that `AsyncClient` looks for
    them with each request and adds a generator to each body cost as much as sending it.
    """

    async def send(self, request: httpx2.Request, *, stream: bool = False, **options: Any) -> httpx2.Response:
        if not stream or options:
            return await super().send(request, stream=stream, **options)
        if self.is_closed:
            raise RuntimeError("The client has been closed: nothing can be sent by it.")
        response = await self._transport.handle_async_request(request)
        response.request = request
        return response

    def leave(self, url: str) -> None:
        """Keeps no connection to this URL's origin any longer, until it is asked for again."""
        if isinstance(self._transport, UpstreamTransport):
            self._transport.leave(url)


def open_client() -> UpstreamClient:
    """The one client of a process. How many requests run at once is for the slots to say, not for its pool."""
    return UpstreamClient(
        transport=UpstreamTransport(keepalive_s=_KEEPALIVE_S),
        timeout=None,
        trust_env=False,
        follow_redirects=False,
        # An upstream's cookies are nobody's: the client would keep them all.
        cookies=CookieJar(DefaultCookiePolicy(allowed_domains=())),
    )


class _Body(httpx2.AsyncByteStream):
    """A request's body, in one piece. It knows that it was asked for: the connection stands, and it is sent."""

    def __init__(self, request: UpstreamRequest) -> None:
        self._request = request
        self._is_given = False

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        if self._is_given:
            raise StopAsyncIteration
        self._request.was_sent = self._is_given = True
        return self._request.body


class HttpAnswer:
    """Implements `Answer` over a response of the client. It is iterated once. What it tells has not `key` in it."""

    def __init__(self, response: httpx2.Response, upstream: str, key: str | None) -> None:
        # The transport's own stream: what `aiter_raw` adds to it is bookkeeping for each chunk.
        self._pieces = aiter(cast("httpx2.AsyncByteStream", response.stream))
        self._upstream = upstream
        self._key = key
        self._headers = {name.lower(): value for name, value in response.headers.raw}
        self.status = response.status_code

    @property
    def is_event_stream(self) -> bool:
        return self._headers.get(b"content-type", b"").lower().startswith(b"text/event-stream")

    @property
    def request_id(self) -> str | None:
        named = self._headers.get(b"x-request-id")
        return None if named is None else self._told(named)[:_LONGEST_ID]

    @property
    def passed_headers(self) -> Mapping[str, str]:
        passed = {}
        for name, value in self._headers.items():
            if name in _PASSED or name.startswith(_PASSED_PREFIX):
                passed[f"X-Tidegate-Upstream-{name.removeprefix(b'x-').decode('ascii')}"] = self._told(value)
        return passed

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        try:
            return await anext(self._pieces)
        except httpx2.TransportError as error:
            raise UpstreamError(
                f"The upstream {self._upstream!r} broke off its answer: {_reason(error)}.", upstream=self._upstream
            ) from error

    def _told(self, value: bytes) -> str:
        return without_key(value.decode("utf-8", "backslashreplace"), self._key)


class OpenAIProvider:
    """Implements `Provider`. `check` refuses nothing: what an OpenAI-compatible upstream takes is for it to say."""

    def __init__(
        self, client: httpx2.AsyncClient, *, streams_only: bool = False, check: Callable[[bytes], None] | None = None
    ) -> None:
        self._client = client
        self._check = check
        self.streams_only = streams_only
        self._urls: dict[str, httpx2.URL] = {}

    @property
    def client(self) -> httpx2.AsyncClient:
        """What it sends by."""
        return self._client

    def check(self, body: bytes) -> None:
        if self._check is not None:
            self._check(body)

    @asynccontextmanager
    async def open(self, request: UpstreamRequest) -> AsyncIterator[Answer]:
        began = time.perf_counter()
        try:
            try:
                response = await self._send(request)
            except KeptConnectionBroke:
                if time.perf_counter() - began > STALE_WITHIN_S:
                    raise
                request.was_sent = False
                response = await self._send(request, anew=True)
        except httpx2.TransportError as error:
            raise _failure(error, request) from error
        try:
            yield HttpAnswer(response, request.attempt.upstream.name, request.key)
        finally:
            # It waits for nothing (`transport.py`): there is nothing to shield, and nothing to bound.
            await cast("httpx2.AsyncByteStream", response.stream).aclose()

    async def _send(self, request: UpstreamRequest, *, anew: bool = False) -> httpx2.Response:
        upstream = request.attempt.upstream
        timeouts = upstream.timeouts
        url = self._url(request.lease.base_url or upstream.base_url, request.path)
        sent = httpx2.Request(
            "POST",
            url,
            headers=self._headers(request, url),
            stream=_Body(request),
            extensions={"timeout": {"connect": timeouts.connect_s, "write": timeouts.write_s}, ANEW: anew},
        )
        if request.streamed:
            request.deadlines.expect("headers", timeouts.headers_s)
        try:
            return await self._client.send(sent, stream=True)
        except httpx2.ConnectTimeout:
            raise UpstreamTimeout("connect", timeouts.connect_s, upstream=upstream.name) from None
        except httpx2.WriteTimeout:
            raise UpstreamTimeout("write", timeouts.write_s, upstream=upstream.name) from None

    def _headers(self, request: UpstreamRequest, url: httpx2.URL) -> list[tuple[bytes, bytes]]:
        headers = [
            (b"host", url.netloc),
            (b"content-type", b"application/json"),
            (b"content-length", str(len(request.body)).encode()),
            (b"accept", b"text/event-stream" if request.streamed else b"application/json"),
            (b"accept-encoding", b"identity"),
            (b"user-agent", b"tidegate"),
            *request.headers,
        ]
        key = request.key
        if key is not None:
            headers.append((b"authorization", b"Bearer " + key.encode()))
        if request.lease.base_url is not None:
            # The model's server closes idle connections under us, 2 of 20 measured; a new one on loopback costs 60 µs.
            headers.append((b"connection", b"close"))
        return headers

    def _url(self, base_url: str, path: str) -> httpx2.URL:
        whole = base_url + path
        url = self._urls.get(whole)
        if url is None:
            # Bases are the configuration's, and the model's of each restart: few, but not forever.
            if len(self._urls) > 64:
                self._urls.clear()
            url = self._urls[whole] = httpx2.URL(whole)
        return url


def _failure(error: httpx2.TransportError, request: UpstreamRequest) -> UpstreamError:
    upstream = request.attempt.upstream.name
    if isinstance(error, httpx2.LocalProtocolError):
        # Its own text shows the header at fault, which may be the one with the upstream's key.
        return UpstreamError(
            f"The request to the upstream {upstream!r} cannot be sent: one of its headers is not valid.",
            upstream=upstream,
            reached=False,
        )
    if isinstance(error, httpx2.ConnectError):
        return UpstreamError(
            f"The upstream {upstream!r} cannot be connected to: {_reason(error)}.", upstream=upstream, reached=False
        )
    return UpstreamError(f"The upstream {upstream!r} closed the connection: {_reason(error)}.", upstream=upstream)


def _reason(error: Exception) -> str:
    return (str(error) or type(error).__name__).rstrip(".")

"""Upstreams that speak the OpenAI API over HTTP: OpenAI, vLLM, Ollama, llama.cpp and the local model.

Connect and write time-outs are the client's, all others `Deadlines`'. A connection that was kept alive may be closed by
the upstream just as it is used: such a request was never begun there, so it is sent once more on a new one.
"""

import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from http.cookiejar import CookieJar, DefaultCookiePolicy

import anyio
import httpx2

from tidegate.errors import UpstreamError, UpstreamTimeout
from tidegate.upstream.provider import Answer, UpstreamRequest
from tidegate.upstream.transport import ANEW, KeptConnectionBroke, UpstreamTransport

# A close so soon after sending is of the idle connection, not of the work on it.
_STALE_CONNECTION_WITHIN_S = 1.0
_CLOSE_WITHIN_S = 1.0
_LONGEST_ID = 256
_KEEPALIVE_S = 60.0
_PASSED = frozenset({"x-request-id", "retry-after"})
_PASSED_PREFIX = "x-ratelimit-"


def open_client() -> httpx2.AsyncClient:
    """The one client of a process. How many requests run at once is for the slots to say, not for its pool."""
    return httpx2.AsyncClient(
        transport=UpstreamTransport(keepalive_s=_KEEPALIVE_S),
        timeout=None,
        trust_env=False,
        follow_redirects=False,
        # An upstream's cookies are nobody's: the client would keep them all.
        cookies=CookieJar(DefaultCookiePolicy(allowed_domains=())),
    )


class _Body(httpx2.AsyncByteStream):
    """A request's body, which knows that it was asked for: the connection stands and its headers are sent."""

    def __init__(self, request: UpstreamRequest) -> None:
        self._request = request

    async def __aiter__(self) -> AsyncIterator[bytes]:
        self._request.was_sent = True
        yield self._request.body


class HttpAnswer:
    """Implements `Answer` over a response of the client."""

    def __init__(self, response: httpx2.Response, upstream: str) -> None:
        self._response = response
        self._upstream = upstream
        self.status = response.status_code

    @property
    def is_event_stream(self) -> bool:
        return self._response.headers.get("content-type", "").lower().startswith("text/event-stream")

    @property
    def request_id(self) -> str | None:
        named = self._response.headers.get("x-request-id")
        return None if named is None else named[:_LONGEST_ID]

    @property
    def passed_headers(self) -> Mapping[str, str]:
        passed = {}
        for name, value in self._response.headers.items():
            if name in _PASSED or name.startswith(_PASSED_PREFIX):
                passed[f"X-Tidegate-Upstream-{name.removeprefix('x-')}"] = value
        return passed

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            # The transport's own stream: what `aiter_raw` adds to it is bookkeeping for each chunk.
            async for data in self._response.stream:  # type: ignore[union-attr]
                yield data
        except httpx2.TransportError as error:
            raise UpstreamError(
                f"The upstream {self._upstream!r} broke off its answer: {_reason(error)}.", upstream=self._upstream
            ) from error


class OpenAIProvider:
    """Implements `Provider`. `check` refuses nothing: what an OpenAI-compatible upstream takes is for it to say."""

    def __init__(
        self, client: httpx2.AsyncClient, *, streams_only: bool = False, check: Callable[[bytes], None] | None = None
    ) -> None:
        self._client = client
        self._check = check
        self.streams_only = streams_only
        self._urls: dict[str, httpx2.URL] = {}

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
                if time.perf_counter() - began > _STALE_CONNECTION_WITHIN_S:
                    raise
                response = await self._send(request, anew=True)
        except httpx2.TransportError as error:
            raise _failure(error, request) from error
        try:
            yield HttpAnswer(response, request.attempt.upstream.name)
        finally:
            with anyio.CancelScope(shield=True), anyio.move_on_after(_CLOSE_WITHIN_S):
                await response.aclose()

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
        upstream = request.attempt.upstream
        headers = [
            (b"host", url.netloc),
            (b"content-type", b"application/json"),
            (b"content-length", str(len(request.body)).encode()),
            (b"accept", b"text/event-stream" if request.streamed else b"application/json"),
            (b"accept-encoding", b"identity"),
            (b"user-agent", b"tidegate"),
            *request.headers,
        ]
        key = request.lease.api_key or (upstream.api_key.get_secret_value() if upstream.api_key else None)
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

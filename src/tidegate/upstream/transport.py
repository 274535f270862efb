"""Connections to upstreams, kept alive: httpx2's transport with a pool that costs the same however many are open.

httpcore2's own pool looks at every connection for each request that comes or goes: with 1,000 streams open a request
cost 3.9 ms of CPU in place of 1.1. How many connections there may be is for the slots to say, so this one only keeps
those that are idle, by origin, the last used first. A connection that is in use belongs to its response, and is closed
with it or comes back by it; there is nothing to leak a place of.
"""

import ssl
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol, cast

import anyio
import httpcore2
import httpx2

from tidegate.upstream.network import AsyncioBackend

_MOST_IDLE = 256
_CLOSE_WITHIN_S = 1.0

# The same names in both libraries, httpcore2's under its own base classes.
_ERRORS: tuple[tuple[type[Exception], type[httpx2.TransportError]], ...] = (
    (httpcore2.ConnectTimeout, httpx2.ConnectTimeout),
    (httpcore2.ReadTimeout, httpx2.ReadTimeout),
    (httpcore2.WriteTimeout, httpx2.WriteTimeout),
    (httpcore2.ConnectError, httpx2.ConnectError),
    (httpcore2.ReadError, httpx2.ReadError),
    (httpcore2.WriteError, httpx2.WriteError),
    (httpcore2.LocalProtocolError, httpx2.LocalProtocolError),
    (httpcore2.RemoteProtocolError, httpx2.RemoteProtocolError),
    (httpcore2.UnsupportedProtocol, httpx2.UnsupportedProtocol),
)


# An extension of a request: it must not go out on a connection that was kept.
ANEW = "tidegate.anew"
_BROKEN = (httpcore2.ReadError, httpcore2.WriteError, httpcore2.RemoteProtocolError)


class KeptConnectionBroke(httpx2.RemoteProtocolError):
    """A connection that was kept alive broke before it answered: the upstream may have closed it as it was used."""


class _CoreBody(Protocol):
    def __aiter__(self) -> AsyncIterator[bytes]: ...

    async def aclose(self) -> None: ...


@dataclass(slots=True)
class _Origin:
    """One scheme, host and port, and its idle connections with the time since when each is; the last used last."""

    origin: httpcore2.Origin
    idle: deque[tuple[httpcore2.AsyncHTTPConnection, float]] = field(default_factory=deque)


class UpstreamTransport(httpx2.AsyncBaseTransport):
    """HTTP/1.1 to any origin. A connection that was idle for `keepalive_s` is not used again."""

    def __init__(self, *, keepalive_s: float, ssl_context: ssl.SSLContext | None = None) -> None:
        self._keepalive_s = keepalive_s
        self._ssl_context = ssl_context or httpx2.create_ssl_context(trust_env=False)
        self._network = AsyncioBackend()
        self._origins: dict[tuple[bytes, bytes, int | None], _Origin] = {}
        self._is_closed = False

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Raises `httpx2.TransportError`, of a connection that was kept `KeptConnectionBroke`.

        Cancelled at any point, it leaves no connection open.
        """
        assert isinstance(request.stream, httpx2.AsyncByteStream)
        url = request.url
        sent = httpcore2.Request(
            method=request.method,
            url=httpcore2.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path),
            headers=request.headers.raw,
            content=request.stream,
            extensions=request.extensions,
        )
        place = self._place(sent.url)
        with _mapped_errors():
            connection, response = await self._send(place, sent)
        return httpx2.Response(
            response.status,
            headers=response.headers,
            stream=_Body(cast("_CoreBody", response.stream), connection, place, self),
            extensions=response.extensions,
        )

    async def aclose(self) -> None:
        """Closes what is idle; what is in use closes as its response does."""
        self._is_closed = True
        for place in self._origins.values():
            while place.idle:
                await _close(place.idle.pop()[0])

    async def take_back(self, connection: httpcore2.AsyncHTTPConnection, place: _Origin) -> None:
        """Keeps a connection whose response was read to its end, closes any other."""
        if not connection.is_idle() or self._is_closed:
            await _close(connection)
            return
        place.idle.append((connection, time.monotonic()))
        oldest = time.monotonic() - self._keepalive_s
        while place.idle and (len(place.idle) > _MOST_IDLE or place.idle[0][1] < oldest):
            await _close(place.idle.popleft()[0])

    async def _send(
        self, place: _Origin, request: httpcore2.Request
    ) -> tuple[httpcore2.AsyncHTTPConnection, httpcore2.Response]:
        while True:
            kept = None if request.extensions.get(ANEW) else await self._idle(place)
            connection = kept or httpcore2.AsyncHTTPConnection(
                place.origin,
                ssl_context=self._ssl_context,
                keepalive_expiry=self._keepalive_s,
                network_backend=self._network,
            )
            try:
                return connection, await connection.handle_async_request(request)
            except httpcore2.ConnectionNotAvailable:
                continue
            except BaseException as error:
                await _close(connection)
                if kept is not None and isinstance(error, _BROKEN):
                    raise KeptConnectionBroke(str(error)) from error
                raise

    async def _idle(self, place: _Origin) -> httpcore2.AsyncHTTPConnection | None:
        while place.idle:
            connection, _ = place.idle.pop()
            # Asks the socket too: what the upstream has closed is readable.
            if not connection.has_expired():
                return connection
            await _close(connection)
        return None

    def _place(self, url: httpcore2.URL) -> _Origin:
        key = (url.scheme, url.host, url.port)
        place = self._origins.get(key)
        if place is None:
            # Few: those of the configuration, and of the local model's restarts one each.
            place = self._origins[key] = _Origin(url.origin)
        return place


class _Body(httpx2.AsyncByteStream):
    """A response's body, and the connection that it comes by."""

    def __init__(
        self, body: _CoreBody, connection: httpcore2.AsyncHTTPConnection, place: _Origin, transport: UpstreamTransport
    ) -> None:
        self._body = body
        self._connection = connection
        self._place = place
        self._transport = transport
        self._is_closed = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        with _mapped_errors():
            async for data in self._body:
                yield data

    async def aclose(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        with anyio.CancelScope(shield=True), anyio.move_on_after(_CLOSE_WITHIN_S):
            await self._body.aclose()
            await self._transport.take_back(self._connection, self._place)


async def _close(connection: httpcore2.AsyncHTTPConnection) -> None:
    with anyio.CancelScope(shield=True), anyio.move_on_after(_CLOSE_WITHIN_S):
        await connection.aclose()


@contextmanager
def _mapped_errors() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        for of_core, of_client in _ERRORS:
            if isinstance(error, of_core):
                raise of_client(str(error)) from error
        raise

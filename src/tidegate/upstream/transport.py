"""Connections to upstreams, kept alive: httpx2's transport with a pool that costs the same however many are open.

httpcore2's own pool looks at every connection for each request that comes or goes: with 1,000 streams open a request
cost 3.9 ms of CPU in place of 1.1. How many connections there may be is for the slots to say, so this one only keeps
those that are idle, by origin, the last used first. A connection that is in use belongs to its response, and is closed
with it or comes back by it; there is nothing to leak a place of.
"""

import asyncio
import ssl
import time
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import httpx2

from tidegate.tls import client_context
from tidegate.upstream.addresses import Find, find_addresses
from tidegate.upstream.http11 import Http11Connection
from tidegate.upstream.network import connect
from tidegate.upstream.request_head import request_head

_MOST_IDLE = 256
_DEFAULT_PORTS = {"http": 80, "https": 443}

# An extension of a request: it must not go out on a connection that was kept.
ANEW = "tidegate.anew"
# An end so soon after sending is of the idle connection, not of the work on it.
STALE_WITHIN_S = 1.0
_BROKEN = (httpx2.ReadError, httpx2.WriteError, httpx2.RemoteProtocolError)


class KeptConnectionBroke(httpx2.RemoteProtocolError):
    """A connection that was kept alive broke before it answered: the upstream may have closed it as it was used.

    So it is where it said, as the request went out, that it had waited too long for one (RFC 9110, 15.5.9).
    """


@dataclass(slots=True)
class _Origin:
    """One scheme, host and port, and its idle connections with the time since when each is; the last used last."""

    host: str
    port: int
    is_secure: bool
    idle: deque[tuple[Http11Connection, float]] = field(default_factory=deque)
    is_left: bool = False


class UpstreamTransport(httpx2.AsyncBaseTransport):
    """HTTP/1.1 to any origin. A connection that was idle for `keepalive_s` is not used again."""

    def __init__(
        self, *, keepalive_s: float, ssl_context: ssl.SSLContext | None = None, find: Find = find_addresses
    ) -> None:
        self._keepalive_s = keepalive_s
        self._find = find
        self._ssl_context = ssl_context
        self._origins: dict[tuple[str, str, int | None], _Origin] = {}
        self._is_closed = False

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Raises `httpx2.TransportError`, of a connection that was kept `KeptConnectionBroke`.

        Of the timeouts in the request's extensions, connect is for all of connecting, write for each write that waits,
        read for each read. Cancelled at any point, it leaves no connection open.
        """
        head = request_head(request.method, request.url.raw_path, request.headers.raw)
        place = self._place(request.url)
        kept = None if request.extensions.get(ANEW) else self._idle(place)
        connection = kept or await self._open(place, request)
        began = time.monotonic()
        try:
            await connection.exchange(request, head)
        except _BROKEN as error:
            if kept is not None and not connection.has_answered:
                raise KeptConnectionBroke(str(error)) from error
            raise
        if kept is not None and connection.was_waited_on_in_vain and time.monotonic() - began <= STALE_WITHIN_S:
            connection.close()
            raise KeptConnectionBroke("the connection was closed as idle (408)")
        return httpx2.Response(
            connection.status,
            headers=connection.headers,
            stream=UpstreamBody(self, place, connection),
        )

    def leave(self, url: str) -> None:
        """Nothing is wanted at this URL's origin for now: what is idle there is closed, what is in use when it ends."""
        parsed = httpx2.URL(url)
        place = self._origins.pop((parsed.scheme, parsed.host, parsed.port), None)
        if place is not None:
            place.is_left = True
            while place.idle:
                place.idle.pop()[0].close()

    async def aclose(self) -> None:
        """Closes what is idle; what is in use closes as its response does."""
        self._is_closed = True
        for place in self._origins.values():
            while place.idle:
                place.idle.pop()[0].close()

    def take_back(self, connection: Http11Connection, place: _Origin) -> None:
        """Keeps a connection whose response was read to its end, closes any other."""
        if self._is_closed or place.is_left or not connection.is_reusable:
            connection.close()
            return
        now = time.monotonic()
        place.idle.append((connection, now))
        while len(place.idle) > _MOST_IDLE or place.idle[0][1] < now - self._keepalive_s:
            place.idle.popleft()[0].close()

    async def _open(self, place: _Origin, request: httpx2.Request) -> Http11Connection:
        timeout_s = request.extensions.get("timeout", {}).get("connect")
        context = await self._secure() if place.is_secure else None
        return Http11Connection(await connect(place.host, place.port, context, timeout_s, find=self._find))

    async def _secure(self) -> ssl.SSLContext:
        # Reading the authorities takes 30 ms: only where something is secure, and never on the loop.
        if self._ssl_context is None:
            self._ssl_context = await asyncio.to_thread(client_context)
        self._ssl_context.set_alpn_protocols(["http/1.1"])
        return self._ssl_context

    def _idle(self, place: _Origin) -> Http11Connection | None:
        while place.idle:
            connection, since = place.idle.pop()
            # What the upstream has closed, or sent something on, is fit for nothing.
            if connection.is_reusable and time.monotonic() - since <= self._keepalive_s:
                return connection
            connection.close()
        return None

    def _place(self, url: httpx2.URL) -> _Origin:
        key = (url.scheme, url.host, url.port)
        place = self._origins.get(key)
        if place is None:
            default_port = _DEFAULT_PORTS.get(url.scheme)
            if default_port is None:
                raise httpx2.UnsupportedProtocol(f"There is no way to {url.scheme!r} upstreams: use http or https.")
            if not url.host:
                raise httpx2.LocalProtocolError("The request's URL names no host.")
            # Few: those of the configuration, and of the local model's restarts one each.
            place = _Origin(url.raw_host.decode("ascii"), url.port or default_port, url.scheme == "https")
            self._origins[key] = place
        return place


class UpstreamBody(httpx2.AsyncByteStream):
    """A response's body, and the connection that it comes by."""

    def __init__(self, transport: UpstreamTransport, place: _Origin, connection: Http11Connection) -> None:
        self._transport = transport
        self._place = place
        self._connection: Http11Connection | None = connection

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        if self._connection is None:
            raise StopAsyncIteration
        data = await self._connection.read()
        if not data:
            raise StopAsyncIteration
        return data

    async def aclose(self) -> None:
        self.close()

    def close(self) -> None:
        """Gives the connection back where the body was read to its end, else closes it at once."""
        connection, self._connection = self._connection, None
        if connection is not None:
            self._transport.take_back(connection, self._place)

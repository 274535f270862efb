"""A client for URLs that are not models': webhooks, and whatever else the settings name. It calls allowed addresses
alone, and follows no redirect.

The address is judged and then connected to as an address, so that nobody resolves the name a second time. The name is
what TLS asks the certificate for, and what `Host` says. No connection is kept: they would be kept by their address.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http.cookiejar import CookieJar, DefaultCookiePolicy

import httpx2

from tidegate.upstream.addresses import Find, allowed_addresses, fault_of_url, find_addresses


@asynccontextmanager
async def open_checked_client() -> AsyncIterator[httpx2.AsyncClient]:
    """The client of a process, which nothing of the environment turns elsewhere."""
    async with httpx2.AsyncClient(
        transport=CheckedTransport(),
        trust_env=False,
        follow_redirects=False,
        cookies=CookieJar(DefaultCookiePolicy(allowed_domains=())),
    ) as client:
        yield client


class CheckedTransport(httpx2.AsyncBaseTransport):
    """HTTP to allowed addresses. What makes the connections is opened with the first request.

    >>> httpx2.AsyncClient(transport=CheckedTransport(), trust_env=False)
    """

    def __init__(self, connecting: httpx2.AsyncBaseTransport | None = None, *, find: Find = find_addresses) -> None:
        self._connecting = connecting
        self._find = find

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Raises `httpx2.ConnectError` where an address is refused, or none answers."""
        url = request.url
        fault = fault_of_url(str(url))
        if fault is not None:
            raise httpx2.UnsupportedProtocol(f"The URL {fault}.", request=request)
        default_port = 443 if url.scheme == "https" else 80
        try:
            found = await allowed_addresses(url.host, url.port or default_port, find=self._find)
        except OSError as error:
            raise httpx2.ConnectError(str(error), request=request) from error
        failure: httpx2.ConnectError | None = None
        for address in dict.fromkeys(str(one[4][0]) for one in found):
            sent = httpx2.Request(
                request.method,
                url.copy_with(host=address),
                headers=request.headers,
                stream=request.stream,
                extensions={**request.extensions, "sni_hostname": url.host},
            )
            try:
                return await self._opened().handle_async_request(sent)
            except httpx2.ConnectError as error:
                failure = error
        assert failure is not None
        raise failure

    async def aclose(self) -> None:
        if self._connecting is not None:
            await self._connecting.aclose()

    def _opened(self) -> httpx2.AsyncBaseTransport:
        if self._connecting is None:
            limits = httpx2.Limits(max_keepalive_connections=0)
            self._connecting = httpx2.AsyncHTTPTransport(trust_env=False, limits=limits)
        return self._connecting

"""Whose `X-Forwarded-For` and `X-Forwarded-Proto` are believed: the configured addresses and CIDRs, nobody else.

The list of forwarded addresses is read from its right, where our own proxies wrote, up to the first that is none of
them: what a caller put there itself is never reached. A peer that is not listed is believed nothing.
"""

import ipaddress
from collections.abc import Sequence
from typing import cast

from starlette.types import ASGIApp
from uvicorn._types import ASGI3Application
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware


def behind_trusted_proxies(app: ASGIApp, proxies: Sequence[str]) -> ASGIApp:
    """The application with the client's own address in its scope: uvicorn's middleware over these proxies.

    An IPv4 proxy is known on a dual-stack listener (`::ffff:10.0.0.1`) too. The server's own must be off
    (`proxy_headers=False`): by default it believes whoever calls from this machine.
    """
    trusted = [form for proxy in proxies for form in _forms(proxy)]
    # uvicorn and Starlette type the same protocol in two ways.
    return cast("ASGIApp", ProxyHeadersMiddleware(cast("ASGI3Application", app), trusted))


def _forms(proxy: str) -> list[str]:
    try:
        network = ipaddress.ip_network(proxy, strict=False)
    except ValueError:
        return [proxy]
    if network.version == 6:
        return [str(network)]
    return [str(network), f"::ffff:{network.network_address}/{96 + network.prefixlen}"]

"""Whose `X-Forwarded-For` and `X-Forwarded-Proto` are believed: the configured addresses and CIDRs, nobody else.

The list of forwarded addresses is read from its right, where our own proxies wrote, up to the first that is none of
them: what a caller put there itself is never reached. What is no address ends the reading too, and the client is then
the last one that was read: the proxy that wrote it, or the peer. A peer that is not listed, or has no address (a Unix
socket), is believed nothing.

`Forwarded` (RFC 7239) is read by nobody, nor is `X-Forwarded-Host`. A proxy that writes the one header passes the other
on as its caller wrote it, so whoever reads both is told what to believe by a stranger.
"""

import ipaddress
from collections.abc import Awaitable, Sequence
from functools import lru_cache
from typing import Final, NamedTuple

from starlette.types import ASGIApp, Receive, Scope, Send

# Set in the scope of a request that a trusted proxy sent.
PEER_IS_TRUSTED: Final = "tidegate.peer_is_trusted"

_SCHEMES: Final = {b"http": "http", b"https": "https"}
# An address with a zone; anything longer is none, and would only fill the memory of what was judged.
_LONGEST_ADDRESS = 64
_LONGEST_REMEMBERED = 256
_MOST_REMEMBERED = 4096
_MOST_HOPS = 32
_MAPPED_BITS = 96

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class Client(NamedTuple):
    """As ASGI has it; port 0 where none was told."""

    host: str
    port: int


class TrustedProxies:
    """The addresses that are believed, and what they say. IPv4 inside IPv6 (`::ffff:10.0.0.1`) is the IPv4 address.

    >>> TrustedProxies(["10.0.0.0/8"]).client_of(b"203.0.113.7, 10.0.0.9")
    Client(host='203.0.113.7', port=0)
    """

    def __init__(self, proxies: Sequence[str]) -> None:
        self._trusts_all = "*" in proxies
        self._networks = [_network(proxy) for proxy in proxies if proxy != "*"]
        self._trusts = lru_cache(maxsize=_MOST_REMEMBERED)(self._judge)
        self._remembered = lru_cache(maxsize=_MOST_REMEMBERED)(self._read)

    def trusts(self, host: str | None) -> bool:
        """Whether what this peer says of others is believed."""
        if host is None or len(host) > _LONGEST_ADDRESS:
            return self._trusts_all
        return self._trusts(host)

    def client_of(self, forwarded: bytes) -> Client | None:
        """Whom a trusted peer speaks for, by its `X-Forwarded-For`; None where that says nothing."""
        return (self._remembered if len(forwarded) <= _LONGEST_REMEMBERED else self._read)(forwarded)

    def _judge(self, host: str) -> bool:
        if self._trusts_all:
            return True
        address = _parsed(host)
        return address is not None and any(address in network for network in self._networks)

    def _read(self, forwarded: bytes) -> Client | None:
        found: Client | None = None
        hops = [hop for part in forwarded.decode("latin-1").split(",") if (hop := part.strip())]
        for hop in hops[: -_MOST_HOPS - 1 : -1]:
            client = _client(hop)
            if client is None:
                break
            found = client
            if not self.trusts(client.host):
                break
        return found


def behind_trusted_proxies(app: ASGIApp, proxies: Sequence[str]) -> ASGIApp:
    """The application with the client's own address and scheme in its scope.

    uvicorn's own must be off (`proxy_headers=False`): by default it believes whoever calls from this machine.
    """
    trusted = TrustedProxies(proxies)

    # No coroutine of its own: it has nothing to wait for.
    def believing(scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        peer = scope.get("client")
        if scope["type"] == "http" and trusted.trusts(peer[0] if peer else None):
            _believe(trusted, scope)
        return app(scope, receive, send)

    return believing


def _believe(trusted: TrustedProxies, scope: Scope) -> None:
    scope[PEER_IS_TRUSTED] = True
    lists, told = [], None
    for name, value in scope["headers"]:
        if name == b"x-forwarded-for":
            lists.append(value)
        elif name == b"x-forwarded-proto":
            # The last is what the peer added, where it added one beside its caller's.
            told = value
    if told is not None:
        scope["scheme"] = _SCHEMES.get(told.strip().lower(), scope["scheme"])
    if lists and (client := trusted.client_of(lists[0] if len(lists) == 1 else b",".join(lists))) is not None:
        scope["client"] = client


def _client(hop: str) -> Client | None:
    """`192.0.2.7`, `192.0.2.7:4711`, `2001:db8::7` or `[2001:db8::7]:4711`; None where it is no address."""
    host, port = hop, ""
    if hop.startswith("["):
        host, bracket, rest = hop[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            return None
        port = rest[1:]
    elif hop.count(":") == 1:
        host, _, port = hop.partition(":")
    # A zone names an interface of somebody else's machine.
    address = None if "%" in host else _parsed(host)
    if address is None:
        return None
    is_port = port.isascii() and port.isdigit() and len(port) <= 5
    return Client(str(address), int(port) if is_port else 0)


def _network(proxy: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    network = ipaddress.ip_network(proxy, strict=False)
    if isinstance(network, ipaddress.IPv6Network) and network.prefixlen >= _MAPPED_BITS:
        mapped = network.network_address.ipv4_mapped
        if mapped is not None:
            return ipaddress.IPv4Network((mapped, network.prefixlen - _MAPPED_BITS))
    return network


def _parsed(host: str) -> _Address | None:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return address if mapped is None else mapped

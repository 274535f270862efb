"""The addresses that this gateway never calls, whatever a URL of its configuration says or a name resolves to.

Loopback and private networks are called: models of one's own live there. What is never called is what no model and no
webhook is: the metadata services of clouds, which hand their machine's credentials to whoever asks from it, the rest
of link-local, and what is no host's address at all (unspecified, multicast, broadcast, reserved).

The rule is judged on the address that a connection is made to, after the name is resolved and as late as that: a name
may resolve to another address each time it is asked for (DNS rebinding). An IPv4 address inside an IPv6 one counts as
both. Sources: RFC 6890, RFC 3927, RFC 4291, RFC 6052 and RFC 8215 (NAT64), RFC 3056 (6to4); the clouds' manuals for
their services.
"""

import asyncio
import ipaddress
import re
import socket
from collections.abc import Awaitable, Callable
from typing import Any, Final
from urllib.parse import urlsplit

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Found = tuple[Any, Any, int, str, tuple[Any, ...]]
"""As `getaddrinfo` tells it: the family, the type, the protocol, a name, and the socket's address."""
Find = Callable[[str, int], Awaitable[list[Found]]]

_METADATA: Final = frozenset(
    ipaddress.ip_address(address)
    for address in (
        "100.100.100.200",  # Alibaba Cloud
        "168.63.129.16",  # Azure's platform services
        "192.0.0.192",  # Oracle Cloud
        "fd00:ec2::254",  # AWS
        "fd20:ce::254",  # Google Cloud
    )
)
_NO_HOST: Final = tuple(ipaddress.ip_network(network) for network in ("0.0.0.0/8", "240.0.0.0/4"))
_NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")
_LOCAL_NAT64: Final = ipaddress.IPv6Network("64:ff9b:1::/48")
_FOUR_NUMBERS: Final = re.compile(r"\d+\.\d+\.\d+\.\d+")
_COMPATIBLE: Final = ipaddress.IPv6Network("::/96")


class AddressRefused(OSError):
    """A connection that is not made, for its address."""


async def find_addresses(host: str, port: int) -> list[Found]:
    """What the machine's own resolver finds. Raises `OSError`."""
    return await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)


async def allowed_addresses(host: str, port: int, *, find: Find = find_addresses) -> list[Found]:
    """What a host resolves to now, without what is never called: connect to these, by address.

    Raises `AddressRefused` where nothing else is found, and `OSError` where nothing is.
    """
    found = await find(host, port)
    allowed = [one for one in found if refusal_of(str(one[4][0])) is None]
    if not allowed:
        raise AddressRefused(refusal_of(str(found[0][4][0])) if found else "it has no address")
    return allowed


def refusal_of(address: str) -> str | None:
    """Why this address is never called, None where it may be, or where it is none.

    >>> refusal_of("::ffff:169.254.169.254")
    '169.254.169.254 is link-local, where clouds keep the credentials of their machines'
    """
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0].strip("[]"))
    except ValueError:
        return None
    return next((why for one in _forms(parsed) if (why := _refusal(one)) is not None), None)


def fault_of_url(url: str) -> str | None:
    """Why this gateway does not call a URL, as far as its text says; None where it may."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        return "is no URL"
    if parts.scheme not in ("http", "https") or not host:
        return "must begin with https:// or http:// and a host"
    if "@" in parts.netloc:
        return "must not hold a name or a password"
    if _FOUR_NUMBERS.fullmatch(host) and not _is_address(host):
        # To some 0251 is 169 and to others 251, and the client of HTTP takes it for no URL at all.
        return "must write an IPv4 address as four numbers up to 255, without zeros before them"
    why = refusal_of(host)
    return None if why is None else f"is not called: {why}"


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _refusal(address: Address) -> str | None:
    if address.is_link_local:
        return f"{address} is link-local, where clouds keep the credentials of their machines"
    if address in _METADATA:
        return f"{address} is a cloud's metadata service"
    if address.is_multicast or address.is_unspecified or any(address in network for network in _NO_HOST):
        return f"{address} is the address of no host"
    return None


def _forms(address: Address) -> list[Address]:
    """The address, and the IPv4 addresses that it may reach by being translated."""
    forms: list[Address] = [address]
    if isinstance(address, ipaddress.IPv6Address):
        inside = [address.ipv4_mapped, address.sixtofour, *(address.teredo or ())]
        if address in _NAT64 or (address in _COMPATIBLE and int(address) > 0xFFFF):
            inside.append(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
        if address in _LOCAL_NAT64:
            inside += _translated_locally(address)
        forms = [form for form in inside if form is not None] + forms
    return forms


def _translated_locally(address: ipaddress.IPv6Address) -> list[ipaddress.IPv4Address]:
    """Where a local translator may lead, of what hands out credentials: its prefix may have 48, 56, 64 or 96 bits, and
    behind the IPv4 address stands whatever it likes (RFC 6052, 2.2; bits 64 to 71 are no part of either).
    """
    number = int(address)
    read = (number >> 64 & 0xFFFF) << 56 | number & (1 << 56) - 1
    found = [ipaddress.IPv4Address(read >> behind & 0xFFFFFFFF) for behind in (40, 32, 24, 0)]
    return [one for one in found if one.is_link_local or one in _METADATA]

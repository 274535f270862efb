"""The addresses that an API key may be used from: single addresses and CIDRs (RFC 4632; RFC 4291, 2.3), of both IPs.

An IPv4 address that is written inside IPv6 (`::ffff:192.0.2.7`; RFC 4291, 2.5.5.2) is the IPv4 address, in a rule and
in a request: which of the two a server sees depends on how it listens. So `::/0` admits no caller over IPv4.
"""

import ipaddress
from collections.abc import Iterable
from typing import Final

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_MAPPED_BITS: Final = 96


def parse_range(text: str) -> Network:
    """An address or a CIDR, as the network that it is. Raises `ValueError`, with what to write in place of it."""
    if "%" in text:
        raise ValueError(f"{text!r} names an interface: leave out what follows the %")
    try:
        network = ipaddress.ip_network(text)
    except ValueError:
        raise ValueError(_fault(text)) from None
    if isinstance(network, ipaddress.IPv6Network) and network.prefixlen >= _MAPPED_BITS:
        mapped = network.network_address.ipv4_mapped
        if mapped is not None:
            return ipaddress.IPv4Network((mapped, network.prefixlen - _MAPPED_BITS))
    return network


def canonical_range(text: str) -> str:
    """The one way to write an address or a CIDR: `192.0.2.7`, `2001:db8::/32`. Raises `ValueError`."""
    network = parse_range(text)
    return str(network.network_address) if network.num_addresses == 1 else str(network)


def admits_all(ranges: Iterable[str], others: Iterable[str]) -> bool:
    """Whether `ranges`, each by one of them, hold every address of `others`, which can be parsed."""
    held = [network for text in ranges if (network := _parsed(text)) is not None]
    return all(any(_is_within(parse_range(text), network) for network in held) for text in others)


class AllowedAddresses:
    """A key's list, ready to be asked at each use.

    A stored entry that is none admits nobody: a list that cannot be read refuses, and is never taken for no list.

    >>> AllowedAddresses(["192.0.2.0/24"]).admits("::ffff:192.0.2.7")
    True
    """

    __slots__ = ("_networks",)

    def __init__(self, ranges: Iterable[str]) -> None:
        self._networks = tuple(network for text in ranges if (network := _parsed(text)) is not None)

    def admits(self, address: str | None) -> bool:
        """Whether a request from here may use the key. None, and what is no address, is from nowhere that is listed."""
        found = plain_address(address)
        return found is not None and any(found in network for network in self._networks)


def plain_address(address: str | None) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The address of a request's client; None where it is not known, such as over a Unix socket."""
    if address is None:
        return None
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return None
    mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
    return found if mapped is None else mapped


def _parsed(text: str) -> Network | None:
    try:
        return parse_range(text)
    except ValueError:
        return None


def _is_within(inner: Network, outer: Network) -> bool:
    if isinstance(inner, ipaddress.IPv4Network):
        return isinstance(outer, ipaddress.IPv4Network) and inner.subnet_of(outer)
    return isinstance(outer, ipaddress.IPv6Network) and inner.subnet_of(outer)


def _fault(text: str) -> str:
    try:
        network = ipaddress.ip_network(text, strict=False)
    except ValueError:
        return f"{text!r} is no address and no CIDR: write it as 192.0.2.7, 192.0.2.0/24 or 2001:db8::/32"
    return f"{text!r} is an address inside a network: write {network} for all of it, or the address alone"

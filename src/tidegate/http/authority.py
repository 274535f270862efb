"""A host and its port as a Host header writes them (RFC 9110, 7.2; RFC 3986, 3.2.2), and what is not one.

Stricter than the grammar: a name is letters, digits, dots, hyphens and underscores, an IPv6 address stands in brackets.
What else the grammar allows (percent-encoding, `!$&'()*+,;=`) names no machine, and is a trick in a link.
"""

import ipaddress
import re
from typing import Final, NamedTuple

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_AUTHORITY: Final = re.compile(rb"(\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9._-]{1,255})(?::(\d{1,5})?)?")
is_authority = _AUTHORITY.fullmatch
"""Whether these bytes are one: a match, or None."""


class Authority(NamedTuple):
    """`name` is lower-case and without a last dot; an IPv6 address has its brackets. `port` is None where none stands.

    >>> parse_authority(b"Gateway.example.com.:8443")
    Authority(name='gateway.example.com', port=8443)
    """

    name: str
    port: int | None

    @property
    def address(self) -> Address | None:
        """The address that it is, None where it is a name."""
        return plain_address(self.name.strip("[]"))


def parse_authority(written: bytes) -> Authority | None:
    """None where it names no host."""
    match = _AUTHORITY.fullmatch(written)
    if match is None:
        return None
    name, port = match.groups()
    return Authority(name.decode().lower().removesuffix("."), int(port) if port else None)


def plain_address(written: str) -> Address | None:
    """An address without its zone, and an IPv4 address that is written inside IPv6 as itself; None for a name."""
    try:
        address = ipaddress.ip_address(written.partition("%")[0])
    except ValueError:
        return None
    return (address.ipv4_mapped or address) if isinstance(address, ipaddress.IPv6Address) else address

"""Where a host is, judged by its name or literal address alone: this machine, a private network, or beyond.

Nothing is resolved: a start must not hang on a name server, and what a name resolves to may change after it. So a name
counts as private by its form: `localhost`, one label (a service of compose, a machine of the same domain), and the
suffixes that are never delegated to the public (RFC 6761, RFC 6762, RFC 8375, ICANN's `.internal`, Kubernetes' `.svc`).
"""

import ipaddress
import re
from typing import Final
from urllib.parse import parse_qsl, urlsplit

_PRIVATE_SUFFIXES: Final = (".localhost", ".local", ".internal", ".svc", ".home.arpa")
# A letter first: `134744072` and `0x8080808` are addresses to a resolver.
_ONE_LABEL: Final = re.compile(r"[a-z]([a-z0-9_-]*[a-z0-9])?")
_PRIVATE_NETWORKS: Final = tuple(
    ipaddress.ip_network(network)
    for network in (
        "127.0.0.0/8",
        "10.0.0.0/8",
        "172.16.0.0/12",
        "192.168.0.0/16",
        "169.254.0.0/16",
        "100.64.0.0/10",
        "::1/128",
        "fc00::/7",
        "fe80::/10",
    )
)


def host_of(url: str) -> str:
    """The host that a URL names; empty where it names none."""
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


def database_hosts(url: str) -> list[str]:
    """Where a database may be: SQLAlchemy takes the query's `host`, one or several, before the URL's own.

    A socket's directory is no host.

    >>> database_hosts("postgresql+asyncpg://u:p@/x?host=db-1:5432&host=db-2:5432")
    ['db-1', 'db-2']
    """
    given = [each for name, value in parse_qsl(url.partition("?")[2]) if name == "host" for each in value.split(",")]
    hosts = [host_of(f"//{each}") for each in given if not each.startswith("/")] if given else [host_of(url)]
    return [host for host in hosts if host]


def is_loopback(host: str) -> bool:
    """This machine and no other."""
    address = _address(host)
    if address is not None:
        return address.is_loopback
    name = host.lower().rstrip(".")
    return name == "localhost" or name.endswith(".localhost")


def is_private(host: str) -> bool:
    """This machine, or a network that the public has no way into: RFC 1918, 4193 and 6598, link-local, or by name.

    >>> is_private("vllm"), is_private("models.internal"), is_private("api.openai.com")
    (True, True, False)
    """
    address = _address(host)
    if address is not None:
        return any(address in network for network in _PRIVATE_NETWORKS if network.version == address.version)
    name = host.lower().rstrip(".")
    return name.endswith(_PRIVATE_SUFFIXES) or _ONE_LABEL.fullmatch(name) is not None


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None
    mapped = address.ipv4_mapped if address.version == 6 else None
    return mapped or address

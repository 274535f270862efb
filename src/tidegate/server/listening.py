"""The listening sockets: bound by the root before anything else starts, and inherited by its children.

The root listens as well as binds: of two servers that start at once on one port, one is told so here.
"""

import errno
import socket
import time
from collections.abc import Sequence
from typing import NamedTuple

from tidegate.server.refusal import StartRefused
from tidegate.settings.groups import ServerSettings

BACKLOG = 2048


class Variables(NamedTuple):
    """What a listener's settings are called where one is at fault, and how another port is chosen."""

    host: str
    other_port: str


PUBLIC = Variables("TIDEGATE_SERVER__HOST", "make serve PORT={port}, or tidegate serve --port {port}")
MANAGEMENT = Variables("TIDEGATE_SERVER__MANAGEMENT_HOST", "TIDEGATE_SERVER__MANAGEMENT_PORT={port}")
_FREE_PORT_TRIES = 5
_RETRY_S = 0.05


def listen(host: str, port: int, *, patience_s: float = 0, of: Variables = PUBLIC) -> list[socket.socket]:
    """Sockets for every address of `host`, all on one port; `port` 0 takes a free one.

    `patience_s` bounds the wait for a port that a dying server still holds. Raises `StartRefused`, which names the
    variables `of` this listener.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise StartRefused(f"{of.host}: {host!r} is no address of this machine: {error}") from None
    addresses = list(dict.fromkeys((family, str(address[0])) for family, _, _, _, address in found))
    deadline = time.monotonic() + patience_s
    for attempt in range(_FREE_PORT_TRIES):
        try:
            return _bind_patiently(addresses, port, deadline)
        except OSError as error:
            # A free port of the first address may be taken at the second.
            if port != 0 or attempt == _FREE_PORT_TRIES - 1:
                raise StartRefused(_fault(error, host, port, of)) from None
    raise AssertionError


def listen_for_management(
    server: ServerSettings, public: list[socket.socket], *, patience_s: float = 0
) -> list[socket.socket]:
    """The sockets of management's own port, none where it has none. Its number is never that of `public`.

    By its number alone a request is told to be management's, on whatever address it came.
    """
    if server.management_port is None:
        return []
    host = server.management_host or server.host
    bound = listen(host, server.management_port, patience_s=patience_s, of=MANAGEMENT)
    while port_of(bound) == port_of(public):
        # Free ones of two addresses may be the same. While the first is held, the next is another.
        same, bound = bound, listen(host, server.management_port, of=MANAGEMENT)
        for listener in same:
            listener.close()
    return bound


def port_of(sockets: list[socket.socket]) -> int:
    return int(sockets[0].getsockname()[1])


def url_of(sockets: list[socket.socket], scheme: str = "http") -> str:
    """Where this machine reaches the server: `http://127.0.0.1:8000`; a wildcard address is reached by loopback."""
    address = str(sockets[0].getsockname()[0])
    loopback = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address, address)  # noqa: S104 - compared, not bound
    return f"{scheme}://{f'[{loopback}]' if ':' in loopback else loopback}:{port_of(sockets)}"


def adopt(descriptors: list[int]) -> list[socket.socket]:
    """The sockets that a parent handed down by number."""
    return [socket.socket(fileno=descriptor) for descriptor in descriptors]


def _bind_patiently(addresses: Sequence[tuple[int, str]], port: int, deadline: float) -> list[socket.socket]:
    while True:
        try:
            return _bind_all(addresses, port)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or time.monotonic() >= deadline:
                raise
        time.sleep(_RETRY_S)


def _bind_all(addresses: Sequence[tuple[int, str]], port: int) -> list[socket.socket]:
    bound: list[socket.socket] = []
    absent: OSError | None = None
    try:
        for family, address in addresses:
            try:
                bound.append(_bind(family, address, port))
            except OSError as error:
                # `localhost` names ::1 also where the machine has no IPv6.
                if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                    raise
                absent = error
            else:
                port = port_of(bound)
        if absent is not None and not bound:
            raise absent
    except OSError:
        for taken in bound:
            taken.close()
        raise
    return bound


def _bind(family: int, address: str, port: int) -> socket.socket:
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind((address, port))
        listener.listen(BACKLOG)
        listener.setblocking(False)
    except OSError:
        listener.close()
        raise
    return listener


def _fault(error: OSError, host: str, port: int, of: Variables) -> str:
    other = f"choose another: {of.other_port.format(port=_other(port))}"
    if error.errno == errno.EADDRINUSE:
        return f"port {port} on {host} is in use; {other}"
    if error.errno == errno.EACCES:
        return f"port {port} on {host} needs privileges that this user lacks; {other}"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"{of.host}: {host} is no address of this machine"
    return f"cannot listen on port {port} of {host}: {error.strerror}"


def _other(port: int) -> int:
    return port + 1 if 1024 <= port < 65535 else 8000

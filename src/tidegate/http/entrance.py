"""What is refused of any request before anything else runs, and who names the hosts that are answered.

A page of a stranger's may resolve its own name to this gateway's address (DNS rebinding) and then reads what it likes;
its requests carry that name in `Host`. So where `TIDEGATE_HTTP__ALLOWED_HOSTS` names hosts, no other is answered. An
address passes where the connection came in on it: orchestrators probe so, and a rebound page has a name.
`X-Forwarded-Host` is read by nobody.

Control characters in a path are a trick (`/api/keys%0A` matches the route of `/api/keys`, and no proxy's rule for it),
and NUL in a query is no part of anything that is stored here: PostgreSQL takes none. A body that is compressed is
refused: what it unpacks to is bounded by nothing that came.
"""

from collections.abc import MutableMapping, Sequence
from typing import Any

from tidegate.errors import InvalidRequest
from tidegate.http.authority import parse_authority, plain_address
from tidegate.http.context import RequestContext

VARIABLE = "TIDEGATE_HTTP__ALLOWED_HOSTS"


class AllowedHosts:
    """The hosts that are answered: `gateway.example.com`, `*.example.com` (every name below it), each with a port or
    for all of them. None: any.

    >>> AllowedHosts(["*.example.com"]).answers(b"a.example.com:8000", scope)
    True
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._exact: dict[str, list[int | None]] = {}
        self._below: list[tuple[str, int | None]] = []
        for written in names:
            parsed = parse_authority(written.removeprefix("*.").encode())
            if parsed is None:
                raise ValueError(f"{VARIABLE}: {written!r} is no host")
            if written.startswith("*."):
                self._below.append((f".{parsed.name}", parsed.port))
            else:
                self._exact.setdefault(parsed.name, []).append(parsed.port)
        self._as_written = frozenset(name.encode() for name in names if not name.startswith("*"))
        self.names_any = bool(names)

    def answers(self, written: bytes, scope: MutableMapping[str, Any]) -> bool:
        """Whether the host that a header names is one of them."""
        if written in self._as_written:
            return True
        host = parse_authority(written)
        if host is None:
            return False
        port = host.port if host.port is not None else (443 if scope["scheme"] == "https" else 80)
        if any(own in (None, port) for own in self._exact.get(host.name, ())):
            return True
        if any(host.name.endswith(suffix) and own in (None, port) for suffix, own in self._below):
            return True
        address, server = host.address, scope.get("server")
        return address is not None and server is not None and address == plain_address(str(server[0]))


class Entrance:
    """Judges each request by what its head says.

    >>> Entrance(settings.http.allowed_hosts).judge(scope, context)
    """

    def __init__(self, allowed_hosts: Sequence[str] = ()) -> None:
        self._hosts = AllowedHosts(allowed_hosts)

    def judge(self, scope: MutableMapping[str, Any], context: RequestContext) -> None:
        """Raises `InvalidRequest`."""
        if self._hosts.names_any:
            self._judge_host(scope)
        if not scope["path"].isprintable() or b"%00" in scope["query_string"]:
            raise InvalidRequest("The path or the query holds a control character, which nothing here is named by.")
        coding = context.content_encoding
        if coding is not None and coding.strip().lower() not in (b"", b"identity"):
            raise InvalidRequest("The body has a Content-Encoding. Send it as it is, without compressing it.")

    def _judge_host(self, scope: MutableMapping[str, Any]) -> None:
        hosts = [value for name, value in scope["headers"] if name == b"host"]
        if len(hosts) != 1 or not self._hosts.answers(hosts[0], scope):
            raise InvalidRequest(f"This host is not answered here: {VARIABLE} names those that are.")

"""What the parser takes of a request's head and this gateway does not: all that two servers could read in two ways.

httptools (llhttp) refuses a Content-Length beside a Transfer-Encoding, folded headers, bare CR and LF, blanks before a
colon, and sizes that are no numbers. It lets pass what is judged here: a proxy before us may have read it otherwise,
and then the rest of one request is the next one (request smuggling).

Source: RFC 9112, 3.2 (Host, the target's forms), 6.1 (Transfer-Encoding), 2.3 (version).
"""

from collections.abc import Sequence
from typing import Final

from tidegate.errors import InvalidRequest
from tidegate.http.authority import is_authority, parse_authority

_SCHEMES: Final = (b"http", b"https")


def fault_of_head(
    method: bytes, target: bytes, version: str, headers: Sequence[tuple[bytes, bytes]]
) -> InvalidRequest | None:
    """Why this head is refused, None where it is not. Header names are lower-case."""
    if version not in ("1.1", "1.0"):
        return InvalidRequest("This server speaks HTTP/1.1 and HTTP/1.0.")
    names = [name for name, _ in headers]
    host = b""
    if (count := names.count(b"host")) == 1:
        host = headers[names.index(b"host")][1].strip()
        if host and not is_authority(host):
            return InvalidRequest("The Host header names no host.")
    elif count or version == "1.1":
        return InvalidRequest("A request has exactly one Host header.")
    if b"transfer-encoding" in names:
        codings = [value.strip().lower() for name, value in headers if name == b"transfer-encoding"]
        if codings != [b"chunked"] or version != "1.1":
            return InvalidRequest("The one Transfer-Encoding that is taken is chunked, in HTTP/1.1.")
    return _fault_of_target(method, target, host)


def _fault_of_target(method: bytes, target: bytes, host: bytes) -> InvalidRequest | None:
    if method == b"CONNECT":
        return InvalidRequest("This server is no proxy.")
    if b"#" in target:
        return InvalidRequest("The request's target has a fragment.")
    if target.startswith(b"/") or (target == b"*" and method == b"OPTIONS"):
        return None
    scheme, separator, rest = target.partition(b"://")
    authority, slash, _ = rest.partition(b"/")
    if not separator or not slash or scheme.lower() not in _SCHEMES:
        return InvalidRequest("The request's target is neither a path nor an http:// URL.")
    named = parse_authority(host)
    if named is None or parse_authority(authority) != named:
        return InvalidRequest("The request's target names another host than its Host header.")
    return None

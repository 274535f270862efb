"""A request's head as HTTP/1.1 writes it (RFC 9112), checked: nothing in it can end a line or frame a body twice."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import httpx2

# RFC 9110, 5.6.2 and 5.5; of a target, what RFC 9112, 3.2, leaves when it is not parsed.
_TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+").fullmatch
_VALUE = re.compile(rb"(?:[\x21-\x7e\x80-\xff]+(?:[ \t]+[\x21-\x7e\x80-\xff]+)*)?").fullmatch
_TARGET = re.compile(rb"[\x21-\x7e]+").fullmatch
_LENGTH = re.compile(rb"[0-9]{1,18}").fullmatch
_FRAMING = frozenset({b"host", b"content-length", b"transfer-encoding"})


@dataclass(frozen=True, slots=True)
class RequestHead:
    """A head's bytes, how many bytes of body follow it (None where they come in chunks), and what comes after.

    `keeps_alive` is false where it says that its connection is for this request alone.
    """

    data: bytes
    length: int | None
    keeps_alive: bool


def request_head(method: str, target: bytes, headers: Sequence[tuple[bytes, bytes]]) -> RequestHead:
    """Raises `LocalProtocolError` for what cannot be written, or would be read in two ways."""
    verb = method.encode("ascii", "replace")
    if not _TOKEN(verb) or verb == b"CONNECT":
        raise httpx2.LocalProtocolError(f"The method {method!r} cannot be sent.")
    if not _TARGET(target):
        raise httpx2.LocalProtocolError("The request's target has a character that cannot be sent.")
    lines = [verb + b" " + target + b" HTTP/1.1\r\n"]
    framing: dict[bytes, bytes] = {}
    keeps_alive = True
    for name, value in headers:
        if not _TOKEN(name) or not _VALUE(value):
            # Not its value, which may be a key.
            raise httpx2.LocalProtocolError(f"The header {name[:64]!r} has a character that cannot be sent.")
        lowered = name.lower()
        if lowered == b"connection" and b"close" in value.lower():
            keeps_alive = False
        if lowered in _FRAMING:
            if lowered in framing:
                raise httpx2.LocalProtocolError(f"The header {lowered.decode()} is there twice.")
            framing[lowered] = value
        lines.append(name + b": " + value + b"\r\n")
    lines.append(b"\r\n")
    return RequestHead(b"".join(lines), _length(framing), keeps_alive)


def _length(framing: dict[bytes, bytes]) -> int | None:
    if b"host" not in framing:
        raise httpx2.LocalProtocolError("The header host is missing.")
    length, coding = framing.get(b"content-length"), framing.get(b"transfer-encoding")
    if coding is not None:
        if length is not None or coding.lower() != b"chunked":
            raise httpx2.LocalProtocolError("The body is to be sent chunked, or with its length, and in no other way.")
        return None
    if length is None:
        return 0
    if not _LENGTH(length):
        raise httpx2.LocalProtocolError("The header content-length is no number.")
    return int(length)

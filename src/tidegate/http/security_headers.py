"""What every answer tells browsers: read it as what it says it is, frame it and keep it nowhere, run nothing of it.

An answer's own `Content-Security-Policy` and `Cache-Control` stand; all others are added here. No answer may be kept
unless it says so itself: what is under /auth and /api is a caller's own, and so is everything else that has no name.
The sets are made once; an answer costs a dictionary of its headers and a concatenation.

Sources: OWASP ASVS 5, V3.4; RFC 6797 (Strict-Transport-Security); W3C CSP 3, Fetch (Cross-Origin-Resource-Policy).
"""

from collections.abc import Iterable, MutableMapping
from itertools import product
from typing import Any, Final

Headers = tuple[tuple[bytes, bytes], ...]

_ALWAYS: Final[Headers] = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
)
_POLICY: Final[Headers] = (
    (
        b"content-security-policy",
        b"default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
)
_UNSTORED: Final[Headers] = ((b"cache-control", b"no-store"),)
# A year, and the host's own subdomains: ASVS 5, 3.4.1.
_ENCRYPTED: Final[Headers] = ((b"strict-transport-security", b"max-age=31536000; includeSubDomains"),)
_OF_PAGES: Final[Headers] = (
    (b"cross-origin-opener-policy", b"same-origin"),
    (
        b"permissions-policy",
        b"camera=(), display-capture=(), geolocation=(), microphone=(), payment=(), usb=()",
    ),
)


def _composed(has_policy: bool, says_caching: bool, is_encrypted: bool, is_page: bool) -> Headers:
    return (
        *_ALWAYS,
        *(() if has_policy else _POLICY),
        *(() if says_caching else _UNSTORED),
        *(_ENCRYPTED if is_encrypted else ()),
        *(_OF_PAGES if is_page else ()),
    )


_BY_ANSWER: Final = {case: _composed(*case) for case in product((False, True), repeat=4)}


def security_headers(scope: MutableMapping[str, Any], headers: Iterable[tuple[bytes, bytes]]) -> Headers:
    """What is to be added to an answer with these headers, whose names are lower-case as ASGI has them."""
    given = dict(headers)
    return _BY_ANSWER[
        b"content-security-policy" in given,
        b"cache-control" in given,
        scope["scheme"] == "https",
        given.get(b"content-type", b"").startswith(b"text/html"),
    ]

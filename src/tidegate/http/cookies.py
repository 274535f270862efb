"""Of the cookies that a browser sends, those of this gateway alone reach the application.

The standard library's reader of cookies takes the square of a value's length for one in quotes and full of backslashes
(CVE-2024-7592; mended in Python 3.11.10): a head of 60 KiB held a worker's loop up for ten seconds, on any route and
without credentials. FastAPI reads the cookies of every request. So what others set for this host, which nothing here
asks for, is left out of the scope before anything reads it; ours are tokens, which have neither quotes nor backslashes.
"""

import re
from collections.abc import Iterable
from typing import Final

Header = tuple[bytes, bytes]

_OURS: Final = re.compile(rb'(?:__Host-|__Secure-)?tidegate_[a-z_]{1,32}=[^"\\]*')


def with_own_cookies(headers: Iterable[Header]) -> list[Header]:
    """A request's headers, with no cookies but ours in them. Names are lower-case.

    >>> with_own_cookies([(b"cookie", b'theme="dark"; tidegate_access=eyJ')])
    [(b'cookie', b'tidegate_access=eyJ')]
    """
    kept = []
    for name, value in headers:
        if name != b"cookie":
            kept.append((name, value))
            continue
        own = [pair for each in value.split(b";") if _OURS.fullmatch(pair := each.strip())]
        if own:
            kept.append((name, b"; ".join(own)))
    return kept

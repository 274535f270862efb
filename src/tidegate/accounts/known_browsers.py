"""Browsers in which somebody has logged in by a password before: their tries are counted apart from everybody else's.

Who guesses an account uses up its tries, and would keep its owner out with them. So a browser gets a cookie at each
log-in by password, and tries that carry it for the same account have a count of their own. It is no credential: with
it alone nobody is let in, and who took it from a browser may try that account as often as that browser may.

The cookie is a random name of the browser and an end, under an HMAC by the keyring of access tokens that holds the
account's address too: it says nothing of whose it is, and is believed for that account alone, without a look-up.
"""

import base64
import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Callable
from typing import Final

from tidegate.auth.keyring import Keyring

# What browsers keep a cookie for at most (RFC 6265bis, 5.5), by and large.
LIFETIME_S: Final = 365 * 24 * 3600
# Signs nothing else: a token's signed text begins with `eyJ`.
_PURPOSE: Final = "tidegate known browser"
_FORM: Final = re.compile(r"([A-Za-z0-9_-]{22})\.([0-9]{1,12})\.([A-Za-z0-9_-]{43})")


class KnownBrowsers:
    """Writes the cookie and reads it. The clock is Unix seconds.

    >>> cookie = KnownBrowsers(keyrings.jwt).remembered("ada@example.com", None)
    >>> KnownBrowsers(keyrings.jwt).recognised("ada@example.com", cookie) is not None
    True
    """

    def __init__(self, keyring: Keyring, *, clock: Callable[[], float] = time.time) -> None:
        self._keyring = keyring
        self._clock = clock

    def remembered(self, email: str, before: str | None) -> str:
        """The cookie for a browser that logged in just now. One that is known keeps its name, and so its count."""
        browser = self.recognised(email, before) or secrets.token_urlsafe(16)
        ends_at = str(int(self._clock()) + LIFETIME_S)
        return f"{browser}.{ends_at}.{_signature(self._keyring.current, browser, ends_at, email)}"

    def recognised(self, email: str, cookie: str | None) -> str | None:
        """The browser's name; None where it is not known for this account, or no more."""
        match = _FORM.fullmatch(cookie or "")
        if match is None or int(match[2]) <= self._clock():
            return None
        browser, ends_at, signature = match.groups()
        known = [
            hmac.compare_digest(signature, _signature(secret, browser, ends_at, email))
            for _, secret in self._keyring.items()
        ]
        return browser if any(known) else None


def _signature(secret: bytes, browser: str, ends_at: str, email: str) -> str:
    signed = "\n".join((_PURPOSE, browser, ends_at, email.strip().lower()))
    return base64.urlsafe_b64encode(hmac.digest(secret, signed.encode(), hashlib.sha256)).rstrip(b"=").decode("ascii")

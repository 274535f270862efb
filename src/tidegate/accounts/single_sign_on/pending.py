"""A log-in that is under way: what the browser keeps of it until the provider sends it back, and where it goes then."""

import re
import secrets
from dataclasses import dataclass, field
from typing import Final, Self

from starlette.requests import Request

from tidegate.auth.page_session import PageCookies

LIFETIME_S: Final = 600
HOME: Final = "/"
_COOKIE: Final = "tidegate_sso"
_LONGEST_PATH: Final = 1024
# RFC 3986's characters of path, query and fragment; a backslash is a slash to browsers, and a tab or a line's end is
# nothing to them.
_LOCAL_PATH: Final = re.compile(r"/[A-Za-z0-9._~!$&'()*+,;=:@/?#%-]*")


@dataclass(frozen=True, slots=True)
class PendingLogIn:
    """One log-in under way. `state` is for the way back, `nonce` for the ID token, `code_verifier` for the code
    (RFC 7636): 256 random bits each. `expires_at` is Unix seconds. `ends` is the hash of a refresh token in hexadecimal
    digits, of the sign-in that this browser had when it began, which ends where this one succeeds.
    """

    next_path: str
    expires_at: int
    state: str = field(repr=False)
    nonce: str = field(repr=False)
    code_verifier: str = field(repr=False)
    ends: str | None = field(default=None, repr=False)

    @classmethod
    def begin(cls, next_path: str, now: float, ends: str | None = None) -> Self:
        state, nonce, code_verifier = (secrets.token_urlsafe(32) for _ in range(3))
        return cls(next_path, int(now) + LIFETIME_S, state, nonce, code_verifier, ends)


def local_path(wanted: str) -> str:
    """A path of this gateway as it was asked for; `/` for everything else that a URL may be.

    >>> local_path("/usage?day=1"), local_path("//evil.example"), local_path("https://evil.example")
    ('/usage?day=1', '/', '/')
    """
    is_local = len(wanted) <= _LONGEST_PATH and "//" not in wanted and _LOCAL_PATH.fullmatch(wanted)
    return wanted if is_local else HOME


@dataclass(frozen=True, slots=True)
class PendingCookie:
    """The cookie of a log-in under way. It is sent back where another site leads here, as a provider does: `Lax`."""

    is_secure: bool

    @classmethod
    def of(cls, request: Request) -> Self:
        return cls(PageCookies.of(request).is_secure)

    @property
    def name(self) -> str:
        return f"__Host-{_COOKIE}" if self.is_secure else _COOKIE

    def given(self, sealed: str) -> str:
        """The header's value that sets it."""
        return self._line(sealed, LIFETIME_S)

    def taken_back(self) -> str:
        """The header's value that has the browser forget it."""
        return self._line("", 0)

    def _line(self, value: str, max_age: int) -> str:
        secure = "; Secure" if self.is_secure else ""
        return f"{self.name}={value}; HttpOnly; Max-Age={max_age}; Path=/; SameSite=lax{secure}"

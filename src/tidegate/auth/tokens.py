"""Access tokens: JWT (RFC 7519), HS256 alone, signed by the keyring's first key and verified by any, found by `kid`.

A token says who signed in, nothing of what they may do: that is looked up, so that it can be taken away. All of `iss`,
`aud`, `sub`, `iat`, `nbf`, `exp` and `jti` are required. Clocks of replicas may differ by `CLOCK_SKEW_S` without
refusing a token that was just issued; its end is exact.
"""

import time
import uuid
from collections.abc import Callable
from typing import Any, Final

import jwt
import msgspec

from tidegate.auth.keyring import Keyring
from tidegate.errors import InvalidToken, TokenExpired

ISSUER: Final = "tidegate"
CLOCK_SKEW_S: Final = 10
DEFAULT_MINUTES: Final = 15
_ALGORITHM: Final = "HS256"
_REQUIRED: Final = ["iss", "aud", "sub", "iat", "nbf", "exp", "jti"]
_SIGN_IN: Final = "sign in again for a new one."


class AccessToken(msgspec.Struct, frozen=True):
    """A token that was verified. `expires_at` is Unix seconds."""

    user_id: uuid.UUID
    token_id: str
    expires_at: float


class AccessTokens:
    """Issues and verifies access tokens.

    >>> tokens = AccessTokens(keyrings.jwt, minutes=15)
    >>> tokens.verify(tokens.issue(user.id)).user_id == user.id
    True
    """

    def __init__(self, keyring: Keyring, *, minutes: int, clock: Callable[[], float] = time.time) -> None:
        self.lifetime_s = minutes * 60
        self._keyring = keyring
        self._clock = clock

    def issue(self, user_id: uuid.UUID) -> str:
        now = int(self._clock())
        claims = {
            "iss": ISSUER,
            "aud": ISSUER,
            "sub": str(user_id),
            "iat": now,
            "nbf": now,
            "exp": now + self.lifetime_s,
            "jti": uuid.uuid4().hex,
        }
        kid = self._keyring.current_kid
        return jwt.encode(claims, self._keyring.current, algorithm=_ALGORITHM, headers={"kid": kid})

    def verify(self, token: str) -> AccessToken:
        """What a token says. Raises `TokenExpired`, or `InvalidToken` for everything else that is wrong with it."""
        claims = self._claims(token)
        try:
            verified = AccessToken(uuid.UUID(claims["sub"]), str(claims["jti"]), float(claims["exp"]))
            begins = max(float(claims["iat"]), float(claims["nbf"]))
        except (ValueError, TypeError, OverflowError):
            raise InvalidToken(f"The access token is not one of this gateway: {_SIGN_IN}") from None
        now = self._clock()
        if verified.expires_at <= now:
            raise TokenExpired(f"The access token has expired: {_SIGN_IN}")
        if begins > now + CLOCK_SKEW_S:
            raise InvalidToken("The access token is not valid yet: the clocks of its issuer and this gateway differ.")
        return verified

    def _claims(self, token: str) -> dict[str, Any]:
        try:
            kid = jwt.get_unverified_header(token).get("kid")
            secret = self._keyring.get(kid) if isinstance(kid, str) else None
            if secret is None:
                raise InvalidToken(f"The access token was signed by a key that is not known here: {_SIGN_IN}")
            return jwt.decode(
                token,
                secret,
                algorithms=[_ALGORITHM],
                audience=ISSUER,
                issuer=ISSUER,
                # The times are judged in `verify`, by its clock and each with its own tolerance.
                options={"require": _REQUIRED, "verify_iat": False, "verify_nbf": False, "verify_exp": False},
            )
        except jwt.PyJWTError:
            raise InvalidToken(f"The access token is not one of this gateway: {_SIGN_IN}") from None

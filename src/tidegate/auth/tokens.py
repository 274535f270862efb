"""Access tokens: JWT (RFC 7519) of one algorithm, signed by the keyring's first key and verified by any, by its `kid`.

A token says who signed in and by which sign-in, nothing of what they may do: that is looked up, so that it can be taken
away. All of `iss`, `aud`, `sub`, `sid`, `iat`, `nbf`, `exp` and `jti` are required, and `kid` in the header. The
algorithm is the settings', never the token's own choice; `crit` is refused, since nothing here knows an extension
(RFC 8725, 3.1; RFC 7515, 4.1.11). Clocks of replicas may differ by `CLOCK_SKEW_S` without refusing a token that was
just issued; its end is exact.
"""

import math
import time
import uuid
from collections.abc import Callable
from typing import Any, Final

import jwt
import msgspec

from tidegate.auth.keyring import Keyring
from tidegate.auth.signing_keys import Algorithm, SigningKeys
from tidegate.errors import InvalidToken, TokenExpired

ISSUER: Final = "tidegate"
CLOCK_SKEW_S: Final = 10
DEFAULT_MINUTES: Final = 15
_TYPE: Final = "JWT"
_REQUIRED: Final = ["iss", "aud", "sub", "sid", "iat", "nbf", "exp", "jti"]
_SIGN_IN: Final = "sign in again for a new one."


class AccessToken(msgspec.Struct, frozen=True):
    """A token that was verified. `expires_at` is Unix seconds."""

    user_id: uuid.UUID
    sign_in_id: uuid.UUID
    token_id: str
    expires_at: float


class AccessTokens:
    """Issues and verifies access tokens. `keys` holds what others need to verify them.

    >>> tokens = AccessTokens(keyrings.jwt, minutes=15)
    >>> tokens.verify(tokens.issue(user.id, sign_in.id)).user_id == user.id
    True
    """

    def __init__(
        self,
        keyring: Keyring,
        *,
        minutes: int,
        algorithm: Algorithm = "HS256",
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.lifetime_s = minutes * 60
        self.keys = SigningKeys(keyring, algorithm)
        self._clock = clock

    def issue(self, user_id: uuid.UUID, sign_in_id: uuid.UUID, *, lifetime_s: int | None = None) -> str:
        """A token of this sign-in, for the lifetime of the settings unless a shorter one is named."""
        now = int(self._clock())
        claims = {
            "iss": ISSUER,
            "aud": ISSUER,
            "sub": str(user_id),
            "sid": str(sign_in_id),
            "iat": now,
            "nbf": now,
            "exp": now + (self.lifetime_s if lifetime_s is None else lifetime_s),
            "jti": uuid.uuid4().hex,
        }
        headers = {"kid": self.keys.current_kid}
        return jwt.encode(claims, self.keys.signing_key, algorithm=self.keys.algorithm, headers=headers)

    def verify(self, token: str) -> AccessToken:
        """What a token says. Raises `TokenExpired`, or `InvalidToken` for everything else that is wrong with it."""
        claims = self._claims(token)
        try:
            verified = AccessToken(
                uuid.UUID(claims["sub"]), uuid.UUID(claims["sid"]), str(claims["jti"]), _moment(claims["exp"])
            )
            begins = max(_moment(claims["iat"]), _moment(claims["nbf"]))
        except (ValueError, TypeError, OverflowError, AttributeError):
            raise InvalidToken(f"The access token is not one of this gateway: {_SIGN_IN}") from None
        now = self._clock()
        if verified.expires_at <= now:
            raise TokenExpired(f"The access token has expired: {_SIGN_IN}")
        if begins > now + CLOCK_SKEW_S:
            raise InvalidToken("The access token is not valid yet: the clocks of its issuer and this gateway differ.")
        return verified

    def _claims(self, token: str) -> dict[str, Any]:
        try:
            header = jwt.get_unverified_header(token)
            key = self.keys.verifying_key(header.get("kid"))
            if key is None:
                raise InvalidToken(f"The access token was signed by a key that is not known here: {_SIGN_IN}")
            if "crit" in header or header.get("typ", _TYPE) != _TYPE:
                raise InvalidToken(f"The access token is not one of this gateway: {_SIGN_IN}")
            return jwt.decode(
                token,
                key,
                algorithms=[self.keys.algorithm],
                audience=ISSUER,
                issuer=ISSUER,
                # The times are judged in `verify`, by its clock and each with its own tolerance.
                options={
                    "require": _REQUIRED,
                    "strict_aud": True,
                    "verify_iat": False,
                    "verify_nbf": False,
                    "verify_exp": False,
                },
            )
        except jwt.PyJWTError:
            raise InvalidToken(f"The access token is not one of this gateway: {_SIGN_IN}") from None


def _moment(claim: Any) -> float:
    """Unix seconds (RFC 7519, 2: NumericDate). Raises `ValueError` where it is no number, or none that ever comes."""
    if isinstance(claim, bool) or not isinstance(claim, (int, float)) or not math.isfinite(claim):
        raise ValueError("not a NumericDate")
    return float(claim)

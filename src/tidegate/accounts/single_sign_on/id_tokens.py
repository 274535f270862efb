"""ID tokens: whether one is this provider's, for this client, of this log-in, and still good.

Sources: OpenID Connect Core 1.0, 3.1.3.7 (what a client checks); RFC 8725, 3.1 (the algorithms are ours to choose, not
the token's); RFC 7517, 5 (keys that are not understood are passed over).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Self

from authlib.oidc.core import CodeIDToken  # type: ignore[import-untyped]
from joserfc import jwt
from joserfc.errors import ClaimError, JoseError
from joserfc.jwk import Key, KeySet, RSAKey, import_key
from joserfc.jws import JWSRegistry, extract_compact

from tidegate.accounts.single_sign_on.refusals import Refused
from tidegate.errors import InvalidToken

# Signed by a key that only the provider has. With a shared secret (HS256) or none, others could sign too.
ALGORITHMS: Final = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512")
CLOCK_SKEW_S: Final = 60
_PUBLIC_KEYS: Final = frozenset({"RSA", "EC"})
_LONGEST_SUBJECT: Final = 255
_MALFORMED: Final = (JoseError, ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError)


class ProviderKeys:
    """The provider's public keys that may sign. `too_small` is how many may not, for their size alone.

    >>> keys = ProviderKeys.of({"keys": […]}, min_rsa_bits=2048)
    """

    def __init__(self, keys: list[Key], *, too_small: int) -> None:
        self.whole = KeySet(keys)
        self.too_small = too_small

    @classmethod
    def of(cls, jwks: Mapping[str, Any], *, min_rsa_bits: int) -> Self:
        """Of a JWK Set; what is no public key, none that is understood, or a smaller RSA key, is left out."""
        listed = jwks.get("keys")
        understood = list(_understood(listed if isinstance(listed, list) else ()))
        large = [key for key in understood if not isinstance(key, RSAKey) or key.public_key.key_size >= min_rsa_bits]
        return cls(large, too_small=len(understood) - len(large))

    def lack(self, key_id: str | None) -> bool:
        """Whether this key is named and not among them."""
        return key_id is not None and all(key.kid != key_id for key in self.whole)


@dataclass(frozen=True, slots=True)
class Expected:
    """What an ID token has to say. `access_token` is what came with it."""

    issuer: str
    client_id: str
    nonce: str = field(repr=False)
    access_token: str | None = field(repr=False)


def key_id_of(id_token: str) -> str | None:
    """The key that a token names, before anything of it is trusted. Raises `Refused` for what is no such token."""
    try:
        header = extract_compact(id_token.encode()).headers()
        if header["alg"] not in ALGORITHMS:
            raise _not_trusted("its algorithm")
        key_id = header.get("kid")
    except _MALFORMED:
        raise _not_trusted("its form") from None
    if not isinstance(key_id, str | None):
        raise _not_trusted("kid")
    return key_id


def verified_claims(id_token: str, keys: ProviderKeys, expected: Expected, *, now: float) -> dict[str, Any]:
    """What an ID token says. Raises `Refused` where anything of it is not as it has to be."""
    # Providers put headers of their own in; `crit` is honoured all the same.
    registry = JWSRegistry(algorithms=ALGORITHMS, strict_check_header=False)
    options = {
        "iss": {"essential": True, "value": expected.issuer},
        "sub": {"essential": True},
        "aud": {"essential": True, "value": expected.client_id},
        "exp": {"essential": True},
        "iat": {"essential": True},
        "nonce": {"essential": True},
    }
    given = {"nonce": expected.nonce, "client_id": expected.client_id, "access_token": expected.access_token}
    try:
        token = jwt.decode(id_token, keys.whole, algorithms=ALGORITHMS, registry=registry)
        claims = CodeIDToken(token.claims, token.header, options, given)
        claims.validate(now=int(now), leeway=CLOCK_SKEW_S)
    except ClaimError as error:
        raise _not_trusted(str(error.claim)) from None
    except _MALFORMED:
        raise _not_trusted("its signature") from None
    # What cannot be printed (NUL, lone surrogates) cannot be stored either.
    if not 0 < len(claims["sub"]) <= _LONGEST_SUBJECT or not claims["sub"].isprintable():
        raise _not_trusted("sub")
    return dict(claims)


def _understood(listed: Iterable[Any]) -> Iterable[Key]:
    for one in listed:
        if not isinstance(one, dict) or one.get("kty") not in _PUBLIC_KEYS or one.get("use", "sig") != "sig":
            continue
        try:
            yield import_key(one)
        except _MALFORMED:
            continue


def _not_trusted(what: str) -> Refused:
    return Refused(
        "id_token_not_trusted",
        InvalidToken(f"The provider's ID token cannot be trusted, because of {what}: sign in again."),
    )

"""What signs access tokens and what verifies them, by kid, under the one algorithm that the settings name.

Under HS256 (RFC 7518, 3.2) both are the keyring's secret. Under EdDSA (RFC 8037) they are an Ed25519 pair made of that
secret by HKDF-SHA256 (RFC 5869): the same `kid:secret` serves either algorithm, the pair's secret half is nowhere
stored, and others may verify by the public half, which is published.
"""

import base64
from typing import Any, Final, Literal

from tidegate.auth.keyring import Keyring

Algorithm = Literal["HS256", "EdDSA"]

_PURPOSE: Final = b"tidegate access tokens, Ed25519, kid "


class SigningKeys:
    """The keys of one algorithm.

    >>> SigningKeys(Keyring({"1": secret}), "HS256").jwks()
    {'keys': []}
    """

    __slots__ = ("_public", "_verifying", "algorithm", "current_kid", "signing_key")

    def __init__(self, keyring: Keyring, algorithm: Algorithm) -> None:
        self.algorithm = algorithm
        self.current_kid = keyring.current_kid
        self.signing_key: Any = keyring.current
        self._verifying: dict[str, Any] = dict(keyring.items())
        self._public: dict[str, bytes] = {}
        if algorithm == "EdDSA":
            pairs = {kid: _pair(kid, secret) for kid, secret in keyring.items()}
            self.signing_key = pairs[self.current_kid]
            self._verifying = {kid: pair.public_key() for kid, pair in pairs.items()}
            self._public = {kid: key.public_bytes_raw() for kid, key in self._verifying.items()}

    def verifying_key(self, kid: object) -> Any | None:
        """What verifies the tokens of this kid; None where it is not known."""
        return self._verifying.get(kid) if isinstance(kid, str) else None

    def jwks(self) -> dict[str, list[dict[str, str]]]:
        """The public keys as a JWK Set (RFC 7517, 5; RFC 8037, 2): none where there are only secrets."""
        return {
            "keys": [
                {
                    "kty": "OKP",
                    "crv": "Ed25519",
                    "x": base64.urlsafe_b64encode(public).rstrip(b"=").decode("ascii"),
                    "kid": kid,
                    "use": "sig",
                    "alg": self.algorithm,
                }
                for kid, public in self._public.items()
            ]
        }

    def __repr__(self) -> str:
        return f"SigningKeys({self.algorithm}, kids={list(self._verifying)})"


def _pair(kid: str, secret: bytes) -> Any:
    """The private key, an `Ed25519PrivateKey`."""
    # Imported where EdDSA is on: the others need not wait for it.
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey  # noqa: PLC0415 - start-up time
    from cryptography.hazmat.primitives.hashes import SHA256  # noqa: PLC0415 - start-up time
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF  # noqa: PLC0415 - start-up time

    seed = HKDF(algorithm=SHA256(), length=32, salt=None, info=_PURPOSE + kid.encode("utf-8")).derive(secret)
    return Ed25519PrivateKey.from_private_bytes(seed)

"""Encrypting the secrets of second factors: AES-256-GCM under keys made of `TIDEGATE_AUTH__ENCRYPTION_KEYS`.

The first key encrypts, each decrypts what was encrypted under it. What was sealed for one user does not open for
another: whoever can write the table cannot give somebody's account a secret that they know by copying their own.
"""

import secrets
import uuid
from dataclasses import dataclass, field
from typing import Any, Final

from tidegate.auth.keyring import Keyring
from tidegate.errors import Unavailable

_PURPOSE: Final = b"tidegate second factor, kid "
_NONCE_BYTES: Final = 12


@dataclass(frozen=True, slots=True)
class Sealed:
    """A secret as it is stored, and the kid of its key."""

    sealed: bytes = field(repr=False)
    kid: str


class Sealing:
    """Seals by the keyring's first key, and opens by any.

    >>> sealing.open(sealing.seal(secret, user_id), user_id) == secret
    True
    """

    def __init__(self, keyring: Keyring | None) -> None:
        self._keyring = keyring

    def seal(self, secret: bytes, user_id: uuid.UUID) -> Sealed:
        """Raises `Unavailable` where there is no key."""
        if self._keyring is None:
            raise Unavailable(
                "No second factor can be kept here: who runs this gateway sets TIDEGATE_AUTH__ENCRYPTION_KEYS."
            )
        nonce = secrets.token_bytes(_NONCE_BYTES)
        kid = self._keyring.current_kid
        cipher = _cipher(kid, self._keyring.current)
        return Sealed(nonce + cipher.encrypt(nonce, secret, user_id.bytes), kid)

    def open(self, stored: Sealed, user_id: uuid.UUID) -> bytes | None:
        """None where its key is not known here any more, or it was not sealed for this user."""
        from cryptography.exceptions import InvalidTag  # noqa: PLC0415 - start-up time

        key = None if self._keyring is None else self._keyring.get(stored.kid)
        if key is None:
            return None
        nonce, ciphertext = stored.sealed[:_NONCE_BYTES], stored.sealed[_NONCE_BYTES:]
        try:
            secret: bytes = _cipher(stored.kid, key).decrypt(nonce, ciphertext, user_id.bytes)
        except (InvalidTag, ValueError):
            return None
        return secret

    def is_current(self, kid: str) -> bool:
        """Whether a secret would be sealed under this key today; so too where there is none to seal it anew by."""
        return self._keyring is None or kid == self._keyring.current_kid


def _cipher(kid: str, key: bytes) -> Any:
    """An `AESGCM`."""
    # Imported where somebody has a second factor: the others need not wait for it.
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # noqa: PLC0415 - start-up time
    from cryptography.hazmat.primitives.hashes import SHA256  # noqa: PLC0415 - start-up time
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF  # noqa: PLC0415 - start-up time

    info = _PURPOSE + kid.encode("utf-8")
    return AESGCM(HKDF(algorithm=SHA256(), length=32, salt=None, info=info).derive(key))

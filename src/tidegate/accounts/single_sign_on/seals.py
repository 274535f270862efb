"""Sealing a log-in under way, so that its browser may keep it: AES-256-GCM under keys made of those of access tokens.

The gateway keeps nothing of it, so any worker can finish what another began. Nobody reads or changes what is sealed,
and what was sealed for another provider or client does not open. A key that is rotated out closes what it sealed.
"""

import base64
import binascii
import secrets
import time
from collections.abc import Callable
from typing import Final

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from tidegate.accounts.single_sign_on.pending import PendingLogIn
from tidegate.auth.keyring import Keyring

_PURPOSE: Final = b"tidegate single sign-on, log-in under way, kid "
_NONCE_BYTES: Final = 12
# What a browser keeps as one cookie.
_LONGEST: Final = 4096


class Seals:
    """Seals by the keyring's first key, and opens by any. `bound_to` is for whom: the issuer and the client.

    >>> seals.open(seals.seal(pending)) == pending
    True
    """

    def __init__(self, keyring: Keyring, *, bound_to: str, clock: Callable[[], float] = time.time) -> None:
        self._ciphers = [AESGCM(_derived(kid, secret)) for kid, secret in keyring.items()]
        self._bound_to = bound_to.encode()
        self._clock = clock

    def seal(self, pending: PendingLogIn) -> str:
        nonce = secrets.token_bytes(_NONCE_BYTES)
        sealed = nonce + self._ciphers[0].encrypt(nonce, msgspec.json.encode(pending), self._bound_to)
        return base64.urlsafe_b64encode(sealed).rstrip(b"=").decode("ascii")

    def open(self, sealed: str) -> PendingLogIn | None:
        """None for what was not sealed here, or has expired."""
        if len(sealed) > _LONGEST:
            return None
        try:
            whole = base64.b64decode(sealed + "=" * (-len(sealed) % 4), altchars=b"-_", validate=True)
        except (binascii.Error, ValueError):
            return None
        nonce, ciphertext = whole[:_NONCE_BYTES], whole[_NONCE_BYTES:]
        for cipher in self._ciphers:
            try:
                pending = msgspec.json.decode(cipher.decrypt(nonce, ciphertext, self._bound_to), type=PendingLogIn)
            except (InvalidTag, ValueError):
                continue
            return pending if pending.expires_at > self._clock() else None
        return None


def _derived(kid: str, secret: bytes) -> bytes:
    return HKDF(algorithm=SHA256(), length=32, salt=None, info=_PURPOSE + kid.encode("utf-8")).derive(secret)

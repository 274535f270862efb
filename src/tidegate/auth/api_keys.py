"""API keys: their form, how they are made, and how they are stored and recognised.

A key is `tg_`, 8 of `a-z0-9` (its prefix, which is shown and looked up by), `_`, and 43 of base64url (32 random
bytes). Stored is the HMAC-SHA256 of the whole key under a pepper, with the pepper's kid: 256 random bits need no slow
hash, and a stolen table without the pepper recognises nothing. The key itself is shown once, when it is made.
"""

import base64
import hmac
import re
import secrets
import string
from dataclasses import dataclass, field
from typing import Final

from tidegate.auth.keyring import Keyring

KEY_MARK: Final = "tg_"
HASH_SCHEME: Final = "hmac-sha256"
_ALPHABET: Final = string.ascii_lowercase + string.digits
_FORM: Final = re.compile(r"tg_([a-z0-9]{8})_[A-Za-z0-9_-]{43}")


@dataclass(frozen=True, slots=True)
class StoredHash:
    """What is kept of a key: enough to recognise it, nothing to make it from."""

    secret_hash: bytes = field(repr=False)
    hash_scheme: str
    pepper_kid: str | None


_NOBODYS: Final = StoredHash(bytes(32), HASH_SCHEME, None)


@dataclass(frozen=True, slots=True)
class GeneratedKey:
    """A new key. `secret` is the whole key as its caller sends it: show it once, store it never."""

    prefix: str
    secret: str = field(repr=False)


def generate_key() -> GeneratedKey:
    prefix = "".join(secrets.choice(_ALPHABET) for _ in range(8))
    secret = base64.urlsafe_b64encode(secrets.token_bytes(32)).rstrip(b"=").decode("ascii")
    return GeneratedKey(prefix=prefix, secret=f"{KEY_MARK}{prefix}_{secret}")


def prefix_of(key: str) -> str | None:
    """The prefix of what has a key's form, None for anything else."""
    matched = _FORM.fullmatch(key)
    return matched[1] if matched else None


def hash_key(key: str, peppers: Keyring) -> StoredHash:
    """What to store of a key, under the pepper that hashes now."""
    return StoredHash(_digest(key, peppers.current), HASH_SCHEME, peppers.current_kid)


def verify_key(key: str, stored: StoredHash | None, peppers: Keyring) -> bool:
    """Whether `key` is the one that was stored, compared in constant time.

    False too where nothing was stored, or where its pepper or its hash scheme is not known here: after the same work,
    so that the time it takes does not tell which prefixes there are.
    """
    stored = stored or _NOBODYS
    pepper = None if stored.pepper_kid is None else peppers.get(stored.pepper_kid)
    is_same = hmac.compare_digest(_digest(key, pepper or peppers.current), stored.secret_hash)
    return is_same and pepper is not None and stored.hash_scheme == HASH_SCHEME


def is_current(stored: StoredHash, peppers: Keyring) -> bool:
    """Whether a key would be hashed today as it was when it was stored."""
    return stored.pepper_kid == peppers.current_kid and stored.hash_scheme == HASH_SCHEME


def _digest(key: str, pepper: bytes) -> bytes:
    return hmac.digest(pepper, key.encode("utf-8"), "sha256")

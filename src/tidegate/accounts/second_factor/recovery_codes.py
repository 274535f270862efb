"""Recovery codes: what stands for a second factor that is lost, each once.

A code is 120 random bits, and kept as its SHA-256 alone: from 112 bits on nobody tries so many, so neither salt nor
slow hash is needed (OWASP ASVS 5, 6.5.2).
"""

import hashlib
import re
import secrets
from typing import Final

CODES: Final = 10
# Crockford's: no i, l, o and u, which are taken for others.
_ALPHABET: Final = "0123456789abcdefghjkmnpqrstvwxyz"
_CHARACTERS: Final = 24
_GROUP: Final = 4
_FORM: Final = re.compile(rf"[{_ALPHABET}]{{{_CHARACTERS}}}")


def new_code() -> str:
    """`xxxx-xxxx-xxxx-xxxx-xxxx-xxxx`."""
    drawn = "".join(secrets.choice(_ALPHABET) for _ in range(_CHARACTERS))
    return "-".join(drawn[at : at + _GROUP] for at in range(0, _CHARACTERS, _GROUP))


def hash_of(code: str) -> bytes | None:
    """How it is stored, however it is grouped and in either case; None for what has not a recovery code's form."""
    if not code.isascii():
        return None
    plain = code.replace("-", "").replace(" ", "").lower()
    if _FORM.fullmatch(plain) is None:
        return None
    return hashlib.sha256(plain.encode("ascii")).digest()

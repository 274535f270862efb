"""TOTP (RFC 6238): SHA-1, steps of 30 s, 6 digits, what every authenticator app reads.

A code is taken in its own step and in those beside it, since telephones' clocks differ (RFC 6238, 5.2), and only where
its step is later than that of the code that was used last: so each is taken once (the same section).
"""

import base64
import hmac
import re
import secrets
import struct
from typing import Final
from urllib.parse import quote

STEP_S: Final = 30
DIGITS: Final = 6
# RFC 4226, 4: as long as what the hash gives.
SECRET_BYTES: Final = 20
_STEPS_BESIDE: Final = (0, -1, 1)
# ASCII alone: `\d` and `str.isdigit` know digits of many scripts.
_FORM: Final = re.compile(r"[0-9]{6}")


def new_secret() -> bytes:
    return secrets.token_bytes(SECRET_BYTES)


def as_text(secret: bytes) -> str:
    """The secret as people type it into an app (RFC 4648, 6; without padding)."""
    return base64.b32encode(secret).rstrip(b"=").decode("ascii")


def uri(secret: bytes, email: str, issuer: str) -> str:
    """What an app opens (https://github.com/google/google-authenticator/wiki/Key-Uri-Format)."""
    label = f"{quote(issuer, safe='')}:{quote(email, safe='@')}"
    return (
        f"otpauth://totp/{label}?secret={as_text(secret)}&issuer={quote(issuer, safe='')}"
        f"&algorithm=SHA1&digits={DIGITS}&period={STEP_S}"
    )


def is_code(text: str) -> bool:
    """Whether it has a code's form."""
    return _FORM.fullmatch(text) is not None


def code_at(secret: bytes, step: int) -> str:
    """The code of a time step (RFC 4226, 5.3).

    >>> code_at(b"12345678901234567890", 1)
    '287082'
    """
    digest = hmac.digest(secret, struct.pack(">Q", step), "sha1")
    offset = digest[-1] & 0x0F
    number = int.from_bytes(digest[offset : offset + 4], "big") & 0x7FFF_FFFF
    return str(number % 10**DIGITS).zfill(DIGITS)


def step_of(secret: bytes, code: str, now: float, *, after: int) -> int | None:
    """The time step that a code is of, None where it is of none that may be used: later than `after`, and not further
    from `now`, in Unix seconds, than one.
    """
    here = int(now // STEP_S)
    found = None
    for beside in _STEPS_BESIDE:
        step = here + beside
        if step < 0:
            continue
        is_same = hmac.compare_digest(code_at(secret, step).encode(), code.encode())
        # Each is computed whether or not one was found, so that time does not tell which.
        if is_same and step > after and found is None:
            found = step
    return found

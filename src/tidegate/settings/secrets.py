"""What makes a secret weak: left over from an example, never filled in, repeating itself, or text in disguise.

It finds what people do, not what a generator makes: each rule takes less than one in a billion of random secrets.
"""

import base64
import binascii
import contextlib
import itertools
import math
import re
from typing import Final

# Of the secrets that sign tokens and hash keys: 32 random bytes.
MINIMUM_BITS: Final = 256
# Of six letters and more: random base64 has such a word once in a hundred million.
_PLACEHOLDERS: Final = (
    "changeme",
    "change-me",
    "change_me",
    "change this",
    "change-this",
    "changethis",
    "replaceme",
    "replace-me",
    "replace_me",
    "placeholder",
    "secret",
    "password",
    "passw0rd",
    "letmein",
    "default",
    "example",
    "insecure",
    "sample",
    "your-key",
    "your_key",
    "tidegate",
    "qwerty",
    "hunter2",
)
# `$(openssl …)` in a file that no shell reads, `<key>`, `{{ key }}`, `…`.
_UNFILLED: Final = re.compile(r"\$[({]|\{\{|^<.*>$|…|\.\.\.$|^x{8}", re.IGNORECASE)
_HEX: Final = re.compile(r"([0-9a-f]{2})+", re.IGNORECASE)
_BASE64: Final = re.compile(r"[A-Za-z0-9+/_-]{16,}={0,2}")
# What a generator writes in; anything else is taken for printable ASCII.
_ALPHABETS: Final = (
    (10, re.compile(r"[0-9]+")),
    (16, re.compile(r"[0-9a-f]+|[0-9A-F]+")),
    (36, re.compile(r"[0-9a-z]+|[0-9A-Z]+")),
    (64, re.compile(r"[A-Za-z0-9+/_-]+={0,2}")),
)
_PRINTABLE: Final = 94
# Of neighbouring characters that are the same or follow one another; random hex has one in six.
_MOST_STEPS: Final = 0.7
_FEWEST_TRIGRAMS: Final = 0.6


# Prefixes of the keys that our own pages show.
_SHOWN_KEYS: Final = ("tg_vpqdx7ym_",)


def key_weakness(key: str) -> str | None:
    """Why this API key is nobody's to use, as the end of a sentence; None where nothing speaks against it."""
    if key.startswith(_SHOWN_KEYS):
        return "is the example of the documentation"
    return weakness(key.split("_", 2)[-1])


def placeholder(secret: str) -> str | None:
    """Why this was never meant to be used, None where it may have been.

    >>> placeholder("changeme-in-production")
    'is a placeholder (changeme)'
    """
    lowered = secret.lower()
    word = next((word for word in _PLACEHOLDERS if lowered.startswith(word)), None)
    if word is not None:
        return f"is a placeholder ({word})"
    return "was never filled in" if _UNFILLED.search(secret) else None


def weakness(secret: str) -> str | None:
    """Why this is no random secret of 32 bytes, as the end of a sentence; None where nothing speaks against it."""
    lowered = secret.lower()
    if told := placeholder(secret):
        return told
    if word := next((word for word in _PLACEHOLDERS if word in lowered), None):
        return f"is a placeholder ({word})"
    if _repeats(lowered) or _trigrams(lowered) < _FEWEST_TRIGRAMS:
        return "repeats itself"
    if _steps(lowered) > _MOST_STEPS:
        return "is a sequence of neighbours"
    return "is text in another spelling" if _is_text_inside(secret) else None


def entropy_bits(secret: str) -> int:
    """The most bits that a random secret of this length and these kinds of characters has.

    >>> entropy_bits("6f1d2c3b" * 8)
    256
    """
    alphabet = next((size for size, form in _ALPHABETS if form.fullmatch(secret)), _PRINTABLE)
    return math.floor(len(secret.rstrip("=")) * math.log2(alphabet) + 1e-9)


def _repeats(secret: str) -> bool:
    """Whether one pattern, at most half as long, makes up the whole."""
    return any(secret.startswith(secret[period:]) for period in range(1, len(secret) // 2 + 1))


def _trigrams(secret: str) -> float:
    positions = len(secret) - 2
    return len({secret[at : at + 3] for at in range(positions)}) / positions if positions > 0 else 0.0


def _steps(secret: str) -> float:
    pairs = list(itertools.pairwise(secret))
    return sum(abs(ord(one) - ord(next_one)) <= 1 for one, next_one in pairs) / len(pairs) if pairs else 1.0


def _is_text_inside(secret: str) -> bool:
    decoded = []
    if _HEX.fullmatch(secret):
        decoded.append(bytes.fromhex(secret))
    if _BASE64.fullmatch(secret):
        with contextlib.suppress(binascii.Error):
            decoded.append(base64.urlsafe_b64decode(secret.rstrip("=").replace("+", "-").replace("/", "_") + "=="))
    return any(inner.isascii() and inner.decode("ascii").isprintable() for inner in decoded if inner)

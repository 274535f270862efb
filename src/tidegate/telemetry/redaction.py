"""What must never be read in a log, and how it is taken out.

Values are redacted before a line is rendered, so that a rule never meets JSON's escapes and never breaks a line's form.
A rule matches what a secret looks like, wherever it stands: in a message, a field, an exception's text, a URL. What a
field's name calls a secret is taken out whole.
"""

import re
from collections.abc import Mapping
from typing import Any

REDACTED = "[redacted]"

_SECRET_NAMES = r"pass(?:word|wd)|secret|api[_-]?key|(?:access|refresh|id)_token|authorization|cookie"  # noqa: S105 - names of fields
# One of them is in each of those names.
_SECRET_WORDS = ("pass", "secret", "key", "token", "authorization", "cookie")
_SECRET_FIELD = re.compile(rf"(?i)(?:.*[_-])?(?:{_SECRET_NAMES})")
_BARE = r"""[^\s"',;&)}\]]"""
_DEEPEST = 6

# One cheap search decides for almost every text that there is nothing to take out.
_SUSPICIOUS = re.compile(
    r"tg[mr]?_|sk-|eyJ|AIza|://|-----BEGIN|(?i:bearer|basic|pass|secret|key|token|authorization|cookie)"
)
_RULES = (
    (re.compile(r"(tg_[a-z0-9]{8}_)[A-Za-z0-9_-]{8,}"), rf"\1{REDACTED}"),
    # A refresh token, and what is sent by e-mail.
    (re.compile(r"\b(tg[mr]_)[A-Za-z0-9_-]{8,}"), rf"\1{REDACTED}"),
    (re.compile(r"\bsk-[A-Za-z0-9_-]{8,}"), f"sk-{REDACTED}"),
    (re.compile(r"\bAIza[A-Za-z0-9_-]{30,}"), f"AIza{REDACTED}"),
    (re.compile(r"\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]*)?"), REDACTED),
    (re.compile(r"(?i)\b(bearer|basic)\s+[A-Za-z0-9._~+/=-]{8,}"), rf"\1 {REDACTED}"),
    # SQLAlchemy takes everything up to the last @ as the password, a slash included. Bounded, or a text of nothing but
    # `://` takes the square of its length.
    (re.compile(r"(://[^\s:/@\"'?#]*:)[^\s\"'?#]{1,1024}@"), rf"\1{REDACTED}@"),
    # A token in the place of the user: no name is so long.
    (re.compile(r"(https?://)[^\s:/@\"'?#]{20,}@"), rf"\1{REDACTED}@"),
    (
        re.compile(r"(?s)(-----BEGIN [A-Z ]*PRIVATE KEY-----).*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)"),
        rf"\1{REDACTED}",
    ),
    (
        re.compile(rf"""(?i)((?:{_SECRET_NAMES})["']?\s*[:=]\s*)("(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')"""),
        rf"\1'{REDACTED}'",
    ),
    (re.compile(rf"""(?i)((?:{_SECRET_NAMES})=)[^\s"',;&)}}\]]+"""), rf"\1{REDACTED}"),
    # Without quotes a colon may begin a sentence. A word with a digit in it, a long one, and one with nothing behind it
    # begin none.
    (
        re.compile(
            rf"""(?im)((?:{_SECRET_NAMES})["']?:[ \t]*)(?!\[redacted\])"""
            rf"""(?:{_BARE}{{0,128}}[0-9]{_BARE}*|{_BARE}{{129,}}|{_BARE}{{1,128}}(?=[ \t]*(?:[,;&)}}\]]|$)))"""
        ),
        rf"\1{REDACTED}",
    ),
)


def redact(text: str) -> str:
    """The text without its secrets. An API key keeps its prefix, which is public.

    >>> redact("redis://:hunter2@cache:6379/0")
    'redis://:[redacted]@cache:6379/0'
    """
    if _SUSPICIOUS.search(text) is None:
        return text
    for pattern, replacement in _RULES:
        text = pattern.sub(replacement, text)
    return text


def may_hold_secret(text: str) -> bool:
    """Whether a short text needs to be looked at: `redact`'s first question, asked in a tenth of its time."""
    return (
        "tg_" in text
        or "tgr_" in text
        or "tgm_" in text
        or "sk-" in text
        or "eyJ" in text
        or "AIza" in text
        or "://" in text
        or "=" in text
        or "-----" in text
        or "earer" in text
        or "asic" in text
        or (":" in text and any(name in text.lower() for name in _SECRET_WORDS))
    )


def redact_value(value: object, *, depth: int = 0) -> object:
    """The value as it may be logged: text redacted, containers walked, anything else as its redacted `repr`."""
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, str):
        return redact(value)
    if depth < _DEEPEST:
        if isinstance(value, Mapping):
            return redact_fields(value, depth=depth + 1)
        if isinstance(value, (list, tuple, set, frozenset)):
            return [redact_value(item, depth=depth + 1) for item in value]
    return redact(_text_of(value))


def redact_fields(fields: Mapping[Any, object], *, depth: int = 0) -> dict[str, object]:
    """A mapping as it may be logged: a value is taken out whole where its name says that it is a secret."""
    redacted: dict[str, object] = {}
    for name, value in fields.items():
        text = name if isinstance(name, str) else _text_of(name)
        is_secret = isinstance(value, (str, bytes)) and _SECRET_FIELD.fullmatch(text) is not None
        redacted[redact(text)] = REDACTED if is_secret else redact_value(value, depth=depth)
    return redacted


def _text_of(value: object) -> str:
    try:
        return repr(value) if isinstance(value, (bytes, bytearray)) else str(value)
    except Exception:  # noqa: BLE001 - an object that cannot be printed must not cost the line
        return f"<{type(value).__name__}>"

"""How an answer tells of the limits that it met: the IETF draft's fields, and OpenAI's own.

Sources: draft-ietf-httpapi-ratelimit-headers-10 (`RateLimit-Policy: "name";q=100;w=60`, `RateLimit: "name";r=40;t=12`);
OpenAI's "Rate limits in headers". Money is in none of them: what a workspace may spend is not every caller's to know.
"""

import math
from collections.abc import Sequence

from tidegate.admission.store import BUCKETS, Check
from tidegate.limits.values import Matched

# An integer of a structured field has 15 digits at most (RFC 9651, 3.3.1).
_MOST = 10**15 - 1
_UNITS = {"tokens": ';qu="tokens"', "concurrency": ';qu="concurrent-requests"'}


def limit_headers(
    matched: Sequence[Matched], checks: Sequence[Check], used: Sequence[int], now_ms: int
) -> dict[str, str]:
    """The fields for what a step answered: `used` is each check's counter after it."""
    policies, states = [], []
    tightest: dict[str, tuple[float, int, int, float]] = {}
    for one, check, n in zip(matched, checks, used, strict=True):
        if check.meter == "cost":
            continue
        amount, meter = check.amount, check.meter
        remaining = amount - n if n < amount else 0
        window_s, reset_s = _window(check, n, now_ms)
        quota, left = (amount, remaining) if amount <= _MOST else (_MOST, min(remaining, _MOST))
        if window_s:
            policies.append(f'"{one.label}";q={quota};w={window_s}{_UNITS.get(meter, "")}')
            states.append(f'"{one.label}";r={left};t={math.ceil(reset_s)}')
        else:
            policies.append(f'"{one.label}";q={quota}{_UNITS.get(meter, "")}')
            states.append(f'"{one.label}";r={left}')
        if meter != "concurrency":
            known = tightest.get(meter)
            if known is None or remaining / amount < known[0]:
                tightest[meter] = (remaining / amount, amount, remaining, reset_s)
    if not policies:
        return {}
    headers = {"RateLimit-Policy": ", ".join(policies), "RateLimit": ", ".join(states)}
    for meter, (_, amount, remaining, reset_s) in tightest.items():
        headers[f"x-ratelimit-limit-{meter}"] = str(amount)
        headers[f"x-ratelimit-remaining-{meter}"] = str(remaining)
        headers[f"x-ratelimit-reset-{meter}"] = duration(reset_s)
    return headers


def duration(seconds: float) -> str:
    """Seconds as OpenAI writes them.

    >>> duration(0.25), duration(12), duration(360), duration(90000)
    ('250ms', '12s', '6m0s', '25h0m0s')
    """
    if seconds < 1:
        return f"{math.ceil(seconds * 1000)}ms" if seconds > 0 else "0s"
    whole = math.ceil(seconds)
    hours, rest = divmod(whole, 3600)
    minutes, left = divmod(rest, 60)
    if hours:
        return f"{hours}h{minutes}m{left}s"
    return f"{minutes}m{left}s" if minutes else f"{left}s"


def _window(check: Check, used: int, now_ms: int) -> tuple[int, float]:
    """The window's length and the time until it is whole again, in seconds; 0 where there is none."""
    if check.kind == "sliding":
        length = check.width_s * BUCKETS
        return length, length if used else 0
    if check.kind == "calendar" and check.ends:
        return check.ends - check.starts, max(0.0, check.ends - now_ms / 1000)
    return 0, 0

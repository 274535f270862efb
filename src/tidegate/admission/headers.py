"""How an answer tells of the limits that it met: the IETF draft's fields, and OpenAI's own.

Sources: draft-ietf-httpapi-ratelimit-headers-10 (`RateLimit-Policy: "name";q=100;w=60`, `RateLimit: "name";r=40;t=12`);
OpenAI's "Rate limits in headers". Money is in none of them: what a workspace may spend is not every caller's to know.
"""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Literal

import msgspec

from tidegate.admission.store import BUCKETS, Check
from tidegate.limits.values import Matched

# An integer of a structured field has 15 digits at most (RFC 9651, 3.3.1).
_MOST = 10**15 - 1
_OPENAI = {
    meter: (f"x-ratelimit-limit-{meter}", f"x-ratelimit-remaining-{meter}", f"x-ratelimit-reset-{meter}")
    for meter in ("requests", "tokens")
}
_UNITS = {"tokens": ';qu="tokens"', "concurrency": ';qu="concurrent-requests"'}


class _Row(msgspec.Struct, frozen=True, gc=False):
    """One limit as it is told. `at` is its check's place; `ends` the end of a calendar's window (s).

    `touched` and `untouched` end its state, and say when it is whole again as OpenAI writes it, for one that something
    is used of and one that nothing is. `names` are OpenAI's fields where they are told of this limit in any case.
    """

    at: int
    meter: str
    amount: int
    written: str
    opening: str
    touched: tuple[str, str]
    untouched: tuple[str, str]
    ends: int
    names: tuple[str, str, str] | None


class HeaderForm:
    """The fields for some limits, each in its check's window: what does not change from answer to answer is made once.

    >>> HeaderForm(limits, checks).told(reply.used, reply.now_ms)
    {'RateLimit-Policy': '"key-requests-minute";q=60;w=60', 'RateLimit': '"key-requests-minute";r=59;t=60', …}
    """

    __slots__ = ("_policy", "_rivals", "_rows")

    def __init__(self, matched: Sequence[Matched], checks: Sequence[Check]) -> None:
        policies: list[str] = []
        self._rows: list[_Row] = []
        told = Counter(check.meter for check in checks)
        for at, (one, check) in enumerate(zip(matched, checks, strict=True)):
            if check.meter == "cost":
                continue
            quota, unit = min(check.amount, _MOST), _UNITS.get(check.meter, "")
            length_s = _length_s(check)
            policies.append(f'"{one.label}";q={quota}{f";w={length_s}" if length_s else ""}{unit}')
            row = _Row(
                at,
                check.meter,
                check.amount,
                str(check.amount),
                f'"{one.label}";r=',
                (f";t={length_s}" if length_s else "", duration(length_s)),
                (";t=0" if length_s else "", "0s"),
                check.ends if check.kind == "calendar" else 0,
                _OPENAI.get(check.meter) if told[check.meter] == 1 else None,
            )
            self._rows.append(row)
        self._policy = ", ".join(policies)
        self._rivals = [
            (_OPENAI[meter], [row for row in self._rows if row.meter == meter]) for meter in _OPENAI if told[meter] > 1
        ]

    def told(self, used: Sequence[int], now_ms: int) -> dict[str, str]:
        """The fields for what a step answered: `used` is each check's counter after it."""
        if not self._rows:
            return {}
        headers = {"RateLimit-Policy": self._policy, "RateLimit": ""}
        states: list[str] = []
        for row in self._rows:
            n, amount = used[row.at], row.amount
            remaining = amount - n if n < amount else 0
            text = f"{remaining}"
            ending, reset = (row.touched if n else row.untouched) if not row.ends else _calendars_end(row.ends, now_ms)
            states.append(f"{row.opening}{text if remaining <= _MOST else _MOST}{ending}")
            if (names := row.names) is not None:
                headers[names[0]] = row.written
                headers[names[1]] = text
                headers[names[2]] = reset
        headers["RateLimit"] = ", ".join(states)
        for names, rivals in self._rivals:
            # Of several limits of one meter OpenAI's fields tell the tightest.
            row = min(rivals, key=lambda rival: max(0, rival.amount - used[rival.at]) / rival.amount)
            n = used[row.at]
            _, reset = (row.touched if n else row.untouched) if not row.ends else _calendars_end(row.ends, now_ms)
            headers[names[0]] = row.written
            headers[names[1]] = f"{max(0, row.amount - n)}"
            headers[names[2]] = reset
        return headers


def limit_headers(
    matched: Sequence[Matched], checks: Sequence[Check], used: Sequence[int], now_ms: int
) -> dict[str, str]:
    """`HeaderForm.told`, for limits that are told of once."""
    return HeaderForm(matched, checks).told(used, now_ms)


def rate_headers(label: str, amount: int, remaining: int, window_s: int, reset_s: int) -> dict[str, str]:
    """The draft's two fields for one sliding rate that is no row.

    >>> rate_headers("key-calls", 600, 599, 60, 60)
    {'RateLimit-Policy': '"key-calls";q=600;w=60', 'RateLimit': '"key-calls";r=599;t=60'}
    """
    return {
        "RateLimit-Policy": f'"{label}";q={amount};w={window_s}',
        "RateLimit": f'"{label}";r={max(0, remaining)};t={reset_s}',
    }


def openai_headers(meter: Literal["requests", "tokens"], amount: int, remaining: int, reset_s: int) -> dict[str, str]:
    """OpenAI's three fields for one limit."""
    limit, left, reset = _OPENAI[meter]
    return {limit: str(amount), left: str(max(0, remaining)), reset: duration(reset_s)}


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


def _calendars_end(ends: int, now_ms: int) -> tuple[str, str]:
    left_s = max(0.0, ends - now_ms / 1000)
    return f";t={math.ceil(left_s)}", duration(left_s)


def _length_s(check: Check) -> int:
    """The window's length in seconds; 0 where there is none."""
    return check.width_s * BUCKETS if check.kind == "sliding" else check.ends - check.starts

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
    """One limit as it is told. `at` is its check's place; `length_s` the window's length, `ends` the end of a
    calendar's. `names` are OpenAI's fields where they are told of this limit in any case.
    """

    at: int
    meter: str
    amount: int
    label: str
    length_s: int
    ends: int
    names: tuple[str, str, str] | None

    def whole_again(self, used: int, now_ms: int) -> tuple[str, str]:
        """When nothing will be used of it: the draft's parameter, and as OpenAI writes it."""
        if self.ends:
            left_s = max(0.0, self.ends - now_ms / 1000)
            return f";t={math.ceil(left_s)}", duration(left_s)
        if not used:
            return ";t=0" if self.length_s else "", "0s"
        return f";t={self.length_s}" if self.length_s else "", duration(self.length_s)


class _Frame(msgspec.Struct, frozen=True, gc=False):
    """The fields but for what remains: `state` is the draft's, with a place for each limit's."""

    state: str
    fields: dict[str, str]


class HeaderForm:
    """The fields for some limits, each in its check's window: what does not change from answer to answer is made once.

    >>> HeaderForm(limits, checks).told(reply.used, reply.now_ms)
    {'RateLimit-Policy': '"key-requests-minute";q=60;w=60', 'RateLimit': '"key-requests-minute";r=59;t=60', …}
    """

    __slots__ = ("_first_end", "_kept", "_kept_s", "_policy", "_remains", "_rivals", "_rows")

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
            names = _OPENAI.get(check.meter) if told[check.meter] == 1 else None
            ends = check.ends if check.kind == "calendar" else 0
            self._rows.append(_Row(at, check.meter, check.amount, one.label, length_s, ends, names))
        self._policy = ", ".join(policies)
        self._rivals = [
            (_OPENAI[meter], [row for row in self._rows if row.meter == meter]) for meter in _OPENAI if told[meter] > 1
        ]
        self._remains = [(row.at, row.amount, row.names[1] if row.names else None) for row in self._rows]
        self._first_end = min((row.ends for row in self._rows if row.ends), default=0)
        self._kept: _Frame | None = None
        self._kept_s = 0

    def told(self, used: Sequence[int], now_ms: int) -> dict[str, str]:
        """The fields for what a step answered: `used` is each check's counter after it."""
        if not self._rows:
            return {}
        frame = self._kept
        if frame is None or 0 in used or (self._first_end and now_ms // 1000 != self._kept_s):
            frame = self._frame(used, now_ms)
        headers = frame.fields.copy()
        remaining: list[int] = []
        for at, amount, name in self._remains:
            n = used[at]
            left = amount - n if n < amount else 0
            remaining.append(left if left <= _MOST else _MOST)  # noqa: FURB136 - a call is slower
            if name is not None:
                headers[name] = f"{left}"
        headers["RateLimit"] = frame.state % tuple(remaining)
        for names, rivals in self._rivals:
            # Of several limits of one meter OpenAI's fields tell the tightest.
            row = min(rivals, key=lambda rival: max(0, rival.amount - used[rival.at]) / rival.amount)
            n = used[row.at]
            told = str(row.amount), f"{max(0, row.amount - n)}", row.whole_again(n, now_ms)[1]
            headers.update(zip(names, told, strict=True))
        return headers

    def _frame(self, used: Sequence[int], now_ms: int) -> _Frame:
        states: list[str] = []
        fields = {"RateLimit-Policy": self._policy, "RateLimit": ""}
        for row in self._rows:
            ending, reset = row.whole_again(used[row.at], now_ms)
            states.append(f'"{row.label}";r=%d{ending}')
            if row.names is not None:
                fields.update(zip(row.names, (str(row.amount), "", reset), strict=True))
        frame = _Frame(", ".join(states), fields)
        now_s = now_ms // 1000
        if 0 not in used and (not self._first_end or now_s + 1 < self._first_end):
            # Where something is used of all, it is another one no sooner than in the next second.
            self._kept, self._kept_s = frame, now_s
        return frame


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


def _length_s(check: Check) -> int:
    """The window's length in seconds; 0 where there is none."""
    return check.width_s * BUCKETS if check.kind == "sliding" else check.ends - check.starts

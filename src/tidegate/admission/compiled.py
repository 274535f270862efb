"""Limits that are met together, as a step asks for them: what does not change from request to request is made once.

A caller's limits for a model are remembered as one `Met` (`limits/matching.py`); what is compiled of it is kept there,
until one of its calendar windows ends. Pure.
"""

from collections.abc import Sequence
from typing import Self

from tidegate.admission.checks import Reserve, check_of
from tidegate.admission.headers import HeaderForm
from tidegate.admission.store import Checks, pick_by_meter
from tidegate.limits.matching import Met
from tidegate.limits.values import Limit, Matched

_NOTHING = Reserve()


class Compiled:
    """Some limits in the windows that hold `now_s` (Unix seconds, by the store's clock): right from `from_s` to before
    `until_s`, when the first of these ends.

    `checks` are one a limit, in its place, as `check_of` makes them, but for what they take: that is what `takes` says.
    `alerting` are those that tell of levels, by counter; `form` writes what answers tell of them all.

    >>> compiled = Compiled.of(limits, time.time())
    >>> Asked(entry, compiled.checks, takes=compiled.takes(Reserve(tokens=900, cost=1_200_000)))
    """

    __slots__ = ("_by_meter", "alerting", "checks", "form", "from_s", "until_s")

    def __init__(self, limits: Sequence[Matched], now_s: float) -> None:
        self.checks = Checks([check_of(one, _NOTHING, now_s) for one in limits])
        self._by_meter = pick_by_meter(self.checks)
        ends = [(check.starts, check.ends) for check in self.checks if check.ends]
        self.from_s: float = max((start for start, _ in ends), default=float("-inf"))
        self.until_s: float = min((end for _, end in ends), default=float("inf"))
        self.alerting: tuple[tuple[str, Limit], ...] = tuple(
            [(check.counter, one.limit) for one, check in zip(limits, self.checks, strict=True) if check.alerts]
        )
        self.form = HeaderForm(limits, self.checks)

    @classmethod
    def of(cls, limits: Sequence[Matched], now_s: float) -> Self:
        """The limits in their windows of now: those that were compiled before, where these go on."""
        if not isinstance(limits, Met):
            return cls(limits, now_s)
        known = limits.compiled
        if not isinstance(known, cls) or not known.from_s <= now_s < known.until_s:
            known = limits.compiled = cls(limits, now_s)
        return known

    def takes(self, reserve: Reserve) -> tuple[int, ...]:
        """What a request takes of each check, in its place."""
        return self._by_meter((1, reserve.tokens, reserve.cost or 0, 1))

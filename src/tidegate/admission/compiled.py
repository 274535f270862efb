"""Limits that are met together, as a step asks for them: what does not change from request to request is made once.

A caller's limits for a model are remembered as one `Met` (`limits/matching.py`); what is compiled of it is kept there,
until one of its calendar windows ends. Pure.
"""

from collections.abc import Sequence
from typing import Self

from tidegate.admission.checks import Reserve, check_of
from tidegate.admission.headers import HeaderForm
from tidegate.admission.store import Check
from tidegate.limits.matching import Met
from tidegate.limits.values import Limit, Matched

_NOTHING = Reserve()


class Compiled:
    """Some limits in the windows that hold `now_s` (Unix seconds, by the store's clock): right from `from_s` to before
    `until_s`, when the first of these ends.

    `alerting` are those that tell of levels, by counter; `form` writes what answers tell of them all.

    >>> compiled = Compiled.of(limits, time.time())
    >>> compiled.checks(Reserve(tokens=900, cost=1_200_000))
    """

    __slots__ = ("_checks", "_varying", "alerting", "form", "from_s", "until_s")

    def __init__(self, limits: Sequence[Matched], now_s: float) -> None:
        self._checks = tuple([check_of(one, _NOTHING, now_s) for one in limits])
        self._varying = tuple(
            [
                (at, check.meter == "tokens")
                for at, check in enumerate(self._checks)
                if check.meter in ("tokens", "cost")
            ]
        )
        ends = [(check.starts, check.ends) for check in self._checks if check.ends]
        self.from_s: float = max((start for start, _ in ends), default=float("-inf"))
        self.until_s: float = min((end for _, end in ends), default=float("inf"))
        self.alerting: tuple[tuple[str, Limit], ...] = tuple(
            [(check.counter, one.limit) for one, check in zip(limits, self._checks, strict=True) if check.alerts]
        )
        self.form = HeaderForm(limits, self._checks)

    @classmethod
    def of(cls, limits: Sequence[Matched], now_s: float) -> Self:
        """The limits in their windows of now: those that were compiled before, where these go on."""
        if not isinstance(limits, Met):
            return cls(limits, now_s)
        known = limits.compiled
        if not isinstance(known, cls) or not known.from_s <= now_s < known.until_s:
            known = limits.compiled = cls(limits, now_s)
        return known

    def checks(self, reserve: Reserve) -> tuple[Check, ...]:
        """One check a limit, in its place, as `check_of` makes it."""
        if not self._varying:
            return self._checks
        checks = [*self._checks]
        for at, is_tokens in self._varying:
            one = checks[at]
            checks[at] = Check(
                one.counter,
                one.kind,
                one.meter,
                one.amount,
                reserve.tokens if is_tokens else reserve.cost or 0,
                one.refuses,
                one.alerts,
                one.width_s,
                one.starts,
                one.ends,
            )
        return tuple(checks)

"""Checks with their counters: in one tag's memory, what a step takes from and what an end gives back to.

Bound once, they are used by every step that asks with the same `Checks`, which then looks for neither names nor
windows. They are good while the tag's `layout` is the one that they were bound in.
"""

from collections.abc import Sequence

import msgspec

from tidegate.admission.counters import UNKNOWN, Counter, Ending, Level, Taken
from tidegate.admission.fair_queue import Ticket
from tidegate.admission.store import ALERT_LEVELS, Alert, Check, Pick, Spent, pick_by_meter, room_of


class Bound(msgspec.Struct, eq=False):
    """`checks`, and each one's counter in its place; their windows are those of `from_ms` to before `until_ms`.

    `most` is up to what each counter may rise, and `telling_from` what has to be spent of it before anything is told;
    `watching` are the places of checks that only watch, and tell.
    """

    layout: object
    checks: tuple[Check, ...]
    counters: tuple[Counter, ...]
    levels: tuple[Level, ...]
    most: tuple[int, ...]
    telling_from: tuple[int, ...]
    watching: tuple[int, ...]
    by_meter: Pick
    from_ms: float
    until_ms: float

    @classmethod
    def of(cls, layout: object, checks: tuple[Check, ...], counters: list[Counter]) -> "Bound":
        windows = [(check.starts, check.ends) for check in checks if check.kind == "calendar" and check.ends]
        return cls(
            layout,
            checks,
            tuple(counters),
            tuple([counter.level for counter in counters]),
            tuple([room_of(check) for check in checks]),
            tuple([-(-check.amount * ALERT_LEVELS[0] // 100) if check.alerts else UNKNOWN for check in checks]),
            tuple([at for at, check in enumerate(checks) if check.alerts and not check.refuses]),
            pick_by_meter(checks),
            max((starts for starts, _ in windows), default=float("-inf")) * 1000,
            min((ends for _, ends in windows), default=float("inf")) * 1000,
        )

    def take(self, takes: tuple[int, ...], now_ms: int) -> list[int] | None:
        """What each counter comes to, once all is taken. None, and nothing is, where one has no room or is unknown."""
        used: list[int] = []
        for level, counter, n, most in zip(self.levels, self.counters, takes, self.most, strict=True):
            if level.from_ms <= now_ms < level.until_ms:
                # What `take` would do, without the call: it is most of what a step in memory costs.
                value = level.n = level.n + n
            else:
                value = counter.take(n, now_ms)
            used.append(value)
            if value > most:
                self.undo(takes[: len(used) - (value == UNKNOWN)], now_ms)
                return None
        return used

    def alerts(self, used: Sequence[int], now_ms: int) -> tuple[Alert, ...]:
        """What is to be told of checks that only watch, at what their counters came to."""
        alerts: tuple[Alert, ...] = ()
        for at in self.watching:
            if used[at] > self.checks[at].amount:
                alerts += alerted(self.checks[at], self.counters[at], used[at], now_ms)
        return alerts

    def end(self, takes: tuple[int, ...], at_ms: int, spent: Spent, ending: Ending) -> tuple[Alert, ...]:
        """What was taken at `at_ms` came to `spent`."""
        if spent.undo:
            self.undo(takes, at_ms)
            return ()
        alerts: tuple[Alert, ...] = ()
        came_to = self.by_meter((1, spent.tokens, spent.cost, 0))
        ends = zip(self.counters, takes, came_to, self.telling_from, self.checks, strict=True)
        for counter, n, amount, least, check in ends:
            used = counter.end(n, at_ms, amount, ending)
            if used >= least:
                alerts += alerted(check, counter, used, ending.now_ms)
        return alerts

    def undo(self, takes: tuple[int, ...], now_ms: int) -> None:
        """Gives back what was taken just now, of as many counters as there are takes."""
        nobody = Ending("", now_ms)
        for counter, n in zip(self.counters, takes, strict=False):
            counter.end(n, now_ms, None, nobody)


class Hold(msgspec.Struct, gc=False):
    """What an entry has: of each counter, and of the seats.

    Of counters it has `takes`, of each of `bound`'s, taken at `at_ms`; or `items`, once there is more to say of them.
    """

    bound: Bound | None = None
    takes: tuple[int, ...] = ()
    at_ms: int = 0
    ticket: Ticket | None = None
    items: list[Taken] | None = None

    def each(self) -> list[Taken]:
        """What it has of each counter, by itself, to be written to."""
        if self.items is None:
            checks = () if self.bound is None else self.bound.checks
            self.items = [Taken(check, n, self.at_ms) for check, n in zip(checks, self.takes, strict=True)]
            self.bound = None
        return self.items


def alerted(check: Check, counter: Counter, value: int, now_ms: int) -> tuple[Alert, ...]:
    """What is to be told of a counter. A limit that only watches tells of what is asked for; a budget, of what is
    spent.
    """
    level = counter.passed(check.amount, value, now_ms)
    return (Alert(check.counter, level, value, check.amount),) if level else ()

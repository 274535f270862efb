"""One tag's state in memory, and the pieces that the steps of `memory_store.py` are made of. Nothing here awaits."""

from dataclasses import dataclass, field

import msgspec

from tidegate.admission.counters import UNSUITED, Calendar, Counter, Taken, new_counter
from tidegate.admission.fair_queue import Ticket
from tidegate.admission.seats import Seats
from tidegate.admission.store import (
    LEASE_MS,
    MOST,
    UNDO,
    Alert,
    Check,
    Grant,
    Held,
    Presence,
    Reply,
    SeatState,
    Spent,
    amounts_of,
    room_of,
)

# What a dead worker reserved of money is kept so long for the ledger's recovery to settle, then counted as spent.
ORPHAN_MS = 3_600_000
# A lease that was renewed a moment ago is left as it is: steps come more often than that.
RENEW_AFTER_MS = 1_000
# So often a tag's counters are looked through for those that can be forgotten.
TIDY_EVERY_MS = 60_000


class Hold(msgspec.Struct, gc=False):
    """What an entry has: of each counter, and of the seats."""

    taken: list[Taken]
    ticket: Ticket | None = None


@dataclass(slots=True)
class TagState:
    """`due_ms` is when something may be due: a lease's end, a grant that nobody claimed, an orphan, tidying.

    These and the pace of the slots are by `steady_ms`, a clock that no one sets, as this step found it. Calendars and
    what slides are by the wall clock, which the steps are given as `now`. Without leases (`is_leased`) no worker dies.
    """

    due_ms: int = 0
    steady_ms: int = 0
    is_leased: bool = True
    counters: dict[str, Counter] = field(default_factory=dict)
    leases: dict[str, int] = field(default_factory=dict)
    holds: dict[str, dict[str, Hold]] = field(default_factory=dict)
    # What dead workers reserved of money, and until when it may be settled.
    orphans: dict[str, tuple[list[Taken], int]] = field(default_factory=dict)
    seats: Seats = field(default_factory=Seats)

    def hold_of(self, worker: str, entry: str) -> Hold | None:
        entries = self.holds.get(worker)
        return None if entries is None else entries.get(entry)

    def due_at(self, ms: int) -> None:
        self.due_ms = min(self.due_ms, ms)

    def renew(self, worker: str, after_ms: int = RENEW_AFTER_MS) -> None:
        """Says that a worker lives, where it did not in the last `after_ms`."""
        if not self.is_leased:
            return
        until = self.steady_ms + LEASE_MS
        if until - self.leases.get(worker, 0) >= after_ms:
            self.leases[worker] = until
            self.due_at(until)

    def is_idle(self) -> bool:
        return not (self.leases or self.holds or self.orphans or self.counters)


def look_what_is_due(state: TagState, now: int) -> None:
    steady = state.steady_ms
    for worker in [worker for worker, until in state.leases.items() if until <= steady]:
        del state.leases[worker]
        for entry, hold in state.holds.pop(worker, {}).items():
            _orphan(state, entry, hold, now)
    if not state.is_leased:
        # With leases, a worker's holds go with its lease.
        state.holds = {worker: entries for worker, entries in state.holds.items() if entries}
    for ticket in state.seats.overdue(steady):
        ended(state, ticket.worker, ticket.entry, UNDO, now)
    for entry in [entry for entry, (_, until) in state.orphans.items() if until <= steady]:
        for one in state.orphans.pop(entry)[0]:
            if (counter := same_counter(state, one.check)) is not None:
                counter.end(entry, one, one.n, now)
    for name in [name for name, counter in state.counters.items() if counter.is_idle(now)]:
        del state.counters[name]
    dues = [steady + TIDY_EVERY_MS, *state.leases.values(), *(until for _, until in state.orphans.values())]
    overdue_ms = state.seats.next_overdue_ms()
    state.due_ms = min(dues if overdue_ms is None else [*dues, overdue_ms])


def counter_of(state: TagState, check: Check) -> Counter:
    """The check's counter, in the check's window, which must be the one of now."""
    counter = state.counters.get(check.counter)
    if counter is not None and counter.suits(check):
        return counter
    if isinstance(counter, Calendar) and check.kind == "calendar":
        counter.roll(check)
    else:
        counter = state.counters[check.counter] = new_counter(check)
    return counter


def same_counter(state: TagState, check: Check) -> Counter | None:
    """The check's counter, None where it has gone on to another window."""
    counter = state.counters.get(check.counter)
    return counter if counter is not None and counter.suits(check) else None


def counter_for_more(state: TagState, check: Check) -> Counter | None:
    """`same_counter`, and a new one for what slides: its own was forgotten when all of it had left the window."""
    if check.kind == "sliding" and check.counter not in state.counters:
        return counter_of(state, check)
    return same_counter(state, check)


def _is_now(check: Check, now: int) -> bool:
    return check.kind != "calendar" or not check.ends or check.starts <= now // 1000 < check.ends


def judged(state: TagState, checks: tuple[Check, ...], now: int) -> tuple[list[Counter], list[int], Reply | None]:
    """The checks' counters, what they come to with what is asked for, and why that cannot be taken, None where it can.

    Of several that refuse, the one that lasts longest.
    """
    counters: list[Counter] = []
    used: list[int] = []
    known = state.counters
    is_known, is_over = True, False
    for check in checks:
        if check.ends and not _is_now(check, now):
            return counters, used, Reply(said="clock", now_ms=now)
        counter = known.get(check.counter)
        value = UNSUITED if counter is None else counter.stand(check, now)
        if counter is None or value == UNSUITED:
            counter = counter_of(state, check)
            value = counter.stand(check, now)
        counters.append(counter)
        if value < 0:
            is_known = False
        value += check.take
        used.append(value)
        if value > (check.amount if check.refuses else MOST):
            is_over = True
    if not is_known:
        unseeded = tuple(at for at, counter in enumerate(counters) if not counter.is_known)
        return counters, used, Reply(said="unseeded", now_ms=now, unseeded=unseeded)
    return counters, used, _refusal(checks, counters, now) if is_over else None


def _refusal(checks: tuple[Check, ...], counters: list[Counter], now: int) -> Reply:
    values = tuple(counter.value(now) for counter in counters)
    worst, worst_ms = -1, 0
    for at, check in enumerate(checks):
        over = values[at] + check.take - room_of(check)
        if over > 0:
            room_ms = counters[at].room_in_ms(now, over)
            if worst < 0 or (worst_ms >= 0 and (room_ms < 0 or room_ms > worst_ms)):
                worst, worst_ms = at, room_ms
    alerts: tuple[Alert, ...] = ()
    check = checks[worst]
    if check.alerts and (level := counters[worst].passed(check.amount, check.amount, now)):
        alerts = (Alert(check.counter, level, values[worst], check.amount),)
    return Reply(said="refused", now_ms=now, at=worst, retry_ms=worst_ms, used=values, alerts=alerts)


def taken_reply(state: TagState, hold: Hold, now: int, grants: tuple[Grant, ...]) -> Reply:
    used: list[int] = []
    alerts: list[Alert] = []
    for one in hold.taken:
        check, counter = one.check, same_counter(state, one.check)
        value = 0 if counter is None else counter.value(now)
        used.append(value)
        if counter is not None and check.alerts and not check.refuses and value > check.amount:
            alerts += alerted(check, counter, value, now)
    seated: SeatState = "none" if hold.ticket is None else hold.ticket.state
    return Reply(
        said="taken",
        now_ms=now,
        seat=seated,
        retry_ms=state.seats.retry_ms() if seated == "queued" else 0,
        used=tuple(used),
        alerts=tuple(alerts),
        grants=grants,
    )


def alerted(check: Check, counter: Counter, value: int, now: int) -> tuple[Alert, ...]:
    """What is to be told of a counter. A limit that only watches tells of what is asked for; a budget, of what is
    spent.
    """
    level = counter.passed(check.amount, value, now)
    return (Alert(check.counter, level, value, check.amount),) if level else ()


def ended(
    state: TagState, worker: str, entry: str, spent: Spent, now: int, *, checks: tuple[Check, ...] = ()
) -> tuple[Alert, ...]:
    """Ends an entry, whoever held it last."""
    entries = state.holds.get(worker)
    hold = None if entries is None else entries.pop(entry, None)
    if hold is not None:
        if hold.ticket is not None:
            state.seats.leave(hold.ticket, state.steady_ms, is_pace=not spent.undo)
        return _end(state, entry, hold.taken, spent, now)
    orphan = state.orphans.pop(entry, None) if state.orphans else None
    return _end(state, entry, _unknown(state, checks, now) if orphan is None else orphan[0], spent, now)


def recovered(
    state: TagState, worker: str, entry: str, spent: Spent, now: int, *, checks: tuple[Check, ...] = ()
) -> tuple[Alert, ...]:
    """Ends an entry as the ledger's recovery knows it, whoever holds it: its worker is dead, or soon will be."""
    for of, entries in state.holds.items():
        if of != worker and (hold := entries.pop(entry, None)) is not None:
            if hold.ticket is not None:
                state.seats.leave(hold.ticket, state.steady_ms, is_pace=False)
            return _end(state, entry, hold.taken, spent, now)
    return ended(state, worker, entry, spent, now, checks=checks)


def _unknown(state: TagState, checks: tuple[Check, ...], now: int) -> list[Taken]:
    """What an entry that the store knows nothing of is counted by: money, in the window of now."""
    known = [check for check in checks if check.kind == "calendar" and _is_now(check, now)]
    for check in known:
        counter_of(state, check)
    return [Taken(check, 0) for check in known]


def _end(state: TagState, entry: str, taken: list[Taken], spent: Spent, now: int) -> tuple[Alert, ...]:
    alerts: tuple[Alert, ...] = ()
    if not taken:
        return alerts
    known, amounts = state.counters, None if spent.undo else amounts_of(spent)
    came_to = None
    for one in taken:
        check = one.check
        counter = known.get(check.counter)
        if counter is None or not counter.suits(check):
            continue
        if amounts is not None:
            came_to = amounts.get(check.meter, 0)
        if counter.end(entry, one, came_to, now, spent.ended_ms) and check.alerts and isinstance(counter, Calendar):
            alerts += alerted(check, counter, counter.used, now)
    return alerts


def _orphan(state: TagState, entry: str, hold: Hold, now: int) -> None:
    """A dead worker's hold: its slots are free; what it reserved of money waits for the ledger to know better."""
    has_begun = hold.ticket is None or hold.ticket.state == "held"
    if hold.ticket is not None:
        state.seats.leave(hold.ticket, state.steady_ms, is_pace=False)
    if not has_begun:
        _end(state, entry, hold.taken, UNDO, now)
        return
    money = []
    for one in hold.taken:
        counter = same_counter(state, one.check)
        is_counted = isinstance(counter, Calendar) and counter.has_counted(entry, now)
        if one.check.kind == "calendar" and not is_counted:
            money.append(one)
        elif counter is not None and one.check.kind != "sliding":
            counter.end(entry, one, None, now)
    if money:
        state.orphans[entry] = (money, state.steady_ms + ORPHAN_MS)


def held_anyway(state: TagState, worker: str, one: Held, now: int) -> Hold:
    """What a worker says that it holds, each check in its place: a later reply names them by that."""
    orphan = state.orphans.pop(one.entry, None)
    if orphan is not None:
        _end(state, one.entry, orphan[0], UNDO, now)
    hold = Hold([])
    for check in one.checks:
        n = 0
        # What slides was taken some time ago, in a window of which nothing is known here.
        if check.kind != "sliding" and _is_now(check, now):
            counter = counter_of(state, check)
            n = max(0, min(check.take, MOST - counter.value(now)))
            counter.take(n, now)
        hold.taken.append(Taken(check, n))
    if one.seat is not None:
        hold.ticket = state.seats.sit_anyway(worker, one.entry, one.seat)
    return hold


def seated_anyway(state: TagState, worker: str, hold: Hold, one: Held) -> None:
    """What the store has queued or granted is held all the same, where its worker says so."""
    if one.seat is None or (hold.ticket is not None and hold.ticket.state == "held"):
        return
    if hold.ticket is not None:
        state.seats.leave(hold.ticket, state.steady_ms, is_pace=False)
    hold.ticket = state.seats.sit_anyway(worker, one.entry, one.seat)


def presence_of(
    state: TagState, worker: str, waiting: tuple[str, ...], grants: tuple[Grant, ...], now: int
) -> Presence:
    entries = state.holds.get(worker, {})
    tickets = [hold.ticket if (hold := entries.get(entry)) is not None else None for entry in waiting]
    return Presence(
        now_ms=now,
        entries=len(entries),
        waiting=tuple("none" if ticket is None else ticket.state for ticket in tickets),
        grants=grants,
    )

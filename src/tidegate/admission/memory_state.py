"""One tag's state in memory, and the pieces that the steps of `memory_store.py` are made of. Nothing here awaits."""

from dataclasses import dataclass, field

from tidegate.admission.bound import Bound, Hold, alerted
from tidegate.admission.counters import NOT_SPENT, Calendar, Counter, Ending, Taken, new_counter
from tidegate.admission.seats import Seats
from tidegate.admission.store import (
    LEASE_MS,
    MOST,
    UNDO,
    Alert,
    Check,
    Checks,
    Grant,
    Held,
    Presence,
    Reply,
    SeatState,
    Spent,
    countable,
    pick_by_meter,
    room_of,
)

# What a dead worker reserved of money is kept so long for the ledger's recovery to settle, then counted as spent.
ORPHAN_MS = 3_600_000
# A lease that was renewed a moment ago is left as it is: steps come more often than that.
RENEW_AFTER_MS = 1_000
# So often a tag's counters are looked through for those that can be forgotten.
TIDY_EVERY_MS = 60_000


@dataclass(slots=True)
class TagState:
    """`due_ms` is when something may be due: a lease's end, a grant that nobody claimed, an orphan, tidying.

    These and the pace of the slots are by `steady_ms`, a clock that no one sets, as this step found it. Calendars and
    what slides are by the wall clock, which the steps are given as `now`. Without leases (`is_leased`) no worker dies.
    `layout` is another object once a counter was put away, was replaced, or began another window: what was bound to
    counters before is to be bound again.
    """

    due_ms: int = 0
    steady_ms: int = 0
    is_leased: bool = True
    layout: object = field(default_factory=object)
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
                counter.end(one.n, one.at_ms, one.n, Ending(entry, now))
    for name in [name for name, counter in state.counters.items() if counter.is_idle(now)]:
        del state.counters[name]
        state.layout = object()
    dues = [steady + TIDY_EVERY_MS, *state.leases.values(), *(until for _, until in state.orphans.values())]
    overdue_ms = state.seats.next_overdue_ms()
    state.due_ms = min(dues if overdue_ms is None else [*dues, overdue_ms])


def counter_of(state: TagState, check: Check) -> Counter:
    """The check's counter, in the check's window, which must be the one of now."""
    counter = state.counters.get(check.counter)
    if counter is not None and counter.suits(check):
        return counter
    if counter is not None:
        state.layout = object()
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


def bound_to(state: TagState, checks: tuple[Check, ...], now: int) -> Bound | None:
    """The checks with their counters. None where one's window is not the one of now."""
    kept = checks.bound if isinstance(checks, Checks) else None
    if isinstance(kept, Bound) and kept.layout is state.layout and kept.from_ms <= now < kept.until_ms:
        return kept
    counters: list[Counter] = []
    for check in checks:
        if not _is_now(check, now):
            return None
        counters.append(counter_of(state, check))
    bound = Bound.of(state.layout, checks, counters)
    if isinstance(checks, Checks):
        checks.bound = bound
    return bound


def refusal_of(bound: Bound, takes: tuple[int, ...], now: int) -> Reply:
    """Why nothing was taken. Of several that refuse, the one that lasts longest."""
    counters, checks = bound.counters, bound.checks
    unseeded = tuple(at for at, counter in enumerate(counters) if not counter.is_known)
    if unseeded:
        return Reply(said="unseeded", now_ms=now, unseeded=unseeded)
    values = tuple(counter.value(now) for counter in counters)
    worst, worst_ms = -1, 0
    for at, check in enumerate(checks):
        over = values[at] + takes[at] - room_of(check)
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
    for one in hold.each():
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


def ended(
    state: TagState, worker: str, entry: str, spent: Spent, now: int, *, checks: tuple[Check, ...] = ()
) -> tuple[Alert, ...]:
    """Ends an entry, whoever held it last."""
    entries = state.holds.get(worker)
    hold = None if entries is None else entries.pop(entry, None)
    if hold is not None:
        if hold.ticket is not None:
            state.seats.leave(hold.ticket, state.steady_ms, is_pace=not spent.undo)
        return end_hold(state, entry, hold, spent, now) if hold.bound is not None or hold.items else ()
    orphan = state.orphans.pop(entry, None) if state.orphans else None
    if orphan is None and not checks:
        return ()
    return _end(state, entry, _unknown(state, checks, now) if orphan is None else orphan[0], spent, now)


def recovered(
    state: TagState, worker: str, entry: str, spent: Spent, now: int, *, checks: tuple[Check, ...] = ()
) -> tuple[Alert, ...]:
    """Ends an entry as the ledger's recovery knows it, whoever holds it: its worker is dead, or soon will be."""
    for of, entries in state.holds.items():
        if of != worker and (hold := entries.pop(entry, None)) is not None:
            if hold.ticket is not None:
                state.seats.leave(hold.ticket, state.steady_ms, is_pace=False)
            return end_hold(state, entry, hold, spent, now)
    return ended(state, worker, entry, spent, now, checks=checks)


def _unknown(state: TagState, checks: tuple[Check, ...], now: int) -> list[Taken]:
    """What an entry that the store knows nothing of is counted by: money, in the window of now."""
    known = [check for check in checks if check.kind == "calendar" and _is_now(check, now)]
    for check in known:
        counter_of(state, check)
    return [Taken(check, 0) for check in known]


def end_hold(state: TagState, entry: str, hold: Hold, spent: Spent, now: int) -> tuple[Alert, ...]:
    """Gives back what a hold has of the counters."""
    bound = hold.bound
    if bound is not None and bound.layout is state.layout:
        spent = countable(spent)
        return bound.end(hold.takes, hold.at_ms, spent, Ending(entry, now, spent.ended_ms))
    return _end(state, entry, hold.each(), spent, now) if bound is not None or hold.items else ()


def _end(state: TagState, entry: str, taken: list[Taken], spent: Spent, now: int) -> tuple[Alert, ...]:
    alerts: tuple[Alert, ...] = ()
    spent = countable(spent)
    amounts = pick_by_meter([one.check for one in taken])((1, spent.tokens, spent.cost, 0))
    ending = Ending(entry, now, spent.ended_ms)
    for one, amount in zip(taken, amounts, strict=True):
        counter = same_counter(state, one.check)
        if counter is None:
            continue
        came_to = None if spent.undo else max(0, amount - one.gone)
        used = counter.end(one.n, one.at_ms, came_to, ending)
        if used != NOT_SPENT and one.check.alerts:
            alerts += alerted(one.check, counter, used, now)
    return alerts


def _orphan(state: TagState, entry: str, hold: Hold, now: int) -> None:
    """A dead worker's hold: its slots are free; what it reserved of money waits for the ledger to know better."""
    has_begun = hold.ticket is None or hold.ticket.state == "held"
    if hold.ticket is not None:
        state.seats.leave(hold.ticket, state.steady_ms, is_pace=False)
    if not has_begun:
        end_hold(state, entry, hold, UNDO, now)
        return
    money = []
    for one in hold.each():
        counter = same_counter(state, one.check)
        is_counted = isinstance(counter, Calendar) and counter.has_counted(entry, now)
        if one.check.kind == "calendar" and not is_counted:
            money.append(one)
        elif counter is not None and one.check.kind != "sliding":
            counter.end(one.n, one.at_ms, None, Ending(entry, now))
    if money:
        state.orphans[entry] = (money, state.steady_ms + ORPHAN_MS)


def held_anyway(state: TagState, worker: str, one: Held, now: int) -> Hold:
    """What a worker says that it holds, each check in its place: a later reply names them by that."""
    orphan = state.orphans.pop(one.entry, None)
    if orphan is not None:
        _end(state, one.entry, orphan[0], UNDO, now)
    items: list[Taken] = []
    for check in one.checks:
        n = 0
        # What slides was taken some time ago, in a window of which nothing is known here.
        if check.kind != "sliding" and _is_now(check, now):
            counter = counter_of(state, check)
            n = max(0, min(check.take, MOST - counter.value(now)))
            counter.hold_anyway(n)
        items.append(Taken(check, n))
    hold = Hold(items=items)
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

"""What a store of the gate does: one atomic step a call, on the state of one tag.

A *tag* is what must be judged in one step: `d` (limits that span workspaces), `w:<workspace>` (the caller's rates,
budgets and slots), `u:<upstream>` (an upstream's slots and limits). Every tag has the same state and the same steps:

- *counters*, one a limit and subject: `sliding` (what was taken in the last window, in sixtieths of it), `calendar`
  (used and reserved between two instants), `held` (slots in use);
- *seats*, where the tag is an upstream's: slots in use, and a bounded fair queue for them;
- *holds*, what each worker took for each of its entries, so that it can be given back, by that worker alone;
- *leases*, one a worker: what a worker holds is taken from it when it has not been heard of for `LEASE_MS`.

Invariants: a step is all or nothing; the same step twice is once (by worker and entry); nothing is counted below zero;
what leaves gives back just what its hold says; no counter passes `MOST`. Times are the store's own clock, in
milliseconds.
"""

from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import Literal, Protocol

import msgspec

LEASE_MS = 15_000
RENEW_EVERY_S = 5.0
CLAIM_WITHIN_MS = 2_000
# The largest number that a script of Redis, which counts in doubles, counts exactly.
MOST_BITS = 53
MOST = (1 << MOST_BITS) - 1
# Entries that ended before their counter was seeded: so many are kept, those that ended last. It has to be more than a
# sum names (`ledger/sums.py`), or where more end all the time no sum would ever reach back to what was dropped.
MOST_UNSETTLED = 50_000
# A sliding window is counted in so many buckets, and one more that is half gone.
BUCKETS = 60

Kind = Literal["sliding", "calendar", "held"]
SeatState = Literal["none", "queued", "granted", "held"]
ALERT_LEVELS = (50, 80, 100)


class Check(msgspec.Struct, frozen=True, array_like=True):
    """One limit, as a step takes it, once. `take` is what this request takes of `amount`.

    `starts` and `ends` (epoch seconds) bound a calendar window, 0 and 0 the one without end; `width_s` is a sliding
    window's sixtieth. `alerts` says that what is used is told at 50, 80 and 100 %.
    """

    counter: str
    kind: Kind
    meter: str
    amount: int
    take: int
    refuses: bool = True
    alerts: bool = False
    width_s: int = 1
    starts: int = 0
    ends: int = 0


class Seat(msgspec.Struct, frozen=True, array_like=True):
    """A slot that is asked for. `size` is what the request weighs in the queue, in tokens; `flow` who it is of."""

    capacity: int
    queue_length: int
    flow: str = ""
    weight: int = 1
    size: int = 1


class Checks(tuple[Check, ...]):  # noqa: SLOT001 - a tuple of any length has no room for slots
    """Checks that are asked for again and again. Beside them `bound` and `packed` keep what a store in memory, and one
    over a wire, made of them once.
    """

    bound: object | None = None
    packed: msgspec.Raw | None = None


class Asked(msgspec.Struct, frozen=True, array_like=True):
    """One entry's step into a tag. `takes` is what it takes of each check, where that is not what they say."""

    entry: str
    checks: tuple[Check, ...] = ()
    seat: Seat | None = None
    takes: tuple[int, ...] | None = None


class Alert(msgspec.Struct, frozen=True, array_like=True):
    """A counter that passed a level of its amount, told once a window."""

    counter: str
    level: int
    used: int
    amount: int


class Grant(msgspec.Struct, frozen=True, array_like=True):
    """A slot that went to the next in the queue."""

    worker: str
    entry: str


class Reply(msgspec.Struct, frozen=True, array_like=True, kw_only=True):
    """What a step answers.

    - `taken`: everything was taken; `seat` says whether its slot is held already, or waited for, and then `retry_ms`
      when the queue may have been served.
    - `refused`: the check at `at` has no room; there will be in `retry_ms`. Nothing was taken.
    - `full`: the queue has no room. Nothing was taken.
    - `unseeded`: the checks in `unseeded` are not known to the store: they are to be seeded from the ledger.
    - `clock`: a calendar window is not the one that holds `now_ms`. Nothing was taken.
    - `gone`: there is no such hold.

    `used` is each check's counter as the step left it (reserved included).
    """

    said: Literal["taken", "refused", "full", "unseeded", "clock", "gone"]
    now_ms: int
    seat: SeatState = "none"
    at: int = -1
    retry_ms: int = 0
    used: tuple[int, ...] = ()
    unseeded: tuple[int, ...] = ()
    alerts: tuple[Alert, ...] = ()
    grants: tuple[Grant, ...] = ()


class Spent(msgspec.Struct, frozen=True, array_like=True):
    """What a request came to: `undo` gives all back, as if it had never been.

    `ended_ms` is when it ended by the wall clock of its worker, in milliseconds; 0: now.
    """

    tokens: int = 0
    cost: int = 0
    undo: bool = False
    ended_ms: int = 0


UNDO = Spent(undo=True)


# Requests, tokens, cost, and what nothing else is counted in.
Amounts = tuple[int, int, int, int]
Pick = Callable[[Amounts], tuple[int, ...]]
_METERS = {"requests": 0, "tokens": 1, "cost": 2}


def pick_by_meter(checks: Sequence[Check]) -> Pick:
    """What puts amounts in the checks' places, each by its check's meter."""
    places = [_METERS.get(check.meter, 3) for check in checks]
    if len(places) == 1:
        only = places[0]
        return lambda amounts: (amounts[only],)
    return itemgetter(*places) if places else lambda _: ()


def more_of(more: Spent, meter: str) -> int:
    """What a top-up asks for by one meter."""
    if meter == "tokens":
        return more.tokens
    return more.cost if meter == "cost" else 0


class Held(msgspec.Struct, frozen=True, array_like=True):
    """What a worker says that it holds: asserted after a stall, and to a store that lost its memory."""

    entry: str
    checks: tuple[Check, ...]
    seat: Seat | None


class Presence(msgspec.Struct, frozen=True, array_like=True, kw_only=True):
    """How a worker stands in a tag: how many entries it has there, and what became of those that it waits with."""

    now_ms: int
    entries: int
    waiting: tuple[SeatState, ...] = ()
    grants: tuple[Grant, ...] = ()


class Seeding(msgspec.Struct, frozen=True, array_like=True):
    """The ledger's sum for a calendar counter.

    `seen` are the entries in the sum that ended at `seen_since_ms` (wall clock) or later. What ended before is in the
    sum, or nowhere.
    """

    counter: str
    starts: int
    ends: int
    amount: int
    used: int
    seen: tuple[str, ...] = ()
    seen_since_ms: int = 0


def room_of(check: Check) -> int:
    """Up to what a check lets its counter rise. One that only watches, as far as can be counted."""
    return min(check.amount, MOST) if check.refuses else MOST


def whole(asked: Asked) -> Asked:
    """The step with what it takes of each check said by the check."""
    if asked.takes is None:
        return asked
    checks = [
        check
        if check.take == n
        else Check(
            check.counter,
            check.kind,
            check.meter,
            check.amount,
            n,
            check.refuses,
            check.alerts,
            check.width_s,
            check.starts,
            check.ends,
        )
        for check, n in zip(asked.checks, asked.takes, strict=True)
    ]
    return Asked(asked.entry, tuple(checks), asked.seat)


def askable_takes(asked: Asked) -> tuple[int, ...]:
    """What a step takes of each of its checks, in the form of `askable`."""
    takes = asked.takes
    if takes is None:
        takes = tuple([check.take for check in asked.checks])
    if not takes:
        return takes
    if min(takes) < 0 or max(takes) > MOST:
        takes = tuple([_in_range(n, MOST + 1) for n in takes])
    return takes


def askable(asked: Asked) -> Asked:
    """The step as a store can count it: a check that takes less than nothing, or more than `MOST`, asks for one more
    than that, which no limit allows.
    """
    asked = whole(asked)
    for check in asked.checks:
        if check.take < 0 or check.take > MOST or check.amount > MOST:
            return _askable(asked)
    return asked if askable_seat(asked.seat) is asked.seat else _askable(asked)


def _askable(asked: Asked) -> Asked:
    checks = tuple([_clamped(check, MOST + 1) for check in asked.checks])
    return Asked(asked.entry, checks, askable_seat(asked.seat))


def askable_seat(seat: Seat | None) -> Seat | None:
    """A seat as a store can count what it weighs."""
    if seat is None or (0 <= seat.size <= MOST and 0 <= seat.weight <= MOST):
        return seat
    return _clamped_seat(seat)


def askable_more(more: Spent) -> Spent:
    """A top-up as a store can count it, or refuse."""
    return Spent(_in_range(more.tokens, MOST + 1), _in_range(more.cost, MOST + 1))


def countable(spent: Spent) -> Spent:
    """What was spent as a store can count it: at most `MOST`, and no less than nothing."""
    # Each has 53 bits at most, and none is negative: one look at all of them.
    if (spent.tokens | spent.cost | spent.ended_ms) >> MOST_BITS == 0:
        return spent
    tokens, cost, ended_ms = [max(0, min(n, MOST)) for n in (spent.tokens, spent.cost, spent.ended_ms)]
    return Spent(tokens, cost, spent.undo, ended_ms)


def countable_checks(checks: tuple[Check, ...]) -> tuple[Check, ...]:
    """Checks that are not judged: what none could have taken was not."""
    return tuple([_clamped(check, 0) for check in checks])


def countable_held(one: Held) -> Held:
    """What a worker holds, as a store can count it."""
    return Held(one.entry, countable_checks(one.checks), None if one.seat is None else _clamped_seat(one.seat))


def countable_seeding(seeding: Seeding) -> Seeding:
    """A sum as a store can count it: at most `MOST`."""
    amount, used = min(seeding.amount, MOST), max(0, min(seeding.used, MOST))
    return msgspec.structs.replace(seeding, amount=amount, used=used)


def _in_range(n: int, instead: int) -> int:
    return n if 0 <= n <= MOST else instead


def _clamped(check: Check, instead: int) -> Check:
    if 0 <= check.take <= MOST and check.amount <= MOST:
        return check
    return msgspec.structs.replace(check, amount=min(check.amount, MOST), take=_in_range(check.take, instead))


def _clamped_seat(seat: Seat) -> Seat:
    size, weight = max(1, min(seat.size, MOST)), max(1, min(seat.weight, MOST))
    return msgspec.structs.replace(seat, size=size, weight=weight)


class GateStore(Protocol):
    """One atomic step a call. Raises `StoreGone` where the store cannot be asked: a step may then have been done."""

    async def take(self, tag: str, worker: str, asked: Asked) -> Reply:
        """Takes every check and the seat, or nothing. Known entries are answered again, and nothing is taken.

        What takes less than nothing, or more than `MOST`, is refused, by a check that only watches as well.
        """
        ...

    async def top_up(self, tag: str, worker: str, entry: str, more: Spent) -> Reply:
        """Reserves more tokens and cost for an entry that is held, or nothing (`refused`)."""
        ...

    def release(self, tag: str, worker: str, entry: str, spent: Spent, checks: tuple[Check, ...] = ()) -> None:
        """Gives back what an entry holds, whoever held it last, and counts what it came to. Never raises or waits.

        An entry that the store does not know is counted by `checks` (what it took is not: it is not there). A counter
        of money counts an entry once, for ten minutes at least, and none that says it ended before `seen_since_ms` of
        the counter's seeding: the sum holds it.
        """
        ...

    def recover(self, tag: str, worker: str, entry: str, spent: Spent, checks: tuple[Check, ...] = ()) -> None:
        """`release` of a dead worker's entry, by what the ledger's recovery knows of it. Never raises or waits."""
        ...

    async def claim(self, tag: str, worker: str, entry: str) -> bool:
        """Takes up a granted slot. False where it went on to another: it was not claimed in time."""
        ...

    async def attend(self, tag: str, worker: str, waiting: tuple[str, ...]) -> Presence:
        """Renews a worker's lease, and says what became of its tickets. Moves on what nobody claimed."""
        ...

    async def declare(self, tag: str, worker: str, held: tuple[Held, ...], pending: tuple[str, ...]) -> Presence:
        """Makes the worker's entries those in `held`, without judging them; `pending` ones are left as they are."""
        ...

    async def seed(self, tag: str, seeding: Seeding) -> bool:
        """Gives a counter the ledger's sum, where it has none. Whether the counter is known now: somebody may have
        been first.

        False where of what ended meanwhile so much had to be dropped (`MOST_UNSETTLED`) that the sum does not name all
        that may be among it. A later sum will.
        """
        ...

    async def place(self, tag: str, worker: str, entry: str) -> int:
        """How many will be served before this ticket, and itself: 1 is next. 0 where it does not wait."""
        ...

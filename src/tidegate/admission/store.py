"""What a store of the gate does: one atomic step a call, on the state of one tag.

A *tag* is what must be judged in one step: `d` (limits that span workspaces), `w:<workspace>` (the caller's rates,
budgets and slots), `u:<upstream>` (an upstream's slots and limits). Every tag has the same state and the same steps:

- *counters*, one a limit and subject: `sliding` (what was taken in the last window, in sixtieths of it), `calendar`
  (used and reserved between two instants), `held` (slots in use);
- *seats*, where the tag is an upstream's: slots in use, and a bounded fair queue for them;
- *holds*, what each worker took for each of its entries, so that it can be given back, by that worker alone;
- *leases*, one a worker: what a worker holds is taken from it when it has not been heard of for `LEASE_MS`.

Invariants: a step is all or nothing; the same step twice is once (by worker and entry); nothing is counted below zero;
what leaves gives back just what its hold says. Times are the store's own clock, in milliseconds.
"""

from typing import Literal, Protocol

import msgspec

LEASE_MS = 15_000
RENEW_EVERY_S = 5.0
CLAIM_WITHIN_MS = 2_000
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


class Asked(msgspec.Struct, frozen=True, array_like=True):
    """One entry's step into a tag."""

    entry: str
    checks: tuple[Check, ...] = ()
    seat: Seat | None = None


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
    """What a request came to: `undo` gives all back, as if it had never been."""

    tokens: int = 0
    cost: int = 0
    undo: bool = False


UNDO = Spent(undo=True)


def amount_of(spent: Spent, meter: str) -> int:
    """What a request came to by one meter. A slot comes to nothing."""
    match meter:
        case "requests":
            return 1
        case "tokens":
            return spent.tokens
        case "cost":
            return spent.cost
    return 0


def more_of(more: Spent, meter: str) -> int:
    """What a top-up asks for by one meter."""
    return 0 if meter == "requests" else amount_of(more, meter)


class Held(msgspec.Struct, frozen=True, array_like=True):
    """What a worker says that it holds: asserted after a stall, and to a store that lost its memory."""

    entry: str
    checks: tuple[Check, ...]
    seat: Seat | None
    # Ended already, for want of a store: what it came to is to be counted once.
    spent: Spent | None = None


class Presence(msgspec.Struct, frozen=True, array_like=True, kw_only=True):
    """How a worker stands in a tag: how many entries it has there, and what became of those that it waits with."""

    now_ms: int
    entries: int
    waiting: tuple[SeatState, ...] = ()
    grants: tuple[Grant, ...] = ()


class Seeding(msgspec.Struct, frozen=True, array_like=True):
    """The ledger's sum for a calendar counter. `seen` are entries that ended lately and are in the sum."""

    counter: str
    starts: int
    ends: int
    amount: int
    used: int
    seen: tuple[str, ...] = ()


class GateStore(Protocol):
    """One atomic step a call. Raises `StoreGone` where the store cannot be asked: a step may then have been done."""

    async def take(self, tag: str, worker: str, asked: Asked) -> Reply:
        """Takes every check and the seat, or nothing. Known entries are answered again, and nothing is taken."""
        ...

    async def top_up(self, tag: str, worker: str, entry: str, more: Spent) -> Reply:
        """Reserves more tokens and cost for an entry that is held, or nothing (`refused`)."""
        ...

    def release(self, tag: str, worker: str, entry: str, spent: Spent, checks: tuple[Check, ...] = ()) -> None:
        """Gives back what an entry holds, whoever held it last, and counts what it came to. Never raises or waits.

        An entry that the store does not know is counted by `checks` (what it took is not: it is not there). A counter
        of money counts an entry once, for ten minutes at least.
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
        """Gives a counter the ledger's sum, where it has none. False where it had one: somebody was first."""
        ...

    async def place(self, tag: str, worker: str, entry: str) -> int:
        """How many will be served before this ticket, and itself: 1 is next. 0 where it does not wait."""
        ...

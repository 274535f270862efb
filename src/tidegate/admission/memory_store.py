"""The gate's store in this process's memory: every step is one piece without an await.

It serves where no Redis is configured, and where Redis is away (`desk.py`). It does what the Redis store's script
does; the same tests drive both. Several workers may share one, which is how it is tested.

Leases, grants and what dead workers reserved are timed by a clock that no one sets: a wall clock that is put right
frees no slot. Where one worker has the store to itself it needs no lease: what stands still with its holder ends
nothing.
"""

from collections.abc import Callable, Sequence
from itertools import islice
from time import monotonic_ns, time_ns

import msgspec

from tidegate.admission.bound import Bound, Hold
from tidegate.admission.counters import Calendar
from tidegate.admission.fair_queue import Ticket
from tidegate.admission.memory_state import (
    TIDY_EVERY_MS,
    TagState,
    bound_to,
    counter_for_more,
    counter_of,
    ended,
    held_anyway,
    look_what_is_due,
    presence_of,
    recovered,
    refusal_of,
    seated_anyway,
    taken_reply,
)
from tidegate.admission.store import (
    UNDO,
    Alert,
    Asked,
    Check,
    Grant,
    Held,
    Presence,
    Reply,
    Seat,
    SeatState,
    Seeding,
    Spent,
    askable_more,
    askable_takes,
    countable_checks,
    countable_held,
    countable_seeding,
    more_of,
    room_of,
)

_NO_GRANTS: tuple[Grant, ...] = ()
_NO_ALERTS: tuple[Alert, ...] = ()

Told = Callable[[str, str, str], None]
Alerted = Callable[[str, tuple[Alert, ...]], None]


def nobody(worker: str, tag: str, entry: str) -> None:
    """Hears of no grant."""


def unheard(tag: str, alerts: tuple[Alert, ...]) -> None:
    """Hears of no alert."""


class MemoryStore:
    """Implements `GateStore`. `told` hears of every slot that was granted from the queue: (worker, tag, entry), and
    `alerted` of what steps and ends set off: (tag, alerts).

    A test that brings a `clock_ms` brings it for leases too, unless it brings a `steady_ms`. Without `leases` nobody
    dies, and who is granted a slot holds it: for a store of one worker.
    """

    def __init__(
        self,
        clock_ms: Callable[[], int] | None = None,
        told: Told = nobody,
        *,
        alerted: Alerted = unheard,
        steady_ms: Callable[[], int] | None = None,
        leases: bool = True,
    ) -> None:
        # None are the process's own: asked where they are needed, which saves a request eight calls.
        self._clock_ms = clock_ms
        self._steady_ms = steady_ms or clock_ms
        self._told = told
        self._alerted = alerted
        self._leases = leases
        self._tags: dict[str, TagState] = {}

    async def take(self, tag: str, worker: str, asked: Asked) -> Reply:
        return self.taken(tag, worker, asked)

    def taken(self, tag: str, worker: str, asked: Asked) -> Reply:
        """`take`, at once."""
        state, now = self._step(tag)
        if state.is_leased:
            state.renew(worker)
        entry, checks, seat = asked.entry, asked.checks, asked.seat
        entries = state.holds.get(worker)
        if entries is None:
            entries = state.holds[worker] = {}
        if entry in entries:
            return self._told_of(tag, taken_reply(state, entries[entry], now, self._grant(tag, state, worker)))
        bound: Bound | None = None
        takes: tuple[int, ...] = ()
        used: Sequence[int] = ()
        if checks:
            bound, takes = bound_to(state, checks, now), askable_takes(asked)
            taken = None if bound is None else bound.take(takes, now)
            if taken is None:
                return self._refused(tag, state, worker, now, (bound, takes))
            used = taken
        grants, alerts = _NO_GRANTS, _NO_ALERTS
        ticket: Ticket | None = None
        seated: SeatState = "none"
        if seat is not None:
            if state.seats.capacity != seat.capacity:
                grants = self._resized(tag, state, worker, seat)
            ticket = state.seats.sit(worker, entry, seat, state.steady_ms)
            if ticket is None:
                if bound is not None:
                    bound.undo(takes, now)
                return Reply(said="full", now_ms=now, retry_ms=state.seats.retry_ms(), grants=grants)
            seated = ticket.state
        entries[entry] = Hold(bound, takes, now, ticket)
        if bound is not None and bound.watching:
            alerts = bound.alerts(used, now)
            if alerts:
                self._alerted(tag, alerts)
        retry_ms = 0
        if state.seats.queue.length:
            grants += self._grant(tag, state, worker)
            if ticket is not None:
                seated = ticket.state
            if seated == "queued":
                retry_ms = state.seats.retry_ms()
        return Reply(
            said="taken", now_ms=now, seat=seated, retry_ms=retry_ms, used=tuple(used), alerts=alerts, grants=grants
        )

    async def top_up(self, tag: str, worker: str, entry: str, more: Spent) -> Reply:
        more = askable_more(more)
        state, now = self._step(tag)
        grants = self._grant(tag, state, worker)
        hold = state.hold_of(worker, entry)
        if hold is None:
            return Reply(said="gone", now_ms=now, grants=grants)
        wanted = [
            (at, one, counter, n)
            for at, one in enumerate(hold.each())
            if (n := more_of(more, one.check.meter)) and (counter := counter_for_more(state, one.check)) is not None
        ]
        for at, one, counter, n in wanted:
            over = counter.value(now) + n - room_of(one.check)
            if over > 0:
                room_ms = counter.room_in_ms(now, over)
                return Reply(said="refused", now_ms=now, at=at, retry_ms=room_ms, grants=grants)
        for _, one, counter, n in wanted:
            counter.more(one, n, now)
        return self._told_of(tag, taken_reply(state, hold, now, grants))

    def release(self, tag: str, worker: str, entry: str, spent: Spent, checks: tuple[Check, ...] = ()) -> None:
        self.released(tag, worker, entry, spent, checks)

    def released(
        self, tag: str, worker: str, entry: str, spent: Spent, checks: tuple[Check, ...] = ()
    ) -> tuple[Alert, ...]:
        """`release`, with the alerts that it set off."""
        state, now = self._step(tag)
        alerts = ended(state, worker, entry, spent, now, checks=checks and countable_checks(checks))
        if alerts:
            self._alerted(tag, alerts)
        if state.seats.queue.length:
            self._grant(tag, state, worker)
        return alerts

    def recover(self, tag: str, worker: str, entry: str, spent: Spent, checks: tuple[Check, ...] = ()) -> None:
        self.recovered(tag, worker, entry, spent, checks)

    def recovered(
        self, tag: str, worker: str, entry: str, spent: Spent, checks: tuple[Check, ...] = ()
    ) -> tuple[Alert, ...]:
        """`recover`, with the alerts that it set off."""
        state, now = self._step(tag)
        alerts = recovered(state, worker, entry, spent, now, checks=countable_checks(checks))
        if alerts:
            self._alerted(tag, alerts)
        self._grant(tag, state, worker)
        return alerts

    async def claim(self, tag: str, worker: str, entry: str) -> bool:
        state, _ = self._step(tag)
        self._grant(tag, state, "")
        state.renew(worker)
        hold = state.hold_of(worker, entry)
        return hold is not None and hold.ticket is not None and state.seats.claim(hold.ticket)

    async def attend(self, tag: str, worker: str, waiting: tuple[str, ...]) -> Presence:
        state, now = self._step(tag)
        if state.holds.get(worker):
            state.renew(worker, 0)
        grants = self._grant(tag, state, worker)
        return presence_of(state, worker, waiting, grants, now)

    async def declare(self, tag: str, worker: str, held: tuple[Held, ...], pending: tuple[str, ...]) -> Presence:
        return self.declared(tag, worker, held, pending)

    def declared(self, tag: str, worker: str, held: Sequence[Held], pending: Sequence[str]) -> Presence:
        """`declare`, at once."""
        state, now = self._step(tag)
        state.renew(worker, 0)
        mine = state.holds.setdefault(worker, {})
        left_alone = {*pending, *(one.entry for one in held)}
        for entry in [entry for entry in mine if entry not in left_alone]:
            ended(state, worker, entry, UNDO, now)
        for one in held:
            if one.entry not in mine:
                mine[one.entry] = held_anyway(state, worker, countable_held(one), now)
            elif one.seat is not None:
                seated_anyway(state, worker, mine[one.entry], one)
        grants = self._grant(tag, state, worker)
        return presence_of(state, worker, (), grants, now)

    async def seed(self, tag: str, seeding: Seeding) -> bool:
        seeding = countable_seeding(seeding)
        state, now = self._step(tag)
        self._grant(tag, state, "")
        check = Check(seeding.counter, "calendar", "", seeding.amount, 0, starts=seeding.starts, ends=seeding.ends)
        counter = counter_of(state, check)
        assert isinstance(counter, Calendar)
        if counter.is_known:
            return True
        if not counter.seed(seeding.used, seeding.seen, seeding.seen_since_ms, now):
            return False
        # What was passed before is old news.
        counter.passed(seeding.amount, counter.used, now)
        return True

    async def place(self, tag: str, worker: str, entry: str) -> int:
        state, _ = self._step(tag)
        self._grant(tag, state, "")
        hold = state.hold_of(worker, entry)
        if hold is None or hold.ticket is None or hold.ticket.state != "queued":
            return 0
        return state.seats.queue.place(hold.ticket)

    def in_use(self, tag: str) -> int:
        """Slots of a tag that are held or granted."""
        return self._tags[tag].seats.in_use if tag in self._tags else 0

    def _refused(
        self, tag: str, state: TagState, worker: str, now: int, wanted: tuple[Bound | None, tuple[int, ...]]
    ) -> Reply:
        """Why checks were not taken: they are not of now, or one has no room."""
        bound, takes = wanted
        refusal = Reply(said="clock", now_ms=now) if bound is None else refusal_of(bound, takes, now)
        grants = self._grant(tag, state, worker)
        return self._told_of(tag, msgspec.structs.replace(refusal, grants=grants) if grants else refusal)

    def _told_of(self, tag: str, reply: Reply) -> Reply:
        if reply.alerts:
            self._alerted(tag, reply.alerts)
        return reply

    def _step(self, tag: str) -> tuple[TagState, int]:
        """A tag's state, rid of workers that are dead and of grants that nobody claimed."""
        now = time_ns() // 1_000_000 if self._clock_ms is None else self._clock_ms()
        steady = monotonic_ns() // 1_000_000 if self._steady_ms is None else self._steady_ms()
        state = self._tags.get(tag)
        if state is None:
            self._forget_idle(now, steady)
            state = self._tags[tag] = TagState(steady + TIDY_EVERY_MS, steady, self._leases)
        state.steady_ms = steady
        if state.due_ms <= steady:
            look_what_is_due(state, now)
        return state, now

    def _grant(self, tag: str, state: TagState, asker: str) -> tuple[Grant, ...]:
        if not state.seats.queue.length:
            return ()
        grants = state.seats.grant(asker, state.steady_ms)
        for grant in grants:
            hold = None if self._leases else state.hold_of(grant.worker, grant.entry)
            if hold is not None and hold.ticket is not None:
                # Nobody is there to whom it could go on.
                state.seats.claim(hold.ticket)
            self._told(grant.worker, tag, grant.entry)
        if grants and (overdue_ms := state.seats.next_overdue_ms()) is not None:
            state.due_at(overdue_ms)
        return grants

    def _resized(self, tag: str, state: TagState, worker: str, seat: Seat) -> tuple[Grant, ...]:
        state.seats.capacity = seat.capacity
        return self._grant(tag, state, worker)

    def _forget_idle(self, now: int, steady: int) -> None:
        """For each tag that is new, the two that were looked at longest ago are: few are kept that are not in use."""
        for tag in list(islice(self._tags, 2)):
            state = self._tags.pop(tag)
            state.steady_ms = steady
            if state.due_ms <= steady:
                look_what_is_due(state, now)
            if not state.is_idle():
                self._tags[tag] = state

"""The gate's store in this process's memory: every step is one piece without an await.

It serves where no Redis is configured, and where Redis is away (`desk.py`). It does what the Redis store's script
does; the same tests drive both. Several workers may share one, which is how it is tested.
"""

import time
from collections.abc import Callable, Sequence
from itertools import islice

import msgspec

from tidegate.admission.counters import Calendar, Taken
from tidegate.admission.memory_state import (
    TIDY_EVERY_MS,
    Hold,
    TagState,
    alerted,
    counter_of,
    ended,
    held_anyway,
    judged,
    look_what_is_due,
    presence_of,
    recovered,
    same_counter,
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
    more_of,
)

Told = Callable[[str, str, str], None]


def wall_clock_ms() -> int:
    return int(time.time() * 1000)


def nobody(worker: str, tag: str, entry: str) -> None:
    """Hears of no grant."""


class MemoryStore:
    """Implements `GateStore`. `told` hears of every slot that was granted from the queue: (worker, tag, entry)."""

    def __init__(self, clock_ms: Callable[[], int] = wall_clock_ms, told: Told = nobody) -> None:
        self._clock_ms = clock_ms
        self._told = told
        self._tags: dict[str, TagState] = {}

    async def take(self, tag: str, worker: str, asked: Asked) -> Reply:
        state, now = self._step(tag)
        state.renew(worker, now)
        entry = asked.entry
        grants: tuple[Grant, ...] = ()
        hold = state.hold_of(worker, entry)
        if hold is not None:
            grants = self._grant(tag, state, worker, now)
            return taken_reply(state, hold, now, grants)
        checks = asked.checks
        counters, used, refusal = judged(state, checks, now)
        if refusal is not None:
            grants = self._grant(tag, state, worker, now)
            return msgspec.structs.replace(refusal, grants=grants) if grants else refusal
        hold = Hold([])
        if asked.seat is not None:
            grants = self._resized(tag, state, worker, asked.seat, now)
            hold.ticket = state.seats.sit(worker, entry, asked.seat, now)
            if hold.ticket is None:
                return Reply(said="full", now_ms=now, retry_ms=state.seats.retry_ms(), grants=grants)
        taken = hold.taken
        alerts: tuple[Alert, ...] = ()
        for at, check in enumerate(checks):
            n, counter = check.take, counters[at]
            taken.append(Taken(check, n, counter.take(n, now)))
            used[at] += n
            if check.alerts and not check.refuses and used[at] > check.amount:
                alerts += alerted(check, counter, used[at], now)
        entries = state.holds.get(worker)
        if entries is None:
            entries = state.holds[worker] = {}
        entries[entry] = hold
        if state.seats.queue:
            grants += self._grant(tag, state, worker, now)
        seated: SeatState = "none" if hold.ticket is None else hold.ticket.state
        retry_ms = state.seats.retry_ms() if seated == "queued" else 0
        return Reply(
            said="taken", now_ms=now, seat=seated, retry_ms=retry_ms, used=tuple(used), alerts=alerts, grants=grants
        )

    async def top_up(self, tag: str, worker: str, entry: str, more: Spent) -> Reply:
        state, now = self._step(tag)
        grants = self._grant(tag, state, worker, now)
        hold = state.hold_of(worker, entry)
        if hold is None:
            return Reply(said="gone", now_ms=now, grants=grants)
        wanted = [
            (at, one, counter, n)
            for at, one in enumerate(hold.taken)
            if (n := more_of(more, one.check.meter)) and (counter := same_counter(state, one.check)) is not None
        ]
        for at, one, counter, n in wanted:
            over = counter.value(now) + n - one.check.amount
            if one.check.refuses and over > 0:
                room_ms = counter.room_in_ms(now, over)
                return Reply(said="refused", now_ms=now, at=at, retry_ms=room_ms, grants=grants)
        for _, one, counter, n in wanted:
            counter.more(one, n, now)
        return taken_reply(state, hold, now, grants)

    def release(self, tag: str, worker: str, entry: str, spent: Spent, checks: tuple[Check, ...] = ()) -> None:
        self.released(tag, worker, entry, spent, checks)

    def released(
        self, tag: str, worker: str, entry: str, spent: Spent, checks: tuple[Check, ...] = ()
    ) -> tuple[Alert, ...]:
        """`release`, with the alerts that it set off."""
        state, now = self._step(tag)
        alerts = ended(state, worker, entry, spent, now, checks=checks)
        if state.seats.queue:
            self._grant(tag, state, worker, now)
        return alerts

    def recover(self, tag: str, worker: str, entry: str, spent: Spent, checks: tuple[Check, ...] = ()) -> None:
        self.recovered(tag, worker, entry, spent, checks)

    def recovered(
        self, tag: str, worker: str, entry: str, spent: Spent, checks: tuple[Check, ...] = ()
    ) -> tuple[Alert, ...]:
        """`recover`, with the alerts that it set off."""
        state, now = self._step(tag)
        alerts = recovered(state, worker, entry, spent, now, checks=checks)
        self._grant(tag, state, worker, now)
        return alerts

    async def claim(self, tag: str, worker: str, entry: str) -> bool:
        state, now = self._step(tag)
        self._grant(tag, state, "", now)
        state.renew(worker, now)
        hold = state.hold_of(worker, entry)
        return hold is not None and hold.ticket is not None and state.seats.claim(hold.ticket)

    async def attend(self, tag: str, worker: str, waiting: tuple[str, ...]) -> Presence:
        state, now = self._step(tag)
        if state.holds.get(worker):
            state.renew(worker, now, 0)
        grants = self._grant(tag, state, worker, now)
        return presence_of(state, worker, waiting, grants, now)

    async def declare(self, tag: str, worker: str, held: tuple[Held, ...], pending: tuple[str, ...]) -> Presence:
        return self.declared(tag, worker, held, pending)

    def declared(self, tag: str, worker: str, held: Sequence[Held], pending: Sequence[str]) -> Presence:
        """`declare`, at once."""
        state, now = self._step(tag)
        state.renew(worker, now, 0)
        mine = state.holds.setdefault(worker, {})
        left_alone = {*pending, *(one.entry for one in held)}
        for entry in [entry for entry in mine if entry not in left_alone]:
            ended(state, worker, entry, UNDO, now)
        for one in held:
            if one.spent is not None:
                ended(state, worker, one.entry, one.spent, now, checks=one.checks)
            elif one.entry not in mine:
                mine[one.entry] = held_anyway(state, worker, one, now)
            elif one.seat is not None:
                seated_anyway(state, worker, mine[one.entry], one, now)
        grants = self._grant(tag, state, worker, now)
        return presence_of(state, worker, (), grants, now)

    async def seed(self, tag: str, seeding: Seeding) -> bool:
        state, now = self._step(tag)
        self._grant(tag, state, "", now)
        check = Check(seeding.counter, "calendar", "", seeding.amount, 0, starts=seeding.starts, ends=seeding.ends)
        counter = counter_of(state, check)
        assert isinstance(counter, Calendar)
        if counter.is_known:
            return False
        counter.seed(seeding.used, seeding.seen, now)
        # What was passed before is old news.
        counter.passed(seeding.amount, counter.used, now)
        return True

    async def place(self, tag: str, worker: str, entry: str) -> int:
        state, now = self._step(tag)
        self._grant(tag, state, "", now)
        hold = state.hold_of(worker, entry)
        if hold is None or hold.ticket is None or hold.ticket.state != "queued":
            return 0
        return state.seats.queue.place(hold.ticket)

    def in_use(self, tag: str) -> int:
        """Slots of a tag that are held or granted."""
        return self._tags[tag].seats.in_use if tag in self._tags else 0

    def _step(self, tag: str) -> tuple[TagState, int]:
        """A tag's state, rid of workers that are dead and of grants that nobody claimed."""
        now = self._clock_ms()
        state = self._tags.get(tag)
        if state is None:
            self._forget_idle(now)
            state = self._tags[tag] = TagState(due_ms=now + TIDY_EVERY_MS)
        elif state.due_ms <= now:
            look_what_is_due(state, now)
        return state, now

    def _grant(self, tag: str, state: TagState, asker: str, now: int) -> tuple[Grant, ...]:
        if not state.seats.queue:
            return ()
        grants = state.seats.grant(asker, now)
        for grant in grants:
            self._told(grant.worker, tag, grant.entry)
        if grants and (overdue_ms := state.seats.next_overdue_ms()) is not None:
            state.due_at(overdue_ms)
        return grants

    def _resized(self, tag: str, state: TagState, worker: str, seat: Seat, now: int) -> tuple[Grant, ...]:
        if state.seats.capacity == seat.capacity:
            return ()
        state.seats.capacity = seat.capacity
        return self._grant(tag, state, worker, now)

    def _forget_idle(self, now: int) -> None:
        """For each tag that is new, the two that were looked at longest ago are: few are kept that are not in use."""
        for tag in list(islice(self._tags, 2)):
            state = self._tags.pop(tag)
            if state.due_ms <= now:
                look_what_is_due(state, now)
            if not state.is_idle():
                self._tags[tag] = state

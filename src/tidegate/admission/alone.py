"""How a worker judges while no store is shared: by its part of every limit.

`local`: of a rate or of slots its part is the whole by the workers last seen, one at least; of a calendar window the
same of what was last known to remain, and where nothing is known it denies. `deny` refuses, `allow` lets all in.
Without a shared store at all the one worker judges by whole limits: `MemoryStore` alone.
"""

from collections.abc import Mapping
from typing import Literal

import msgspec

from tidegate.admission.checks import share_of
from tidegate.admission.counters import Calendar
from tidegate.admission.memory_store import Alerted, MemoryStore, Told
from tidegate.admission.store import Asked, Check, Held, Reply, Seeding
from tidegate.errors import Unavailable

Mode = Literal["local", "deny", "allow"]

_MOST_REMAINDERS = 10_000


class LocalStore(MemoryStore):
    """This worker's own store. `alerted` hears of what its steps set off."""

    def __init__(self, *, told: Told, alerted: Alerted) -> None:
        # One worker's: it does not die before its memory does.
        super().__init__(told=told, alerted=alerted, leases=False)

    def money(self, tag: str) -> dict[str, tuple[int, int]]:
        """What is used and reserved here of a tag's calendars: the window's start and the sum, by counter."""
        state = self._tags.get(tag)
        if state is None:
            return {}
        counters = state.counters.items()
        return {name: (one.starts, one.value(0)) for name, one in counters if isinstance(one, Calendar)}

    def all_money(self) -> list[tuple[str, int, int]]:
        """`money` of all tags: counter, the window's start, the sum."""
        return [(name, starts, n) for tag in self._tags for name, (starts, n) in self.money(tag).items()]


class _Remainder(msgspec.Struct, gc=False):
    """`left` is what the shared store said last; None: the whole, as the check has it. `ours` is what this worker let
    be spent without it since then; what its own store had counted at that time already (`counted`) is not of it.
    """

    starts: int
    left: int | None
    ours: int = 0
    counted: int = 0


class Remainders:
    """What was last known to remain of each calendar's limit, bounded; the longest unknown goes first."""

    def __init__(self) -> None:
        self._known: dict[str, _Remainder] = {}

    def note(self, checks: tuple[Check, ...], reply: Reply, own: Mapping[str, tuple[int, int]]) -> None:
        """Remembers what the shared store answered, taken or refused. `own` is what `LocalStore.money` says."""
        for check, used in zip(checks, reply.used, strict=True):
            if check.kind == "calendar":
                name = check.counter
                self._known.pop(name, None)
                known = self._known[name] = _Remainder(check.starts, check.amount - used)
                if own and name in own:
                    starts, counted = own[name]
                    if starts == check.starts:
                        known.counted = counted
                if len(self._known) > _MOST_REMAINDERS:
                    del self._known[next(iter(self._known))]

    def note_spent_alone(self, counter: str, starts: int, counted: int) -> None:
        """The own store begins afresh: what it counted in the window that began at `starts` is spent all the same."""
        known = self._known.get(counter)
        if known is None or known.starts > starts:
            return
        if known.starts < starts:
            known.starts, known.left, known.ours, known.counted = starts, None, 0, 0
        known.ours, known.counted = known.ours + max(0, counted - known.counted), 0

    def share(self, check: Check, workers: int) -> Check | None:
        """This worker's part of a calendar's limit, as its own store counts it. None where nothing is known."""
        known = self._known.get(check.counter)
        if known is None:
            return None
        is_same = known.starts == check.starts
        # A window that began since is whole.
        left = known.left if is_same else None
        share = share_of(check, workers, check.amount if left is None else left)
        if share is None or not is_same:
            return share
        return msgspec.structs.replace(share, amount=max(0, share.amount - known.ours) + known.counted)


class Alone:
    """One absence of the shared store: begun afresh with each. `judged` counts its steps."""

    def __init__(self, store: LocalStore, worker: str, mode: Mode, remainders: Remainders) -> None:
        self.store = store
        self.judged = 0
        self._worker = worker
        self._mode = mode
        self._remainders = remainders

    async def take(self, tag: str, asked: Asked, workers: int) -> Reply:
        """Judges a step. Raises `Unavailable` where the mode, or knowing nothing, denies.

        `used` is empty: it would be this worker's part of it, which nobody is to be told as the whole.
        """
        return msgspec.structs.replace(await self._judged(tag, asked, workers), used=())

    async def _judged(self, tag: str, asked: Asked, workers: int) -> Reply:
        self.judged += 1
        if self._mode == "allow":
            return Reply(said="taken", now_ms=0, seat="held" if asked.seat is not None else "none")
        if self._mode == "deny":
            raise cannot_judge()
        seat = asked.seat
        if seat is not None:
            seat = msgspec.structs.replace(
                seat, capacity=max(1, seat.capacity // workers), queue_length=max(1, seat.queue_length // workers)
            )
        part = Asked(asked.entry, tuple(self._share(check, workers) for check in asked.checks), seat)
        reply = await self.store.take(tag, self._worker, part)
        if reply.said == "unseeded":
            for at in reply.unseeded:
                check = part.checks[at]
                # A part of what remains begins at nothing.
                await self.store.seed(tag, Seeding(check.counter, check.starts, check.ends, check.amount, 0))
            reply = await self.store.take(tag, self._worker, part)
        return reply

    async def hold(self, tag: str, held: tuple[Held, ...]) -> None:
        """Counts the slots that this worker held when it was left alone. Money needs none: the remainder is without."""
        slots_only = tuple(
            msgspec.structs.replace(one, checks=tuple(check for check in one.checks if check.kind == "held"))
            for one in held
        )
        await self.store.declare(tag, self._worker, slots_only, ())

    def _share(self, check: Check, workers: int) -> Check:
        if check.kind != "calendar":
            return share_of(check, workers, None) or check
        share = self._remainders.share(check, workers)
        if share is not None:
            # Of what is spent of the whole the shared store tells.
            return msgspec.structs.replace(share, alerts=False)
        if check.refuses:
            raise cannot_judge()
        # What only watches has nothing to say where nothing is known.
        return msgspec.structs.replace(check, alerts=False)


def cannot_judge() -> Unavailable:
    """The refusal of who cannot be judged now."""
    return Unavailable(
        "The limits of this request cannot be checked now: their store does not answer. Try again in a few seconds.",
        headers={"Retry-After": "2"},
    )

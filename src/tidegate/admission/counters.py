"""The three counters of a limit, in memory. The Redis store's script does the same to its hashes.

A counter is taken from (`take`), may be taken more from (`more`), and is told the end of what was taken (`end`): what
it came to, or None where all is to be as if it had never been.
"""

from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import Protocol

import msgspec

from tidegate.admission.store import ALERT_LEVELS, BUCKETS, MOST, MOST_UNSETTLED, Check

# So long, and at most twice as long, is it known which entries a counter of money has counted.
COUNTED_MS = 600_000
# How long it takes a slot to come free, as far as anybody knows.
FIRST_RETRY_MS = 1_000
NEVER_MS = -1
FOREVER_MS = 2**63
# The window after one that is known begins at nothing, for so long after its end.
KEPT_MS = 86_400_000


class Taken(msgspec.Struct, gc=False):
    """What an entry has of one counter: `n`, taken at `at_ms`. Of a sliding one, `gone` has left the window since."""

    check: Check
    n: int
    at_ms: int = 0
    gone: int = 0


class Ending(msgspec.Struct, frozen=True, gc=False):
    """Which entry ends, at `now_ms`; `ended_ms` is when it ended as its worker says, 0: now."""

    entry: str
    now_ms: int
    ended_ms: int = 0


# What `end` says where nothing was spent by it.
NOT_SPENT = -1
# What `take` says of a counter that was not seeded: more than any limit allows.
UNKNOWN = 2 * MOST + 2


class Level:
    """What a counter comes to: `n` is used and reserved. From `from_ms` to before `until_ms` to take is to add to it,
    and nothing else; at any other time it is the counter's to take.
    """

    __slots__ = ("from_ms", "n", "until_ms")

    def __init__(self, until_ms: int = 0) -> None:
        self.n = 0
        self.from_ms = 0
        self.until_ms = until_ms


class Counter(Protocol):
    is_known: bool
    level: Level

    def suits(self, check: Check) -> bool:
        """Whether the check means this counter, in this window."""
        ...

    def value(self, now_ms: int) -> int:
        """What is used and reserved."""
        ...

    def take(self, n: int, now_ms: int) -> int:
        """Counts `n`. Returns the value after it; `UNKNOWN`, and counts nothing, before the seeding."""
        ...

    def more(self, taken: Taken, n: int, now_ms: int) -> None:
        """Counts `n` more of what was taken, and notes it there."""
        ...

    def hold_anyway(self, n: int) -> None:
        """Counts `n` that somebody holds already, whether there is room or not."""
        ...

    def end(self, n: int, at_ms: int, came_to: int | None, ending: Ending) -> int:
        """The `n` that were taken at `at_ms` came to `came_to`, None: to nothing at all. Where that was spent by it,
        what is spent in all; `NOT_SPENT` else.
        """
        ...

    def room_in_ms(self, now_ms: int, needed: int) -> int:
        """When `needed` more than now may be free. `NEVER_MS` where time does not help."""
        ...

    def passed(self, amount: int, value: int, now_ms: int) -> int:
        """The alert level that `value` passed just now, told once a window; 0 for none."""
        ...

    def is_idle(self, now_ms: int) -> bool:
        """Whether it can be forgotten."""
        ...


class Sliding:
    """What was taken in the last window. Never more than `amount` in any window, nor less than 60/61 of it.

    Buckets are a sixtieth of the window; one more than sixty are counted, since the oldest is half gone. What is in the
    bucket of now is the level, less what is in the others.
    """

    __slots__ = ("_buckets", "_in_buckets", "_newest", "_oldest", "_told_at", "_width_ms", "is_known", "level")

    def __init__(self, width_s: int) -> None:
        self.is_known = True
        self._width_ms = width_s * 1000
        self.level = Level()
        self._buckets: dict[int, int] = {}
        self._in_buckets = 0
        self._oldest = 0
        self._newest = 0
        self._told_at: int | None = None

    def suits(self, check: Check) -> bool:
        return check.kind == "sliding" and check.width_s * 1000 == self._width_ms

    def value(self, now_ms: int) -> int:
        self._sweep(now_ms)
        return self.level.n

    def take(self, n: int, now_ms: int) -> int:
        self._sweep(now_ms)
        self.level.n += n
        return self.level.n

    def more(self, taken: Taken, n: int, now_ms: int) -> None:
        self._sweep(now_ms)
        bucket = taken.at_ms // self._width_ms
        if bucket in self._buckets or (bucket == self._newest and self.level.n > self._in_buckets):
            self._adjust(bucket, n)
            taken.n += n
        else:
            # What it took at first has left the window: the rest is counted where it is asked for.
            taken.gone = min(MOST, taken.gone + taken.n)
            taken.n, taken.at_ms = n, now_ms
            self.take(n, now_ms)

    def hold_anyway(self, n: int) -> None:
        """Nothing: it was taken some time ago, in a window of which nothing is known here."""

    def end(self, n: int, at_ms: int, came_to: int | None, ending: Ending) -> int:  # noqa: ARG002 - of the protocol
        # Only what this entry has in its bucket is its to give back.
        if came_to != n:
            self._adjust(at_ms // self._width_ms, (came_to or 0) - n)
        return NOT_SPENT

    def room_in_ms(self, now_ms: int, needed: int) -> int:
        freed = 0
        buckets = {**self._buckets, self._newest: self.level.n - self._in_buckets}
        for bucket in sorted(buckets):
            freed += buckets[bucket]
            if freed >= needed:
                return (bucket + BUCKETS + 1) * self._width_ms - now_ms
        return (BUCKETS + 1) * self._width_ms

    def passed(self, amount: int, value: int, now_ms: int) -> int:
        bucket = now_ms // self._width_ms
        if value < amount or (self._told_at is not None and bucket - self._told_at <= BUCKETS):
            return 0
        self._told_at = bucket
        return ALERT_LEVELS[-1]

    def is_idle(self, now_ms: int) -> bool:
        self._sweep(now_ms)
        told_at = self._told_at
        return not self.level.n and (told_at is None or now_ms // self._width_ms - told_at > BUCKETS)

    def _adjust(self, bucket: int, n: int) -> None:
        level = self.level
        is_newest = bucket == self._newest
        known = level.n - self._in_buckets if is_newest else self._buckets.get(bucket)
        if known is None:
            return
        n = max(-known, n) if n < 0 else min(n, MOST - level.n)
        level.n += n
        if not is_newest:
            self._buckets[bucket] = known + n
            self._in_buckets += n

    def _sweep(self, now_ms: int) -> None:
        """Puts the level's bucket to the others, and out what has left the window; the level's is that of now."""
        bucket, level = now_ms // self._width_ms, self.level
        if bucket == self._newest:
            return
        self._buckets[self._newest] = level.n - self._in_buckets
        if self._oldest > bucket or bucket - BUCKETS - self._oldest > BUCKETS:
            # All of it is older than the window, or the clock went back by more than one.
            self._buckets.clear()
            level.n = 0
            self._told_at = None
            self._oldest = bucket - BUCKETS
        elif self._oldest < bucket - BUCKETS:
            for old in range(self._oldest, bucket - BUCKETS):
                level.n -= self._buckets.pop(old, 0)
            self._oldest = bucket - BUCKETS
        self._in_buckets = level.n - self._buckets.pop(bucket, 0)
        self._newest = bucket
        level.from_ms = bucket * self._width_ms
        level.until_ms = level.from_ms + self._width_ms


@dataclass(slots=True)
class Calendar:
    """What was used and is reserved between two instants. Not known before it was seeded from the ledger.

    `unsettled` are entries that ended before that, what each came to and when it ended: whether the ledger's sum holds
    them, the seeding says. Those that ended last are kept; of others it is known that they ended at `dropped_ms` or
    before. An entry is counted once: those that were counted, by itself or in the sum, are known for a while, and what
    ended before `seen_since_ms` is in the sum.
    """

    starts: int = 0
    ends: int = 0
    used: int = 0
    is_known: bool = False
    told: int = 0
    unsettled: dict[str, tuple[int, int]] = field(default_factory=dict)
    seen_since_ms: int = 0
    dropped_ms: int = 0
    # When each of the unsettled ended, as a heap.
    _ends: list[tuple[int, str]] = field(default_factory=list)
    # By generations of `COUNTED_MS`: this one and the one before.
    _counted: tuple[set[str], set[str]] = field(default_factory=lambda: (set(), set()))
    _generation: int = 0
    # Known once it is the counter's level: until then it is never the time to take.
    level: Level = field(default_factory=Level)

    @property
    def reserved(self) -> int:
        return self.level.n - self.used

    def suits(self, check: Check) -> bool:
        return check.kind == "calendar" and self.starts == check.starts and self.ends == check.ends

    def roll(self, check: Check) -> None:
        """Makes this the check's window: the next one begins at nothing, any other has to be seeded."""
        self._note_known(is_known=self.is_known and 0 < self.ends <= check.starts)
        self.starts, self.ends = check.starts, check.ends
        self.used = self.level.n = self.told = self.seen_since_ms = self.dropped_ms = 0
        self._settled()

    def value(self, now_ms: int) -> int:  # noqa: ARG002 - of the protocol
        return self.level.n

    def take(self, n: int, now_ms: int) -> int:  # noqa: ARG002 - of the protocol
        if not self.is_known:
            return UNKNOWN
        self.level.n += n
        return self.level.n

    def more(self, taken: Taken, n: int, now_ms: int) -> None:  # noqa: ARG002 - of the protocol
        self.level.n += n
        taken.n += n

    def hold_anyway(self, n: int) -> None:
        self.level.n += n

    def end(self, n: int, at_ms: int, came_to: int | None, ending: Ending) -> int:  # noqa: ARG002 - of the protocol
        level, used = self.level, self.used
        total = level.n - n
        level.n = total = total if total > used else used  # noqa: FURB136 - a call is slower, and this is every end
        if came_to is None:
            return NOT_SPENT
        entry, ended_ms = ending.entry, ending.ended_ms
        if not self.is_known:
            self._keep_unsettled(entry, came_to, ended_ms or ending.now_ms)
            return NOT_SPENT
        if 0 < ended_ms < self.seen_since_ms or self.has_counted(entry, ending.now_ms):
            return NOT_SPENT
        self._counted[0].add(entry)
        came_to = min(came_to, MOST - used)
        level.n = total + came_to
        self.used = used = used + came_to
        return used

    def has_counted(self, entry: str, now_ms: int) -> bool:
        generation = now_ms // COUNTED_MS
        if generation != self._generation:
            before = self._counted[0] if generation == self._generation + 1 else set()
            self._counted, self._generation = (set(), before), generation
        lately, before = self._counted
        return entry in lately or entry in before

    def seed(self, used: int, seen: tuple[str, ...], seen_since_ms: int, now_ms: int) -> bool:
        """False where the sum does not reach back to what was dropped."""
        if self.dropped_ms and seen_since_ms <= self.dropped_ms:
            return False
        self.has_counted("", now_ms)
        in_sum = set(seen)
        unseen = {
            entry: n
            for entry, (n, ended_ms) in self.unsettled.items()
            if ended_ms >= seen_since_ms and entry not in in_sum
        }
        self._counted[0].update(seen, unseen)
        reserved, self.used = self.reserved, min(MOST, used + sum(unseen.values()))
        self.level.n = self.used + reserved
        self._settled()
        self._note_known(is_known=True)
        self.told, self.seen_since_ms, self.dropped_ms = 0, seen_since_ms, 0
        return True

    def _note_known(self, *, is_known: bool) -> None:
        self.is_known, self.level.until_ms = is_known, FOREVER_MS if is_known else 0

    def _keep_unsettled(self, entry: str, came_to: int, ended_ms: int) -> None:
        if entry in self.unsettled:
            return
        self.unsettled[entry] = came_to, ended_ms
        heappush(self._ends, (ended_ms, entry))
        if len(self._ends) > MOST_UNSETTLED:
            dropped_ms, dropped = heappop(self._ends)
            del self.unsettled[dropped]
            self.dropped_ms = max(self.dropped_ms, dropped_ms)

    def _settled(self) -> None:
        self.unsettled.clear()
        self._ends.clear()

    def room_in_ms(self, now_ms: int, needed: int) -> int:  # noqa: ARG002 - of the protocol
        return max(1, self.ends * 1000 - now_ms) if self.ends else NEVER_MS

    def passed(self, amount: int, value: int, now_ms: int) -> int:  # noqa: ARG002 - of the protocol
        if value * 100 < ALERT_LEVELS[0] * amount:
            return 0
        level = max(level for level in ALERT_LEVELS if value * 100 >= level * amount)
        if level <= self.told:
            return 0
        self.told = level
        return level

    def is_idle(self, now_ms: int) -> bool:
        self.has_counted("", now_ms)
        return bool(self.ends) and self.ends * 1000 + KEPT_MS < now_ms


class InUse:
    """Slots that are held."""

    __slots__ = ("is_known", "level")

    def __init__(self) -> None:
        self.is_known = True
        self.level = Level(FOREVER_MS)

    def suits(self, check: Check) -> bool:
        return check.kind == "held"

    def value(self, now_ms: int) -> int:  # noqa: ARG002 - of the protocol
        return self.level.n

    def take(self, n: int, now_ms: int) -> int:  # noqa: ARG002 - of the protocol
        self.level.n += n
        return self.level.n

    def more(self, taken: Taken, n: int, now_ms: int) -> None: ...

    def hold_anyway(self, n: int) -> None:
        self.level.n += n

    def end(self, n: int, at_ms: int, came_to: int | None, ending: Ending) -> int:  # noqa: ARG002 - of the protocol
        level = self.level
        level.n = level.n - n if level.n > n else 0
        return NOT_SPENT

    def room_in_ms(self, now_ms: int, needed: int) -> int:  # noqa: ARG002 - of the protocol
        return FIRST_RETRY_MS

    def passed(self, amount: int, value: int, now_ms: int) -> int:  # noqa: ARG002 - of the protocol
        return 0

    def is_idle(self, now_ms: int) -> bool:  # noqa: ARG002 - of the protocol
        return not self.level.n


def new_counter(check: Check) -> Counter:
    if check.kind == "sliding":
        return Sliding(check.width_s)
    return Calendar(check.starts, check.ends) if check.kind == "calendar" else InUse()

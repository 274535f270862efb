"""What a tag of the gate should know, as plain lists of who took what and when. Slow, and simple on purpose.

It shares nothing with the stores but the values that they are asked with. It follows what the stores decide where
several answers are right (to whom a slot goes), and says what is wrong with it.
"""

from dataclasses import dataclass, field

from tidegate.admission.store import MOST, Check, Held, Seat, Spent

LEASE_MS = 15_000
CLAIM_MS = 2_000
MINUTE_MS = 60_000


@dataclass
class Piece:
    """So much of one counter, taken at one time."""

    counter: str
    at_ms: int
    n: int


@dataclass
class Entry:
    worker: str
    name: str
    checks: tuple[Check, ...]
    seat: Seat | None = None
    state: str = "none"
    granted_ms: int = 0
    # Of each counter: what is reserved or held; pieces of what slides.
    reserved: dict[str, int] = field(default_factory=dict)
    pieces: dict[str, list[Piece]] = field(default_factory=dict)


@dataclass
class Budget:
    """A calendar's window: what the ledger's sum was, and what each entry came to since, and when it ended."""

    starts: int
    ends: int
    is_known: bool = False
    base: int = 0
    spent: dict[str, int] = field(default_factory=dict)
    ended_ms: dict[str, int] = field(default_factory=dict)
    seen_since_ms: int = 0


class Model:
    def __init__(self) -> None:
        self.now_ms = 0
        self.entries: dict[tuple[str, str], Entry] = {}
        self.orphans: dict[str, Entry] = {}
        self.leases: dict[str, int] = {}
        self.slides: list[Piece] = []
        self.budgets: dict[str, Budget] = {}
        self.capacity = 0

    # What is so

    def used(self, check: Check) -> int:
        if check.kind == "sliding":
            # A second that is half in the window counts whole.
            first_ms = self.now_ms // 1000 * 1000 - MINUTE_MS
            return sum(p.n for p in self.slides if p.counter == check.counter and p.at_ms >= first_ms)
        live = [*self.entries.values(), *self.orphans.values()] if check.kind == "calendar" else self.entries.values()
        reserved = sum(e.reserved.get(check.counter, 0) for e in live if self._is_of_window(e, check))
        if check.kind == "held":
            return reserved
        budget = self.budget(check)
        return reserved + budget.base + sum(budget.spent.values() if budget.is_known else ())

    def in_last_minute(self, counter: str) -> int:
        return sum(p.n for p in self.slides if p.counter == counter and p.at_ms > self.now_ms - MINUTE_MS)

    def budget(self, check: Check) -> Budget:
        budget = self.budgets.get(check.counter)
        if budget is None or (budget.starts, budget.ends) != (check.starts, check.ends):
            is_next = budget is not None and budget.is_known and 0 < budget.ends <= check.starts
            budget = self.budgets[check.counter] = Budget(check.starts, check.ends, is_next)
        return budget

    @property
    def in_use(self) -> int:
        return sum(entry.state in ("granted", "held") for entry in self.entries.values())

    @property
    def waiting(self) -> list[Entry]:
        return [entry for entry in self.entries.values() if entry.state == "queued"]

    def is_now(self, check: Check) -> bool:
        return not check.ends or check.starts <= self.now_ms // 1000 < check.ends

    def has_room(self, check: Check, n: int) -> bool:
        """Whether a counter may rise by `n`. Nobody takes less than nothing, or what cannot be counted."""
        return 0 <= n <= MOST and self.used(check) + n <= (check.amount if check.refuses else MOST)

    # What happens

    def passes_to(self, now_ms: int) -> None:
        self.now_ms = now_ms
        for worker in [worker for worker, at in self.leases.items() if at + LEASE_MS <= now_ms]:
            del self.leases[worker]
            for entry in [entry for entry in self.entries.values() if entry.worker == worker]:
                self._die(entry)
        for entry in list(self.entries.values()):
            if entry.state == "granted" and entry.granted_ms + CLAIM_MS <= now_ms:
                self.end(entry, Spent(undo=True))

    def lives(self, worker: str, *, at_once: bool = False) -> None:
        if at_once or self.now_ms - self.leases.get(worker, 0) >= 1000:
            self.leases[worker] = self.now_ms

    def takes(self, entry: Entry) -> None:
        for check in entry.checks:
            if check.kind == "sliding":
                piece = Piece(check.counter, self.now_ms, check.take)
                self.slides.append(piece)
                entry.pieces[check.counter] = [piece]
            else:
                entry.reserved[check.counter] = check.take
        self.entries[entry.worker, entry.name] = entry

    def tops_up(self, entry: Entry, more: Spent) -> None:
        for check in entry.checks:
            n = {"tokens": more.tokens, "cost": more.cost}.get(check.meter, 0)
            if not n:
                continue
            if check.kind == "sliding":
                self._slide_more(entry, check.counter, n)
            elif check.kind == "calendar" and self._is_of_window(entry, check) and self.is_current(check):
                entry.reserved[check.counter] = entry.reserved.get(check.counter, 0) + n

    def end(self, entry: Entry, spent: Spent) -> None:
        self.entries.pop((entry.worker, entry.name), None)
        self.orphans.pop(entry.name, None)
        for check in entry.checks:
            came_to = {"requests": 1, "tokens": spent.tokens, "cost": spent.cost}.get(check.meter, 0)
            pieces = entry.pieces.get(check.counter)
            if check.kind == "sliding" and pieces:
                before = sum(piece.n for piece in pieces[:-1])
                pieces[-1].n = 0 if spent.undo else max(0, came_to - before)
            if check.kind == "calendar" and not spent.undo:
                self.spends(entry.name, check, came_to, spent.ended_ms)

    def spends(self, name: str, check: Check, came_to: int, ended_ms: int) -> None:
        """Once, in the window that it was taken in, and not what the sum holds."""
        if self.is_current(check):
            budget = self.budget(check)
            if not (0 < ended_ms < budget.seen_since_ms):
                budget.spent.setdefault(name, came_to)
                budget.ended_ms.setdefault(name, ended_ms or self.now_ms)

    def spends_unknown(self, name: str, checks: tuple[Check, ...], spent: Spent) -> None:
        for check in checks:
            if check.kind == "calendar" and self.is_now(check):
                self.budget(check)
                if not spent.undo:
                    came_to = spent.tokens if check.meter == "tokens" else spent.cost
                    self.spends(name, check, came_to, spent.ended_ms)

    def seeds(self, check: Check, used: int, seen: tuple[str, ...], seen_since_ms: int) -> None:
        budget = self.budget(check)
        if budget.is_known:
            return
        budget.is_known, budget.base, budget.seen_since_ms = True, used, seen_since_ms
        # Forgotten, not counted as nothing: it may be told again with another end.
        budget.spent = {name: n for name, n in budget.spent.items() if budget.ended_ms[name] >= seen_since_ms}
        budget.spent.update(dict.fromkeys(seen, 0))

    def holds_anyway(self, worker: str, held: Held) -> None:
        known = self.entries.get((worker, held.entry))
        if known is None:
            self.orphans.pop(held.entry, None)
            known = Entry(worker, held.entry, held.checks, held.seat)
            counted = [c for c in held.checks if c.kind != "sliding" and self.is_now(c)]
            known.reserved = {check.counter: check.take for check in counted}
            for check in counted:
                if check.kind == "calendar":
                    self.budget(check)
            self.entries[worker, held.entry] = known
        if held.seat is not None and known.state != "held":
            known.state = "held"
            self.capacity = held.seat.capacity

    def forgets(self) -> None:
        self.entries.clear()
        self.orphans.clear()
        self.leases.clear()
        self.slides.clear()
        self.budgets.clear()
        self.capacity = 0

    def _die(self, entry: Entry) -> None:
        if entry.state in ("queued", "granted"):
            self.end(entry, Spent(undo=True))
            return
        del self.entries[entry.worker, entry.name]
        entry.state = "none"
        # What slides was asked for, and stays.
        entry.pieces.clear()
        if any(check.kind == "calendar" for check in entry.checks):
            self.orphans[entry.name] = entry

    def _slide_more(self, entry: Entry, counter: str, n: int) -> None:
        pieces = entry.pieces.setdefault(counter, [])
        if pieces and pieces[-1].at_ms >= self.now_ms // 1000 * 1000 - MINUTE_MS:
            pieces[-1].n += n
        else:
            pieces.append(Piece(counter, self.now_ms, n))
            self.slides.append(pieces[-1])

    def is_current(self, check: Check) -> bool:
        budget = self.budgets.get(check.counter)
        return budget is not None and (budget.starts, budget.ends) == (check.starts, check.ends)

    def _is_of_window(self, entry: Entry, check: Check) -> bool:
        return any(
            c.counter == check.counter and (c.starts, c.ends) == (check.starts, check.ends) for c in entry.checks
        )

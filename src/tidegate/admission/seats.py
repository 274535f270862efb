"""An upstream's slots in memory: how many are in use, who waits, and to whom the next free one goes."""

from dataclasses import dataclass, field

from tidegate.admission.counters import FIRST_RETRY_MS
from tidegate.admission.fair_queue import FairQueue, Ticket
from tidegate.admission.store import CLAIM_WITHIN_MS, MOST, Grant, Seat

MOST_RETRY_MS = 60_000
# What one gap between two slots that came free says of the next.
_SMOOTHING = 0.1


@dataclass(slots=True)
class Seats:
    """Who sits has a `Ticket`, whose state says how: in the queue, on a slot, or on one that is to be claimed."""

    in_use: int = 0
    capacity: int = 0
    queue: FairQueue = field(default_factory=FairQueue)
    # Granted and not claimed yet: until when.
    _unclaimed: dict[Ticket, int] = field(default_factory=dict)
    _gap_ms: float = 0.0
    _freed_at_ms: int = 0

    def sit(self, worker: str, entry: str, seat: Seat, now_ms: int) -> Ticket | None:
        """Takes a free slot where nobody waits, else a place in the queue. None where that is full."""
        queue = self.queue
        if self.in_use < seat.capacity and not queue.length:
            return self.sit_anyway(worker, entry, seat)
        self.capacity = seat.capacity
        if len(queue) >= seat.queue_length:
            return None
        if not queue.length:
            # The pace is measured from when somebody waits.
            self._freed_at_ms = now_ms
        size, weight = max(1, min(seat.size, MOST)), max(1, min(seat.weight, MOST))
        ticket = Ticket(worker, entry, seat.flow, size, weight)
        queue.push(ticket)
        return ticket

    def sit_anyway(self, worker: str, entry: str, seat: Seat) -> Ticket:
        """Holds a slot whether there is one or not: it is in use."""
        self.capacity = seat.capacity
        self.in_use += 1
        return Ticket(worker, entry, seat.flow, seat.size, seat.weight, "held")

    def claim(self, ticket: Ticket) -> bool:
        if ticket.state not in ("granted", "held"):
            return False
        ticket.state = "held"
        self._unclaimed.pop(ticket, None)
        return True

    def leave(self, ticket: Ticket, now_ms: int, *, is_pace: bool) -> None:
        """`is_pace` where it was served to its end: that says how soon the next slot may come free."""
        state = ticket.state
        if state == "queued":
            self.queue.remove(ticket)
        elif state != "none":
            if state == "granted":
                self._unclaimed.pop(ticket, None)
            self.in_use -= 1
            if is_pace and self.queue.length:
                gap = now_ms - self._freed_at_ms
                self._gap_ms = self._gap_ms * (1 - _SMOOTHING) + gap * _SMOOTHING if self._gap_ms else gap
                self._freed_at_ms = now_ms
        ticket.state = "none"

    def grant(self, asker: str, now_ms: int) -> tuple[Grant, ...]:
        """Gives free slots to the next in the queue. The asker's own are held at once: it reads this answer."""
        grants = []
        while self.queue.length and self.in_use < self.capacity:
            ticket = self.queue.pop()
            self.in_use += 1
            ticket.state = "held" if ticket.worker == asker else "granted"
            if ticket.state == "granted":
                self._unclaimed[ticket] = now_ms + CLAIM_WITHIN_MS
            grants.append(Grant(ticket.worker, ticket.entry))
        return tuple(grants)

    def overdue(self, now_ms: int) -> list[Ticket]:
        """Slots that were granted and not claimed in time."""
        return [ticket for ticket, until in self._unclaimed.items() if until <= now_ms]

    def next_overdue_ms(self) -> int | None:
        return min(self._unclaimed.values(), default=None)

    def retry_ms(self) -> int:
        """When the queue may have been served, at the pace that was seen."""
        gap_ms = self._gap_ms or FIRST_RETRY_MS / max(1, len(self.queue))
        return int(min(MOST_RETRY_MS, max(FIRST_RETRY_MS, gap_ms * (len(self.queue) + 1))))

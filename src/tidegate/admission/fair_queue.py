"""The order in which those who wait for a slot get it: fair between flows (keys), by what their requests weigh.

Start-time fair queueing: the head of each flow's line has a start tag; the smallest is served, and its flow's next tag
is that much later as the request was heavy for the flow's weight. Of equal tags the flow that has waited longer is
served. A flow that was idle starts at the tag served last, so it neither saves up nor pays for its idleness. Who leaves
the line is not charged: only what is served is.

Source: Goyal, Vin, Cheng, "Start-time Fair Queuing", SIGCOMM 1996. Why not deficit round robin:
`docs/decisions/0007-fair-queue.md`.
"""

from collections import OrderedDict
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush

import msgspec

from tidegate.admission.store import SeatState

# So many tags more than needed are kept before they are looked through.
_SLACK = 32


class Ticket(msgspec.Struct, eq=False):
    """A request that waits, or waited. `size` and `weight` are at least 1."""

    worker: str
    entry: str
    flow: str
    size: int
    weight: int
    state: SeatState = "queued"


@dataclass(slots=True)
class _Line:
    """Those of one flow who wait. `sequence` says when the first of them came."""

    start: float
    sequence: int
    tickets: OrderedDict[tuple[str, str], Ticket] = field(default_factory=OrderedDict)


class FairQueue:
    """Tickets in fair order.

    >>> queue = FairQueue()
    >>> queue.push(Ticket("w1", "e1", flow="key-a", size=100, weight=1))
    >>> queue.pop().entry
    'e1'

    `length` is how many wait.
    """

    def __init__(self) -> None:
        self._lines: dict[str, _Line] = {}
        # The lines in order; one that left or moved on since is still there, and is passed over.
        self._order: list[tuple[float, int, str]] = []
        self._finishes: dict[str, float] = {}
        self._served = 0.0
        self._sequence = 0
        self.length = 0

    def __len__(self) -> int:
        return self.length

    def push(self, ticket: Ticket) -> None:
        self._sequence += 1
        line = self._lines.get(ticket.flow)
        if line is None:
            start = max(self._served, self._finishes.get(ticket.flow, 0.0))
            line = self._lines[ticket.flow] = _Line(start, self._sequence)
            self._put(ticket.flow, line)
        line.tickets[ticket.worker, ticket.entry] = ticket
        self.length += 1

    def pop(self) -> Ticket:
        """The next ticket. Raises `IndexError` where nobody waits."""
        while True:
            start, sequence, flow = heappop(self._order)
            line = self._lines.get(flow)
            if line is not None and line.start == start and line.sequence == sequence:
                break
        _, ticket = line.tickets.popitem(last=False)
        self._served = start
        line.start = self._finishes[flow] = start + ticket.size / ticket.weight
        if len(self._finishes) > 2 * len(self._lines) + _SLACK:
            # Who was to start before now starts now all the same.
            self._finishes = {flow: tag for flow, tag in self._finishes.items() if tag > start}
        if line.tickets:
            self._put(flow, line)
        self._left(flow, line)
        return ticket

    def remove(self, ticket: Ticket) -> None:
        line = self._lines.get(ticket.flow)
        if line is not None and line.tickets.pop((ticket.worker, ticket.entry), None) is not None:
            self._left(ticket.flow, line)

    def place(self, ticket: Ticket) -> int:
        """About how many are served up to this one: those before it in its line, and as many of each other line."""
        before = list(self._lines[ticket.flow].tickets).index((ticket.worker, ticket.entry))
        others = (len(other.tickets) for flow, other in self._lines.items() if flow != ticket.flow)
        return before + 1 + sum(min(length, before) for length in others)

    def _put(self, flow: str, line: _Line) -> None:
        heappush(self._order, (line.start, line.sequence, flow))
        if len(self._order) > 2 * len(self._lines) + _SLACK:
            self._order = [(line.start, line.sequence, flow) for flow, line in self._lines.items()]
            heapify(self._order)

    def _left(self, flow: str, line: _Line) -> None:
        self.length -= 1
        if not line.tickets:
            del self._lines[flow]
        if not self.length:
            # Nobody waits: tags are only of use between those who do.
            self._order.clear()
            self._finishes.clear()
            self._served = 0.0

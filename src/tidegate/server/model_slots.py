"""The local model's slots, counted: who holds one, who waits, and at which the model may still be at work.

Slots are granted in the fair order of every upstream's queue (`admission/fair_queue.py`). A slot is free again when its
holder left *and* the model has ended what it did for it: the model goes on for a while after a hang-up, and one more
request than it has slots would wait inside of it, where nobody can call it back.

Nothing here awaits or opens a socket.
"""

import asyncio
import heapq
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tidegate.admission.fair_queue import FairQueue, Ticket
from tidegate.admission.model_gate import Ask

_FIRST_RETRY_MS = 1000
_MOST_RETRY_MS = 60_000
# What one gap between two slots that came free says of the next.
_SMOOTHING = 0.1


class Claim:
    """One worker's wish for a slot: it waits, is granted, and is left.

    `token` is the key that calls of this claim carry; `turn` lets them pass one by one, `calls` are those that are
    there, the ones that wait for their turn included. `ticket` is its place in the queue.
    """

    def __init__(self, ask: Ask) -> None:
        self.token = secrets.token_urlsafe(32)
        self.ticket = Ticket("", self.token, ask.flow, ask.size, ask.weight)
        self.granted: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.turn = asyncio.Lock()
        self.calls = 0
        self.is_left = False
        self.hang_up: Callable[[], None] | None = None


class ModelSlots:
    """All slots of the model. It grants nothing until it is opened.

    >>> slots = ModelSlots(4)
    >>> slots.open()
    >>> claim = slots.ask(Ask("slot", queue_length=100, flow="key-a", size=900))
    >>> await claim.granted
    0
    >>> slots.leave(claim)
    """

    def __init__(self, count: int) -> None:
        self.opened = asyncio.Event()
        # The lowest first, so that a single user stays on one slot of ours and the figures are easy to read.
        self._free = list(range(count))
        self._queue = FairQueue()
        self._waiting: dict[str, Claim] = {}
        self._pace = _Pace()
        self._holders: dict[str, Claim] = {}
        self._count = count

    @property
    def in_use(self) -> int:
        """Slots that are not free: held, or left while the model was still at work."""
        return self._count - len(self._free)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def open(self) -> None:
        """The model answers: from now on slots are granted."""
        self.opened.set()
        self._grant()

    def ask(self, ask: Ask) -> Claim | None:
        """A claim in the queue, granted at once where it can be. None where it would wait and the queue is full."""
        must_wait = self._waiting or not self._free or not self.opened.is_set()
        if must_wait and len(self._waiting) >= ask.queue_length:
            return None
        if not self._waiting:
            self._pace.begin()
        claim = Claim(ask)
        self._waiting[claim.token] = claim
        self._queue.push(claim.ticket)
        self._grant()
        return claim

    def place(self, claim: Claim) -> int:
        """About how many are served up to this one: 1 is next. 0 where it does not wait."""
        return self._queue.place(claim.ticket) if claim.token in self._waiting else 0

    def retry_ms(self) -> int:
        """When the queue may have been served, at the pace that was seen."""
        return self._pace.for_queue(len(self._waiting))

    def leave(self, claim: Claim) -> None:
        """The claim's worker is done or gone, whether it waited or held. What it still has at the model is cut."""
        claim.is_left = True
        if not claim.granted.done():
            del self._waiting[claim.token]
            self._queue.remove(claim.ticket)
            return
        del self._holders[claim.token]
        if claim.hang_up is not None:
            claim.hang_up()
        else:
            self._give_back(claim)

    def holder(self, token: str) -> Claim | None:
        """Who holds a slot by this token."""
        return self._holders.get(token)

    @contextmanager
    def at_model(self, claim: Claim, hang_up: Callable[[], None]) -> Iterator[None]:
        """While the model may be at work for a claim: its slot stays taken. `hang_up` is called when it is left."""
        claim.hang_up = hang_up
        try:
            yield
        finally:
            claim.hang_up = None
            if claim.is_left:
                self._give_back(claim)

    def _give_back(self, claim: Claim) -> None:
        heapq.heappush(self._free, claim.granted.result())
        if self._waiting:
            self._pace.freed()
        self._grant()

    def _grant(self) -> None:
        while self.opened.is_set() and self._waiting and self._free:
            claim = self._waiting.pop(self._queue.pop().entry)
            self._holders[claim.token] = claim
            claim.granted.set_result(heapq.heappop(self._free))


class _Pace:
    """How soon slots come free while somebody waits."""

    def __init__(self) -> None:
        self._gap_ms = 0.0
        self._freed_at_s = 0.0

    def begin(self) -> None:
        """It is measured from when somebody waits."""
        self._freed_at_s = asyncio.get_running_loop().time()

    def freed(self) -> None:
        now_s = asyncio.get_running_loop().time()
        gap_ms = (now_s - self._freed_at_s) * 1000
        self._gap_ms = self._gap_ms * (1 - _SMOOTHING) + gap_ms * _SMOOTHING if self._gap_ms else gap_ms
        self._freed_at_s = now_s

    def for_queue(self, length: int) -> int:
        """Milliseconds until so many, and one more, may have been served."""
        return int(min(_MOST_RETRY_MS, max(_FIRST_RETRY_MS, self._gap_ms * (length + 1))))

"""The local model's slots, counted: who holds one, who waits, and at which the model may still be at work.

A slot is granted first in, first out. It is free again when its holder left *and* the model has ended what it did for
it: the model goes on for a while after a hang-up, and one more request than it has slots would wait inside of it, where
nobody can call it back.

Nothing here awaits or opens a socket.
"""

import asyncio
import heapq
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Claim:
    """One worker's wish for a slot: it waits, is granted, and is left.

    `token` is the key that calls of this claim carry; `turn` lets them pass one by one, `calls` are those that are
    there, the ones that wait for their turn included.
    """

    def __init__(self) -> None:
        self.token = secrets.token_urlsafe(32)
        self.granted: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.turn = asyncio.Lock()
        self.calls = 0
        self.is_left = False
        self.hang_up: Callable[[], None] | None = None


class ModelSlots:
    """All slots of the model. It grants nothing until it is opened.

    >>> slots = ModelSlots(4)
    >>> slots.open()
    >>> claim = slots.ask(may_wait=True)
    >>> await claim.granted
    0
    >>> slots.leave(claim)
    """

    def __init__(self, count: int) -> None:
        self.opened = asyncio.Event()
        # The lowest first, so that a single user stays on one slot of ours and the figures are easy to read.
        self._free = list(range(count))
        self._queue: dict[Claim, None] = {}
        self._holders: dict[str, Claim] = {}
        self._count = count

    @property
    def in_use(self) -> int:
        """Slots that are not free: held, or left while the model was still at work."""
        return self._count - len(self._free)

    @property
    def waiting(self) -> int:
        return len(self._queue)

    def open(self) -> None:
        """The model answers: from now on slots are granted."""
        self.opened.set()
        self._grant()

    def ask(self, *, may_wait: bool) -> Claim | None:
        """A claim at the queue's end, granted at once where it can be. None where it would wait and may not."""
        if not may_wait and (self._queue or not self._free or not self.opened.is_set()):
            return None
        claim = Claim()
        self._queue[claim] = None
        self._grant()
        return claim

    def leave(self, claim: Claim) -> None:
        """The claim's worker is done or gone, whether it waited or held. What it still has at the model is cut."""
        claim.is_left = True
        if not claim.granted.done():
            del self._queue[claim]
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
        self._grant()

    def _grant(self) -> None:
        while self.opened.is_set() and self._queue and self._free:
            claim = next(iter(self._queue))
            del self._queue[claim]
            self._holders[claim.token] = claim
            claim.granted.set_result(heapq.heappop(self._free))

"""The slots of one upstream in this process: a count, and a bounded first-in-first-out queue with a deadline.

A slot that is given back goes to the next in the queue in the same step, without an await between: none is ever lost
or granted twice, however requests are cancelled.
"""

import asyncio
import time
import uuid
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tidegate.admission.gate import Lease, no_slot_in_time, queue_is_full


class ProcessSlots:
    """Implements `Slots` in memory.

    >>> slots = ProcessSlots("openai", limit=64, queue_length=1000, queue_deadline_s=10)
    >>> async with slots.hold(entry_id, deadline_s=None) as lease: ...
    """

    def __init__(self, upstream: str, *, limit: int, queue_length: int, queue_deadline_s: float) -> None:
        self._upstream = upstream
        self._limit = limit
        self._queue_length = queue_length
        self._queue_deadline_s = queue_deadline_s
        self._in_use = 0
        self._queue: deque[asyncio.Future[None]] = deque()

    @property
    def in_use(self) -> int:
        return self._in_use

    @property
    def waiting(self) -> int:
        return len(self._queue)

    @asynccontextmanager
    async def hold(self, entry_id: uuid.UUID, *, deadline_s: float | None) -> AsyncIterator[Lease]:  # noqa: ARG002 - of the protocol
        waited_s = 0.0
        if self._in_use < self._limit and not self._queue:
            self._in_use += 1
        else:
            began = time.perf_counter()
            await self._wait(self._queue_deadline_s if deadline_s is None else deadline_s)
            waited_s = time.perf_counter() - began
        try:
            yield Lease(self._upstream, waited_s)
        finally:
            self._give_back()

    async def _wait(self, deadline_s: float) -> None:
        """Returns with a slot held."""
        if len(self._queue) >= self._queue_length:
            raise queue_is_full(self._upstream, self._queue_length)
        ticket = asyncio.get_running_loop().create_future()
        self._queue.append(ticket)
        try:
            async with asyncio.timeout(deadline_s):
                await ticket
        except BaseException as error:
            if ticket.done() and not ticket.cancelled():
                self._give_back()
            elif ticket in self._queue:
                # Not there: a slot was given back since the cancellation, and passed this ticket by.
                self._queue.remove(ticket)
            if isinstance(error, TimeoutError):
                raise no_slot_in_time(self._upstream, deadline_s) from None
            raise

    def _give_back(self) -> None:
        while self._queue:
            ticket = self._queue.popleft()
            if not ticket.done():
                ticket.set_result(None)
                return
        self._in_use -= 1

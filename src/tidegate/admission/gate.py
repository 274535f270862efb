"""The seam between a caller and an upstream: who may go on now, who waits, who is refused.

`Slots` is one upstream's concurrency. A slot is held by a `Lease` and given back in one place, by leaving the lease's
context, however the request ended. Waiting is first in, first out, bounded in length and by a deadline.
"""

import uuid
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Lease:
    """One slot of one upstream, held. `base_url` and `api_key` are set where the slot says where to call."""

    upstream: str
    waited_s: float
    base_url: str | None = None
    api_key: str | None = None


class Slots(Protocol):
    def hold(self, entry_id: uuid.UUID, *, deadline_s: float | None) -> AbstractAsyncContextManager[Lease]:
        """Waits for a slot for at most `deadline_s` (None: the queue's own deadline), holds it, gives it back at exit.

        Raises `Overloaded` where the queue is full or the deadline passed, `Unavailable` where what it guards is down.
        Cancelled while waiting, it leaves the queue at once.
        """
        ...

    @property
    def in_use(self) -> int:
        """Slots that are held now, as this process knows."""
        ...

    @property
    def waiting(self) -> int:
        """Requests that wait now, as this process knows."""
        ...

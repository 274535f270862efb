"""The seam between a caller and an upstream: who may go on now, who waits, who is refused.

`Slots` is one upstream's concurrency. A slot is held by a `Lease` and given back in one place, by leaving the lease's
context, however the request ended. Waiting is first in, first out, bounded in length and by a deadline.
"""

import uuid
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Protocol

from tidegate.errors import Overloaded


@dataclass(frozen=True, slots=True)
class Lease:
    """One slot of one upstream, held. `base_url` and `api_key` are set where the slot says where to call."""

    upstream: str
    waited_s: float
    base_url: str | None = None
    api_key: str | None = field(default=None, repr=False)


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


def queue_is_full(upstream: str, length: int) -> Overloaded:
    """The refusal of who would be one too many in an upstream's queue."""
    return _overloaded(f"The queue for the upstream {upstream!r} is full ({length} wait). Try again later.")


def no_slot_in_time(upstream: str, deadline_s: float) -> Overloaded:
    """The refusal of who waited to the deadline."""
    return _overloaded(f"No slot of the upstream {upstream!r} became free within {deadline_s:g} s.")


def _overloaded(message: str) -> Overloaded:
    return Overloaded(message, headers={"Retry-After": "1"})

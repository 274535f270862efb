"""Requests for the same answer at once: one leads and calls the upstream, the others wait for what it brings.

Invariants:
- A flight has exactly one leader, until it is over. Who leads leaves the flight in every case, by `leave`.
- A leader that leaves with nothing (it hung up, or failed) hands over to the follower that waited longest; the others
  wait on. After `MOST_HANDOVERS` of them the rest go alone, so that failures do not add up for those behind.
- A leader's end cancels nobody, and a follower's end nobody but itself. A follower that is granted the lead while it
  goes hands it on.
- Nothing is awaited but a follower's own place, under its own bound.
"""

import asyncio
from collections.abc import Hashable
from enum import Enum
from typing import Final, Generic, TypeVar

K = TypeVar("K", bound=Hashable)
A = TypeVar("A")

MOST_HANDOVERS: Final = 3


class Part(Enum):
    """What a follower is told in place of an answer."""

    LEADS = "leads"
    ALONE = "alone"


class Flight(Generic[K, A]):
    """One leader, and those who wait. `answer` is what it brought, for those who come before it has left."""

    __slots__ = ("_flights", "_handovers", "_is_over", "_key", "_waiting", "answer")

    def __init__(self, flights: "dict[K, Flight[K, A]]", key: K) -> None:
        self.answer: A | None = None
        self._flights = flights
        self._key = key
        self._waiting: dict[asyncio.Future[A | Part], None] = {}
        self._handovers = 0
        self._is_over = False

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    async def follow(self, within_s: float) -> A | Part:
        """The leader's answer, or what is to be done without one. Raises `TimeoutError`."""
        if self.answer is not None:
            return self.answer
        place: asyncio.Future[A | Part] = asyncio.get_running_loop().create_future()
        self._waiting[place] = None
        try:
            async with asyncio.timeout(within_s):
                return await place
        except BaseException:
            if place.done() and not place.cancelled() and place.result() is Part.LEADS:
                self.leave()
            raise
        finally:
            self._waiting.pop(place, None)

    def land(self, answer: A) -> None:
        """Gives the answer to all who wait, and to those who come before the leader leaves."""
        self.answer = answer
        self._tell_all(answer)

    def disperse(self) -> None:
        """Lets all who wait go alone: what is brought is for one."""
        self._end()
        self._tell_all(Part.ALONE)

    def leave(self) -> None:
        """The leader goes. Without an answer the next one leads."""
        if self._is_over:
            return
        successor = next((place for place in self._waiting if not place.done()), None)
        if self.answer is not None or successor is None or self._handovers == MOST_HANDOVERS:
            self.disperse()
            return
        self._handovers += 1
        del self._waiting[successor]
        successor.set_result(Part.LEADS)

    def _tell_all(self, told: A | Part) -> None:
        for place in self._waiting:
            if not place.done():
                place.set_result(told)
        self._waiting.clear()

    def _end(self) -> None:
        self._is_over = True
        if self._flights.get(self._key) is self:
            del self._flights[self._key]


class Flights(Generic[K, A]):
    """The flights of one process.

    >>> flight, leads = flights.board(key)
    >>> if not leads: part = await flight.follow(within_s=600)
    """

    def __init__(self) -> None:
        self._flights: dict[K, Flight[K, A]] = {}

    def __len__(self) -> int:
        return len(self._flights)

    @property
    def waiting(self) -> int:
        """How many follow just now, in all flights."""
        return sum(flight.waiting for flight in self._flights.values())

    def landed(self, key: K) -> A | None:
        """The answer of this key's flight, where it has one and its leader has not left."""
        flight = self._flights.get(key)
        return None if flight is None else flight.answer

    def board(self, key: K) -> tuple[Flight[K, A], bool]:
        """The flight of this key, and whether the caller leads it: then it must leave it."""
        flight = self._flights.get(key)
        if flight is not None:
            return flight, False
        flight = self._flights[key] = Flight(self._flights, key)
        return flight, True

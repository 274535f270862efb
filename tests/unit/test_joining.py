"""Joined requests: one leads until the flight is over, whoever goes and whenever, and nothing is left behind."""

import asyncio
import random
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.inference.joining import MOST_HANDOVERS, Flight, Flights, Part

LONG_S = 60.0


async def turns(count: int = 3) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def followers(flight: Flight[str, str], count: int, within_s: float = LONG_S) -> list["asyncio.Task[str | Part]"]:
    return [asyncio.create_task(flight.follow(within_s)) for _ in range(count)]


async def led(count: int) -> tuple[Flights[str, str], Flight[str, str], list["asyncio.Task[str | Part]"]]:
    flights: Flights[str, str] = Flights()
    flight, leads = flights.board("k")
    assert leads
    assert flights.board("k") == (flight, False)
    waiting = followers(flight, count)
    await turns()
    assert flights.waiting == count
    return flights, flight, waiting


async def test_an_answer_goes_to_all_who_wait_and_to_those_who_come_before_the_leader_leaves() -> None:
    flights, flight, waiting = await led(3)
    flight.land("answer")
    assert await asyncio.gather(*waiting) == ["answer"] * 3
    late, leads = flights.board("k")
    assert not leads
    assert await late.follow(LONG_S) == "answer"
    flight.leave()
    assert len(flights) == 0
    assert flights.board("k")[1]


async def test_who_leaves_with_nothing_hands_over_to_the_first_and_the_others_wait_on() -> None:
    flights, flight, waiting = await led(3)
    flight.leave()
    await turns()
    assert [task.done() for task in waiting] == [True, False, False]
    assert waiting[0].result() is Part.LEADS
    flight.land("second")
    assert await asyncio.gather(*waiting[1:]) == ["second"] * 2
    flight.leave()
    assert len(flights) == 0


async def test_after_so_many_handovers_the_rest_go_alone() -> None:
    flights, flight, waiting = await led(MOST_HANDOVERS + 2)
    for _ in range(MOST_HANDOVERS + 1):
        flight.leave()
    parts = await asyncio.gather(*waiting)
    assert parts == [Part.LEADS] * MOST_HANDOVERS + [Part.ALONE] * 2
    assert len(flights) == 0


async def test_a_flight_that_is_over_is_over() -> None:
    flights, flight, waiting = await led(2)
    flight.disperse()
    assert await asyncio.gather(*waiting) == [Part.ALONE] * 2
    following, leads = flights.board("k")
    assert leads
    flight.leave()
    assert flights.board("k") == (following, False)
    following.leave()
    assert len(flights) == 0


async def test_a_follower_that_is_cancelled_as_it_is_granted_the_lead_hands_it_on() -> None:
    flights, flight, waiting = await led(2)
    flight.leave()
    waiting[0].cancel()
    await turns()
    assert waiting[0].cancelled()
    assert waiting[1].result() is Part.LEADS
    flight.leave()
    assert len(flights) == 0


async def test_a_follower_that_is_already_cancelled_is_granted_nothing() -> None:
    flights, flight, waiting = await led(2)
    waiting[0].cancel()
    flight.leave()
    await turns()
    assert waiting[0].cancelled()
    assert waiting[1].result() is Part.LEADS
    flight.leave()
    assert len(flights) == 0


async def test_waiting_is_bounded_and_who_gave_up_is_granted_nothing() -> None:
    flights, flight, waiting = await led(1)
    impatient = followers(flight, 1, within_s=0)[0]
    with pytest.raises(TimeoutError):
        await impatient
    assert flights.waiting == 1
    waiting[0].cancel()
    await turns()
    assert flights.waiting == 0
    flight.leave()
    assert len(flights) == 0


@dataclass
class World:
    """Many who ask for the same, each of whom may be cancelled anywhere. At most one leads at a time, unless alone."""

    flights: Flights[str, str] = field(default_factory=Flights)
    leading: int = 0
    most_leading: int = 0
    answers: int = 0

    async def ask(self, chance: random.Random) -> str:
        flight, leads = self.flights.board("k")
        if not leads:
            part = await flight.follow(LONG_S)
            if part is Part.ALONE:
                return "alone"
            if part is not Part.LEADS:
                return part
        self.leading += 1
        self.most_leading = max(self.most_leading, self.leading)
        try:
            for _ in range(chance.randrange(4)):
                await asyncio.sleep(0)
            what = chance.random()
            if what < 0.3:
                raise ConnectionError
            if what < 0.5:
                flight.disperse()
                return "for one"
            flight.land("answer")
            for _ in range(chance.randrange(3)):
                await asyncio.sleep(0)
            return "answer"
        finally:
            self.leading -= 1
            flight.leave()


@given(st.integers(0, 2**32), st.integers(1, 30))
def test_whatever_is_cancelled_when_nobody_waits_for_nobody(seed: int, count: int) -> None:
    async def play() -> None:
        chance, world = random.Random(seed), World()
        tasks: list[asyncio.Task[str]] = []
        for _ in range(count):
            tasks.append(asyncio.create_task(world.ask(chance)))
            for _ in range(chance.randrange(3)):
                await asyncio.sleep(0)
                if chance.random() < 0.3:
                    chance.choice(tasks).cancel()
        done, pending = await asyncio.wait(tasks, timeout=10)
        assert not pending
        assert len(done) == count
        assert (len(world.flights), world.flights.waiting, world.leading) == (0, 0, 0)
        for task in done:
            assert task.cancelled() or isinstance(task.exception(), ConnectionError | None)

    asyncio.run(play())

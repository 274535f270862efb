"""What keeps a worker's holds alive, and finds what was missed."""

import asyncio
from typing import Any, cast

import pytest

from tests.support.waiting import eventually
from tests.unit.scripted_store import TAG, ScriptedStore, a_desk, a_seat, rate, slots
from tests.unit.virtual_time import in_virtual_time, now
from tidegate.admission.desk import ANSWER_WITHIN_S, Desk
from tidegate.admission.epoch import Epoch
from tidegate.admission.renewal import Renewal
from tidegate.admission.store import LEASE_MS, UNDO, Asked, Spent
from tidegate.errors import Unavailable
from tidegate.storage.pipeline import PipelinedRedis, StoreGone

SPENT = Spent(tokens=10, cost=3)


class ScriptedPipe:
    """Counts workers as it is told, within `late_s`."""

    def __init__(self, workers: int = 1) -> None:
        self.workers = workers
        self.late_s = 0.0
        self.is_connected = True

    def send(self, *command: Any) -> "asyncio.Future[Any]":
        if not self.is_connected:
            raise StoreGone("not connected")
        loop = asyncio.get_running_loop()
        answer = loop.create_future()
        count = self.workers if command[0] == "ZCARD" else 0
        loop.call_later(self.late_s, _answer, answer, count)
        return answer


def _answer(answer: "asyncio.Future[Any]", count: int) -> None:
    if not answer.done():
        answer.set_result(count)


def a_renewal(desk: Desk, pipe: ScriptedPipe) -> Renewal:
    return Renewal(desk, cast("PipelinedRedis", pipe), prefix="t")


@in_virtual_time
async def test_a_lease_is_renewed_while_something_is_held() -> None:
    shared = ScriptedStore()
    desk = a_desk(shared)
    await desk.take(TAG, Asked("e1", (slots(2),)))
    for _ in range(4):
        shared.now_ms += LEASE_MS - 1
        # Each look is due: the store's clock and ours have nothing to do with each other.
        await a_renewal(desk, ScriptedPipe()).step()
    assert await shared.used(slots(2)) == 1
    shared.now_ms += LEASE_MS
    assert await shared.used(slots(2)) == 0


@in_virtual_time
async def test_what_the_store_forgot_is_declared_anew_and_what_it_has_too_much_is_given_back() -> None:
    shared = ScriptedStore()
    desk = a_desk(shared)
    await desk.take(TAG, Asked("e1", (slots(5),), a_seat(3)))
    shared.forgets()
    await a_renewal(desk, ScriptedPipe()).step()
    assert (await shared.used(slots(5)), shared.memory.in_use(TAG)) == (1, 1)
    await shared.memory.take(TAG, "w1", Asked("nobody's", (slots(5),), a_seat(3)))
    await a_renewal(desk, ScriptedPipe()).step()
    assert (await shared.used(slots(5)), shared.memory.in_use(TAG)) == (1, 1)


@in_virtual_time
async def test_who_waits_finds_a_grant_whose_message_was_lost() -> None:
    shared = ScriptedStore()
    desk, other = a_desk(shared), a_desk(shared, worker="w2")
    await other.take(TAG, Asked("holder", (), a_seat(1)))
    await desk.take(TAG, Asked("e1", (), a_seat(1)))
    shared.desk = None
    other.release(TAG, "holder", SPENT)
    waiting = asyncio.ensure_future(desk.turn(TAG, "e1"))
    await a_renewal(desk, ScriptedPipe()).step()
    assert await waiting == "held"


@in_virtual_time
async def test_who_was_judged_alone_by_one_slow_answer_is_known_to_the_store_soon() -> None:
    shared = ScriptedStore()
    desk = a_desk(shared, workers=1)
    shared.mood = "silent"
    for n in range(2):
        assert (await desk.take(TAG, Asked(f"e{n}", (slots(9),), a_seat(1)))).said == "taken"
    shared.mood = "answers"
    assert desk.standing(TAG) == (1, 1)
    assert shared.memory.in_use(TAG) == 0
    waiting = asyncio.ensure_future(desk.turn(TAG, "e1"))
    await a_renewal(desk, ScriptedPipe()).step()
    assert await waiting == "lost", "it waits in the wrong queue"
    desk.release(TAG, "e1", UNDO)
    assert (await shared.used(slots(9)), shared.memory.in_use(TAG)) == (1, 1)


@in_virtual_time
async def test_what_the_store_refused_to_hear_is_told_though_it_was_never_away() -> None:
    shared = ScriptedStore()
    desk = a_desk(shared)
    await desk.take(TAG, Asked("e1", (slots(9),)))
    shared.mood = "gone"
    desk.release(TAG, "e1", SPENT)
    shared.mood = "answers"
    await a_renewal(desk, ScriptedPipe()).step()
    assert (await shared.used(slots(9)), desk.ended) == (0, {})


@in_virtual_time
async def test_a_store_that_is_still_slow_is_not_come_back_to() -> None:
    desk, pipe = a_desk(ScriptedStore()), ScriptedPipe()
    desk.leave("a test")
    pipe.late_s = ANSWER_WITHIN_S * 2
    with pytest.raises(TimeoutError):
        await a_renewal(desk, pipe).step()
    pipe.is_connected = False
    await a_renewal(desk, pipe).step()
    assert desk.is_away
    pipe.is_connected, pipe.late_s = True, 0
    await a_renewal(desk, pipe).step()
    assert not desk.is_away


@in_virtual_time
async def test_workers_that_a_store_forgot_are_counted_on_for_a_while() -> None:
    desk, pipe = a_desk(ScriptedStore(), workers=1), ScriptedPipe(workers=4)
    renewal = a_renewal(desk, pipe)
    await renewal.step()
    assert desk.workers == 4
    pipe.workers = 1
    await renewal.step()
    assert desk.workers == 4
    pipe.workers = 6
    await renewal.step()
    assert desk.workers == 6


@in_virtual_time
async def test_it_goes_on_whatever_the_store_does_and_looks_when_it_is_woken() -> None:
    shared = ScriptedStore()
    desk, pipe = a_desk(shared), ScriptedPipe()
    renewal = a_renewal(desk, pipe)
    running = asyncio.ensure_future(renewal.run())
    await desk.take(TAG, Asked("e1", (rate(5),)))
    shared.mood = "gone"
    await eventually(lambda: desk.is_away)
    shared.mood = "answers"
    renewal.wake()
    began = now()
    await eventually(lambda: not desk.is_away)
    assert now() - began < 0.1
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


class _NoEpoch:
    """The database is away, or refuses the log-in."""

    lives = 0

    async def look(self) -> None:
        raise Unavailable("The database cannot be used now.")


@in_virtual_time
async def test_a_worker_begins_while_the_database_is_away_and_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    desk = a_desk(ScriptedStore())
    renewal = Renewal(desk, cast("PipelinedRedis", ScriptedPipe(workers=3)), cast("Epoch", _NoEpoch()), prefix="t")
    await renewal.begin()
    await renewal.step()
    assert (desk.workers, desk.is_away) == (3, False)
    assert [record.getMessage() for record in caplog.records if "gate_epoch_unknown" in record.getMessage()]
    assert len(caplog.records) == 1

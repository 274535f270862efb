"""What a worker holds at the gate, over a shared store that is slow, gone, or loses its answers."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from tests.unit.scripted_store import TAG, ScriptedStore, a_desk, a_seat, budget, rate, seeding, slots
from tests.unit.virtual_time import in_virtual_time, now
from tidegate.admission.desk import ANSWER_WITHIN_S, FAILURES_TO_LEAVE, Desk
from tidegate.admission.patience import Patience
from tidegate.admission.store import UNDO, Asked, Check, Spent
from tidegate.errors import Unavailable

SPENT = Spent(tokens=10, cost=3)


async def until(condition: Callable[[], object]) -> None:
    while not condition():
        await asyncio.sleep(0)


async def never_answers(shared: ScriptedStore, desk: Desk, times: int = FAILURES_TO_LEAVE) -> None:
    """So many steps are not answered in time, and nothing is left of them."""
    shared.mood = "deaf"
    for n in range(times):
        await desk.take("w:other", Asked(f"slow{n}"))
        desk.release("w:other", f"slow{n}", UNDO)


async def cancelled(work: Awaitable[object], when: Callable[[], object]) -> None:
    task = asyncio.ensure_future(work)
    await until(when)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@in_virtual_time
async def test_a_take_whose_answer_is_lost_is_given_back_and_judged_alone() -> None:
    shared = ScriptedStore()
    desk = a_desk(shared)
    shared.mood = "silent"
    reply = await desk.take(TAG, Asked("e1", (slots(4), rate(10))))
    assert reply.said == "taken"
    assert now() == pytest.approx(ANSWER_WITHIN_S)
    assert await shared.entries() == 0
    assert [await shared.used(check) for check in (slots(4), rate(10))] == [0, 0]
    assert (desk.is_away, desk.judged_alone) == (False, 1)
    shared.mood = "answers"
    desk.release(TAG, "e1", SPENT)
    assert (desk.holdings, desk.ended) == ({}, {})


@in_virtual_time
async def test_money_that_was_judged_alone_by_one_slow_answer_is_told_at_its_end() -> None:
    shared = ScriptedStore()
    desk = a_desk(shared)
    await shared.memory.seed(TAG, seeding(100, 0))
    await desk.take(TAG, Asked("e1", (budget(100, 5),)))
    desk.release(TAG, "e1", SPENT)
    shared.mood = "silent"
    await desk.take(TAG, Asked("e2", (budget(100, 5),)))
    shared.mood = "answers"
    assert await shared.used(budget(100, 5)) == 3
    desk.release(TAG, "e2", SPENT)
    assert await shared.used(budget(100, 5)) == 6


@in_virtual_time
async def test_who_is_cancelled_anywhere_holds_nothing() -> None:
    shared = ScriptedStore()
    desk = a_desk(shared)
    await desk.take(TAG, Asked("holder", (), a_seat(1)))
    shared.mood = "held"
    await cancelled(desk.take(TAG, Asked("e1", (slots(5),))), lambda: shared.steps.count("take") == 2)
    shared.mood = "answers"
    await desk.take(TAG, Asked("e2", (slots(5),), a_seat(1)))
    await cancelled(desk.turn(TAG, "e2"), lambda: desk.holdings[TAG]["e2"].turn)
    desk.release(TAG, "e2", UNDO)
    await desk.take(TAG, Asked("e3", (slots(5),), a_seat(1)))
    shared.mood = "held"
    waiting = desk.turn(TAG, "e3")
    desk.release(TAG, "holder", SPENT)
    await cancelled(waiting, lambda: "claim" in shared.steps)
    desk.release(TAG, "e3", UNDO)
    shared.mood = "answers"
    await desk.take(TAG, Asked("e4", (slots(5),)))
    shared.mood = "held"
    await cancelled(desk.top_up(TAG, "e4", SPENT), lambda: "top_up" in shared.steps)
    desk.release(TAG, "e4", SPENT)
    assert await shared.entries() == 0
    assert (await shared.used(slots(5)), shared.memory.in_use(TAG)) == (0, 0)
    assert desk.holdings == {}


@in_virtual_time
async def test_three_slow_answers_leave_the_store_and_one_answer_forgives_them() -> None:
    shared = ScriptedStore()
    changes: list[bool] = []
    desk = a_desk(shared, on_change=changes.append)
    await never_answers(shared, desk, FAILURES_TO_LEAVE - 1)
    shared.mood = "answers"
    await desk.take(TAG, Asked("e1"))
    await never_answers(shared, desk, FAILURES_TO_LEAVE - 1)
    assert not desk.is_away
    await never_answers(shared, desk, 1)
    assert (desk.is_away, changes) == (True, [True])
    asked = len(shared.steps)
    began = now()
    await desk.take(TAG, Asked("e2"))
    assert (len(shared.steps), now()) == (asked, began)


@in_virtual_time
async def test_a_store_that_is_gone_is_left_at_once() -> None:
    shared = ScriptedStore()
    desk = a_desk(shared)
    shared.mood = "gone"
    assert (await desk.take(TAG, Asked("e1", (rate(10),)))).said == "taken"
    assert desk.is_away


@in_virtual_time
async def test_coming_back_declares_what_is_held_and_tells_what_ended_once() -> None:
    shared = ScriptedStore()
    desk = a_desk(shared, workers=1)
    await shared.memory.seed(TAG, seeding(1000, 0))
    both = (slots(9), budget(1000, 50))
    for entry in ("before", "ended before", "undone before"):
        await desk.take(TAG, Asked(entry, both))
    desk.leave("a test")
    for entry in ("alone", "ended alone", "undone alone"):
        await desk.take(TAG, Asked(entry, both))
    for entry in ("ended before", "ended alone"):
        desk.release(TAG, entry, SPENT)
    for entry in ("undone before", "undone alone"):
        desk.release(TAG, entry, UNDO)
    await desk.come_back()
    assert await shared.entries() == 2
    assert await shared.used(slots(9)) == 2
    assert await shared.used(budget(1000, 50)) == 2 * 50 + 2 * 3
    await desk.come_back()
    assert await shared.used(budget(1000, 50)) == 2 * 50 + 2 * 3
    for entry in ("before", "alone"):
        desk.release(TAG, entry, SPENT)
    assert await shared.used(budget(1000, 50)) == 4 * 3
    assert (await shared.entries(), desk.holdings, desk.ended) == (0, {}, {})


@in_virtual_time
async def test_a_store_that_comes_back_empty_learns_of_what_is_held() -> None:
    shared = ScriptedStore()
    desk = a_desk(shared)
    await desk.take(TAG, Asked("e1", (slots(3),), a_seat(2)))
    desk.leave("a test")
    shared.forgets()
    await desk.come_back()
    assert (await shared.used(slots(3)), shared.memory.in_use(TAG)) == (1, 1)


@in_virtual_time
async def test_what_ends_while_it_is_declared_ends_there_too() -> None:
    shared = ScriptedStore()
    desk = a_desk(shared)
    await shared.memory.seed(TAG, seeding(100, 0))
    await desk.take(TAG, Asked("e1", (budget(100, 50), slots(5))))
    desk.leave("a test")
    shared.mood = "held"
    back = asyncio.ensure_future(desk.come_back())
    await until(lambda: "declare" in shared.steps)
    desk.release(TAG, "e1", SPENT)
    shared.gate.set()
    await back
    assert await shared.entries() == 0
    assert [await shared.used(budget(100, 0)), await shared.used(slots(5))] == [3, 0]
    assert desk.ended == {}


@in_virtual_time
async def test_a_grant_that_comes_before_its_takes_own_answer_is_heard() -> None:
    shared = ScriptedStore()
    desk, other = a_desk(shared), a_desk(shared, worker="w2")
    await other.take(TAG, Asked("holder", (), a_seat(1)))
    shared.mood = "held"
    taking = asyncio.ensure_future(desk.take(TAG, Asked("e1", (), a_seat(1))))
    await until(lambda: shared.steps.count("take") == 2)
    other.release(TAG, "holder", SPENT)
    shared.mood = "answers"
    shared.gate.set()
    assert (await taking).said == "taken"
    assert await desk.turn(TAG, "e1") == "held"
    assert shared.memory.in_use(TAG) == 1


@in_virtual_time
async def test_a_claim_that_comes_too_late_loses_the_ticket() -> None:
    shared = ScriptedStore()
    desk, other = a_desk(shared), a_desk(shared, worker="w2")
    await other.take(TAG, Asked("holder", (), a_seat(1)))
    await desk.take(TAG, Asked("e1", (), a_seat(1)))
    other.release(TAG, "holder", SPENT)
    shared.now_ms += 2_001
    assert await desk.turn(TAG, "e1") == "lost"
    desk.release(TAG, "e1", UNDO)
    assert shared.memory.in_use(TAG) == 0


@in_virtual_time
async def test_who_waits_in_a_store_that_is_left_waits_here() -> None:
    shared = ScriptedStore()
    desk = a_desk(shared, workers=1)
    await desk.take(TAG, Asked("holder", (), a_seat(1)))
    await desk.take(TAG, Asked("e1", (), a_seat(1)))
    desk.leave("a test")
    assert await desk.turn(TAG, "e1") == "lost"
    desk.release(TAG, "e1", UNDO)
    assert (await desk.take(TAG, Asked("e1", (), a_seat(1)))).seat == "queued"
    # A late word of the store that was left is of the ticket that was given back.
    desk.granted("w1", TAG, "e1", "held")
    assert desk.standing(TAG) == (1, 1)
    desk.release(TAG, "holder", SPENT)
    assert await desk.turn(TAG, "e1") == "held"
    await desk.come_back()
    assert (await shared.entries(), shared.memory.in_use(TAG)) == (1, 1)
    desk.release(TAG, "e1", SPENT)
    assert (await shared.entries(), shared.memory.in_use(TAG)) == (0, 0)


@in_virtual_time
async def test_a_release_that_was_not_heard_is_told_again() -> None:
    shared = ScriptedStore()
    desk = a_desk(shared)
    await shared.memory.seed(TAG, seeding(100, 0))
    await desk.take(TAG, Asked("e1", (budget(100, 50),)))
    shared.mood = "gone"
    desk.release(TAG, "e1", SPENT)
    desk.leave("a test")
    shared.mood = "answers"
    await desk.come_back()
    assert (await shared.used(budget(100, 0)), await shared.entries(), desk.ended) == (3, 0, {})


@in_virtual_time
async def test_what_the_store_does_not_know_is_judged_by_this_workers_part() -> None:
    shared = ScriptedStore()
    desk = a_desk(shared)
    await shared.memory.seed(TAG, seeding(100, 40))
    await desk.take(TAG, Asked("e0", (budget(100, 10), slots(9))))
    desk.release(TAG, "e0", UNDO)
    shared.forgets()
    # What was known to remain was 50; of that 25 are this worker's, of which nothing comes back by itself.
    asked = (slots(9), budget(100, 10), rate(100))
    for n in range(2):
        reply = await desk.take(TAG, Asked(f"e{n}", asked), unjudged=(1,))
        assert reply.said == "taken"
        desk.release(TAG, f"e{n}", Spent(tokens=1, cost=10))
    assert await shared.used(slots(9)) == 0
    refused = await desk.take(TAG, Asked("e2", asked), unjudged=(1,))
    assert (refused.said, refused.at) == ("refused", 1)
    desk.leave("a test")
    assert (await desk.take(TAG, Asked("e3", asked))).said == "refused"
    await desk.come_back()
    desk.leave("a test")
    assert (await desk.take(TAG, Asked("e4", asked))).said == "refused"
    await desk.come_back()
    await shared.memory.seed(TAG, seeding(100, 0))
    assert await shared.used(budget(100, 0)) == 20
    # It is known again: the next absence begins with what remains then.
    await desk.take(TAG, Asked("e5", asked))
    desk.release(TAG, "e5", UNDO)
    desk.leave("a test")
    assert (await desk.take(TAG, Asked("e6", asked))).said == "taken"


@in_virtual_time
async def test_a_refusal_by_the_store_names_the_limit_and_gives_back_what_was_judged_apart() -> None:
    shared = ScriptedStore()
    desk = a_desk(shared)
    await shared.memory.seed(TAG, seeding(100, 0))
    await desk.take(TAG, Asked("e0", (budget(100, 50),)))
    desk.release(TAG, "e0", UNDO)
    shared.forgets()
    await desk.take(TAG, Asked("holder", (slots(1),)))
    asked = (budget(100, 20), slots(1), budget(100, 20, counter="other"))
    refused = await desk.take(TAG, Asked("e1", asked[:2]), unjudged=(0,))
    assert (refused.said, refused.at) == ("refused", 1)
    unseeded = await desk.take(TAG, Asked("e1", asked), unjudged=(0,))
    assert (unseeded.said, unseeded.unseeded) == ("unseeded", (2,))
    # Had either kept its part, there would be no room for this one.
    desk.release(TAG, "holder", UNDO)
    assert (await desk.take(TAG, Asked("e2", asked[:2]), unjudged=(0,))).said == "taken"


@in_virtual_time
async def test_what_nobody_knows_is_denied_and_the_modes_do_as_they_say() -> None:
    for mode, outcome in (("local", "denied"), ("deny", "denied"), ("allow", "taken")):
        shared = ScriptedStore()
        desk = a_desk(shared, mode=mode)
        desk.leave("a test")
        if outcome == "denied":
            with pytest.raises(Unavailable):
                await desk.take(TAG, Asked("e1", (budget(100, 1),)))
        else:
            assert (await desk.take(TAG, Asked("e1", (budget(100, 1),), a_seat(1)))).seat == "held"
        desk.release(TAG, "e1", SPENT)
        assert desk.holdings == {}


@in_virtual_time
async def test_of_rates_and_slots_a_worker_alone_has_its_part() -> None:
    desk = a_desk(ScriptedStore(), workers=3)
    desk.leave("a test")
    for check, part in ((rate(10), 3), (slots(7), 2), (rate(2, counter="few"), 1)):
        said = [(await desk.take(TAG, Asked(f"{check.counter}{n}", (check,)))).said for n in range(part + 1)]
        assert said == ["taken"] * part + ["refused"]


@in_virtual_time
async def test_what_was_held_before_is_of_a_workers_part() -> None:
    shared = ScriptedStore()
    desk = a_desk(shared, workers=2)
    await desk.take(TAG, Asked("e1", (slots(4),), a_seat(4)))
    desk.leave("a test")
    assert (await desk.take(TAG, Asked("e2", (slots(4),), a_seat(4)))).seat == "held"
    assert (await desk.take(TAG, Asked("e3", (), a_seat(4)))).seat == "queued"
    assert (await desk.take(TAG, Asked("e4", (slots(4),)))).said == "refused"


@in_virtual_time
async def test_a_top_up_names_its_limit_where_another_was_judged_apart() -> None:
    shared = ScriptedStore()
    desk = a_desk(shared)
    await shared.memory.seed(TAG, seeding(100, 0))
    await desk.take(TAG, Asked("e0", (budget(100, 1),)))
    desk.release(TAG, "e0", UNDO)
    shared.forgets()
    tokens = Check("tokens", "sliding", "tokens", 15, 10)
    await desk.take(TAG, Asked("e1", (budget(100, 10), tokens)), unjudged=(0,))
    refused = await desk.top_up(TAG, "e1", SPENT)
    assert refused is not None
    assert (refused.said, refused.at) == ("refused", 1)


@in_virtual_time
async def test_what_is_remembered_of_an_absence_is_bounded() -> None:
    desk = a_desk(ScriptedStore())
    desk.leave("a test")
    for n in range(100_050):
        desk.note_lost(TAG, f"e{n}", SPENT, ())
    assert len(desk.ended[TAG]) == 100_000
    assert desk.holdings == {}


@in_virtual_time
async def test_a_deadline_does_not_count_the_time_in_which_the_loop_stood_still() -> None:
    loop = asyncio.get_running_loop()
    answer = loop.create_future()

    def stands_still() -> None:
        loop._virtual.now += 10  # type: ignore[attr-defined]
        loop.call_soon(loop.call_soon, answer.set_result, "in time")

    loop.call_later(ANSWER_WITHIN_S / 2, stands_still)
    with Patience(ANSWER_WITHIN_S):
        assert await answer == "in time"
    began = now()
    with pytest.raises(TimeoutError), Patience(ANSWER_WITHIN_S):
        await loop.create_future()
    assert now() - began == pytest.approx(ANSWER_WITHIN_S)


@in_virtual_time
async def test_a_deadline_leaves_the_cancellation_of_others_to_them() -> None:
    async def waits() -> None:
        with Patience(ANSWER_WITHIN_S):
            await asyncio.get_running_loop().create_future()

    task = asyncio.ensure_future(waits())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@in_virtual_time
async def test_who_is_cancelled_in_the_moment_of_a_deadline_is_cancelled() -> None:
    deadline = Patience(ANSWER_WITHIN_S)

    async def waits() -> None:
        with deadline:
            await asyncio.get_running_loop().create_future()

    task = asyncio.ensure_future(waits())
    await asyncio.sleep(0)
    deadline._left = 1
    deadline._part_passed()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

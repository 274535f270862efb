"""The model's slots are granted in fair order, never twice, and not before the model has ended what it did."""

import asyncio

import pytest

from tests.unit.virtual_time import in_virtual_time
from tidegate.admission.model_gate import Ask
from tidegate.server.model_slots import Claim, ModelSlots


def asked(slots: ModelSlots, flow: str = "", *, weight: int = 1, size: int = 1) -> Claim:
    claim = slots.ask(Ask("slot", 1000, flow, weight, size))
    assert claim is not None
    return claim


def served(slots: ModelSlots, names: dict[Claim, str], holder: Claim) -> str:
    """Who gets the slot, one after the other, once `holder` leaves it."""
    order = ""
    while names:
        slots.leave(holder)
        (holder,) = [claim for claim in names if claim.granted.done()]
        order += names.pop(holder)
    return order


def opened(count: int) -> ModelSlots:
    slots = ModelSlots(count)
    slots.open()
    return slots


async def test_slots_are_granted_to_one_key_first_in_first_out() -> None:
    slots = opened(2)
    claims = [asked(slots) for _ in range(5)]
    assert [claim.granted.done() for claim in claims] == [True, True, False, False, False]
    assert (slots.in_use, slots.waiting) == (2, 3)
    slots.leave(claims[1])
    assert [claim.granted.done() for claim in claims] == [True, True, True, False, False]
    assert claims[2].granted.result() == claims[1].granted.result()
    slots.leave(claims[3])
    slots.leave(claims[0])
    assert claims[4].granted.done(), "who left the queue is passed over"
    slots.leave(claims[2])
    slots.leave(claims[4])
    assert (slots.in_use, slots.waiting) == (0, 0)


async def test_nothing_is_granted_before_the_model_answers() -> None:
    slots = ModelSlots(1)
    claim = asked(slots)
    assert not claim.granted.done()
    assert slots.ask(Ask("slot", 1)) is None
    slots.open()
    assert claim.granted.result() == 0


async def test_who_may_not_wait_gets_a_free_slot_or_none() -> None:
    slots = opened(1)
    first = slots.ask(Ask("slot", queue_length=0))
    assert first is not None
    assert first.granted.done()
    assert slots.ask(Ask("slot", queue_length=0)) is None
    assert slots.waiting == 0


async def test_keys_take_turns_however_many_requests_one_of_them_has() -> None:
    slots = opened(1)
    holder = asked(slots, "other")
    names = {asked(slots, flow): flow for flow in "aaaaabbc"}
    assert served(slots, names, holder) == "abcabaaa"


async def test_what_a_request_weighs_and_a_key_s_weight_say_whose_turn_it_is() -> None:
    slots = opened(1)
    holder = asked(slots, "other")
    names = {asked(slots, "a", size=300): "a" for _ in range(3)} | {asked(slots, "b", size=100): "b" for _ in range(6)}
    assert served(slots, names, holder) == "abbbabbba"
    slots = opened(1)
    holder = asked(slots, "other")
    names = {asked(slots, "a", size=300): "a" for _ in range(3)}
    names |= {asked(slots, "b", size=300, weight=3): "b" for _ in range(6)}
    assert served(slots, names, holder) == "abbbabbba"


async def test_a_place_is_known_while_one_waits() -> None:
    slots = opened(1)
    holder, first, second = asked(slots, "a"), asked(slots, "a"), asked(slots, "a")
    other = asked(slots, "b")
    assert [slots.place(claim) for claim in (holder, first, second, other)] == [0, 1, 3, 1]
    slots.leave(first)
    assert [slots.place(claim) for claim in (first, second, other)] == [0, 1, 1]


@in_virtual_time
async def test_who_is_refused_is_told_when_the_queue_may_have_been_served() -> None:
    slots = opened(1)
    assert slots.retry_ms() == 1000
    claims = [asked(slots) for _ in range(10)]
    for claim in claims[:5]:
        await asyncio.sleep(2)
        slots.leave(claim)
    # Four wait, the fifth is who asks: 2 s each.
    assert slots.retry_ms() == 10_000
    for claim in reversed(claims[5:]):
        slots.leave(claim)
    # Nobody waited since: that says nothing of the pace.
    await asyncio.sleep(3600)
    claims = [asked(slots), asked(slots)]
    await asyncio.sleep(2)
    slots.leave(claims[0])
    assert slots.retry_ms() == 2000


async def test_a_slot_stays_taken_while_the_model_works_for_one_who_left() -> None:
    slots = opened(1)
    first, second = asked(slots), asked(slots)
    cut = []
    with slots.at_model(first, lambda: cut.append("first")):
        slots.leave(first)
        assert cut == ["first"], "what it still had at the model is cut"
        assert not second.granted.done()
        assert slots.in_use == 1
    assert second.granted.done()


async def test_a_call_that_ends_while_its_claim_is_held_frees_nothing() -> None:
    slots = opened(1)
    first, second = asked(slots), asked(slots)
    with pytest.raises(OSError, match="gone"), slots.at_model(first, lambda: None):
        raise OSError("gone")
    assert not second.granted.done()
    slots.leave(first)
    assert second.granted.done()


async def test_only_the_token_of_a_holder_is_known() -> None:
    slots = opened(1)
    first, second = asked(slots), asked(slots)
    assert slots.holder(first.token) is first
    assert slots.holder(second.token) is None
    assert slots.holder("") is None
    slots.leave(first)
    assert slots.holder(first.token) is None
    assert slots.holder(second.token) is second


async def test_no_order_of_asking_and_leaving_loses_or_doubles_a_slot() -> None:
    slots = opened(3)
    present: list[Claim] = []
    for step in range(600):
        if step * 7919 % 5 < 3 or not present:
            present.append(asked(slots))
        else:
            slots.leave(present.pop(step * 104729 % len(present)))
        held = [claim.granted.result() for claim in present if claim.granted.done()]
        assert len(held) == len(set(held)) == min(3, len(present)) == slots.in_use
        assert slots.waiting == len(present) - len(held)
        await asyncio.sleep(0)

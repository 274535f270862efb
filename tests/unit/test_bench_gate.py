"""The benchmark of the gate: what it asks is taken and given back, and its arithmetic."""

import asyncio

import pytest
from benchmarks.gate import Job, Rig, Round, figures_of, told_of

from tests.support.waiting import eventually
from tidegate.admission.desk import Desk
from tidegate.ledger.entry import new_entry_id


@pytest.mark.parametrize("has_limits", [True, False])
async def test_a_request_holds_its_slot_while_it_rests_and_gives_all_back(has_limits: bool) -> None:
    desk = Desk("bench")
    rig = Rig(desk, has_limits=has_limits)
    request = asyncio.create_task(rig.request(new_entry_id(), rest_s=3600))
    await eventually(lambda: rig.slots.in_use == 1)
    # The upstream's tag, and the workspace's where it has limits.
    assert len(desk.holdings) == (2 if has_limits else 1)
    request.cancel()
    await asyncio.wait([request])
    assert (rig.slots.in_use, desk.holdings) == (0, {})
    await rig.request(new_entry_id())
    assert (rig.slots.in_use, desk.holdings) == (0, {})
    await rig.book.aclose()


async def test_without_a_redis_the_gate_is_measured_in_memory_alone() -> None:
    figures = await figures_of(Job(redis_url=None, prefix="none", rounds=3, requests=2))
    assert list(figures) == ["memory, no limits", "memory"]
    for numbers in figures.values():
        least_us, cpu_us = numbers["least_us"], numbers["cpu_us"]
        assert least_us is not None
        assert cpu_us is not None
        assert 0 < least_us <= cpu_us
    assert [numbers["bound_us"] for numbers in figures.values()] == [None, 15.0]


def test_what_the_waits_cost_alone_is_taken_off() -> None:
    at_gate = Round(own_us=[130.0, 120.0, 170.0], redis_us=[60.0, 50.0, 90.0])
    pinging = Round(own_us=[60.0, 70.0, 65.0], redis_us=[9.0])
    waiting = Round(own_us=[20.0, 10.0, 30.0], redis_us=[5.0, 6.0])
    assert told_of(at_gate, pinging, waiting) == {
        "cpu_us": 110.0,
        "least_us": 110.0,
        "pings_us": 45.0,
        "redis_cpu_us": 45.0,
    }


def test_where_every_round_was_judged_alone_there_is_no_figure() -> None:
    waiting = Round(own_us=[20.0], redis_us=[5.0])
    assert set(told_of(Round(), waiting, waiting).values()) == {None}

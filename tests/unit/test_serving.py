"""What of an upstream goes on from one catalogue to the next, and what size its slots have."""

import asyncio
import gc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pydantic import SecretStr

from tests.support.waiting import eventually
from tests.unit.virtual_time import in_virtual_time
from tidegate.admission.desk import Desk
from tidegate.admission.model_gate import ModelGate
from tidegate.admission.slots import Capacity, SlotAsk, StoreSlots
from tidegate.admission.steps import Steps
from tidegate.admission.store import Check
from tidegate.inference.serving import Serving
from tidegate.ledger.entry import new_entry_id
from tidegate.lifespan.serving import Servings
from tidegate.limits.values import Matched
from tidegate.routing.catalogue import Catalogue, CatalogueTable, build_catalogue
from tidegate.settings import Settings
from tidegate.upstream.openai import open_client


class NothingToSeed:
    async def seed(self, tag: str, matched: Matched, check: Check) -> bool:
        raise AssertionError("an upstream's slots have no budget")


def some_steps() -> Steps:
    return Steps(Desk("worker"), NothingToSeed())


def a_catalogue(*, key: str | None = None, price: str = "1", name: str = "one", **upstream: Any) -> Catalogue:
    """The model `m` at one upstream of this name."""
    table = {"provider": "openai", **({"base_url": "http://127.0.0.1:1/v1"} if "provider" not in upstream else {})}
    model = {"name": "m", "attempts": [f"{name}/m"], "price": {"input": price, "output": price}}
    written = CatalogueTable.model_validate({"upstreams": {name: {**table, **upstream}}, "models": [model]})
    return build_catalogue(written, {name: SecretStr(key)} if key else {})


@pytest.fixture
def servings(tmp_path: Path) -> Servings:
    return Servings(Settings(environment="test", data_dir=tmp_path), some_steps(), open_client())


def test_what_did_not_change_goes_on(servings: Servings) -> None:
    before = servings.of(a_catalogue(key="k"))
    after = servings.of(
        a_catalogue(key="k", price="2", max_concurrency=3, timeouts={"idle_s": 1}, forward_headers=("x-a",)),
        before=before,
    )
    assert after.catalogue is not before.catalogue
    for of in ("slots", "providers", "breakers", "learnt"):
        assert getattr(after, of)["one"] is getattr(before, of)["one"], of


@pytest.mark.parametrize(
    "changed",
    [{"base_url": "http://127.0.0.1:2/v1"}, {"key": "rotated"}, {"provider": "echo", "key": None}],
    ids=["another place", "another key", "another provider"],
)
def test_another_place_has_a_breaker_of_its_own_and_the_slots_of_its_name(
    changed: dict[str, Any], servings: Servings
) -> None:
    before = servings.of(a_catalogue(key="k"))
    after = servings.of(a_catalogue(**{"key": "k", **changed}), before=before)
    for of in ("providers", "breakers", "learnt"):
        assert getattr(after, of)["one"] is not getattr(before, of)["one"], of
    assert after.slots["one"] is before.slots["one"]


def test_a_breaker_of_other_settings_begins_anew_and_what_was_learnt_does_not(servings: Servings) -> None:
    before = servings.of(a_catalogue())
    after = servings.of(a_catalogue(breaker="off"), before=before)
    assert after.breakers["one"] is not before.breakers["one"]
    assert after.learnt["one"] is before.learnt["one"]


def test_nothing_is_resized_before_it_is_in_force(servings: Servings) -> None:
    first = a_catalogue(max_concurrency=4)
    slots = servings.of(first).slots["one"]
    assert isinstance(slots, StoreSlots)
    changed = a_catalogue(max_concurrency=2)
    kept = servings.of(changed)
    assert servings.resize(first) == []
    assert servings.resize(changed) == [slots]
    assert servings.resize(changed) == []
    assert kept.slots["one"] is slots


def test_a_name_that_comes_back_while_it_is_held_has_the_slots_that_are_held(servings: Servings) -> None:
    held = servings.of(a_catalogue())
    gone = servings.of(a_catalogue(name="two"), before=held)
    back = servings.of(a_catalogue(), before=gone)
    assert back.slots["one"] is held.slots["one"]
    assert set(servings.slots) == {"one", "two"}


def test_slots_that_nobody_holds_and_no_catalogue_names_are_forgotten(servings: Servings) -> None:
    serving: Serving | None = servings.of(a_catalogue())
    serving = servings.of(a_catalogue(name="two"), before=serving)
    gc.collect()
    assert set(servings.slots) == {"two"}


def test_the_local_models_gate_goes_on_by_its_name(servings: Servings) -> None:
    local = {"provider": "local", "name": "one"}
    before = servings.of(a_catalogue(**local))
    gate = before.slots["one"]
    assert isinstance(gate, ModelGate)
    changed = a_catalogue(**local, queue={"length": 3})
    assert servings.of(changed, before=before).slots["one"] is gate
    assert servings.resize(changed) == []
    # The name of an upstream that is no model any more.
    assert isinstance(servings.of(a_catalogue(), before=before).slots["one"], StoreSlots)


def test_what_is_learnt_by_an_older_request_is_known_to_the_newer(servings: Servings) -> None:
    before = servings.of(a_catalogue())
    after = servings.of(a_catalogue(price="2"), before=before)
    before.learnt["one"].refuses_usage_request = True
    assert not after.asks_usage(after.catalogue.upstreams["one"])
    always = servings.of(a_catalogue(usage_request="always"), before=after)
    assert always.asks_usage(always.catalogue.upstreams["one"])


async def test_what_a_store_is_told_again_is_of_the_new_size() -> None:
    """A worker declares what it holds to a store that lost its memory, the seats' number included."""
    steps = some_steps()
    slots = StoreSlots(steps, "one", Capacity(9, 100, 10))
    async with slots.hold(SlotAsk(new_entry_id()), deadline_s=None):
        assert slots.resize(Capacity(2, 50, 10))
        [holding] = steps.desk.holdings["u:one"].values()
        assert holding.asked.seat is not None
        assert (holding.asked.seat.capacity, holding.asked.seat.queue_length) == (2, 50)


async def test_an_announcement_holds_nothing_afterwards() -> None:
    slots = StoreSlots(some_steps(), "one", Capacity(2, 0, 10))
    slots.resize(Capacity(3, 0, 10))
    await slots.announce()
    assert (slots.in_use, slots.waiting) == (0, 0)
    async with slots.hold(SlotAsk(new_entry_id()), deadline_s=None):
        slots.resize(Capacity(1, 0, 10))
        await slots.announce()
        assert (slots.in_use, slots.waiting) == (1, 0)


async def test_who_lost_its_ticket_takes_another_by_the_new_size() -> None:
    steps = some_steps()
    slots = StoreSlots(steps, "one", Capacity(1, 100, 10))
    async with slots.hold(SlotAsk(new_entry_id()), deadline_s=None):

        async def comes_in() -> None:
            async with slots.hold(SlotAsk(new_entry_id()), deadline_s=None):
                pass

        waiter = asyncio.create_task(comes_in())
        await eventually(lambda: slots.waiting == 1)
        slots.resize(Capacity(2, 100, 10))
        [waiting] = [one for one in steps.desk.holdings["u:one"].values() if one.is_waiting]
        waiting.lose()
        await waiter


@given(
    steps=st.lists(
        st.one_of(
            st.tuples(st.just("size"), st.integers(1, 6)),
            st.tuples(st.just("come"), st.integers(1, 4)),
            st.tuples(st.just("leave"), st.integers(0, 9)),
            st.tuples(st.just("hang up"), st.integers(0, 9)),
        ),
        max_size=30,
    )
)
@hypothesis_settings(max_examples=60, deadline=None)
def test_whoever_comes_in_finds_fewer_inside_than_the_newest_size(steps: list[tuple[str, int]]) -> None:
    """And no slot stands empty while somebody waits."""

    async def run() -> None:
        slots, size = StoreSlots(some_steps(), "one", Capacity(3, 1000, 600)), 3
        inside: set[int] = set()
        gates: dict[int, asyncio.Event] = {}
        tasks: dict[int, asyncio.Task[None]] = {}

        async def hold(number: int) -> None:
            async with slots.hold(SlotAsk(new_entry_id(), flow="key"), deadline_s=None):
                assert len(inside) < size
                inside.add(number)
                try:
                    await gates[number].wait()
                finally:
                    inside.discard(number)

        for what, n in steps:
            if what == "size":
                size = n
                slots.resize(Capacity(n, 1000, 600))
                await slots.announce()
            elif what == "come":
                for number in range(len(tasks), len(tasks) + n):
                    gates[number] = asyncio.Event()
                    tasks[number] = asyncio.create_task(hold(number))
            elif what == "leave" and n < len(inside):
                gates[sorted(inside)[n]].set()
            elif what == "hang up" and n < len(tasks):
                tasks[n].cancel()
            for _ in range(8):
                await asyncio.sleep(0)
            assert len(inside) == slots.in_use
            assert len(inside) >= size or not slots.waiting
        for gate in gates.values():
            gate.set()
        for number, ended in zip(tasks, await asyncio.gather(*tasks.values(), return_exceptions=True), strict=True):
            assert ended is None or isinstance(ended, asyncio.CancelledError), (number, ended)
        assert (slots.in_use, slots.waiting) == (0, 0)

    in_virtual_time(run)()

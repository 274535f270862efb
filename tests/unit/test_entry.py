"""An entry is the sum of its attempts, and says how sure it is."""

import time
import uuid
from datetime import timedelta
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.ledger_entries import NOON, an_attempt
from tests.unit.samples import an_open_entry
from tidegate.ledger.entry import NO_USAGE, Attempt, Ending, Tokens, close_entry, new_entry_id

CLASSES = ["input", "cached_input", "cache_write", "cache_write_1h", "output", "reasoning"]
FIELDS = [f"{name}_tokens" for name in CLASSES]
STRENGTH = ["none", "provider", "counted", "estimated"]
counts = st.integers(0, 10**12)
costs = st.none() | st.decimals(0, 10**6, places=12)
attempts = st.builds(
    lambda fields: an_attempt(**fields),
    st.fixed_dictionaries(
        {
            **dict.fromkeys(FIELDS, counts),
            "usage_source": st.sampled_from(STRENGTH),
            "cost": costs,
            "price_version": st.sampled_from([None, "configured", "genai-prices 1"]),
        }
    ),
)
tokens = st.builds(Tokens, **dict.fromkeys(CLASSES, counts))


def an_ending(**fields: object) -> Ending:
    return Ending(**{"outcome": "completed", "status": 200, "ended_at": NOON, **fields})  # type: ignore[arg-type]


@settings(deadline=None)
@given(st.lists(attempts, max_size=4))
def test_an_entry_is_the_sum_of_its_attempts(made: list[Attempt]) -> None:
    entry = close_entry(an_open_entry(), made, an_ending())
    for name in FIELDS:
        assert getattr(entry, name) == sum(getattr(attempt, name) for attempt in made)
    assert entry.usage_source == max((a.usage_source for a in made), key=STRENGTH.index, default="none")
    priced = [attempt.cost for attempt in made if attempt.cost is not None]
    assert entry.cost == (sum(priced, Decimal(0)) if made and len(priced) == len(made) else None)
    assert entry.attempts == made
    versions = [attempt.price_version for attempt in made if attempt.price_version]
    assert entry.price_version == (versions[-1] if versions else None)


def test_zero_is_a_value() -> None:
    free = an_attempt(cost=Decimal(0), usage_source="provider", price_version="configured")
    entry = close_entry(an_open_entry(reserved_cost=Decimal(0)), [free], an_ending(queue_ms=0, ttft_ms=0))
    assert (entry.cost, entry.reserved_cost, entry.queue_ms, entry.ttft_ms) == (Decimal(0), Decimal(0), 0, 0)
    assert entry.usage_source == "provider"


def test_an_unpriced_part_leaves_no_cost_though_the_others_are_known() -> None:
    made = [an_attempt(1, cost=Decimal(1)), an_attempt(2, cost=None)]
    assert close_entry(an_open_entry(), made, an_ending()).cost is None
    assert close_entry(an_open_entry(), made[:1], an_ending()).cost == Decimal(1)


def test_an_attempt_that_reached_nothing_weakens_nothing() -> None:
    made = [an_attempt(1, usage_source=NO_USAGE.source), an_attempt(2, usage_source="provider")]
    assert close_entry(an_open_entry(), made, an_ending()).usage_source == "provider"


def test_all_that_was_known_at_the_opening_stands_in_the_entry() -> None:
    opened = an_open_entry(
        key_id=uuid.uuid4(),
        user_id=uuid.uuid4(),
        end_user="e",
        session_id="s",
        tags={"a": "b"},
        streamed=True,
        reserved_cost=Decimal("0.5"),
        client_address="::1",
        user_agent="u",
    )
    entry = close_entry(opened, [], an_ending(ended_at=NOON + timedelta(milliseconds=1499.6), upstream="up"))
    for name in type(opened).__struct_fields__:
        assert getattr(entry, name) == getattr(opened, name), name
    assert (entry.duration_ms, entry.schema, entry.units, entry.cache) == (1500, 1, {}, None)
    assert (entry.upstream, entry.status, entry.outcome) == ("up", 200, "completed")


def test_a_clock_that_was_set_back_gives_no_negative_duration() -> None:
    assert close_entry(an_open_entry(), [], an_ending(ended_at=NOON - timedelta(hours=1))).duration_ms == 0


@given(tokens, tokens)
def test_tokens_add_class_by_class(one: Tokens, two: Tokens) -> None:
    both = one + two
    for name in CLASSES:
        assert getattr(both, name) == getattr(one, name) + getattr(two, name)


def test_entry_ids_are_version_7_of_this_moment() -> None:
    before = time.time_ns() // 1_000_000
    ids = [new_entry_id() for _ in range(200)]
    after = time.time_ns() // 1_000_000
    for entry_id in ids:
        assert (entry_id.version, entry_id.variant) == (7, uuid.RFC_4122)
        assert before <= entry_id.int >> 80 <= after
    assert len(set(ids)) == len(ids)
    # All 62 random bits are drawn: each is seen both ways.
    for bit in range(62):
        assert {(entry_id.int >> bit) & 1 for entry_id in ids} == {0, 1}, bit


def test_entry_ids_sort_by_their_time() -> None:
    ids: list[uuid.UUID] = []
    while len(ids) < 20:
        began = time.time_ns()
        ids.append(new_entry_id())
        # To a quarter of a microsecond: the next is made after that.
        while time.time_ns() - began < 1000:
            pass
    assert sorted(ids) == ids
    assert sorted(map(str, ids)) == [str(entry_id) for entry_id in ids]
    fractions = {(entry_id.int >> 64) & 0xFFF for entry_id in ids}
    assert len(fractions) > 10


@pytest.mark.parametrize("outcome", ["completed", "rejected", "interrupted"])
def test_the_ending_is_taken_as_it_is_told(outcome: str) -> None:
    ending = an_ending(outcome=outcome, status=None, error_code="c", finish_reason="f")
    entry = close_entry(an_open_entry(), [], ending)
    assert (entry.outcome, entry.status, entry.error_code, entry.finish_reason) == (outcome, None, "c", "f")
    assert entry.cost is None

"""The counters of a limit: what slides never leaves more than its amount, what was counted is counted once."""

from collections.abc import Callable

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tidegate.admission.bound import Bound
from tidegate.admission.counters import (
    COUNTED_MS,
    NEVER_MS,
    NOT_SPENT,
    UNKNOWN,
    Calendar,
    Counter,
    Ending,
    InUse,
    Sliding,
)
from tidegate.admission.store import MOST, Check, Spent, countable

START_MS = 1_800_000_000_000
AMOUNT = 7


@settings(max_examples=60, deadline=None)
@given(gaps=st.lists(st.integers(0, 4_000), max_size=300), width_s=st.sampled_from([1, 60]))
def test_no_window_holds_more_than_its_amount(gaps: list[int], width_s: int) -> None:
    counter, now, admitted = Sliding(width_s), START_MS, list[int]()
    for gap in gaps:
        now += gap * width_s
        if counter.value(now) < AMOUNT:
            counter.take(1, now)
            admitted.append(now)
        else:
            # What it says of when there is room, is so; and not a bucket sooner.
            room_ms = counter.room_in_ms(now, 1)
            assert _copy(admitted, width_s, now + room_ms).value(now + room_ms) < AMOUNT
            assert _copy(admitted, width_s, now + room_ms - 1).value(now + room_ms - 1) >= AMOUNT
    for moment in admitted:
        assert sum(moment - 60_000 * width_s < other <= moment for other in admitted) <= AMOUNT


def _copy(admitted: list[int], width_s: int, now: int) -> Sliding:
    counter = Sliding(width_s)
    for moment in admitted:
        counter.take(1, moment)
    counter.value(now)
    return counter


def test_who_asks_all_the_time_gets_59_sixtieths() -> None:
    counter, admitted = Sliding(1), 0
    for now in range(START_MS, START_MS + 10 * 61_000, 100):
        if counter.value(now) < AMOUNT:
            counter.take(1, now)
            admitted += 1
    assert admitted >= 10 * AMOUNT * 61 / 60 * 59 / 60


def test_a_clock_that_goes_back_a_little_forgets_nothing_and_far_back_all() -> None:
    counter = Sliding(1)
    counter.take(3, START_MS)
    assert counter.value(START_MS - 30_000) == 3
    assert counter.value(START_MS - 3_600_000) == 0
    counter.take(2, START_MS - 3_600_000)
    assert counter.value(START_MS - 3_600_000) == 2


def test_a_clock_that_goes_back_a_little_finds_what_was_taken_then() -> None:
    counter = Sliding(1)
    assert [counter.take(n, START_MS + after_ms) for n, after_ms in ((3, 0), (4, 2_000), (2, 0))] == [3, 7, 9]
    for n, left in ((3, 6), (2, 4)):
        counter.end(n, START_MS, 0, Ending(str(n), START_MS))
        assert counter.value(START_MS) == left


def test_only_what_an_entry_has_in_its_bucket_is_given_back() -> None:
    counter = Sliding(1)
    assert [counter.take(5, START_MS), counter.take(5, START_MS)] == [5, 10]
    counter.end(5, START_MS, 0, Ending("e1", START_MS))
    assert counter.value(START_MS) == 5
    counter.end(5, START_MS, 9, Ending("e2", START_MS))
    assert counter.value(START_MS) == 9
    counter.take(100, START_MS + 1_000)
    counter.end(100, START_MS + 1_000, None, Ending("e3", START_MS + 62_000))
    assert counter.value(START_MS + 62_000) == 0


def test_an_alert_of_what_slides_is_told_once_a_window() -> None:
    counter = Sliding(1)

    def told(value: int, after_s: int) -> int:
        counter.value(START_MS + after_s * 1000)
        return counter.passed(5, value, START_MS + after_s * 1000)

    assert [told(4, 0), told(5, 0), told(9, 30), told(9, 60), told(9, 61), told(9, 121)] == [0, 100, 0, 0, 100, 0]
    # It is remembered though nothing is counted.
    assert not counter.is_idle(START_MS + 121_000)
    assert counter.is_idle(START_MS + 122_000)


def test_an_entry_is_counted_once_for_ten_minutes_at_least() -> None:
    calendar = Calendar()
    calendar.seed(0, ("seen",), 0, START_MS)
    now = START_MS // COUNTED_MS * COUNTED_MS + COUNTED_MS - 1
    for entry, told in (("seen", False), ("e1", True), ("e1", False)):
        assert (calendar.end(0, START_MS, 5, Ending(entry, START_MS)) != NOT_SPENT) == told
    assert calendar.end(0, START_MS, 5, Ending("e2", now)) == 10
    assert calendar.end(0, START_MS, 5, Ending("e2", now + COUNTED_MS)) == NOT_SPENT
    assert calendar.used == 10
    # It is not kept for ever.
    assert not calendar.has_counted("e2", now + 2 * COUNTED_MS + 1)


def test_of_what_nobody_seeded_nothing_is_taken() -> None:
    calendar = Calendar()
    assert calendar.take(5, START_MS) == UNKNOWN
    calendar.seed(3, (), 0, START_MS)
    assert calendar.take(5, START_MS) == 8


def test_what_is_reserved_never_falls_below_nothing() -> None:
    calendar, in_use = Calendar(), InUse()
    calendar.end(5, START_MS, None, Ending("e1", START_MS))
    in_use.end(5, START_MS, None, Ending("e1", START_MS))
    assert (calendar.reserved, in_use.value(START_MS)) == (0, 0)


@pytest.mark.parametrize(
    ("room", "expected"),
    [
        (lambda: Calendar(ends=START_MS // 1000 + 9).room_in_ms(START_MS, 1), 9_000),
        (lambda: Calendar().room_in_ms(START_MS, 1), NEVER_MS),
        (lambda: Sliding(1).room_in_ms(START_MS, 1), 61_000),
    ],
    ids=["a window", "no window", "more than the amount"],
)
def test_room_is_told_by_what_will_make_it(room: Callable[[], int], expected: int) -> None:
    assert room() == expected


@settings(max_examples=60, deadline=None)
@given(
    steps=st.lists(
        st.tuples(st.sampled_from([0, 400, 1_000, 9_000, 70_000, -400, -9_000, -300_000]), st.integers(0, 5)),
        max_size=60,
    )
)
def test_a_step_takes_what_its_counters_would_take_one_by_one(steps: list[tuple[int, int]]) -> None:
    def counters() -> list[Counter]:
        calendar = Calendar(ends=START_MS)
        calendar.seed(3, (), 0, START_MS)
        return [Sliding(1), Sliding(60), calendar, InUse()]

    one_by_one, together = counters(), counters()
    checks = tuple(Check(str(at), "held", "tokens", MOST, 0) for at in range(4))
    bound, now = Bound.of(object(), checks, together), START_MS
    for gap_ms, n in steps:
        now += gap_ms
        taken = [counter.take(n, now) for counter in one_by_one]
        assert bound.take((n,) * 4, now) == taken
        for counter in (*one_by_one, *together):
            counter.end(n, now, n // 2, Ending(str(now), now))
        assert [counter.value(now) for counter in together] == [counter.value(now) for counter in one_by_one]


def test_a_step_that_one_counter_refuses_leaves_the_others_as_they_were() -> None:
    known, unknown = Calendar(), Calendar()
    known.seed(3, (), 0, START_MS)
    unknown.hold_anyway(9)
    for last in (unknown, known):
        counters: list[Counter] = [Sliding(1), InUse(), last]
        checks = tuple(Check(str(at), "held", "tokens", 7, 0) for at in range(3))
        assert Bound.of(object(), checks, counters).take((5, 5, 5), START_MS) is None
        assert [counter.value(START_MS) for counter in counters] == [0, 0, 3 if last is known else 9]


@pytest.mark.parametrize("field", ["tokens", "cost", "ended_ms"])
@pytest.mark.parametrize(("said", "counted"), [(-1, 0), (0, 0), (MOST, MOST), (MOST + 1, MOST), (-(2**70), 0)])
def test_what_was_spent_is_counted_from_nothing_to_the_most_there_is(field: str, said: int, counted: int) -> None:
    spent, expected = [msgspec.structs.replace(Spent(), **{field: n}) for n in (said, counted)]
    assert countable(spent) == expected

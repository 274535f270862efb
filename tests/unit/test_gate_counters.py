"""The counters of a limit: what slides never leaves more than its amount, what was counted is counted once."""

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tidegate.admission.counters import COUNTED_MS, NEVER_MS, UNKNOWN, Calendar, Ending, InUse, Sliding

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
        assert calendar.end(0, START_MS, 5, Ending(entry, START_MS)) == told
    assert calendar.end(0, START_MS, 5, Ending("e2", now))
    assert not calendar.end(0, START_MS, 5, Ending("e2", now + COUNTED_MS))
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

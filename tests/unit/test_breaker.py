"""A breaker opens after failures in a row of time, for a while, and closes by one success."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tidegate.routing.breaker import Breaker
from tidegate.routing.catalogue import BreakerSettings


class Clock:
    """A clock that stands still until it is set."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def opened() -> tuple[Breaker, Clock]:
    clock = Clock()
    breaker = Breaker(BreakerSettings(failures=3, window_s=10, open_s=5), clock=clock)
    for _ in range(3):
        breaker.failed()
    return breaker, clock


def test_it_opens_at_its_number_of_failures_and_not_before() -> None:
    breaker = Breaker(BreakerSettings(failures=3), clock=Clock())
    for expected in (False, False, True):
        breaker.failed()
        assert breaker.is_open is expected


@pytest.mark.parametrize(("span_s", "is_open"), [(9.9, True), (10, True), (10.1, False)])
def test_only_failures_within_the_window_count(span_s: float, is_open: bool) -> None:
    clock = Clock()
    breaker = Breaker(BreakerSettings(failures=3, window_s=10), clock=clock)
    for at in (0, span_s / 2, span_s):
        clock.now = 1000 + at
        breaker.failed()
    assert breaker.is_open is is_open


def test_it_is_open_for_its_time() -> None:
    breaker, clock = opened()
    clock.now += 4.99
    assert breaker.is_open
    clock.now += 0.01
    assert not breaker.is_open


def test_a_success_closes_it_and_forgets_the_failures() -> None:
    breaker, _ = opened()
    breaker.succeeded()
    assert not breaker.is_open
    breaker.failed()
    breaker.failed()
    assert not breaker.is_open


def test_a_failure_after_its_time_opens_it_again_within_the_window() -> None:
    breaker, clock = opened()
    clock.now += 6
    breaker.failed()
    assert breaker.is_open


def test_a_failure_long_after_does_not() -> None:
    breaker, clock = opened()
    clock.now += 60
    breaker.failed()
    assert not breaker.is_open


def test_off_it_never_opens() -> None:
    breaker = Breaker(None)
    for _ in range(100):
        breaker.failed()
    assert not breaker.is_open
    breaker.succeeded()


def test_its_state_and_since_when_are_told() -> None:
    breaker, clock = opened()
    assert (breaker.state, breaker.in_state_for_s) == ("open", 0.0)
    clock.now += 3
    breaker.failed()
    # Longer open, not opened anew.
    assert (breaker.state, breaker.in_state_for_s) == ("open", 3.0)
    clock.now += 7
    # It closed by itself, five seconds after the last failure.
    assert (breaker.state, breaker.in_state_for_s) == ("closed", 2.0)
    breaker.succeeded()
    clock.now += 1
    assert (breaker.state, breaker.in_state_for_s) == ("closed", 3.0)


def test_a_success_closes_it_at_once_and_that_is_since_when() -> None:
    breaker, clock = opened()
    clock.now += 1
    breaker.succeeded()
    clock.now += 4
    assert (breaker.state, breaker.in_state_for_s) == ("closed", 4.0)


def test_one_that_never_changed_says_so() -> None:
    assert (Breaker(BreakerSettings()).state, Breaker(BreakerSettings()).in_state_for_s) == ("closed", None)
    assert (Breaker(None).state, Breaker(None).in_state_for_s) == ("off", None)


@settings(deadline=None)
@given(
    st.integers(1, 4),
    st.lists(
        st.tuples(st.sampled_from(["failed", "succeeded"]), st.sampled_from([0.0, 1.0, 3.0, 6.0, 11.0])), max_size=30
    ),
)
def test_it_is_as_a_slow_count_of_all_failures_says(failures: int, events: list[tuple[str, float]]) -> None:
    clock = Clock()
    breaker = Breaker(BreakerSettings(failures=failures, window_s=10, open_s=5), clock=clock)
    failed_at: list[float] = []
    opened_at: float | None = None
    for event, wait_s in events:
        clock.now += wait_s
        getattr(breaker, event)()
        if event == "succeeded":
            failed_at, opened_at = [], None
        else:
            failed_at.append(clock.now)
            if sum(clock.now - at <= 10 for at in failed_at) >= failures:
                opened_at = clock.now
        assert breaker.is_open == (opened_at is not None and clock.now < opened_at + 5)

"""A limit as a value: its name, and how its amounts are written and read."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.limits import a_limit
from tidegate.limits.values import MOST, Meter, exact_amount, written_amount


def test_a_label_names_scope_meter_and_window() -> None:
    assert a_limit().label == "key-requests-minute"
    assert a_limit(scope="workspace", meter="cost", window="day").label == "workspace-cost-day"
    assert a_limit(meter="concurrency", window=None).label == "key-concurrency"
    assert a_limit(scope="end_user", meter="tokens").label == "end-user-tokens-minute"


@given(st.sampled_from(["requests", "tokens", "cost", "concurrency"]), st.integers(1, MOST))
def test_an_amount_that_is_shown_is_read_as_the_same(meter: Meter, amount: int) -> None:
    assert exact_amount(meter, written_amount(meter, amount)) == amount


@pytest.mark.parametrize(
    ("meter", "written", "exact"),
    [
        ("cost", "10.00", 10_000_000_000),
        ("cost", 10, 10_000_000_000),
        ("cost", "0.000000001", 1),
        ("cost", "9000000", MOST),
        ("requests", 60, 60),
        ("requests", "60", 60),
        ("tokens", MOST, MOST),
    ],
)
def test_amounts_are_exact(meter: Meter, written: int | str, exact: int) -> None:
    assert exact_amount(meter, written) == exact


@pytest.mark.parametrize(
    ("meter", "written"),
    [
        ("cost", "0"),
        ("cost", "0.0000000001"),
        ("cost", "9000000.01"),
        ("cost", "1e3"),
        ("cost", "-1"),
        ("cost", ".5"),
        ("cost", "１"),
        ("requests", 0),
        ("requests", -1),
        ("requests", "1.5"),
        ("requests", "1.0"),
        ("tokens", MOST + 1),
        ("tokens", "9" * 5000),
        ("concurrency", "many"),
        ("concurrency", ""),
    ],
)
def test_what_is_no_amount_is_refused(meter: Meter, written: int | str) -> None:
    with pytest.raises(ValueError, match=r"^must be "):
        exact_amount(meter, written)

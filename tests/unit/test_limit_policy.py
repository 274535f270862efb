"""What policies make of the limits that a member asks for."""

from typing import Any

import pytest

from tidegate.errors import InvalidRequest
from tidegate.limits.metered import MeteredAmount
from tidegate.limits.models import KeyPolicy
from tidegate.limits.policy import apply_policy
from tidegate.limits.values import Meter, Window


def policy(meter: Meter, window: Window | None, default: int | None, most: int | None) -> KeyPolicy:
    return KeyPolicy(meter=meter, window=window, default_amount=default, most_amount=most)


def asked(meter: Meter, window: Window | None, amount: int | str) -> MeteredAmount:
    return MeteredAmount(meter=meter, window=window, amount=amount)


def granted(*arguments: Any) -> dict[tuple[Meter, Window | None], int]:
    limits = apply_policy(*arguments)
    assert len({(limit.meter, limit.window) for limit in limits}) == len(limits)
    return {(limit.meter, limit.window): limit.exact_amount for limit in limits}


def test_without_policies_a_key_gets_what_is_asked_for() -> None:
    limits = (asked("requests", "minute", 60),)
    assert apply_policy(limits, []) == limits
    assert apply_policy((), []) == ()


def test_what_was_not_asked_for_has_the_policy_s_default() -> None:
    policies = [policy("requests", "minute", 60, 100), policy("cost", "month", 10**9, None)]
    assert granted((), policies) == {("requests", "minute"): 60, ("cost", "month"): 10**9}
    assert granted([asked("requests", "minute", 5)], policies)["requests", "minute"] == 5
    assert granted([asked("requests", "hour", 5)], policies)["requests", "minute"] == 60


def test_a_bound_without_a_default_is_not_met_by_asking_for_nothing() -> None:
    assert granted((), [policy("concurrency", None, None, 4)]) == {("concurrency", None): 4}


def test_as_much_as_the_bound_is_granted_and_more_is_refused_with_the_bound() -> None:
    policies = [policy("cost", "month", None, 10_500_000_000), policy("requests", "hour", 1, 5)]
    assert (
        granted([asked("cost", "month", "10.5"), asked("requests", "hour", 5)], policies)["cost", "month"]
        == 10_500_000_000
    )
    with pytest.raises(InvalidRequest, match=r"at most 10\.5 USD a month.* and 10\.500000001 USD a month") as refused:
        apply_policy([asked("cost", "month", "10.500000001")], policies)
    assert refused.value.param == "limits"
    with pytest.raises(InvalidRequest, match=r"at most 5 requests an hour.*, and 6 requests"):
        apply_policy([asked("requests", "hour", 5), asked("requests", "hour", 6)], policies)

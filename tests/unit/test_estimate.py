"""What a request asks its limits for, where it asks for more than any number of theirs can hold."""

import pytest

from tests.unit.samples import a_plan, an_exchange
from tidegate.inference.estimate import attempt_reserve, caller_ask, reserve_cost
from tidegate.limits.values import MOST

PRICE = {"input": "1", "output": "10"}
# The bytes of the message and 16 for it are little beside these.
FEW = 1_000


@pytest.mark.parametrize("asked", [10**15, 2**63, 10**30])
@pytest.mark.parametrize("choices", [1, 128])
def test_a_huge_request_asks_for_one_more_than_any_limit_can_hold(asked: int, choices: int) -> None:
    exchange, plan = an_exchange(max_tokens=asked, n=choices), a_plan(price=PRICE)
    ask = caller_ask(exchange, plan, reserve_cost(exchange.call, plan))
    for reserve in (ask.reserve, attempt_reserve(exchange, plan, plan.attempts[0])):
        assert min(asked * choices, MOST + 1) <= reserve.tokens <= min(asked * choices + FEW, MOST + 1)
        assert reserve.cost == MOST + 1


@pytest.mark.parametrize("reserved", [2**63, 10**30])
def test_what_a_longer_answer_reserves_at_a_time_is_bounded_too(reserved: int) -> None:
    exchange, plan = an_exchange(), a_plan(price=PRICE, reserve_output_tokens=reserved)
    more = caller_ask(exchange, plan, None).more
    assert (more.tokens, more.cost) == (MOST + 1, MOST + 1)


def test_a_huge_request_to_an_unpriced_model_still_has_no_cost() -> None:
    exchange, plan = an_exchange(max_tokens=10**30), a_plan("one/nobody-knows-it")
    ask = caller_ask(exchange, plan, reserve_cost(exchange.call, plan))
    assert (ask.reserve.cost, ask.more.cost) == (None, None)
    assert attempt_reserve(exchange, plan, plan.attempts[0]).cost is None


def test_what_any_limit_can_hold_is_asked_for_as_it_is() -> None:
    exchange, plan = an_exchange(max_tokens=50), a_plan(price=PRICE)
    call = exchange.call
    ask = caller_ask(exchange, plan, reserve_cost(call, plan))
    assert ask.reserve.tokens == call.input_bytes // 3 + 16 + 50
    # USD a million tokens are so many thousand nano-USD a token.
    assert ask.reserve.cost == (call.input_bytes + 16 + 50 * 10) * 1_000

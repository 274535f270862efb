"""What a request may come to, before anybody answered it: what its limits are asked for, and its reservation.

Output is what the caller asks for (at most what the model gives) times its choices, else what the model reserves. Input
is estimated upward: for money its bytes and 16 a message, which no tokenizer passes; for rates of tokens a third of
its bytes, since the difference is given back when the answer names its usage.
"""

from decimal import Decimal

from tidegate.admission.checks import Reserve
from tidegate.admission.gate import CallerAsk
from tidegate.inference.exchange import Exchange
from tidegate.inference.wire import ChatCall
from tidegate.limits.values import MOST, nano_usd
from tidegate.routing.catalogue import PlannedAttempt
from tidegate.routing.plan import Plan

_BYTES_A_TOKEN = 3
_TOKENS_A_MESSAGE = 16


def output_tokens(call: ChatCall, plan: Plan) -> int:
    """The output that is reserved, of all choices together."""
    model, asked = plan.model, call.max_output_tokens
    if asked is None:
        return model.reserve_output_tokens * call.choices
    most = asked if model.max_output_tokens is None else min(asked, model.max_output_tokens)
    return most * call.choices


def dearest_cost(plan: Plan, *, input_tokens: int, output_tokens: int) -> Decimal | None:
    """The most that so many tokens can cost at any of a plan's attempts, None where one is unpriced. USD."""
    costs = [
        attempt.price.dearest(input_tokens=input_tokens, output_tokens=output_tokens)
        for attempt in plan.attempts
        if attempt.price is not None
    ]
    return max(costs) if costs and len(costs) == len(plan.attempts) else None


def reserve_cost(call: ChatCall, plan: Plan) -> Decimal | None:
    """The most that this request can cost, None where it is unpriced. USD."""
    most_input = call.input_bytes + _TOKENS_A_MESSAGE * call.message_count
    return dearest_cost(plan, input_tokens=most_input, output_tokens=output_tokens(call, plan))


def caller_ask(exchange: Exchange, plan: Plan, cost: Decimal | None) -> CallerAsk:
    """What the gate is asked for. `cost` is `reserve_cost`'s."""
    call, model = exchange.call, plan.model
    output = output_tokens(call, plan)
    input_tokens = call.input_bytes // _BYTES_A_TOKEN + _TOKENS_A_MESSAGE * call.message_count
    more = model.reserve_output_tokens * call.choices
    more_cost = dearest_cost(plan, input_tokens=0, output_tokens=more)
    return CallerAsk(
        entry_id=exchange.entry_id,
        principal=exchange.principal,
        attribution=exchange.attribution,
        model=plan.name,
        groups=model.groups,
        reserve=_reserve(input_tokens + output, cost),
        output_tokens=min(output, MOST + 1),
        more=_reserve(more, more_cost),
    )


def attempt_reserve(exchange: Exchange, plan: Plan, planned: PlannedAttempt) -> Reserve:
    """What one attempt may come to at its own price, for its upstream's own limits."""
    call = exchange.call
    most_input, output = call.input_bytes + _TOKENS_A_MESSAGE * call.message_count, output_tokens(call, plan)
    tokens = call.input_bytes // _BYTES_A_TOKEN + _TOKENS_A_MESSAGE * call.message_count + output
    price = planned.price
    return _reserve(tokens, None if price is None else price.dearest(input_tokens=most_input, output_tokens=output))


def _reserve(tokens: int, cost: Decimal | None) -> Reserve:
    """Past what any limit can hold it is one more than that: no limit has room for it."""
    most = MOST + 1
    return Reserve(min(tokens, most), None if cost is None else min(nano_usd(cost), most))

"""How a request's end is told: from what left the road to the ledger's words.

One mapping for entries and attempts alike. Settling is shielded from cancellation and never waits for anybody else.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal

from tidegate.errors import (
    Draining,
    InternalError,
    Overloaded,
    RequestTimeout,
    TidegateError,
    UpstreamError,
    UpstreamTimeout,
)
from tidegate.inference.client import Client, ClientGone
from tidegate.inference.exchange import Exchange
from tidegate.inference.gateway import Gateway
from tidegate.inference.wire import ChatCall
from tidegate.ledger.entry import Ending, OpenEntry, Outcome, new_entry_id, utc_now
from tidegate.ledger.reservation import Reservation
from tidegate.routing.plan import Plan

HUNG_UP_STATUS = 499


def outcome_of(error: BaseException | None, client: Client) -> Outcome:
    """The closed word for what ended a request or an attempt."""
    if error is None or client.is_complete:
        # What breaks behind the response's own end broke nothing for anybody.
        return "completed"
    match error:
        case ClientGone():
            return "client_disconnected"
        case asyncio.CancelledError():
            return "client_disconnected" if client.is_gone else "interrupted"
        case UpstreamTimeout() | RequestTimeout():
            return "timed_out"
        case UpstreamError():
            return "upstream_failed"
        case Overloaded():
            return "rejected"
        case _:
            return "interrupted"


def reserve_cost(call: ChatCall, plan: Plan) -> Decimal | None:
    """The most that this request can cost at any of its attempts, null where one is unpriced.

    Input is taken at its bytes and 16 a message, which no tokenizer passes; output as the contract has it.
    """
    model = plan.model
    asked = call.max_output_tokens
    output = model.reserve_output_tokens if asked is None else asked
    if asked is not None and model.max_output_tokens is not None:
        output = min(asked, model.max_output_tokens)
    input_tokens = call.input_bytes + 16 * call.message_count
    costs = [
        attempt.price.dearest(input_tokens=input_tokens, output_tokens=output * call.choices)
        for attempt in plan.attempts
        if attempt.price is not None
    ]
    return max(costs) if costs and len(costs) == len(plan.attempts) else None


@contextmanager
def reserved(gateway: Gateway, exchange: Exchange, plan: Plan) -> Iterator[Reservation]:
    """The ledger's open entry, and at the end its terminal one, whatever happened in between."""
    call, principal, context, client = exchange.call, exchange.principal, exchange.context, exchange.client
    opened = OpenEntry(
        entry_id=new_entry_id(),
        workspace_id=principal.workspace_id,
        key_id=principal.key_id,
        user_id=principal.user_id,
        request_id=context.request_id,
        end_user=exchange.attribution.end_user,
        session_id=exchange.attribution.session_id,
        tags=exchange.attribution.tags,
        protocol=call.protocol,
        model=plan.name,
        streamed=call.streamed,
        reserved_cost=reserve_cost(call, plan),
        client_address=context.client_address,
        user_agent=context.user_agent,
        started_at=context.received_at,
    )
    with gateway.ledger.reserve(opened) as reservation:
        client.headers.append((b"x-tidegate-entry-id", str(opened.entry_id).encode()))
        client.headers.append((b"x-tidegate-model", header_value(plan.name)))
        try:
            yield reservation
        except BaseException as error:
            context.entry = reservation.settle(_ending(error, reservation, exchange))
            if isinstance(error, TidegateError):
                error.headers.setdefault("X-Tidegate-Entry-ID", str(opened.entry_id))
            raise
        context.entry = reservation.settle(_ending(None, reservation, exchange))


def header_value(text: str) -> bytes:
    """Text as a header's value: a model's name is any string, a header's value is not."""
    return text.encode("ascii", "backslashreplace").translate(None, bytes(range(32)) + b"\x7f")


def _ending(error: BaseException | None, reservation: Reservation, exchange: Exchange) -> Ending:
    progress = exchange.progress
    outcome = outcome_of(error, exchange.client)
    status, code = exchange.client.status, None
    if outcome == "completed":
        error = None
    if isinstance(error, ClientGone):
        status = HUNG_UP_STATUS
    elif isinstance(error, TidegateError):
        status, code = status or error.http_status, error.http_code
    elif isinstance(error, asyncio.CancelledError):
        status, code = status or Draining.status, Draining.code
    elif error is not None:
        status, code = status or InternalError.status, InternalError.code
    if outcome == "rejected" and reservation.attempt_count:
        # It had a slot, and its attempt failed; that no second one was free is not how it ended.
        outcome = "upstream_failed"
    return Ending(
        outcome=outcome,
        status=status,
        error_code=code,
        finish_reason=progress.finish_reason,
        upstream=progress.upstream,
        queue_ms=None if progress.queue_s is None else round(progress.queue_s * 1000),
        ttft_ms=None if progress.ttft_s is None else round(progress.ttft_s * 1000),
        ended_at=utc_now(),
    )

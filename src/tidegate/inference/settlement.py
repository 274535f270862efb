"""How a request's end is told: from what left the road to the ledger's words.

One mapping for entries and attempts alike. Settling is shielded from cancellation and never waits for anybody else.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal

from tidegate.admission.gate import Admitted
from tidegate.admission.store import Spent
from tidegate.errors import (
    AnswerCut,
    Draining,
    InternalError,
    Overloaded,
    RateLimitExceeded,
    RequestTimeout,
    TidegateError,
    UpstreamError,
    UpstreamTimeout,
)
from tidegate.inference.client import Client, ClientGone
from tidegate.inference.exchange import Exchange
from tidegate.inference.gateway import Gateway
from tidegate.ledger.entry import Ending, Entry, OpenEntry, Outcome
from tidegate.ledger.reservation import Reservation
from tidegate.routing.plan import Plan
from tidegate.telemetry.logging import bound_entry_id

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
        case AnswerCut():
            return "interrupted"
        case Overloaded() | RateLimitExceeded():
            # The latter is an upstream's own limit.
            return "rejected"
        case _:
            return "interrupted"


@contextmanager
def reserved(
    gateway: Gateway, exchange: Exchange, plan: Plan, admitted: Admitted, reserved_cost: Decimal | None
) -> Iterator[Reservation]:
    """The ledger's open entry, and at the end its terminal one, whatever happened in between.

    What the request came to is told to `admitted`, which gives back what it took.
    """
    call, principal, context, client = exchange.call, exchange.principal, exchange.context, exchange.client
    opened = OpenEntry(
        entry_id=exchange.entry_id,
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
        reserved_cost=reserved_cost,
        client_address=context.client_address,
        user_agent=context.user_agent,
        started_at=context.received_at,
    )
    with gateway.ledger.reserve(opened) as reservation:
        bound_entry_id.set(opened.entry_id)
        client.headers.append((b"x-tidegate-entry-id", str(opened.entry_id).encode()))
        client.headers.append((b"x-tidegate-model", header_value(plan.name)))
        client.headers.extend((name.lower().encode(), value.encode()) for name, value in admitted.headers.items())
        try:
            yield reservation
        except BaseException as error:
            context.entry = reservation.settle(_ending(error, reservation, exchange))
            _came_to(admitted, context.entry)
            _observe(gateway, exchange, plan, admitted)
            if isinstance(error, TidegateError):
                for name, value in {**admitted.headers, "X-Tidegate-Entry-ID": str(opened.entry_id)}.items():
                    error.headers.setdefault(name, value)
            raise
        context.entry = reservation.settle(_ending(None, reservation, exchange))
        _came_to(admitted, context.entry)
        _observe(gateway, exchange, plan, admitted)


def header_value(text: str) -> bytes:
    """Text as a header's value: a model's name is any string, a header's value is not."""
    return text.encode("ascii", "backslashreplace").translate(None, bytes(range(32)) + b"\x7f")


def _came_to(admitted: Admitted, entry: Entry) -> None:
    if entry.cache == "hit":
        # It was served, so the request counts; of tokens and money all comes back.
        admitted.spent = Spent()
    else:
        admitted.came_to(entry)


def _observe(gateway: Gateway, exchange: Exchange, plan: Plan, admitted: Admitted) -> None:
    entry = exchange.context.entry
    if gateway.observed is not None and entry is not None:
        gateway.observed.observe(
            entry, model=plan.model.name, gaps=exchange.progress.gaps, topped_up_nano=admitted.topped_up
        )


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
        cache=progress.cache,
        units=progress.units,
        ended_at=exchange.context.now(),
    )

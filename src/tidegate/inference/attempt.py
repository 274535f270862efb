"""One attempt: the upstream's slot, the call, its answer. It ends in one place: upstream, slot, then its row.

The contexts close in that order, however the attempt ends. Before the first content a failure is an error of this
attempt alone, and the flow may try the next; what is raised here says which.
"""

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import anyio

from tidegate.admission.gate import Admitted, refuse_unpriced
from tidegate.admission.slots import Lease, SlotAsk
from tidegate.admission.store import UNDO, Spent
from tidegate.errors import UpstreamError, UpstreamRefused
from tidegate.inference.estimate import attempt_reserve
from tidegate.inference.exchange import Exchange
from tidegate.inference.gateway import Gateway
from tidegate.inference.reading import ChatReader
from tidegate.inference.refusal import is_about_usage_request, refusal_of
from tidegate.inference.settlement import outcome_of
from tidegate.inference.spans import AttemptSpan, record_wait
from tidegate.inference.wire import input_text
from tidegate.ledger.entry import NO_USAGE, Tokens, Usage
from tidegate.ledger.reservation import Reservation
from tidegate.limits.values import nano_usd
from tidegate.routing.catalogue import PlannedAttempt
from tidegate.routing.plan import Plan
from tidegate.telemetry.logging import get_logger
from tidegate.upstream.deadlines import Deadlines
from tidegate.upstream.provider import Answer, Provider, UpstreamRequest

_COUNT_WITHIN_S = 3.0
_BYTES_A_TOKEN = 4

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Way:
    """What an attempt stands on: the plan that it is of, and what the request holds for all its attempts."""

    plan: Plan
    admitted: Admitted
    reservation: Reservation


class LiveAttempt:
    """An attempt that began: what the relay needs of it, and what it learns.

    `answer` is set once the upstream answered with success. `withholds_usage`: the gateway asked for the usage chunk
    and the client did not, so it is not sent on. `key_sent` is the upstream's key, which its words must not repeat.
    `span` is None where nothing traces it.
    """

    def __init__(self, planned: PlannedAttempt, exchange: Exchange, way: Way, deadlines: Deadlines) -> None:
        self.planned = planned
        self.exchange = exchange
        self.admitted = way.admitted
        self.reservation = way.reservation
        self.deadlines = deadlines
        trace = exchange.context.trace
        self.span = None if trace is None else AttemptSpan(trace)
        reader = ChatReader if self.span is None else self.span.reader
        self.reader = reader(choices=exchange.call.choices, keep_text=planned.upstream.count == "tokenizer")
        self.withholds_usage = False
        self.is_named = False
        self.was_sent = False
        self.key_sent: str | None = None
        self.status: int | None = None
        self.request_id: str | None = None
        self.answer: Answer

    def begin(self) -> None:
        """Writes the attempt into the journal. Raises `Unavailable` where that cannot be."""
        estimate = self.exchange.call.input_bytes // _BYTES_A_TOKEN
        self.reservation.begin_attempt(self.planned, input_tokens=estimate, started_at=self.exchange.context.now())
        self.exchange.progress.upstream = self.planned.upstream.name

    def note_output(self) -> None:
        """Tells how far this stream is: the journal's next progress record, and the limits. Raises what cuts it."""
        self.reservation.output_tokens = self.reader.deltas
        self.admitted.note_output(self.reader.deltas)


@asynccontextmanager
async def open_attempt(
    gateway: Gateway, exchange: Exchange, planned: PlannedAttempt, way: Way
) -> AsyncIterator[LiveAttempt]:
    """Holds a slot, calls the upstream, and gives its successful answer. Raises `Overloaded` or `UpstreamError`."""
    upstream = planned.upstream
    live: LiveAttempt | None = None

    def spent() -> Spent:
        return UNDO if live is None else _spent(live)

    try:
        ask = _slot_ask(exchange, planned, way, spent)
        deadline_s = _sooner(exchange.remaining_s(), upstream.queue.deadline_s)
        async with _slot(exchange, ask, upstream.name, deadline_s) as lease:
            total_s = _sooner(exchange.remaining_s(), upstream.timeouts.total_s)
            is_callers = total_s < upstream.timeouts.total_s
            with Deadlines(upstream.name, total_s=total_s, is_callers=is_callers) as deadlines:
                live = LiveAttempt(planned, exchange, way, deadlines)
                live.begin()
                async with _answered(live, lease):
                    yield live
    except BaseException as error:
        if live is not None:
            await _end(gateway, live, error)
        raise
    # Behind the slot: counting may take a thread's time, and the slot is wanted.
    await _end(gateway, live, None)


@asynccontextmanager
async def _slot(exchange: Exchange, ask: SlotAsk, upstream: str, deadline_s: float) -> AsyncIterator[Lease]:
    """The upstream's slot. What was waited is told also where it was waited in vain."""
    began = time.perf_counter()
    queued_before_s = exchange.progress.queue_s or 0.0
    has_lease = False
    exchange.client.waits_for = ask
    try:
        async with exchange.serving.slots[upstream].hold(ask, deadline_s=deadline_s) as lease:
            has_lease = True
            exchange.client.waits_for = None
            exchange.progress.queue_s = queued_before_s + lease.waited_s
            if exchange.context.trace is not None:
                record_wait(exchange.context, upstream, began, lease)
            yield lease
    finally:
        exchange.client.waits_for = None
        if not has_lease:
            exchange.progress.queue_s = queued_before_s + time.perf_counter() - began
            if exchange.context.trace is not None:
                record_wait(exchange.context, upstream, began, None)


def _slot_ask(exchange: Exchange, planned: PlannedAttempt, way: Way, spent: Callable[[], Spent]) -> SlotAsk:
    principal, reservation = exchange.principal, way.reservation
    reserve = way.admitted.reserve
    limits = way.admitted.limits.upstream(planned.upstream.name, way.plan.name, way.plan.model.groups)
    if limits:
        reserve = attempt_reserve(exchange, way.plan, planned)
        if reserve.cost is None:
            refuse_unpriced(planned.model, limits)
    return SlotAsk(
        entry_id=reservation.opened.entry_id,
        n=reservation.attempt_count + 1,
        flow=(principal.key_id or principal.user_id or principal.workspace_id).hex,
        weight=principal.queue_weight,
        reserve=reserve,
        limits=limits,
        spent=spent,
    )


def _spent(live: LiveAttempt) -> Spent:
    """What an attempt came to for its upstream's own limits: by the provider's figures, else by what was received."""
    tokens = _received_usage(live).tokens
    price = live.planned.price
    return Spent(tokens.total, 0 if price is None else nano_usd(price.cost(tokens)))


@asynccontextmanager
async def _answered(live: LiveAttempt, lease: Lease) -> AsyncIterator[None]:
    """The upstream's answer, successful and open. Asks once more without `stream_options` where they were refused."""
    upstream, serving = live.planned.upstream, live.exchange.serving
    provider = serving.providers[upstream.name]
    may_ask_usage = serving.asks_usage(upstream)
    while True:
        request = _request(live, lease, provider, may_ask_usage=may_ask_usage)
        live.key_sent = request.key
        try:
            async with provider.open(request) as answer:
                live.status, live.request_id = answer.status, answer.request_id
                if answer.status == 200:
                    live.answer = answer
                    live.withholds_usage = request.asks_usage
                    # What bounded its headers bounds them no more; a stream's next phase is the relay's to say.
                    live.deadlines.relax()
                    if may_ask_usage != serving.asks_usage(upstream):
                        # Learnt only now: without the question it answers, so it was the question that it refused.
                        serving.learnt[upstream.name].refuses_usage_request = True
                        log.info("usage_request_refused", upstream=upstream.name)
                    yield
                    return
                refusal = await refusal_of(answer, upstream.name, key=request.key)
        finally:
            live.was_sent = live.was_sent or request.was_sent
        if not (request.asks_usage and upstream.usage_request == "auto" and is_about_usage_request(refusal)):
            raise refusal
        may_ask_usage = False


def _request(live: LiveAttempt, lease: Lease, provider: Provider, *, may_ask_usage: bool) -> UpstreamRequest:
    exchange, planned = live.exchange, live.planned
    call = exchange.call
    streamed = call.streamed or provider.streams_only
    asks_usage = streamed and not call.wants_usage and may_ask_usage
    headers = exchange.headers.forwarded(exchange.context.request_id, planned.upstream.forward_headers)
    if live.span is not None:
        live.span.carried_by(headers, lease, streamed=streamed)
    return UpstreamRequest(
        attempt=planned,
        lease=lease,
        path="/chat/completions",
        body=call.body_for(planned.model, ask_usage=asks_usage, stream=streamed),
        streamed=streamed,
        asks_usage=asks_usage,
        headers=headers,
        deadlines=live.deadlines,
    )


async def _end(gateway: Gateway, live: LiveAttempt, error: BaseException | None) -> None:
    """The attempt's row, and what the breaker learns."""
    client = live.exchange.client
    if isinstance(error, UpstreamError) and error.upstream_status is not None:
        live.status = error.upstream_status
    outcome = outcome_of(error, client)
    usage = _received_usage(live)
    try:
        if usage.source == "estimated":
            usage = await _counted(gateway, live, usage)
    finally:
        # Also where counting was cancelled by a server that stops: then the first estimate stands.
        row = live.reservation.end_attempt(
            outcome=outcome,
            usage=usage,
            status=live.status,
            upstream_request_id=live.request_id,
            ended_at=live.exchange.context.now(),
        )
        if live.span is not None:
            live.span.ended(live, row, error)
    breaker = live.exchange.serving.breakers[live.planned.upstream.name]
    if outcome == "completed":
        breaker.succeeded()
    elif isinstance(error, UpstreamError) and not isinstance(error, UpstreamRefused):
        # In mid-answer too: whoever comes next is better served elsewhere.
        breaker.failed()


def _received_usage(live: LiveAttempt) -> Usage:
    """The provider's own figures; else what was received, and of the input a first estimate from its bytes."""
    reader, call = live.reader, live.exchange.call
    if reader.tokens is not None:
        return Usage(reader.tokens, "provider")
    if not live.was_sent:
        return NO_USAGE
    if live.status not in (None, 200):
        return Usage(Tokens(), "counted")
    return Usage(Tokens(input=call.input_bytes // _BYTES_A_TOKEN, output=reader.deltas), "estimated")


async def _counted(gateway: Gateway, live: LiveAttempt, usage: Usage) -> Usage:
    """The estimate by a tokenizer, shielded and bounded; the one that was there where it takes too long."""
    reader, call = live.reader, live.exchange.call
    with anyio.CancelScope(shield=True), anyio.move_on_after(_COUNT_WITHIN_S):
        tokens = Tokens(input=await gateway.tokenizer.count(input_text(call)), output=reader.deltas)
        if live.planned.upstream.count == "tokenizer":
            tokens = Tokens(input=tokens.input, output=await gateway.tokenizer.count(reader.text()))
        return Usage(tokens, "estimated")
    return usage


def _sooner(remaining_s: float | None, bound_s: float) -> float:
    return bound_s if remaining_s is None else min(remaining_s, bound_s)

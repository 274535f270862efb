"""The main road: one request, from a caller to an upstream and back. Read this page first.

    principal     who calls: judged before (`auth`), a value here
    plan          the model's name → ordered attempts, with their prices         pure
                  by the catalogue in force, which this request keeps: a reload is for those that come after it
    admission     the caller's rates, budgets and slots: one atomic step a tag, or a 429
    reservation   the ledger's open entry, written before any upstream is called
    cache         where it is asked for: the answer that is kept, or that another gets just now; else on to an attempt
    attempt       the upstream's slot, the call; failover only before the first content
    relay         bytes to the client as they come; usage read on the way
    settle        upstream closed, row written, slot given back, entry terminal: by leaving the contexts, in every case

Each step is a context or a plain call; what a step opened is closed by leaving it, in reverse, shielded and bounded.
Nothing else cleans up. `outcome_of` (`settlement.py`) is the one mapping from how it ended to what the ledger says.
"""

import asyncio

from tidegate.errors import (
    AnswerCut,
    Draining,
    InternalError,
    InvalidRequest,
    Overloaded,
    RateLimitExceeded,
    RequestTimeout,
    TidegateError,
    UpstreamError,
    UpstreamRefused,
)
from tidegate.inference.attempt import Way, open_attempt
from tidegate.inference.caching import caching_of
from tidegate.inference.client import ClientGone
from tidegate.inference.estimate import caller_ask, reserve_cost
from tidegate.inference.exchange import Exchange
from tidegate.inference.gateway import Gateway
from tidegate.inference.relay import relay
from tidegate.inference.response_cache import replay
from tidegate.inference.settlement import reserved
from tidegate.routing.catalogue import PlannedAttempt
from tidegate.routing.plan import Plan, plan
from tidegate.telemetry.logging import get_logger

log = get_logger(__name__)


async def run(gateway: Gateway, exchange: Exchange) -> None:
    """Serves one request to its end. Raises `TidegateError` where nothing was sent yet, for a true status.

    An error after the response opened is told by one event. A client that hung up is told nothing.
    """
    if gateway.drain.draining:
        raise Draining("This server is leaving. Send the request again: another one takes it.")
    client = exchange.client
    exchange.serving = serving = gateway.serving
    chosen = plan(serving.catalogue, exchange.call.model, exchange.principal)
    attempts = fitting_attempts(chosen, exchange)
    exchange.caching = caching_of(exchange.headers.values, exchange.call, exchange.principal, chosen)
    keepalive_after_s = chosen.model.keepalive_after_s if exchange.call.streamed and chosen.model.keepalive else None
    cost = reserve_cost(exchange.call, chosen)
    admitted = await gateway.gate.admit(caller_ask(exchange, chosen, cost))
    try:
        with (
            admitted,
            reserved(gateway, exchange, chosen, admitted, cost) as reservation,
            client.watched(keepalive_after_s=keepalive_after_s),
        ):
            await _answer(gateway, exchange, attempts, Way(chosen, admitted, reservation))
    except ClientGone:
        return
    except TidegateError as error:
        if not client.is_open:
            raise
        await client.fail_stream(error)
    except asyncio.CancelledError:
        cut = Draining("This server is leaving; the request was cut.")
        if not client.is_open:
            # The server's cancellation ends this task either way; so its client gets a true status.
            raise cut from None
        # Told and settled: the task ends here, as it was asked to.
        await client.fail_stream(cut)
    except Exception as error:
        # An edge: whatever it was, it is ours, and it is logged where its entry is known.
        log.exception("road_failed")
        told = InternalError("The gateway failed. The error is logged with this request's id.")
        if not client.is_open:
            told.headers.update({name.decode(): value.decode() for name, value in client.headers})
            raise told from error
        await client.fail_stream(told)


def fitting_attempts(chosen: Plan, exchange: Exchange) -> list[PlannedAttempt]:
    """The plan's attempts that can take this request, those behind an open breaker last. Raises `InvalidRequest`."""
    serving = exchange.serving
    fitting = []
    refusal: InvalidRequest | None = None
    for attempt in chosen.attempts:
        try:
            serving.providers[attempt.upstream.name].check(exchange.call.body)
        except InvalidRequest as error:
            refusal = refusal or error
        else:
            fitting.append(attempt)
    if not fitting and refusal is not None:
        raise refusal
    return sorted(fitting, key=lambda attempt: serving.breakers[attempt.upstream.name].is_open)


async def _answer(gateway: Gateway, exchange: Exchange, attempts: list[PlannedAttempt], way: Way) -> None:
    if exchange.caching is None:
        await _try_in_order(gateway, exchange, attempts, way)
        return
    async with gateway.cache.turn(exchange, exchange.caching) as kept:
        if kept is not None:
            await replay(kept, exchange)
        else:
            await _try_in_order(gateway, exchange, attempts, way)


async def _try_in_order(gateway: Gateway, exchange: Exchange, attempts: list[PlannedAttempt], way: Way) -> None:
    for attempt in attempts:
        if exchange.remaining_s() == 0:
            raise RequestTimeout("The deadline that X-Tidegate-Deadline-Ms set has passed.")
        try:
            async with open_attempt(gateway, exchange, attempt, way) as live:
                await relay(live, exchange)
        except (UpstreamRefused, AnswerCut):
            raise
        except (UpstreamError, Overloaded, RateLimitExceeded) as failure:
            if exchange.client.has_content or attempt is attempts[-1]:
                raise
            log.warning("failover", upstream=attempt.upstream.name, reason=failure.message)
        else:
            return

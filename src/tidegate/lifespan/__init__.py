"""What a process opens and closes, in one order, as state for the routes.

Opened from below: database, Redis, ledger, upstreams, road; closed in reverse. That the process is leaving is known
first of all: new requests are refused before anything is closed.
"""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from fastapi import FastAPI

from tidegate.accounts.single_sign_on.opening import open_provider
from tidegate.admission.call_rate import CallRate
from tidegate.auth.authenticator import Authenticator
from tidegate.auth.keyring import Keyrings
from tidegate.auth.passwords import Passwords
from tidegate.lifespan.facts import Facts
from tidegate.lifespan.health import health_board
from tidegate.lifespan.road import open_road
from tidegate.lifespan.served import Served
from tidegate.lifespan.sight import open_sight
from tidegate.lifespan.stores import Stores, open_stores
from tidegate.lifespan.surroundings import NeverLeaving, Surroundings
from tidegate.mail.opening import open_post
from tidegate.settings import Settings
from tidegate.telemetry.loop_lag import LoopLag
from tidegate.telemetry.tracing import STATE_KEY as TRACER
from tidegate.telemetry.tracing_export import open_tracing

__all__ = ["NeverLeaving", "Surroundings", "open_process"]


@asynccontextmanager
async def open_process(settings: Settings, surroundings: Surroundings, app: FastAPI) -> AsyncIterator[dict[str, Any]]:
    """The state of the routes of `app`: `request.state`'s attributes are these keys."""
    keyrings = Keyrings.load(settings)
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    async with AsyncExitStack() as stack:
        drain = stack.enter_context(surroundings.leaving())
        # Closed behind all that ends requests.
        tracing = await stack.enter_async_context(open_tracing(settings.tracing))
        stores = await stack.enter_async_context(open_stores(settings, surroundings))
        authenticator = _authenticator(settings, stores, keyrings)
        stack.push_async_callback(authenticator.aclose)
        post = await stack.enter_async_context(open_post(settings))
        road = await stack.enter_async_context(open_road(settings, surroundings, stores, drain))
        lag = LoopLag()
        health = health_board(settings, stores, road, lag)
        stack.push_async_callback(health.aclose)
        state = {
            "settings": settings,
            "database": stores.database,
            "redis": stores.redis,
            "changes": stores.changes,
            "read_through": stores.read_through,
            "limits_changed": road.limits_changed,
            "admission": road.admission,
            "call_rate": CallRate(road.admission.desk, settings.limits.api_per_minute),
            "keyrings": keyrings,
            "authenticator": authenticator,
            "post": post,
            "single_sign_on": await stack.enter_async_context(open_provider(settings, keyrings.jwt, road.client)),
            "ledger": road.ledger,
            "gateway": road.gateway,
            "health": health,
            **await stack.enter_async_context(open_sight(settings, stores, road, health, lag, tracing=tracing)),
            "loop_lag": lag,
            TRACER: None if tracing is None else tracing.tracer,
        }
        # From here on it serves: what a start or an end computes holds nobody up.
        stack.enter_context(lag.watching(stall_s=settings.server.stall_log_s))
        health.state = "ready"
        facts = Facts(settings, app, stores, road, authenticator, keyrings, lag)
        served = Served(settings, road, health, facts)
        # Left first of all: a process that closes is not asked any more.
        await stack.enter_async_context(surroundings.supervisor.attached(served))
        yield state


def _authenticator(settings: Settings, stores: Stores, keyrings: Keyrings) -> Authenticator:
    return Authenticator(
        stores.database,
        keyrings,
        access_token_minutes=settings.auth.access_token_minutes,
        jwt_algorithm=settings.auth.jwt_algorithm,
        second_factor=settings.auth.second_factor,
        passwords=Passwords.of(settings),
        changes=stores.changes,
    )

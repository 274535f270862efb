"""What a process opens and closes, in one order, as state for the routes.

Opened from below: database, Redis, ledger, upstreams, road; closed in reverse. That the process is leaving is known
first of all: new requests are refused before anything is closed.
"""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from tidegate.accounts.single_sign_on.opening import open_provider
from tidegate.auth.authenticator import Authenticator
from tidegate.auth.keyring import Keyrings
from tidegate.lifespan.health import health_board
from tidegate.lifespan.road import open_road
from tidegate.lifespan.stores import Stores, open_stores
from tidegate.lifespan.surroundings import NeverLeaving, Surroundings
from tidegate.mail.opening import open_post
from tidegate.settings import Settings

__all__ = ["NeverLeaving", "Surroundings", "open_process"]


@asynccontextmanager
async def open_process(settings: Settings, surroundings: Surroundings) -> AsyncIterator[dict[str, Any]]:
    """The state of the routes: `request.state`'s attributes are these keys."""
    keyrings = Keyrings.load(settings)
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    async with AsyncExitStack() as stack:
        drain = stack.enter_context(surroundings.leaving())
        stores = await stack.enter_async_context(open_stores(settings, surroundings))
        authenticator = _authenticator(settings, stores, keyrings)
        stack.push_async_callback(authenticator.aclose)
        post = await stack.enter_async_context(open_post(settings))
        road = await stack.enter_async_context(open_road(settings, surroundings, stores, drain))
        health = health_board(settings, stores, road)
        stack.push_async_callback(health.aclose)
        health.state = "ready"
        yield {
            "settings": settings,
            "database": stores.database,
            "redis": stores.redis,
            "changes": stores.changes,
            "read_through": stores.read_through,
            "limits_changed": road.limits_changed,
            "admission": road.admission,
            "keyrings": keyrings,
            "authenticator": authenticator,
            "post": post,
            "single_sign_on": await stack.enter_async_context(open_provider(settings, keyrings.jwt, road.client)),
            "ledger": road.ledger,
            "gateway": road.gateway,
            "health": health,
        }


def _authenticator(settings: Settings, stores: Stores, keyrings: Keyrings) -> Authenticator:
    return Authenticator(
        stores.database,
        keyrings,
        access_token_minutes=settings.auth.access_token_minutes,
        jwt_algorithm=settings.auth.jwt_algorithm,
        changes=stores.changes,
    )

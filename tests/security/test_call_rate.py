"""Every route of the app that asks who calls is counted for them, and says so in its answers; the others do not.

The routes are those that the app lists: one that is added is tried without anybody's doing.
"""

from typing import Final

from fastapi.routing import iter_route_contexts

from tests.security.attacked import Attacked
from tests.security.routes import PUBLIC, Route, callers_routes, routes
from tidegate.accounts.dependencies import Sensitive
from tidegate.app import create_app
from tidegate.http.road import RoadRoute
from tidegate.settings import Settings

FIELDS: Final = ("ratelimit", "ratelimit-policy", "x-ratelimit-limit-requests", "x-ratelimit-remaining-requests")
# They ask who calls where a credential is shown, and let them see more.
ASK_IF_SHOWN: Final = ("/health", "/metrics")


def of_the_road() -> set[str]:
    """The paths whose callers meet the limits that are rows."""
    contexts = iter_route_contexts(create_app(Settings(environment="test")).routes)
    return {context.path or "" for context in contexts if isinstance(context.original_route, RoadRoute)}


def counted_routes() -> list[Route]:
    road = of_the_road()
    return [route for route in callers_routes() if route.path not in road]


async def test_every_route_with_a_caller_counts_them_and_tells_what_remains(attacked: Attacked) -> None:
    assert len(counted_routes()) > 35
    # A key that may do nothing here is told as well as who may do all.
    for by, label in (("admin", "user-calls"), ("caller", "key-calls")):
        for route in counted_routes():
            body = {"json": {"unheard": "of"}} if route.body is not None else {}
            answer = await attacked.call(route.method, route.url(), by=by, **body)
            assert answer.status_code not in (401, 429), f"{route}: {answer.text}"
            assert not [name for name in FIELDS if name not in answer.headers], f"{route} ({answer.status_code})"
            assert f'"{label}";q=' in answer.headers["ratelimit-policy"], route
            limit, left = [int(answer.headers[f"x-ratelimit-{name}-requests"]) for name in ("limit", "remaining")]
            assert 0 < left < limit, route
            if str(route) == "POST /auth/logout/everywhere":
                # Their own token ended with it.
                attacked.credentials["admin"] = (await attacked.begin("admin")).access_token


async def test_no_route_without_a_caller_has_them_but_for_tries_of_its_own(attacked: Attacked) -> None:
    for route in routes():
        is_counted_otherwise = any(isinstance(call, Sensitive) for call in route.calls) or route.path in ASK_IF_SHOWN
        # The docs are of development alone: to build them at the first call is no fault.
        if route.is_public and not is_counted_otherwise and PUBLIC.get(route.path) != "not in production":
            answer = await attacked.call(route.method, route.url(), by="admin")
            assert not [name for name in FIELDS if name in answer.headers], route

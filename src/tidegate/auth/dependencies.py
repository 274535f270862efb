"""Who calls a route, as dependencies. Authorisation hangs on the route object: here is what a route names.

    @router.get("/api/things", dependencies=[Depends(RequireScope("manage"))])
    async def list_things(caller: Caller) -> list[Thing]: ...

A raw ASGI route calls `await get_caller(request)` itself. Whoever lists the routes of an app finds each route's
`RequireScope` in its dependant, so nothing is ever decided by a path string.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Final, TypeVar

from fastapi import Depends
from starlette.requests import Request

from tidegate.admission.call_rate import CallRate
from tidegate.auth.authenticator import Authenticator
from tidegate.auth.page_session import access_cookie
from tidegate.auth.principal import Principal, Scope
from tidegate.auth.tokens import AccessTokens
from tidegate.errors import MissingCredentials, PermissionDenied
from tidegate.http.context import SCOPE_KEY, RequestContext

Endpoint = TypeVar("Endpoint", bound=Callable[..., Any])

_OPEN: Final = "is_open_without_second_factor"


def open_without_second_factor(endpoint: Endpoint) -> Endpoint:
    """Opens an endpoint to callers who owe a second factor: every other is closed to them."""
    setattr(endpoint, _OPEN, True)
    return endpoint


async def get_caller(request: Request) -> Principal:
    """The principal behind the request's credentials, which the access line names from here on.

    Where no header holds a credential it may be the page's cookie: see `page_session`. Each call counts in the caller's
    rate, whose headers the answer gets, but for the road's routes: those meet the limits that are rows. So a route that
    asks who calls has the rate, without naming it. Raises `AuthenticationError`, `PermissionDenied` where a key may not
    be used from this address, a cookie not by this request, or a second factor is owed, `RateLimitExceeded`, or
    `Unavailable` where the database is needed and does not answer.
    """
    authenticator: Authenticator = request.state.authenticator
    context: RequestContext | None = request.scope.get(SCOPE_KEY)
    address = None if context is None else context.client_address
    try:
        principal = await authenticator.authenticate(request.scope["headers"], address)
    except MissingCredentials:
        token = access_cookie(request)
        if token is None:
            raise
        principal = await authenticator.authenticate([(b"authorization", b"Bearer " + token)], address)
    if context is not None:
        context.workspace_id = principal.workspace_id
        context.key_prefix = principal.key_prefix
        context.user_id = principal.user_id if principal.key_id is None else None
        if context.is_on_road:
            return _allowed(principal, request)
    rate: CallRate | None = getattr(request.state, "call_rate", None)
    if rate is not None:
        told = await rate.count(principal)
        if context is not None:
            context.rate_headers = [(name.lower().encode(), value.encode()) for name, value in told.items()]
    return _allowed(principal, request)


def _allowed(principal: Principal, request: Request) -> Principal:
    if principal.owes_second_factor and not getattr(request.scope.get("endpoint"), _OPEN, False):
        raise PermissionDenied(
            "Your account needs a second factor, and nothing else is open to this sign-in before it has one: set it up "
            "on the page /sign-in, or by POST /auth/second-factor."
        )
    return principal


Caller = Annotated[Principal, Depends(get_caller)]


def get_access_tokens(request: Request) -> AccessTokens:
    authenticator: Authenticator = request.state.authenticator
    return authenticator.tokens


AccessTokensDep = Annotated[AccessTokens, Depends(get_access_tokens)]


async def get_user_caller(caller: Caller) -> Principal:
    """A signed-in user: the caller has an access token. Raises `PermissionDenied` for an API key."""
    if caller.key_id is not None:
        raise PermissionDenied("This route takes the access token of a signed-in user, not an API key: sign in first.")
    return caller


UserCaller = Annotated[Principal, Depends(get_user_caller)]


@dataclass(frozen=True, slots=True)
class RequireScope:
    """A dependency that lets through callers with `scope` alone, and gives the principal back.

    Raises `PermissionDenied`, naming the scope that is missing.
    """

    scope: Scope

    async def __call__(self, caller: Caller) -> Principal:
        if self.scope not in caller.scopes:
            what = "API key" if caller.key_id is not None else "account"
            raise PermissionDenied(f"This {what} lacks the scope {self.scope!r}, which this route needs.")
        return caller

"""Routes that answer on the management port alone, where there is one.

The decision hangs on the router that holds the routes: asked whether it matches, it looks at the port of the socket
that the connection came by, which the server writes into `scope["server"]`. No header and no path has a say, so a proxy
in front changes nothing. Elsewhere the router matches nothing at all: not even a wrong method or a body tells that
there is a route.
"""

from collections.abc import Iterable

from fastapi import APIRouter
from starlette.routing import BaseRoute, Match
from starlette.types import Scope


class ManagementRouter(APIRouter):
    """A router of routers, for one port; for every port where `port` is None.

    >>> management = ManagementRouter(settings.server.management_port)
    >>> management.include_router(keys.router)
    >>> app.include_router(management)
    """

    def __init__(self, port: int | None) -> None:
        super().__init__()
        self._port = port

    def take(self, routes: Iterable[BaseRoute]) -> None:
        """Holds routes that were made elsewhere, such as FastAPI's own of its docs."""
        self.routes.extend(routes)
        self._mark_routes_changed()

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        return super().matches(scope) if is_open_to(scope, self._port) else (Match.NONE, {})


def is_open_to(scope: Scope, port: int | None) -> bool:
    """Whether management on this port, None for every port, answers who came by this connection."""
    if port is None:
        return True
    server = scope.get("server")
    return server is not None and server[1] == port

"""The application: edge, error handlers, routers. Made by a call, never at import."""

from contextlib import AbstractAsyncContextManager
from typing import Any

from fastapi import FastAPI
from starlette.types import ASGIApp

import tidegate.accounts.api_keys.endpoints
import tidegate.accounts.endpoints
import tidegate.accounts.mailed.endpoints
import tidegate.accounts.second_factor.endpoints
import tidegate.accounts.sign_ins.endpoints
import tidegate.accounts.single_sign_on.endpoints
import tidegate.accounts.users.endpoints
import tidegate.audit.endpoints
import tidegate.auth.endpoints
import tidegate.dashboard.endpoints
import tidegate.http.docs
import tidegate.http.openapi
import tidegate.inference.endpoints
import tidegate.ledger.endpoints
import tidegate.limits.endpoints
import tidegate.telemetry.endpoints
import tidegate.telemetry.metrics.endpoints
from tidegate import __version__
from tidegate.http.errors import install_error_handlers
from tidegate.http.json_bodies import JsonBodies
from tidegate.http.management import ManagementRouter
from tidegate.http.middleware import with_edge
from tidegate.http.road import RoadDispatch
from tidegate.lifespan import Surroundings, open_process
from tidegate.settings import Settings


class Tidegate(FastAPI):
    """FastAPI with our edge outside its whole stack, so that no answer leaves without a request id."""

    def __init__(self, settings: Settings, **options: Any) -> None:
        super().__init__(**options)
        self._settings = settings

    def build_middleware_stack(self) -> ASGIApp:
        # The road reads its bodies by itself.
        return with_edge(RoadDispatch(JsonBodies(super().build_middleware_stack()), self), self._settings)

    def openapi(self) -> dict[str, Any]:
        known = self.openapi_schema
        document = super().openapi()
        if document is not known:
            tidegate.inference.endpoints.add_schemas(document)
            tidegate.http.openapi.complete(document, self.routes)
        return document


def create_app(settings: Settings, surroundings: Surroundings | None = None) -> Tidegate:
    """One process's application. `surroundings` is what its server knows and the settings do not."""

    def lifespan(served: FastAPI) -> AbstractAsyncContextManager[dict[str, Any]]:
        return open_process(settings, surroundings or Surroundings(), served)

    shows_docs = not settings.in_production
    app = Tidegate(
        settings,
        title="Tidegate",
        version=__version__,
        lifespan=lifespan,
        # With a policy of their own, below.
        docs_url=None,
        redoc_url=None,
        openapi_url="/openapi.json" if shows_docs else None,
        # A redirect would be built from whatever Host the caller wrote.
        redirect_slashes=False,
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )
    install_error_handlers(app)
    management = ManagementRouter(settings.server.management_port)
    # All that FastAPI has made of itself so far is its docs.
    management.take(app.router.routes)
    app.router.routes.clear()
    # The hot routes first: every route ahead of one costs it a microsecond.
    app.include_router(tidegate.inference.endpoints.road)
    app.include_router(tidegate.inference.endpoints.router)
    app.include_router(tidegate.telemetry.endpoints.router)
    # Judged by itself: the port, or a scope.
    app.include_router(tidegate.telemetry.metrics.endpoints.router)
    # Signing in is for callers of both ports: an access token is a credential of /v1 too.
    app.include_router(tidegate.accounts.endpoints.router)
    app.include_router(tidegate.accounts.second_factor.endpoints.router)
    app.include_router(tidegate.accounts.sign_ins.endpoints.router)
    app.include_router(tidegate.accounts.single_sign_on.endpoints.router)
    app.include_router(tidegate.accounts.mailed.endpoints.auth)
    app.include_router(tidegate.auth.endpoints.router)
    # What e-mails lead to, and what people sign in by.
    app.include_router(tidegate.dashboard.endpoints.people)
    if shows_docs:
        management.include_router(tidegate.http.docs.router)
    management.include_router(tidegate.accounts.api_keys.endpoints.router)
    management.include_router(tidegate.accounts.mailed.endpoints.invitations)
    management.include_router(tidegate.accounts.users.endpoints.users)
    management.include_router(tidegate.accounts.users.endpoints.workspaces)
    management.include_router(tidegate.ledger.endpoints.router)
    management.include_router(tidegate.limits.endpoints.router)
    management.include_router(tidegate.audit.endpoints.router)
    management.include_router(tidegate.dashboard.endpoints.router)
    app.include_router(management)
    return app

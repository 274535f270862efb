"""The pages behind the edge, each on the port that it is for, without a server and a database."""

from types import SimpleNamespace

from fastapi import FastAPI
from starlette.types import Receive, Scope, Send

from tests.support.edge import Answer, call
from tidegate.dashboard.endpoints import people, router
from tidegate.http.errors import install_error_handlers
from tidegate.http.management import ManagementRouter
from tidegate.http.middleware import with_edge
from tidegate.settings import Settings
from tidegate.settings.groups import HttpSettings, ServerSettings


async def get_page(
    path: str,
    *,
    method: str = "GET",
    public_url: str | None = None,
    management_port: int | None = None,
    port: int = 8000,
    query: str = "",
    **headers: str,
) -> Answer:
    """What a request is answered that came by this port. `headers` are named as parameters are: `if_none_match`."""
    settings = Settings(
        environment="test",
        http=HttpSettings(public_url=public_url),
        server=ServerSettings(management_port=management_port),
    )
    app = FastAPI()
    install_error_handlers(app)
    app.include_router(people)
    management = ManagementRouter(management_port)
    management.include_router(router)
    app.include_router(management)
    edge = with_edge(app, settings)

    async def with_state(scope: Scope, receive: Receive, send: Send) -> None:
        board = SimpleNamespace(readiness="ready")
        state = {"settings": settings, "health": board}
        whole = {**scope, "state": state, "server": ("127.0.0.1", port), "query_string": query.encode()}
        await edge(whole, receive, send)

    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return await call(with_state, method, path, headers=raw)

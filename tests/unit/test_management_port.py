"""The management port: which routes answer where, from the route table itself, so that a new route is judged too."""

import socket
import uuid
from collections.abc import Iterator

import pytest
from fastapi import FastAPI
from fastapi.routing import iter_route_contexts
from starlette.routing import Match
from starlette.types import Scope

from tidegate.app import create_app
from tidegate.server.listening import listen, listen_for_management, port_of
from tidegate.server.refusal import StartRefused
from tidegate.settings import Settings
from tidegate.settings.groups import ServerSettings

_PUBLIC, _MANAGEMENT = 8000, 9000
# What callers of models need, what e-mails lead to, and what says whether this process works; all other routes are
# management's.
_OF_PEOPLE = ("/sign-in", "/forgot-password", "/invitation", "/reset-password", "/confirm-email", "/assets/")
_ON_BOTH = ("/v1/", "/auth/", "/health", "/metrics", "/.well-known/", *_OF_PEOPLE)


def _app(management_port: int | None) -> FastAPI:
    server = ServerSettings(port=_PUBLIC, management_port=management_port)
    return create_app(Settings(environment="development", server=server))


def _routes(app: FastAPI) -> Iterator[tuple[str, str]]:
    for route in iter_route_contexts(app.routes):
        path = route.path or ""
        for method in route.methods or ():
            parts = [str(uuid.UUID(int=7)) if part.startswith("{") else part for part in path.split("/")]
            yield method, "/".join(parts)


def _answers(app: FastAPI, method: str, path: str, server: object, headers: dict[str, str] | None = None) -> Match:
    """The best match of any route: what decides between an endpoint, a 405 and a 404."""
    raw = [(name.encode(), value.encode()) for name, value in (headers or {}).items()]
    best = Match.NONE
    for route in app.router.routes:
        scope: Scope = {"type": "http", "method": method, "path": path, "headers": raw, "server": server, "app": app}
        best = max(best, route.matches(scope)[0], key=lambda match: match.value)
    return best


def test_every_route_is_where_it_belongs() -> None:
    app = _app(_MANAGEMENT)
    routes = list(_routes(app))
    seen = {path for _, path in routes}
    assert {"/", "/docs", "/redoc", "/openapi.json", "/api/keys", "/api/usage", "/v1/models", "/health/ready"} <= seen
    for method, path in routes:
        is_on_both = path.startswith(_ON_BOTH)
        on_public = _answers(app, method, path, ("127.0.0.1", _PUBLIC))
        assert on_public is (Match.FULL if is_on_both else Match.NONE), f"{method} {path}"
        assert _answers(app, method, path, ("10.0.0.1", _MANAGEMENT)) is Match.FULL, f"{method} {path}"


def test_elsewhere_not_even_a_wrong_method_or_another_spelling_tells_of_a_route() -> None:
    app = _app(_MANAGEMENT)
    for method, path in (("TRACE", "/api/keys"), ("GET", "/api/keys/"), ("POST", "/docs"), ("GET", "//api/keys")):
        assert _answers(app, method, path, ("127.0.0.1", _PUBLIC)) is Match.NONE


@pytest.mark.parametrize(
    "headers",
    [
        {"host": f"127.0.0.1:{_MANAGEMENT}"},
        {"x-forwarded-port": str(_MANAGEMENT)},
        {"x-forwarded-host": f"127.0.0.1:{_MANAGEMENT}"},
        {"forwarded": f"host=127.0.0.1:{_MANAGEMENT}"},
        {"x-original-url": f"http://127.0.0.1:{_MANAGEMENT}/api/keys"},
    ],
)
def test_no_header_moves_a_request_to_the_management_port(headers: dict[str, str]) -> None:
    assert _answers(_app(_MANAGEMENT), "GET", "/api/keys", ("127.0.0.1", _PUBLIC), headers) is Match.NONE


@pytest.mark.parametrize("server", [None, ("/run/tide.sock", None)])
def test_what_came_by_no_port_is_not_management(server: object) -> None:
    assert _answers(_app(_MANAGEMENT), "GET", "/api/keys", server) is Match.NONE
    assert _answers(_app(_MANAGEMENT), "GET", "/health", server) is Match.FULL


def test_without_a_port_of_its_own_management_is_everywhere() -> None:
    app = _app(None)
    for method, path in _routes(app):
        assert _answers(app, method, path, ("127.0.0.1", _PUBLIC)) is Match.FULL, f"{method} {path}"


def test_both_listeners_may_take_free_ports() -> None:
    server = ServerSettings(port=0, management_port=0)
    public = listen(server.host, server.port)
    management = listen_for_management(server, public)
    try:
        assert 0 not in (port_of(public), port_of(management))
        assert port_of(public) != port_of(management)
        assert listen_for_management(ServerSettings(), public) == []
    finally:
        for listener in (*public, *management):
            listener.close()


def test_a_management_port_that_cannot_be_had_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(
            StartRefused, match=f"port {port} on 127.0.0.1 is in use; .*TIDEGATE_SERVER__MANAGEMENT_PORT="
        ):
            listen_for_management(
                ServerSettings(host="192.0.2.1", management_host="127.0.0.1", management_port=port), []
            )
    with pytest.raises(StartRefused, match=r"TIDEGATE_SERVER__MANAGEMENT_HOST: 192\.0\.2\.1"):
        listen_for_management(ServerSettings(management_host="192.0.2.1", management_port=0), [])


def test_one_port_cannot_be_both() -> None:
    with pytest.raises(ValueError, match="are the same"):
        ServerSettings(port=8000, management_port=8000)
    with pytest.raises(ValueError, match="needs TIDEGATE_SERVER__MANAGEMENT_PORT"):
        ServerSettings(management_host="127.0.0.1")

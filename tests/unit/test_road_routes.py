"""A road route is served as FastAPI would serve it: its dependencies, its overrides, its errors left to the edge."""

from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any

import pytest
from fastapi import APIRouter, BackgroundTasks, Depends, FastAPI, Header
from fastapi.security import SecurityScopes
from starlette.requests import HTTPConnection, Request
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Scope

from tidegate.errors import Overloaded
from tidegate.http.road import RoadDispatch, RoadRoute

PATH = "/v1/road"


class Ran(list[str]):
    """Which dependencies ran, in order."""


def get_ran(request: Request) -> Ran:
    ran: Ran = request.state.ran
    return ran


async def get_name(request: Request) -> str:
    get_ran(request).append("name")
    return request.headers.get("x-name", "nobody")


@dataclass(frozen=True)
class Greets:
    """A dependency that is an object and has a dependency of its own."""

    greeting: str

    async def __call__(self, name: Annotated[str, Depends(get_name)]) -> str:
        return f"{self.greeting}, {name}"


Greeting = Annotated[str, Depends(Greets("Hello"))]


def note(word: str) -> Callable[[Request], None]:
    def noted(request: Request) -> None:
        get_ran(request).append(word)

    return noted


def an_app(endpoint: Callable[..., Any], *, route_class: type[RoadRoute] = RoadRoute) -> FastAPI:
    router = APIRouter(route_class=route_class)
    router.add_api_route(PATH, endpoint, methods=["POST"])
    app = FastAPI()
    app.include_router(router)
    return app


async def greet(request: Request, greeting: Greeting) -> Response:
    body = await request.body()
    return PlainTextResponse(f"{greeting}: {body.decode()}", status_code=201, headers={"x-seen": request.url.path})


async def asked(
    asgi: ASGIApp, *, method: str = "POST", path: str = PATH, app: FastAPI | None = None, **headers: str
) -> tuple[list[Message], Ran]:
    """What was answered, and which dependencies ran."""
    sent: list[Message] = []
    ran = Ran()
    received = iter([{"type": "http.request", "body": b"text", "more_body": False}])

    async def receive() -> Message:
        return next(received, {"type": "http.disconnect"})

    async def send(message: Message) -> None:
        sent.append(message)

    scope: Scope = {
        "type": "http",
        "http_version": "1.1",
        "scheme": "http",
        "server": ("gateway", 80),
        "method": method,
        "path": path,
        "root_path": "",
        "query_string": b"a=b",
        "headers": [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()],
        "state": {"ran": ran},
        "app": app,
    }
    await asgi(scope, receive, send)
    return sent, ran


async def nothing_here(scope: Scope, receive: object, send: object) -> None:
    raise AssertionError(f"the road did not serve {scope['path']}")


async def both(app: FastAPI, **request: str) -> tuple[list[Message], Ran]:
    """The road's answer, once it is seen to be FastAPI's too."""
    by_road, ran = await asked(RoadDispatch(nothing_here, app), app=app, **request)
    by_fastapi, ran_there = await asked(app, app=app, **request)
    assert by_road == by_fastapi
    assert ran == ran_there
    return by_road, ran


async def test_dependencies_are_solved_as_fastapi_solves_them() -> None:
    sent, ran = await both(an_app(greet), x_name="Ada")
    assert (sent[0]["status"], sent[1]["body"]) == (201, b"Hello, Ada: text")
    assert ran == ["name"]


async def test_dependencies_of_every_inclusion_are_solved_too() -> None:
    router = APIRouter(route_class=RoadRoute, dependencies=[Depends(note("router"))], prefix="/v1")
    router.add_api_route("/road", greet, methods=["POST"], dependencies=[Depends(note("route"))])
    outer = APIRouter(dependencies=[Depends(note("outer"))])
    outer.include_router(router)
    app = FastAPI(dependencies=[Depends(note("app"))])
    app.include_router(outer, dependencies=[Depends(note("included"))])
    _, ran = await both(app)
    assert ran == ["app", "included", "outer", "router", "route", "name"]


def refuse() -> str:
    raise Overloaded("no")


async def override_with_its_own(name: Annotated[str, Depends(get_name)], request: Request) -> str:
    return f"Overridden, {name} at {request.url.path}"


async def override_by_request(anything: Request) -> str:
    return f"Overridden at {anything.url.path}"


@pytest.mark.parametrize(
    ("overridden", "override", "said", "runs"),
    [
        (Greets("Hello"), lambda: "Overridden", b"Overridden: text", []),
        (Greets("Hello"), override_by_request, b"Overridden at /v1/road: text", []),
        (Greets("Hello"), override_with_its_own, b"Overridden, Ada at /v1/road: text", ["name"]),
        (get_name, lambda: "Grace", b"Hello, Grace: text", []),
        (Greets("Goodbye"), lambda: "Overridden", b"Hello, Ada: text", ["name"]),
    ],
)
async def test_overrides_are_honoured_and_what_they_override_does_not_run(
    overridden: Callable[..., Any], override: Callable[..., Any], said: bytes, runs: list[str]
) -> None:
    app = an_app(greet)
    road = RoadDispatch(nothing_here, app)
    app.dependency_overrides[overridden] = override
    sent, ran = await both(app, x_name="Ada")
    assert (sent[1]["body"], ran) == (said, runs)
    # Overrides may come and go while the app lives.
    app.dependency_overrides.clear()
    assert (await asked(road, x_name="Ada"))[0][1]["body"] == b"Hello, Ada: text"


async def test_errors_go_to_the_edge() -> None:
    app = an_app(greet)
    road = RoadDispatch(nothing_here, app)
    app.dependency_overrides[get_name] = refuse
    with pytest.raises(Overloaded):
        await asked(road)

    async def fails(request: Request) -> Response:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await asked(RoadDispatch(nothing_here, an_app(fails)))


@pytest.mark.parametrize(("method", "path"), [("GET", PATH), ("POST", PATH + "/"), ("POST", "/other"), ("HEAD", PATH)])
async def test_everything_else_is_left_to_the_stack_behind(method: str, path: str) -> None:
    app = an_app(greet)
    passed: list[str] = []

    async def behind(scope: Scope, receive: object, send: object) -> None:
        passed.append(scope["path"])

    _, ran = await asked(RoadDispatch(behind, app), method=method, path=path)
    assert (passed, ran) == ([path], [])


async def test_what_is_no_http_request_is_left_to_the_stack_behind() -> None:
    passed: list[str] = []

    async def behind(scope: Scope, receive: object, send: object) -> None:
        passed.append(scope["type"])

    async def never(*_: object) -> Any:
        raise AssertionError

    for kind in ("lifespan", "websocket"):
        await RoadDispatch(behind, an_app(greet))({"type": kind, "path": PATH}, never, never)
    assert passed == ["lifespan", "websocket"]


async def test_ordinary_routes_are_none_of_the_roads() -> None:
    app = FastAPI()
    app.add_api_route(PATH, greet, methods=["POST"])
    with pytest.raises(AssertionError, match="did not serve"):
        await asked(RoadDispatch(nothing_here, app), app=app)


def wants_query(q: int) -> int:
    return q


def wants_header(x: Annotated[str, Header()]) -> str:
    return x


def wants_body(body: dict[str, str]) -> dict[str, str]:
    return body


def wants_path(model_id: str) -> str:
    return model_id


def wants_response(response: Response) -> Response:
    return response


def wants_tasks(tasks: BackgroundTasks) -> BackgroundTasks:
    return tasks


def wants_connection(connection: HTTPConnection) -> HTTPConnection:
    return connection


def wants_scopes(scopes: SecurityScopes) -> SecurityScopes:
    return scopes


def yields() -> Iterator[int]:
    yield 1


async def yields_later() -> AsyncIterator[int]:
    yield 1


class YieldsWhenCalled:
    async def __call__(self) -> AsyncIterator[int]:
        yield 1


@pytest.mark.parametrize(
    "dependency",
    [
        wants_query,
        wants_header,
        wants_body,
        wants_path,
        wants_response,
        wants_tasks,
        wants_connection,
        wants_scopes,
        yields,
        yields_later,
        YieldsWhenCalled(),
    ],
    ids=lambda dependency: getattr(dependency, "__name__", "object"),
)
@pytest.mark.parametrize("is_deep", [True, False])
def test_a_dependency_that_wants_more_is_refused_when_the_app_is_built(
    dependency: Callable[..., Any], is_deep: bool
) -> None:
    def between(value: Annotated[Any, Depends(dependency)]) -> Any:
        return value

    async def endpoint(
        request: Request, value: Annotated[Any, Depends(between if is_deep else dependency)]
    ) -> Response:
        return PlainTextResponse(str(value))

    with pytest.raises(TypeError, match="cannot serve a RoadRoute"):
        RoadDispatch(nothing_here, an_app(endpoint))


def test_an_endpoint_that_wants_more_is_refused_when_the_app_is_built() -> None:
    async def endpoint(request: Request, q: int) -> Response:
        return PlainTextResponse(str(q))

    with pytest.raises(TypeError, match="cannot serve a RoadRoute"):
        RoadDispatch(nothing_here, an_app(endpoint))


def test_a_road_route_stands_in_the_document_of_the_app() -> None:
    assert "post" in an_app(greet).openapi()["paths"][PATH]

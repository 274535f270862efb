"""An app behind Tidegate's edge whose routes end in every way, and a way to call it without a socket.

`python -m tests.support.edge` serves it on a free port of 127.0.0.1 with the settings of its environment, one line of
log an event, for tests that need a real connection.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Iterable, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, NoReturn

import orjson
import uvicorn
from fastapi import Depends, FastAPI
from pydantic import BaseModel, Field, PositiveInt
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tidegate.errors import Overloaded
from tidegate.http.errors import install_error_handlers
from tidegate.http.middleware import with_edge
from tidegate.http.protocol import TidegateHttpProtocol
from tidegate.settings import Settings, load_settings
from tidegate.telemetry.logging import configure_logging, get_logger

log = get_logger(__name__)

Headers = Iterable[tuple[bytes, bytes]]


class Turn(BaseModel):
    role: str


class Ask(BaseModel):
    count: PositiveInt
    turns: list[Turn] = Field(min_length=1)


class Told(BaseModel):
    count: int


class EdgeApp(FastAPI):
    """FastAPI with the edge outside its own stack, as `create_app` has it."""

    def __init__(self, settings: Settings, edge: Callable[[ASGIApp, Settings], ASGIApp] = with_edge) -> None:
        super().__init__()
        self._settings = settings
        self._edge = edge
        install_error_handlers(self)
        _add_routes(self)

    def build_middleware_stack(self) -> ASGIApp:
        return self._edge(super().build_middleware_stack(), self._settings)


@dataclass
class Answer:
    """What an app sent."""

    status: int | None = None
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    body: bytes = b""
    complete: bool = False
    starts: int = 0

    @property
    def json(self) -> Any:
        return orjson.loads(self.body)

    @property
    def error(self) -> Any:
        return self.json["error"]

    def header(self, name: str) -> str | None:
        values = self.values(name)
        return values[-1] if values else None

    def values(self, name: str) -> list[str]:
        return [value.decode("latin-1") for key, value in self.headers if key.lower() == name.lower().encode()]


async def call(
    app: ASGIApp,
    method: str = "GET",
    path: str = "/",
    *,
    headers: Headers = (),
    body: bytes | Sequence[bytes] | None = None,
    client: tuple[str, int] | None = ("192.0.2.1", 40000),
) -> Answer:
    """Calls an app as a server would. A body given as `bytes` has a Content-Length, one in pieces has none."""
    pieces = [body] if isinstance(body, bytes) else list(body or [b""])
    sent = [*headers]
    if isinstance(body, bytes) and not any(name == b"content-length" for name, _ in sent):
        sent.append((b"content-length", str(len(body)).encode()))
    answer = Answer()
    unread = list(pieces)

    async def receive() -> Message:
        if not unread:
            # A client that waits for its answer and says nothing more.
            await asyncio.Event().wait()
        piece = unread.pop(0)
        return {"type": "http.request", "body": piece, "more_body": bool(unread)}

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            answer.starts += 1
            answer.status, answer.headers = message["status"], list(message["headers"])
        else:
            answer.body += message.get("body", b"")
            answer.complete = not message.get("more_body", False)

    await app(scope_of(method, path, headers=sent, client=client), receive, send)
    return answer


def scope_of(
    method: str = "GET",
    path: str = "/",
    *,
    headers: Headers = (),
    client: tuple[str, int] | None = ("192.0.2.1", 40000),
) -> MutableMapping[str, Any]:
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": list(headers),
        "client": client,
        "server": ("127.0.0.1", 8000),
        "scheme": "http",
        "state": {},
    }


async def _fail() -> NoReturn:
    raise RuntimeError("a dependency broke: postgresql://app:hunter2@db/x")


def _add_routes(app: FastAPI) -> None:
    _add_errors(app)
    _add_bodies(app)
    _add_streams(app)

    @app.get("/ok")
    async def ok() -> dict[str, bool]:
        log.info("at work")
        return {"ok": True}

    @app.get("/client")
    async def client(request: Request) -> Response:
        return PlainTextResponse(f"{request.client.host if request.client else None} {request.url.scheme}")

    async def silent(scope: Scope, receive: Receive, send: Send) -> None:
        """An application that answers nothing."""

    app.mount("/silent", silent)


def _add_errors(app: FastAPI) -> None:
    @app.get("/boom")
    async def boom() -> None:
        secret = "sk-thisisalocalvariable"  # a local: it must not be logged
        raise ValueError(f"broken in {len(secret)} places")

    @app.get("/dependency-boom", dependencies=[Depends(_fail)])
    async def dependency_boom() -> None: ...

    @app.get("/overloaded")
    async def overloaded() -> None:
        raise Overloaded("No slot came free.", headers={"Retry-After": "2"})

    @app.get("/teapot")
    async def teapot() -> None:
        raise HTTPException(418, "I am a teapot", headers={"X-Pot": "tea"})

    @app.get("/wrong", response_model=Told)
    async def wrong() -> dict[str, str]:
        return {"count": "secret-answer"}


def _add_bodies(app: FastAPI) -> None:
    async def ask(body: Ask, limit: Annotated[int, Field(ge=1)] = 1) -> dict[str, int]:
        return {"count": body.count * limit}

    app.post("/ask")(ask)
    app.post("/v1/ask")(ask)

    async def size(request: Request) -> dict[str, int]:
        return {"size": len(await request.body())}

    app.post("/size")(size)
    app.post("/v1/size")(size)


def _add_streams(app: FastAPI) -> None:
    @app.get("/broken-stream")
    async def broken_stream() -> StreamingResponse:
        async def pieces() -> AsyncIterator[bytes]:
            yield b"first"
            raise RuntimeError("the stream broke")

        return StreamingResponse(pieces())

    @app.get("/endless")
    async def endless() -> StreamingResponse:
        async def pieces() -> AsyncIterator[bytes]:
            yield b"first"
            await asyncio.Event().wait()

        return StreamingResponse(pieces())

    @app.get("/deaf")
    async def deaf() -> dict[str, bool]:
        """Never listens to its client; ends when the file named by the environment exists."""
        while not os.path.exists(os.environ["EDGE_RELEASE_FILE"]):  # noqa: PTH110 - a loop of cheap looks
            await asyncio.sleep(0.01)
        return {"ok": True}


def _serve() -> None:
    settings = load_settings()
    configure_logging(settings, process="worker")
    uvicorn.run(
        EdgeApp(settings),
        host="127.0.0.1",
        port=0,
        http=TidegateHttpProtocol,
        ws="none",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        timeout_graceful_shutdown=2,
    )


if __name__ == "__main__":
    _serve()

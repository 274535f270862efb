"""The real root, server and worker around an app whose routes block the loop: `test_support_blocking.py`'s.

`/innocent` waits as one should. `python -m tests.support.blocking_sample`, started warm.
"""

import asyncio
import contextlib
import socket
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from tests.support.blocking import FILE, MOST_COMPUTING_S, Findings, Guarded
from tests.support.warm_root import fork_child
from tidegate.server.drain import install_drain
from tidegate.server.root import Parts, run
from tidegate.settings import Settings, load_settings

_NAME = "tests.support.blocking_sample"


def create_app(settings: Settings, *known: object) -> Guarded:
    """`known` is what else the server knows, and this app has no use for."""
    del known

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        # Before it serves it may block.
        time.sleep(0.001)
        with install_drain(linger_s=settings.server.linger_s):
            yield

    routes = [Route("/health/ready", _route(_innocent)), *(Route(path, _route(work)) for path, work in ROUTES.items())]
    return Guarded(Starlette(routes=routes, lifespan=lifespan), Findings(Path(FILE)))


def _route(work: Callable[[], Awaitable[None]]) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        del request
        await work()
        return PlainTextResponse("done")

    return endpoint


async def _innocent() -> None:
    await asyncio.sleep(0.001)
    await asyncio.to_thread(time.sleep, 0.001)
    _, writer = await asyncio.open_connection(sock=_listening())
    writer.close()


async def _sleeps() -> None:
    time.sleep(0.001)


async def _connects() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as client:
        client.connect(listener.getsockname())


async def _resolves() -> None:
    socket.getaddrinfo("localhost", 80)


async def _reads() -> None:
    with Path(__file__).open("rb") as file:
        file.read()


async def _waits_for_a_thread() -> None:
    lock = threading.Lock()
    lock.acquire()
    threading.Timer(0.01, lock.release).start()
    lock.acquire()


async def _computes() -> None:
    enough = time.thread_time() + 4 * MOST_COMPUTING_S
    while time.thread_time() < enough:
        sum(range(1000))


def _listening() -> socket.socket:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.socket()
        client.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            client.connect(listener.getsockname())
        return client


GUILTY = {
    "/sleeps": (_sleeps, "time.sleep"),
    "/connects": (_connects, "socket.socket.connect"),
    "/resolves": (_resolves, "socket.getaddrinfo"),
    "/reads": (_reads, "io.BufferedReader.read"),
    "/waits": (_waits_for_a_thread, "threading.Lock.acquire"),
    "/computes": (_computes, "the loop computed"),
}
ROUTES = {"/innocent": _innocent, **{path: work for path, (work, _) in GUILTY.items()}}


def _root() -> int:
    arguments = (f"--app={_NAME}:create_app", "--prepare=tests.support.serve_parts:prepare")
    return run(load_settings(), Parts(start=fork_child, server_arguments=arguments))


if __name__ == "__main__":
    sys.exit(_root())

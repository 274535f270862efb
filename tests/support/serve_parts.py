"""What stands in for the app within the real server and worker: a tiny app, and a prepare step without a database.

`serve_root.py` starts the tree around it.
"""

import asyncio
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from tests.support.serve_model import SETTLING_S, note
from tidegate.server.drain import Drain, install_drain
from tidegate.server.fork import Prepared
from tidegate.server.pools import Pool
from tidegate.settings import Settings

MADE = {"admin_email": "admin@tide.example", "admin_password": "low-tide"}


async def prepare(settings: Settings, workers: int) -> Prepared:
    """Needs no database."""
    del settings
    return Prepared(pool=Pool(size=workers, overflow=3), made=MADE)


def make_app(settings: Settings, pool: Pool | None) -> Starlette:
    """`/stream?seconds=` sends a word every tenth of a second; `<data dir>/ends` says what was cut and what ended."""
    ends = settings.data_dir / "ends"

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[dict[str, Drain]]:
        del app
        if (settings.data_dir / "fail-to-start").exists():
            raise RuntimeError("told to fail")
        with install_drain(linger_s=settings.server.linger_s) as drain:
            yield {"drain": drain}
        note(ends, "lifespan ended")

    async def ready(request: Request) -> Response:
        is_ready = not request.state.drain.draining and not (settings.data_dir / "unready").exists()
        return JSONResponse({}, 200 if is_ready else 503)

    async def health(request: Request) -> Response:
        del request
        return JSONResponse({"checks": {"database": {"status": "ok"}, "tide": {"status": "down"}}})

    async def who(request: Request) -> Response:
        del request
        return JSONResponse({"pid": os.getpid(), "pool": None if pool is None else [pool.size, pool.overflow]})

    async def stream(request: Request) -> Response:
        async def words() -> AsyncIterator[bytes]:
            deadline = time.monotonic() + float(request.query_params["seconds"])
            try:
                while time.monotonic() < deadline:
                    yield b"word\n"
                    await asyncio.sleep(0.1)
            except asyncio.CancelledError:
                with anyio.CancelScope(shield=True):
                    await anyio.sleep(SETTLING_S)
                note(ends, "stream was cut")
                raise
            note(ends, "stream ended")
            yield b"done\n"

        return StreamingResponse(words())

    routes = [
        Route("/health/ready", ready),
        Route("/health", health),
        Route("/who", who),
        Route("/stream", stream),
    ]
    return Starlette(routes=routes, lifespan=lifespan)

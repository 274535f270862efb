"""What stands in for the app within the real server and worker: a tiny app, and a prepare step without a database.

`serve_root.py` starts the tree around it.
"""

import asyncio
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import orjson
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from tests.support.serve_model import SETTLING_S, note
from tidegate.routing.configuration import CatalogueError, CatalogueSource, parse_catalogue
from tidegate.server.drain import Drain, install_drain
from tidegate.server.fork import Prepared
from tidegate.server.pools import Pool
from tidegate.server.supervisor import RootSupervisor
from tidegate.settings import Settings

MADE = {"admin_email": "admin@tide.example", "admin_password": "low-tide"}


async def prepare(settings: Settings, workers: int) -> Prepared:
    """Needs no database."""
    del settings
    return Prepared(pool=Pool(size=workers, overflow=3), made=MADE)


class Standing:
    """A process that serves by no catalogue, and says which it has. It obeys `<data dir>/refuse` and `…/hang`."""

    def __init__(self, settings: Settings, version: str) -> None:
        self._settings = settings
        self.version = version

    async def reload(self, source: CatalogueSource) -> str:
        if str(os.getpid()) in _told(self._settings, "hang"):
            await asyncio.sleep(3600)
        if str(os.getpid()) in _told(self._settings, "refuse"):
            raise CatalogueError(["told to refuse"])
        self.version = parse_catalogue(self._settings, source).version
        return self.version

    def report(self) -> dict[str, Any]:
        return {"state": "ready", "catalogue_version": self.version}

    async def facts(self, request_id: str | None = None) -> dict[str, Any]:
        return {"request_id": request_id}


def _told(settings: Settings, name: str) -> str:
    path = settings.data_dir / name
    return path.read_text() if path.exists() else ""


async def _record(path: Path, told: dict[str, Any]) -> None:
    note(path, orjson.dumps(told).decode())


def make_app(settings: Settings, pool: Pool | None, supervisor: RootSupervisor) -> Starlette:
    """`/stream?seconds=` sends a word every tenth of a second; `<data dir>/ends` says what was cut and what ended."""
    ends = settings.data_dir / "ends"
    standing = Standing(settings, "")
    supervisor.record_by(partial(_record, settings.data_dir / "recorded"))

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[dict[str, Drain]]:
        del app
        if (settings.data_dir / "fail-to-start").exists():
            raise RuntimeError("told to fail")
        source = await supervisor.catalogue()
        assert source is not None
        standing.version = parse_catalogue(settings, source).version
        with install_drain(linger_s=settings.server.linger_s) as drain:
            is_told = (settings.data_dir / "unattached").exists()
            async with nullcontext() if is_told else supervisor.attached(standing):
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
        shown = None if pool is None else [pool.size, pool.overflow]
        told = {"pid": os.getpid(), "pool": shown, "version": standing.version, "prefix": settings.redis.key_prefix}
        return JSONResponse(told)

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

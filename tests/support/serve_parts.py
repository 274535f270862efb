"""A process tree made of stand-ins: the real root, server and worker around a tiny app and a model that only waits.

`python -m tests.support.serve_parts root` is `tidegate serve` with them; `… model CODE SECONDS` is the model's process.
"""

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NoReturn

import anyio
from setproctitle import setproctitle
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from tidegate.server.children import python
from tidegate.server.drain import Drain, install_drain
from tidegate.server.fork import Prepared
from tidegate.server.lifeline import terminate_self, watch_in_thread
from tidegate.server.model_keeper import Backoff
from tidegate.server.pools import Pool
from tidegate.server.root import Parts, run
from tidegate.settings import Settings, load_settings

MADE = {"admin_email": "admin@tide.example", "admin_password": "low-tide"}
# An end takes its time, so that who does not wait for it is found out.
_SETTLING_S = 0.3


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
        _note(ends, "lifespan ended")

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
                    await anyio.sleep(_SETTLING_S)
                _note(ends, "stream was cut")
                raise
            _note(ends, "stream ended")
            yield b"done\n"

        return StreamingResponse(words())

    routes = [
        Route("/health/ready", ready),
        Route("/health", health),
        Route("/who", who),
        Route("/stream", stream),
    ]
    return Starlette(routes=routes, lifespan=lifespan)


def _note_end(directory: Path) -> NoReturn:
    time.sleep(_SETTLING_S)
    _note(directory / "ends", "model ended")
    sys.exit(0)


def _note(path: Path, line: str) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(line + "\n")


def _root() -> int:
    settings = load_settings()
    own = __spec__.name
    parts = Parts(
        server_arguments=(f"--app={own}:make_app", f"--prepare={own}:prepare"),
        model=python(own, "model", str(settings.data_dir)),
        backoff=Backoff(first_s=0.05, longest_s=0.2),
        patience_s=0.5,
    )
    return run(settings, parts)


def _model(directory: Path) -> int:
    """Notes each start, then waits; where a file says so, ends at once with its code."""
    setproctitle("tidegate: model")
    _note(directory / "model-starts", str(os.getpid()))
    code = directory / "model-code"
    if code.exists():
        sys.stderr.write("the model's wheels are missing\n")
        return int(code.read_text())
    if (directory / "model-notes-its-end").exists():
        signal.signal(signal.SIGTERM, lambda _number, _frame: _note_end(directory))
    watch_in_thread(terminate_self)
    while True:
        time.sleep(3600)


if __name__ == "__main__":
    sys.exit(_root() if sys.argv[1] == "root" else _model(Path(sys.argv[2])))

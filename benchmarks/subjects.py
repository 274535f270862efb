"""What is measured: the bare proxies and the real gateway, each a running server before the same upstream.

The gateway runs as a user runs it with one worker: `tidegate serve` on uvicorn, an API key, the SQLite ledger, the
journal, its JSON lines to a file. Nothing is switched off for the benchmark; the slots and the limits of its catalogue
are wide enough not to be what is measured. `gateway` has no limits and no Redis; `gateway_on_redis` is the same with
Redis, and a key that has four limits, none of which is ever reached.
"""

import asyncio
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from tests.support.server import LOOPBACK, GatewayPlan, GatewayProcess, answers, free_port
from tests.support.services import delete_keys
from tests.support.waiting import eventually

from benchmarks.client import Target

ROOT = Path(__file__).resolve().parents[1]
_MODELS = ("small", "hold", "silent", "flood", "stream-2-1")
_LIMITS = ("--rpm", "100000000", "--tpm", "1000000000000", "--concurrency", "100000", "--budget", "1000000")


@dataclass(frozen=True)
class Subject:
    """A server under measurement. `processes` gives its tree as it is now; none for the upstream itself."""

    name: str
    target: Target
    processes: Callable[[], Sequence[psutil.Process]] = field(default=list)
    is_gateway: bool = False


@asynccontextmanager
async def bare_proxy(client: str, upstream_port: int, folder: Path) -> AsyncIterator[Subject]:
    """`client` is `hand` or `httpx2`."""
    port = free_port()
    command = [sys.executable, "-m", "benchmarks.proxy", client, str(port), f"http://{LOOPBACK}:{upstream_port}"]
    with (folder / f"proxy-{client}.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        await eventually(lambda: _listens(process, port), within_s=30)
        watched = [psutil.Process(process.pid)]
        yield Subject(f"bare proxy, {client}", Target(LOOPBACK, port), lambda: watched)
    finally:
        process.terminate()
        try:
            await asyncio.to_thread(process.wait, 10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@asynccontextmanager
async def gateway(folder: Path, catalogue: str) -> AsyncIterator[Subject]:
    async with GatewayProcess(folder / "alone", GatewayPlan(catalogue=catalogue, drain_s=1, cold=True)) as running:
        yield _gateway_subject("tidegate", running, running.api_key)


@asynccontextmanager
async def gateway_on_redis(folder: Path, catalogue: str, redis_url: str) -> AsyncIterator[Subject]:
    """Its keys in Redis are its own, and deleted at the end."""
    prefix = new_prefix()
    plan = GatewayPlan(catalogue=catalogue, drain_s=1, redis_url=redis_url, redis_prefix=prefix, cold=True)
    try:
        async with GatewayProcess(folder / "on-redis", plan) as running:
            made = await running.command("keys", "create", "--name", "bench", *_LIMITS, "--json")
            yield _gateway_subject("tidegate, Redis, limits", running, json.loads(made.stdout)["key"])
    finally:
        await asyncio.to_thread(delete_keys, redis_url, prefix)


def new_prefix() -> str:
    """A prefix for keys in Redis that nobody else has."""
    return f"bench-{os.getpid()}-{os.urandom(4).hex()}"


@asynccontextmanager
async def running_base_url(base_url: str, key: str | None) -> AsyncIterator[Subject]:
    """A server that somebody else started: its CPU and memory are not seen."""
    host, _, port = base_url.removeprefix("http://").rstrip("/").partition(":")
    headers = (("authorization", f"Bearer {key}"),) if key else ()
    yield Subject(base_url, Target(host, int(port or 80), headers))


@asynccontextmanager
async def working_folder() -> AsyncIterator[Path]:
    with tempfile.TemporaryDirectory(prefix="tidegate-bench-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def _gateway_subject(name: str, running: GatewayProcess, key: str) -> Subject:
    target = Target(LOOPBACK, running.port, (("authorization", f"Bearer {key}"),))
    return Subject(name, target, running.tree, is_gateway=True)


async def _listens(process: subprocess.Popen[bytes], port: int) -> bool:
    if process.poll() is not None:
        raise RuntimeError(f"the bare proxy ended with {process.returncode}")
    return bool(await answers(f"http://{LOOPBACK}:{port}", "/"))


def catalogue(upstream_port: int, hole_port: int, models: Sequence[str]) -> str:
    """`models` are the upstream's models beside the usual ones; `hole_port` is where no connection is ever made."""
    tables = [
        _upstream("bench", upstream_port, 4000),
        _upstream("narrow", upstream_port, 1),
        _upstream("hole", hole_port, 4000),
        *(_model(name, f"bench/{name}") for name in (*_MODELS, *models)),
        _model("narrow-hold", "narrow/hold"),
        _model("hole", "hole/hole"),
    ]
    return "\n".join(tables)


def _upstream(name: str, port: int, slots: int) -> str:
    return f"""
[upstreams.{name}]
provider = "openai"
base_url = "http://{LOOPBACK}:{port}/v1"
api_key = "env:UPSTREAM_KEY"
max_concurrency = {slots}
queue = {{ length = 1000, deadline_s = 60 }}
timeouts = {{ connect_s = 60 }}
breaker = "off"
"""


def _model(name: str, attempt: str) -> str:
    price = '{ input = "2.00", output = "8.00" }'
    return f'[[models]]\nname = "{name}"\nattempts = ["{attempt}"]\nprice = {price}\n'

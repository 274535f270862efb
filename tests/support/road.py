"""The main road in the test's own loop: the real application on a real socket, and what is inside of it.

The database is at head with the admin's key in it. What a request holds while it runs (slots, connections, tasks, open
entries) is told by `what_is_held`.

    async with open_road(tmp_path, catalogue_of({"plain": {"base_url": upstream.base_url}}, {"m": "plain/m"})) as road:
        reply = await road.caller.chat("label", model="m")
        await road.at_rest()
"""

import asyncio
import functools
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pydantic import SecretStr
from sqlalchemy.pool import QueuePool
from starlette.types import ASGIApp, Receive, Scope, Send

from tests.support.caller import WITHIN_S, Caller
from tests.support.client import RawClient
from tests.support.credentials import keyrings, secret_settings
from tests.support.server import ADMIN_EMAIL, API_KEY, in_process_server
from tests.support.sockets import towards
from tests.support.waiting import NeverHappened, eventually
from tidegate.accounts.bootstrap import bootstrap
from tidegate.app import create_app
from tidegate.inference.gateway import Gateway
from tidegate.ledger.reservation import Ledger
from tidegate.lifespan import Surroundings
from tidegate.lifespan.surroundings import ServedProcess
from tidegate.routing.configuration import CatalogueSource
from tidegate.server.http_server import uvicorn_config
from tidegate.settings import Settings
from tidegate.settings.groups import AuthSettings, BootstrapSettings, HttpSettings, RedisSettings, ServerSettings
from tidegate.settings.tracing import TracingSettings
from tidegate.storage.database import Database
from tidegate.storage.migrate import migrate
from tidegate.upstream.openai import OpenAIProvider
from tidegate.upstream.transport import UpstreamTransport


@dataclass
class Road:
    """A gateway in this process, with what is inside of it. `leaving.draining` may be set."""

    caller: Caller
    settings: Settings
    state: Mapping[str, Any]
    leaving: "Leaving"
    root: "Root"
    tasks: set["asyncio.Task[Any]"] = field(default_factory=set)
    """Those that ran before the first request."""
    strangers: Mapping[int, int] = field(default_factory=dict)
    """The connections to upstreams that stood before it."""

    @property
    def base_url(self) -> str:
        return self.caller.base_url

    @property
    def gateway(self) -> Gateway:
        gateway: Gateway = self.state["gateway"]
        return gateway

    @property
    def ledger(self) -> Ledger:
        ledger: Ledger = self.state["ledger"]
        return ledger

    @property
    def database(self) -> Database:
        database: Database = self.state["database"]
        return database

    async def reload(self, catalogue: str) -> str:
        """Serves by this catalogue from now on. Returns its version; raises `CatalogueError`."""
        return await self.root.process.reload(CatalogueSource("reloaded.toml", catalogue))

    def client(self, *, receive_buffer: int | None = None) -> RawClient:
        return RawClient(self.base_url, receive_buffer=receive_buffer)

    def what_is_held(self) -> list[str]:
        """Everything that a request holds while it runs, and none may hold after its end."""
        held = []
        for name, slots in self.gateway.serving.slots.items():
            if slots.in_use or slots.waiting:
                held.append(f"slots of {name}: {slots.in_use} in use, {slots.waiting} waiting")
        pool = self.database.engine.pool
        assert isinstance(pool, QueuePool)
        if pool.checkedout():
            held.append(f"{pool.checkedout()} database connections")
        held += self._upstream_connections()
        if self.ledger.open_entries:
            held.append(f"{self.ledger.open_entries} open entries")
        # The test's own task, and those by which its runner waits for it.
        running = {task for task in asyncio.all_tasks() - self.tasks if "TestRunner." not in str(task.get_coro())}
        held += [f"task {task.get_coro()}" for task in running - {asyncio.current_task()}]
        return held

    async def at_rest(self, *, within_s: float = WITHIN_S) -> None:
        """Waits until nothing is held."""

        try:
            await eventually(lambda: not self.what_is_held(), within_s=within_s)
        except NeverHappened:
            raise AssertionError(f"still held: {self.what_is_held()}") from None

    def _upstream_connections(self) -> list[str]:
        """Connections to upstreams, as the kernel counts them, that are not idle in the client's keeping."""
        kept = self._idle_connections()
        opened = self.established()
        return [
            f"{count} connections to the upstream at {port}, {kept.get(port, 0)} of them idle"
            for port, count in opened.items()
            if count > kept.get(port, 0) + self.strangers.get(port, 0)
        ]

    def established(self) -> dict[int, int]:
        """By the port of each upstream, how many connections this machine has to it."""
        ports = {urlsplit(upstream.base_url).port for upstream in self.gateway.serving.catalogue.upstreams.values()}
        return {port: len(towards(port, "established")) for port in ports if port is not None}

    def _idle_connections(self) -> dict[int, int]:
        for provider in self.gateway.serving.providers.values():
            if isinstance(provider, OpenAIProvider):
                transport = provider._client._transport
                assert isinstance(transport, UpstreamTransport)
                return {port or 80: len(place.idle) for (_, _, port), place in transport._origins.items()}
        return {}


@dataclass
class Leaving:
    """A drain that a test sets."""

    draining: bool = False


@dataclass
class Root:
    """Who stands above a road: it has a catalogue in force, or none, and knows the process that serves."""

    source: CatalogueSource | None = None
    attached_now: ServedProcess | None = None

    @property
    def process(self) -> ServedProcess:
        assert self.attached_now is not None, "no process is attached"
        return self.attached_now

    async def catalogue(self) -> CatalogueSource | None:
        return self.source

    @asynccontextmanager
    async def attached(self, process: ServedProcess) -> AsyncIterator[None]:
        self.attached_now = process
        try:
            yield
        finally:
            self.attached_now = None


@asynccontextmanager
async def open_road(
    folder: Path,
    catalogue: str,
    *,
    max_body_bytes: int = 20 * 1024 * 1024,
    redis: RedisSettings | None = None,
    tracing: TracingSettings | None = None,
    root: Root | None = None,
) -> AsyncIterator[Road]:
    """The application on a real socket in the running loop, on Redis where one is given, traced where a collector is.

    At its end nothing may be held.
    """
    root = root or Root()
    data_dir = folder / "var"
    data_dir.mkdir(parents=True, exist_ok=True)
    database = data_dir / "tidegate.db"
    if not database.exists():
        database.write_bytes(await asyncio.to_thread(_database_with_admin))
    settings = _settings(data_dir, catalogue, max_body_bytes=max_body_bytes)
    if redis is not None:
        settings = settings.model_copy(update={"redis": redis})
    if tracing is not None:
        settings = settings.model_copy(update={"tracing": tracing})
    leaving = Leaving()
    app = _Shown(create_app(settings, Surroundings(leaving=lambda: nullcontext(leaving), supervisor=root)))
    async with in_process_server(uvicorn_config(app, settings)) as base_url:
        road = Road(Caller(base_url), settings, app.state, leaving, root)
        # Opens the pool and the caches, and is on the way of no test.
        await road.caller.entries()
        road.tasks = asyncio.all_tasks()
        road.strangers = road.established()
        yield road


class _Shown:
    """The app, and the state that its lifespan gave to the server."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.state: Mapping[str, Any] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            self.state = scope["state"]
        await self.app(scope, receive, send)


def _settings(data_dir: Path, catalogue: str, *, max_body_bytes: int) -> Settings:
    return Settings(
        environment="test",
        data_dir=data_dir,
        config_toml=catalogue,
        auth=AuthSettings(**secret_settings()),
        http=HttpSettings(max_body_bytes=max_body_bytes),
        server=ServerSettings(drain_s=2),
        bootstrap=BootstrapSettings(admin_email=ADMIN_EMAIL, api_key=SecretStr(API_KEY)),
    )


@functools.cache
def _database_with_admin() -> bytes:
    """A SQLite file at head with the admin and the key, made once: hashing a password takes a while."""
    with tempfile.TemporaryDirectory() as folder:
        settings = _settings(Path(folder), "", max_body_bytes=1)

        async def make() -> None:
            await migrate(settings.database_url)
            database = await Database.open(settings.database_url)
            await bootstrap(database, settings, keyrings())
            await database.aclose()

        asyncio.run(make())
        return (Path(folder) / "tidegate.db").read_bytes()

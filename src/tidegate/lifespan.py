"""What a process opens and closes, in one order, as state for the routes.

Opened from below: database, Redis, ledger, upstreams, road; closed in reverse. That the process is leaving is known
first of all: new requests are refused before anything is closed.
"""

import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractContextManager, AsyncExitStack, asynccontextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import httpx2
from redis.asyncio import Redis

from tidegate import __version__
from tidegate.accounts.single_sign_on.opening import open_provider
from tidegate.admission.model_gate import SOCKET_NAME, ModelGate
from tidegate.admission.recovered import RecoveredEntries
from tidegate.admission.running import Admission, GateSupplies, running_admission
from tidegate.admission.slots import Capacity, Slots, StoreSlots
from tidegate.auth.authenticator import Authenticator
from tidegate.auth.keyring import Keyrings
from tidegate.errors import Unavailable
from tidegate.inference.gateway import DrainState, Gateway
from tidegate.inference.kept_answers import MemoryAnswers, RedisAnswers
from tidegate.inference.response_cache import ResponseCache
from tidegate.ledger.refusals import Refusals
from tidegate.ledger.reservation import Ledger
from tidegate.ledger.store import LedgerStore
from tidegate.ledger.sums import DatabaseSums
from tidegate.limits.book import LimitBook
from tidegate.limits.reading import LimitReader
from tidegate.mail.opening import open_post
from tidegate.routing.breaker import Breaker
from tidegate.routing.catalogue import Catalogue, Upstream
from tidegate.routing.configuration import load_catalogue
from tidegate.settings import Settings
from tidegate.storage.changes import Changes, limits_topic
from tidegate.storage.database import Database
from tidegate.storage.read_through import ReadThrough
from tidegate.storage.redis import close_redis, open_redis, ping
from tidegate.telemetry.health import HealthBoard
from tidegate.upstream.echo import EchoProvider
from tidegate.upstream.local import check_local_body
from tidegate.upstream.openai import OpenAIProvider, open_client
from tidegate.upstream.provider import Provider
from tidegate.upstream.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class NeverLeaving:
    """The drain of an app that no server stops by signal: a test's."""

    draining: bool = False


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the server gives its app: this worker's share of database connections, how many workers there are (of all
    servers), and word of its leaving.

    `leaving` is entered on the running loop, when the server's own signal handlers stand.
    """

    pool_size: int = 5
    max_overflow: int = 5
    workers: int = 1
    leaving: Callable[[], AbstractContextManager[DrainState]] = lambda: nullcontext(NeverLeaving())


@dataclass(frozen=True, slots=True)
class Rooms:
    """What the road passes through: the gate, where it is written what happened, and where answers are kept."""

    admission: Admission
    ledger: Ledger
    refusals: Refusals
    redis: Redis | None


@asynccontextmanager
async def open_process(settings: Settings, surroundings: Surroundings) -> AsyncIterator[dict[str, Any]]:
    """The state of the routes: `request.state`'s attributes are these keys."""
    catalogue = load_catalogue(settings)
    keyrings = Keyrings.load(settings)
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    async with AsyncExitStack() as stack:
        drain = stack.enter_context(surroundings.leaving())
        database = await Database.open(
            settings.database_url, pool_size=surroundings.pool_size, max_overflow=surroundings.max_overflow
        )
        stack.push_async_callback(database.aclose)
        redis = open_redis(settings)
        if redis is not None:
            stack.push_async_callback(close_redis, redis)
        changes = await stack.enter_async_context(Changes.running(settings))
        read_through = ReadThrough(redis, settings.redis.key_prefix, changes)
        stack.push_async_callback(read_through.aclose)
        authenticator = _authenticator(settings, database, keyrings, changes)
        stack.push_async_callback(authenticator.aclose)
        post = await stack.enter_async_context(open_post(settings))
        store = LedgerStore(database)
        refusals = await stack.enter_async_context(Refusals.running(store))
        client = await stack.enter_async_context(open_client())
        book = LimitBook(LimitReader(database))
        stack.push_async_callback(book.aclose)
        flags: set[str] = set()
        groups_of = _groups_in(catalogue)
        supplies = GateSupplies(
            settings=settings,
            workers=surroundings.workers,
            database=database,
            book=book,
            sums=DatabaseSums(database, groups_of),
            client=client,
            on_change=lambda is_away: flags.add("limits") if is_away else flags.discard("limits"),
        )
        admission = await stack.enter_async_context(running_admission(supplies))
        told = RecoveredEntries(admission.desk, book, groups_of=groups_of)
        ledger = await stack.enter_async_context(Ledger.running(settings.data_dir / "journal", store, recovered=told))
        gateway = _gateway(settings, catalogue, Rooms(admission, ledger, refusals, redis), client, drain)
        stack.callback(gateway.tokenizer.close)
        health = _health(settings, gateway, database, redis, flags)
        stack.push_async_callback(health.aclose)
        health.state = "ready"
        yield {
            "settings": settings,
            "database": database,
            "redis": redis,
            "changes": changes,
            "read_through": read_through,
            "limits_changed": _teller(book, changes),
            "admission": admission,
            "keyrings": keyrings,
            "authenticator": authenticator,
            "post": post,
            "single_sign_on": await stack.enter_async_context(open_provider(settings, keyrings.jwt, client)),
            "ledger": ledger,
            "gateway": gateway,
            "health": health,
        }


def _authenticator(settings: Settings, database: Database, keyrings: Keyrings, changes: Changes) -> Authenticator:
    return Authenticator(
        database,
        keyrings,
        access_token_minutes=settings.auth.access_token_minutes,
        jwt_algorithm=settings.auth.jwt_algorithm,
        changes=changes,
    )


def _groups_in(catalogue: Catalogue) -> Callable[[str], tuple[str, ...]]:
    def groups_of(model: str) -> tuple[str, ...]:
        found = catalogue.find(model)
        return () if found is None else found.groups

    return groups_of


def _teller(book: LimitBook, changes: Changes) -> Callable[[uuid.UUID], Awaitable[None]]:
    """Hears of changed limits from every process, and tells them of those that were changed here."""
    changes.listen("limits:", lambda topic: book.forget(None if topic is None else uuid.UUID(topic.partition(":")[2])))

    async def limits_changed(workspace_id: uuid.UUID) -> None:
        book.forget(workspace_id)
        await changes.tell(limits_topic(workspace_id))

    return limits_changed


def _gateway(
    settings: Settings,
    catalogue: Catalogue,
    rooms: Rooms,
    client: httpx2.AsyncClient,
    drain: DrainState,
) -> Gateway:
    upstreams = catalogue.upstreams
    return Gateway(
        catalogue=catalogue,
        ledger=rooms.ledger,
        refusals=rooms.refusals,
        gate=rooms.admission.gate,
        slots={name: _slots(settings, rooms.admission, upstream) for name, upstream in upstreams.items()},
        providers={name: _provider(upstream, client) for name, upstream in upstreams.items()},
        breakers={name: Breaker(upstream.breaker) for name, upstream in upstreams.items()},
        tokenizer=Tokenizer(),
        drain=drain,
        cache=_cache(settings, rooms.redis),
        end_user_headers=settings.http.end_user_headers,
    )


def _cache(settings: Settings, redis: Redis | None) -> ResponseCache:
    return ResponseCache(MemoryAnswers() if redis is None else RedisAnswers(redis, settings.redis.key_prefix))


def _slots(settings: Settings, admission: Admission, upstream: Upstream) -> Slots:
    if upstream.provider == "local":
        return ModelGate(
            settings.data_dir / SOCKET_NAME,
            upstream=upstream.name,
            queue_length=upstream.queue.length,
            queue_deadline_s=upstream.queue.deadline_s,
        )
    capacity = Capacity(upstream.max_concurrency, upstream.queue.length, upstream.queue.deadline_s)
    return StoreSlots(admission.steps, upstream.name, capacity)


def _provider(upstream: Upstream, client: httpx2.AsyncClient) -> Provider:
    if upstream.provider == "echo":
        return EchoProvider()
    if upstream.provider == "local":
        return OpenAIProvider(client, streams_only=True, check=check_local_body)
    return OpenAIProvider(client)


def _health(
    settings: Settings, gateway: Gateway, database: Database, redis: Redis | None, flags: set[str]
) -> HealthBoard:
    drain, ledger = gateway.drain, gateway.ledger
    board = HealthBoard(
        version=__version__,
        catalogue_version=gateway.catalogue.version,
        is_draining=lambda: drain.draining,
    )
    board.flagged = flags
    board.refuses_work = lambda: settings.limits.on_store_failure == "deny" and "limits" in flags

    async def check_database() -> None:
        await database.ping()

    async def check_cache() -> str | None:
        if redis is None:
            return "in this process"
        await ping(redis)
        return None

    async def check_ledger() -> str | None:
        if ledger.is_behind:
            raise Unavailable("entries wait in the journal for the database")
        return None

    board.add("database", check_database)
    board.add("cache", check_cache, degrades_as="redis")
    board.add("ledger", check_ledger)
    for slots in gateway.slots.values():
        if isinstance(slots, ModelGate):
            board.add("model", _model_check(slots), must_have_answered=True)
    return board


def _model_check(gate: ModelGate) -> Callable[[], Any]:
    async def check_model() -> None:
        status = await gate.status()
        if status is None or not status.is_ready:
            raise Unavailable("the model is starting")

    return check_model

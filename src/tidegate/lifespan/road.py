"""The road of a process: the gate, the ledger, and the gateway over them."""

import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import httpx2
from redis.asyncio import Redis

from tidegate.admission.model_gate import SOCKET_NAME, ModelGate
from tidegate.admission.recovered import RecoveredEntries
from tidegate.admission.running import Admission, GateSupplies, running_admission
from tidegate.admission.slots import Capacity, Slots, StoreSlots
from tidegate.inference.gateway import DrainState, Gateway
from tidegate.inference.kept_answers import MemoryAnswers, RedisAnswers
from tidegate.inference.response_cache import ResponseCache
from tidegate.ledger.refusals import Refusals
from tidegate.ledger.reservation import Ledger
from tidegate.ledger.store import LedgerStore
from tidegate.ledger.sums import DatabaseSums
from tidegate.lifespan.stores import Stores
from tidegate.lifespan.surroundings import Surroundings
from tidegate.limits.book import LimitBook
from tidegate.limits.reading import LimitReader
from tidegate.routing.breaker import Breaker
from tidegate.routing.catalogue import Catalogue, Upstream
from tidegate.routing.configuration import load_catalogue
from tidegate.settings import Settings
from tidegate.storage.changes import Changes, limits_topic
from tidegate.upstream.echo import EchoProvider
from tidegate.upstream.local import check_local_body
from tidegate.upstream.openai import OpenAIProvider, open_client
from tidegate.upstream.provider import Provider
from tidegate.upstream.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Road:
    """`flags` names what the gate goes without, for health; `client` is the one client of the process."""

    gateway: Gateway
    admission: Admission
    ledger: Ledger
    client: httpx2.AsyncClient
    limits_changed: Callable[[uuid.UUID], Awaitable[None]]
    flags: set[str]


@dataclass(frozen=True, slots=True)
class _Rooms:
    admission: Admission
    ledger: Ledger
    refusals: Refusals
    redis: Redis | None


@asynccontextmanager
async def open_road(
    settings: Settings, surroundings: Surroundings, stores: Stores, drain: DrainState
) -> AsyncIterator[Road]:
    """Raises `CatalogueError`."""
    catalogue = load_catalogue(settings)
    async with AsyncExitStack() as stack:
        store = LedgerStore(stores.database)
        refusals = await stack.enter_async_context(Refusals.running(store))
        client = await stack.enter_async_context(open_client())
        book = LimitBook(LimitReader(stores.database))
        stack.push_async_callback(book.aclose)
        flags: set[str] = set()
        groups_of = _groups_in(catalogue)
        supplies = GateSupplies(
            settings=settings,
            workers=surroundings.workers,
            database=stores.database,
            book=book,
            sums=DatabaseSums(stores.database, groups_of),
            client=client,
            on_change=lambda is_away: flags.add("limits") if is_away else flags.discard("limits"),
        )
        admission = await stack.enter_async_context(running_admission(supplies))
        told = RecoveredEntries(admission.desk, book, groups_of=groups_of)
        ledger = await stack.enter_async_context(Ledger.running(settings.data_dir / "journal", store, recovered=told))
        gateway = _gateway(settings, catalogue, _Rooms(admission, ledger, refusals, stores.redis), client, drain)
        stack.callback(gateway.tokenizer.close)
        yield Road(gateway, admission, ledger, client, _teller(book, stores.changes), flags)


def _teller(book: LimitBook, changes: Changes) -> Callable[[uuid.UUID], Awaitable[None]]:
    """Hears of changed limits from every process, and tells them of those that were changed here."""
    changes.listen("limits:", lambda topic: book.forget(None if topic is None else uuid.UUID(topic.partition(":")[2])))

    async def limits_changed(workspace_id: uuid.UUID) -> None:
        book.forget(workspace_id)
        await changes.tell(limits_topic(workspace_id))

    return limits_changed


def _groups_in(catalogue: Catalogue) -> Callable[[str], tuple[str, ...]]:
    def groups_of(model: str) -> tuple[str, ...]:
        found = catalogue.find(model)
        return () if found is None else found.groups

    return groups_of


def _gateway(
    settings: Settings,
    catalogue: Catalogue,
    rooms: _Rooms,
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

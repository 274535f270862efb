"""The road of a process: the gate, the ledger, and the gateway over them."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from tidegate.admission.recovered import RecoveredEntries
from tidegate.admission.running import Admission, GateSupplies, running_admission
from tidegate.inference.gateway import DrainState, Gateway
from tidegate.inference.kept_answers import MemoryAnswers, RedisAnswers
from tidegate.inference.response_cache import ResponseCache
from tidegate.inference.serving import Serving
from tidegate.ledger.refusals import Refusals
from tidegate.ledger.reservation import Ledger
from tidegate.ledger.store import LedgerStore
from tidegate.ledger.sums import DatabaseSums
from tidegate.lifespan.serving import Servings
from tidegate.lifespan.stores import Stores
from tidegate.lifespan.surroundings import Supervisor, Surroundings
from tidegate.limits.book import LimitBook
from tidegate.limits.reading import LimitReader
from tidegate.routing.catalogue import Catalogue
from tidegate.routing.configuration import load_catalogue, parse_catalogue
from tidegate.settings import Settings
from tidegate.storage.changes import Changes, limits_topic
from tidegate.storage.redis import RedisClient
from tidegate.upstream.openai import UpstreamClient, open_client
from tidegate.upstream.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Road:
    """`flags` names what the gate goes without, for health; `client` is the one client of the process. `servings` makes
    what the gateway serves by.
    """

    gateway: Gateway
    servings: Servings
    admission: Admission
    ledger: Ledger
    client: UpstreamClient
    limits_changed: Callable[[uuid.UUID], Awaitable[None]]
    flags: set[str]


@dataclass(frozen=True, slots=True)
class _Rooms:
    admission: Admission
    ledger: Ledger
    refusals: Refusals
    redis: RedisClient | None


class _Groups:
    """The groups of a model, by the catalogue in force: the first, until there is a gateway to ask for its own."""

    def __init__(self, first: Catalogue) -> None:
        self.in_force: Callable[[], Catalogue] = lambda: first

    def __call__(self, model: str) -> tuple[str, ...]:
        return self.in_force().groups_of(model)


@asynccontextmanager
async def open_road(
    settings: Settings, surroundings: Surroundings, stores: Stores, drain: DrainState
) -> AsyncIterator[Road]:
    """Raises `CatalogueError`."""
    groups_of = _Groups(await _catalogue_in_force(settings, surroundings.supervisor))
    async with AsyncExitStack() as stack:
        store = LedgerStore(stores.database)
        refusals = await stack.enter_async_context(Refusals.running(store))
        client = await stack.enter_async_context(open_client())
        book = LimitBook(LimitReader(stores.database))
        stack.push_async_callback(book.aclose)
        flags: set[str] = set()
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
        servings = Servings(settings, admission.steps, client)
        rooms = _Rooms(admission, ledger, refusals, stores.redis)
        gateway = _gateway(settings, servings.of(groups_of.in_force()), rooms, drain)
        groups_of.in_force = lambda: gateway.serving.catalogue
        stack.callback(gateway.tokenizer.close)
        yield Road(gateway, servings, admission, ledger, client, _teller(book, stores.changes), flags)


def _teller(book: LimitBook, changes: Changes) -> Callable[[uuid.UUID], Awaitable[None]]:
    """Hears of changed limits from every process, and tells them of those that were changed here."""
    changes.listen("limits:", lambda topic: book.forget(None if topic is None else uuid.UUID(topic.partition(":")[2])))

    async def limits_changed(workspace_id: uuid.UUID) -> None:
        book.forget(workspace_id)
        await changes.tell(limits_topic(workspace_id))

    return limits_changed


async def _catalogue_in_force(settings: Settings, supervisor: Supervisor) -> Catalogue:
    """The one that the root has, so that who starts later does not read another; else the one of the settings."""
    source = await supervisor.catalogue()
    # Both read files.
    if source is None:
        return await asyncio.to_thread(load_catalogue, settings)
    return await asyncio.to_thread(parse_catalogue, settings, source)


def _gateway(settings: Settings, serving: Serving, rooms: _Rooms, drain: DrainState) -> Gateway:
    return Gateway(
        serving=serving,
        ledger=rooms.ledger,
        refusals=rooms.refusals,
        gate=rooms.admission.gate,
        tokenizer=Tokenizer(),
        drain=drain,
        cache=_cache(settings, rooms.redis),
        end_user_headers=settings.http.end_user_headers,
    )


def _cache(settings: Settings, redis: RedisClient | None) -> ResponseCache:
    return ResponseCache(MemoryAnswers() if redis is None else RedisAnswers(redis, settings.redis.key_prefix))

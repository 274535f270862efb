"""The gate of one process: opened by the lifespan, with the store that the settings name."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import anyio
import httpx2

from tidegate.admission.alerts import Alerts
from tidegate.admission.budgets import LedgerSeeder, Sums
from tidegate.admission.desk import Desk
from tidegate.admission.epoch import Epoch, life_of
from tidegate.admission.gate import Gate
from tidegate.admission.redis_store import SCRIPT, RedisStore, grant_channel, script_source
from tidegate.admission.renewal import Renewal
from tidegate.admission.steps import Steps
from tidegate.limits.book import LimitBook
from tidegate.settings import Settings
from tidegate.storage.database import Database
from tidegate.storage.pipe import Pipe
from tidegate.storage.pipeline import PipelinedRedis, ScriptError, StoreGone, Subscription
from tidegate.storage.pipeline_cluster import PipelinedCluster
from tidegate.storage.redis import redis_address
from tidegate.telemetry.logging import get_logger

# Leases end in 15 s where these are not heard.
_LAST_ANSWER_WITHIN_S = 1.0

log = get_logger(__name__)

Connections = PipelinedRedis | PipelinedCluster


@dataclass(frozen=True, slots=True)
class GateSupplies:
    """What the gate is made of. `workers` are those of the whole deployment, as far as is known before they are seen.
    `on_change` hears that the shared store is away (True) or back.
    """

    settings: Settings
    workers: int
    database: Database
    book: LimitBook
    sums: Sums
    client: httpx2.AsyncClient
    on_change: Callable[[bool], None]


@dataclass(frozen=True, slots=True)
class Admission:
    """A process's gate, and what looks into it."""

    gate: Gate
    steps: Steps
    desk: Desk
    alerts: Alerts


@asynccontextmanager
async def running_admission(supplies: GateSupplies) -> AsyncIterator[Admission]:
    """The gate with its tasks. What is still held at the end is given back by whoever holds it, before."""
    settings = supplies.settings
    worker = secrets.token_hex(8)
    async with AsyncExitStack() as stack:
        pipe: Connections | None = None
        address = redis_address(settings)
        if address is not None:
            kind = PipelinedCluster if settings.redis.cluster else PipelinedRedis
            pipe = await stack.enter_async_context(
                kind.running(
                    address, client_name=f"{settings.redis.key_prefix}-gate", scripts={SCRIPT: script_source()}
                )
            )
        desk = Desk(
            worker,
            settings.limits.on_store_failure,
            on_change=supplies.on_change,
            alerted=lambda tag, told: alerts.tell(tag, told),  # noqa: PLW0108 - bound below
        )
        # Until they are counted: how many there are to be.
        desk.workers = supplies.workers
        epoch = None if pipe is None else Epoch(supplies.database, life_of(pipe, settings.redis.key_prefix))
        seeder = LedgerSeeder(desk, supplies.sums, None if epoch is None else epoch.may_seed)
        stack.push_async_callback(seeder.aclose)
        steps = Steps(desk, seeder)
        alerts = await stack.enter_async_context(Alerts.running(settings.alerts, supplies.client, steps.limit_of))
        if pipe is not None:
            await _share(stack, desk, alerts, pipe, settings)
        renewal = Renewal(desk, pipe, epoch, prefix=settings.redis.key_prefix)
        if pipe is not None:
            pipe.on_lost.append(lambda: desk.leave("the connection was lost"))
            pipe.on_connected.append(renewal.wake)
            if pipe.is_connected:
                await renewal.begin()
            else:
                desk.leave("not connected")
        task = asyncio.create_task(renewal.run())
        stack.push_async_callback(_ended, task)
        if pipe is not None:
            stack.push_async_callback(_all_heard, pipe)
        yield Admission(Gate(steps, supplies.book), steps, desk, alerts)


async def _share(stack: AsyncExitStack, desk: Desk, alerts: Alerts, pipe: Connections, settings: Settings) -> None:
    """Gives the desk the store that all workers share, and ears for what others' steps grant it."""
    prefix = settings.redis.key_prefix
    address = redis_address(settings)
    assert address is not None
    desk.shared = RedisStore(pipe, prefix, told=desk.granted, alerted=alerts.tell, lost=desk.note_lost)

    def heard(_: str, message: bytes) -> None:
        base, _, entry = message.decode().partition("\n")
        tag = base.removeprefix(f"{prefix}:{{").removesuffix("}")
        desk.granted(desk.worker, tag, entry, "granted")

    await stack.enter_async_context(
        Subscription.running(
            address,
            client_name=f"{prefix}-grants",
            channels=[grant_channel(prefix, desk.worker)],
            on_message=heard,
            # What was missed is found by the next look, within a second.
            on_gap=lambda: None,
            # What is published on any node of a cluster is heard on every other.
            dial=pipe.dial if isinstance(pipe, PipelinedCluster) else None,
        )
    )
    await _name_eviction(pipe)


async def _name_eviction(pipe: Pipe) -> None:
    """Says at start where Redis may throw away what limits are kept by."""
    try:
        async with asyncio.timeout(1):
            answers = await pipe.ask_each("CONFIG", "GET", "maxmemory-policy")
    except (StoreGone, ScriptError, TimeoutError):
        # Not to be asked: managed servers often forbid it.
        return
    policies = sorted({answer[1].decode() for answer in answers if len(answer) > 1} - {"noeviction"})
    for policy in policies[:1]:
        log.warning(
            "redis_may_evict_limits",
            maxmemory_policy=policy,
            remedy="set maxmemory-policy to noeviction: a full Redis would forget slots and budgets",
        )


async def _all_heard(pipe: Pipe) -> None:
    """Waits until what was released last is answered: the connection answers in order."""
    with anyio.CancelScope(shield=True), anyio.move_on_after(_LAST_ANSWER_WITHIN_S):
        try:
            await pipe.ask_each("PING")
        except (StoreGone, ScriptError) as error:
            log.info("gate_left_without_redis", reason=f"{type(error).__name__}: {error}")


async def _ended(task: "asyncio.Task[None]") -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)

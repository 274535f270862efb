"""What a process shows of itself: its metrics, opened for its life, and what is looked at once a second.

Numbers of a moment (slots, queues, breakers, pools, lags) are of this process alone: over workers they are summed, or
the greatest counts, as each family says. What is gone, such as an upstream after a reload, vanishes.
"""

import asyncio
import contextlib
import os
import platform
import resource
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from redis.asyncio import BlockingConnectionPool
from sqlalchemy.pool import QueuePool

from tidegate import __version__
from tidegate.http.counting import STATE_KEY, RequestCounts
from tidegate.inference.observation import RoadMetrics
from tidegate.lifespan.road import Road
from tidegate.lifespan.stores import Stores
from tidegate.settings import Settings
from tidegate.telemetry.health import HealthBoard
from tidegate.telemetry.logging import get_logger
from tidegate.telemetry.loop_lag import LoopLag
from tidegate.telemetry.metrics import families
from tidegate.telemetry.metrics.cells import CellFile
from tidegate.telemetry.metrics.exposition import Exposition
from tidegate.telemetry.metrics.folding import DIRECTORY
from tidegate.telemetry.metrics.series import Family, Metrics
from tidegate.telemetry.tracing_export import Tracing

EVERY_S = 1.0

Now = Iterator[tuple[Family, tuple[str, ...], float]]

log = get_logger(__name__)


@asynccontextmanager
async def open_sight(
    settings: Settings, stores: Stores, road: Road, health: HealthBoard, lag: LoopLag, *, tracing: Tracing | None = None
) -> AsyncIterator[dict[str, Any]]:
    """Its part of the routes' state. From here on the road's requests are counted."""
    directory = settings.data_dir / DIRECTORY

    def info() -> list[tuple[Family, tuple[str, ...]]]:
        return [
            (families.BUILD_INFO, (__version__, platform.python_version())),
            (families.CATALOGUE_INFO, (road.gateway.serving.catalogue.version,)),
        ]

    exposition = Exposition(directory, info)
    with contextlib.closing(Metrics(CellFile.create(directory))) as metrics:
        road.gateway.observed = RoadMetrics(metrics)
        lag.observe = metrics.histogram(families.LOOP_LAG).observe
        look = _Look(metrics, stores, road, health, tracing)
        look.once()
        task = asyncio.create_task(look.run())
        try:
            yield {"exposition": exposition, STATE_KEY: RequestCounts(metrics)}
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await exposition.aclose()


class _Look:
    """Writes down how this process stands."""

    def __init__(
        self, metrics: Metrics, stores: Stores, road: Road, health: HealthBoard, tracing: Tracing | None
    ) -> None:
        self._metrics = metrics
        self._stores = stores
        self._road = road
        self._health = health
        self._tracing = tracing
        self._shown: set[tuple[Family, tuple[str, ...]]] = set()
        self._failed = False

    async def run(self) -> None:
        while True:
            await asyncio.sleep(EVERY_S)
            self.once()

    def once(self) -> None:
        """Never raises: numbers are worth no refused start."""
        try:
            self._write_down()
            self._failed = False
        except Exception:
            # The edge of a background task: what cannot be seen now may be seen in a second.
            if not self._failed:
                log.exception("metrics_not_updated")
            self._failed = True

    def _write_down(self) -> None:
        shown = set()
        for family, labels, value in self._now():
            self._metrics.gauge(family, *labels).set(value)
            shown.add((family, labels))
        for family, labels in self._shown - shown:
            self._metrics.gauge(family, *labels).clear()
        self._shown = shown
        self._follow()

    def _now(self) -> Now:
        gateway, health = self._road.gateway, self._health
        yield families.WORKERS, (), 1
        yield families.DRAINING, (), gateway.drain.draining
        yield families.RUNNING, (), gateway.ledger.open_entries
        yield families.LEDGER_LAG, (), gateway.ledger.lag_s
        yield families.LEDGER_BEHIND, (), gateway.ledger.is_behind
        for what in health.degraded:
            yield families.DEGRADED, (what,), 1
        serving = gateway.serving
        for name, slots in serving.slots.items():
            yield families.SLOTS_IN_USE, (name,), slots.in_use
            yield families.QUEUE_LENGTH, (name,), slots.waiting
            yield families.SLOTS, (name,), serving.catalogue.upstreams[name].max_concurrency
        for name, breaker in serving.breakers.items():
            yield families.BREAKER_OPEN, (name,), breaker.is_open
        yield from _pools(self._stores)
        memory = _resident_bytes()
        yield families.MEMORY, (), memory
        yield families.MEMORY_GREATEST, (), memory
        yield families.DESCRIPTORS, (), _open_descriptors()

    def _follow(self) -> None:
        """Counts that are kept elsewhere."""
        counter, admission = self._metrics.counter, self._road.admission
        counter(families.JUDGED_ALONE).follow(admission.desk.judged_alone)
        counter(families.FORGOTTEN_ENDS).follow(admission.desk.forgotten_ends)
        for level, count in admission.alerts.told.items():
            counter(families.ALERTS, str(level)).follow(count)
        counter(families.ALERTS_DROPPED).follow(admission.alerts.dropped)
        counter(families.CPU).follow(time.process_time())
        if self._tracing is not None:
            counter(families.TRACE_SPANS, "sent").follow(self._tracing.exporter.sent)
            counter(families.TRACE_SPANS, "dropped").follow(self._tracing.exporter.dropped)


def _pools(stores: Stores) -> Now:
    pool = stores.database.engine.pool
    if isinstance(pool, QueuePool):
        yield families.POOL_IN_USE, ("database",), pool.checkedout()
        yield families.POOL_LIMIT, ("database",), pool.size() + pool._max_overflow  # noqa: SLF001 - told nowhere else
    redis = getattr(stores.redis, "connection_pool", None)
    if isinstance(redis, BlockingConnectionPool):
        yield families.POOL_IN_USE, ("redis",), len(redis._in_use_connections)  # noqa: SLF001 - likewise
        yield families.POOL_LIMIT, ("redis",), redis.max_connections


def _resident_bytes() -> int:
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_bytes().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    # The greatest that it ever was: in bytes on macOS, elsewhere in KiB.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _open_descriptors() -> int:
    return len(os.listdir("/dev/fd"))  # noqa: PTH208 - Path would make an object of each

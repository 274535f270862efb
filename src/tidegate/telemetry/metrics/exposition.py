"""What Prometheus is told: the numbers of every process of this server, in its text format.

A crowd of callers costs one reading a second, and reading is not the event loop's work.
"""

import asyncio
import contextvars
import math
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import orjson
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from tidegate.errors import Unavailable
from tidegate.telemetry.metrics.cells import Sums
from tidegate.telemetry.metrics.families import FAMILIES
from tidegate.telemetry.metrics.folding import Busy, read_sums
from tidegate.telemetry.metrics.series import Family

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
FRESH_S = 1.0

Info = Callable[[], Iterable[tuple[Family, tuple[str, ...]]]]


class Exposition:
    """`info` are families, with their labels, that are 1 by being so.

    >>> exposition = Exposition(data_dir / "metrics", info=lambda: [(BUILD_INFO, ("0.1.0", "3.13.0"))])
    >>> body = await exposition.text()
    """

    def __init__(self, directory: Path, info: Info = tuple, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._directory = directory
        self._info = info
        self._clock = clock
        self._text = b""
        self._read_at = float("-inf")
        self._reading: asyncio.Task[bytes] | None = None

    async def text(self) -> bytes:
        """All series, read at most a second ago. Raises `Unavailable`."""
        if self._reading is None and self._clock() - self._read_at < FRESH_S:
            return self._text
        if self._reading is None:
            # A context of its own: the reading is not one request's work, and does not end with it.
            self._reading = asyncio.create_task(self._read(), context=contextvars.Context())
        reading = self._reading
        await asyncio.wait({reading})
        try:
            return reading.result()
        except (Busy, OSError, ValueError) as error:
            raise Unavailable(
                "The metrics cannot be read now. Try again; where it stays so, look at the data directory's `metrics`."
            ) from error

    async def aclose(self) -> None:
        """Waits for a reading that runs: a thread cannot be stopped, and has a bound of its own."""
        if self._reading is not None:
            await asyncio.wait({self._reading})

    async def _read(self) -> bytes:
        try:
            self._text = await asyncio.to_thread(rendered, self._directory, tuple(self._info()))
            self._read_at = self._clock()
            return self._text
        finally:
            self._reading = None


def rendered(directory: Path, info: Iterable[tuple[Family, tuple[str, ...]]]) -> bytes:
    """Raises `Busy`, `OSError`, or `ValueError` where the accumulator is none."""
    sums = read_sums(directory)
    for family, labels in info:
        sums[family.key(labels), 1] = [1.0]
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Told(sums))
    return generate_latest(registry)


class _Told(Collector):
    """Sums as prometheus-client's metrics. What no family of this release knows is left out."""

    def __init__(self, sums: Sums) -> None:
        self._sums = sums

    def describe(self) -> Iterator[Metric]:
        yield from ()

    def collect(self) -> Iterator[Metric]:
        known = {(family.mark, family.name, family.cell_count, len(family.labels)): family for family in FAMILIES}
        metrics = {family.name: _metric(family) for family in FAMILIES}
        for (key, count), cells in sorted(self._sums.items()):
            try:
                name, *labels = orjson.loads(key[1:])
            except orjson.JSONDecodeError:
                # Half of a record that is being written, as another processor may see it.
                continue
            family = known.get((chr(key[0]), name, count, len(labels)))
            if family is not None:
                _add(metrics[name], family, dict(zip(family.labels, labels, strict=True)), cells)
        yield from metrics.values()


def _metric(family: Family) -> Metric:
    return Metric(family.name.removesuffix("_total"), family.help, family.kind)


def _add(metric: Metric, family: Family, labels: dict[str, str], cells: list[float]) -> None:
    if family.kind != "histogram":
        metric.add_sample(family.name, labels, cells[0])
        return
    below = 0.0
    for bound, count in zip((*family.bounds, math.inf), cells[:-1], strict=True):
        below += count
        metric.add_sample(
            f"{family.name}_bucket", {**labels, "le": "+Inf" if bound == math.inf else repr(bound)}, below
        )
    metric.add_sample(f"{family.name}_count", labels, below)
    metric.add_sample(f"{family.name}_sum", labels, cells[-1])

"""Families of series, and the counters, gauges and histograms of this process.

Made by the lifespan and handed on; nothing here is global. A series is found once by its labels and kept by whoever
counts in it. Counting is of the event loop's thread alone. How many series there may be is bounded: what comes on top
of that is counted under `other`.
"""

import math
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import orjson

from tidegate.telemetry.metrics.cells import CellFile

MOST_SERIES = 2000
_LONGEST_LABEL = 200
OTHER = "other"


@dataclass(frozen=True, slots=True)
class Family:
    """A metric's name, what it says, and its labels. `bounds` are a histogram's buckets, in the family's unit.

    `over_workers` says what a gauge of several workers is: their sum, or the greatest.
    """

    name: str
    help: str
    labels: tuple[str, ...] = ()
    kind: Literal["counter", "gauge", "histogram"] = "counter"
    bounds: tuple[float, ...] = ()
    over_workers: Literal["sum", "greatest"] = "sum"

    @property
    def mark(self) -> str:
        """The first character of its keys: see `cells`."""
        if self.kind != "gauge":
            return "c"
        return "+" if self.over_workers == "sum" else "^"

    @property
    def cell_count(self) -> int:
        """Of a histogram: its buckets, the one without a bound, and the sum."""
        return len(self.bounds) + 2 if self.kind == "histogram" else 1

    def key(self, labels: tuple[str, ...]) -> bytes:
        return self.mark.encode() + orjson.dumps([self.name, *labels])


class Counter:
    """Only grows."""

    __slots__ = ("_at", "_cells")

    def __init__(self, cells: "memoryview[float]", at: int) -> None:
        self._cells = cells
        self._at = at

    def add(self, amount: float = 1.0) -> None:
        self._cells[self._at] += amount

    def follow(self, total: float) -> None:
        """Takes the total of a count that is kept elsewhere in this process."""
        self._cells[self._at] = total


class Gauge:
    """A value of now."""

    __slots__ = ("_at", "_cells")

    def __init__(self, cells: "memoryview[float]", at: int) -> None:
        self._cells = cells
        self._at = at

    def set(self, value: float) -> None:
        self._cells[self._at] = value

    def clear(self) -> None:
        """There is no such thing any more."""
        self._cells[self._at] = math.nan


class Histogram:
    """Values by bucket, and their sum."""

    __slots__ = ("_at", "_bounds", "_cells", "_sum_at")

    def __init__(self, cells: "memoryview[float]", at: int, bounds: tuple[float, ...]) -> None:
        self._cells = cells
        self._at = at
        self._bounds = bounds
        self._sum_at = at + len(bounds) + 1

    def observe(self, value: float) -> None:
        cells = self._cells
        cells[self._at + bisect_left(self._bounds, value)] += 1.0
        cells[self._sum_at] += value

    def add(self, tally: "Tally") -> None:
        """All that was counted apart, by the same bounds."""
        cells = self._cells
        at = self._at
        for bucket, count in tally.counts.items():
            cells[at + bucket] += count
        cells[self._sum_at] += tally.total


class Tally:
    """The times between the pieces of one stream, by bucket: counted apart, so that a piece costs a third of a µs.

    >>> tally = Tally(family.bounds)
    >>> tally.mark(time.perf_counter())
    """

    __slots__ = ("_bounds", "_last", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._last = 0.0
        # Few of the buckets are met, and the end is dearer for each.
        self.counts: defaultdict[int, int] = defaultdict(int)
        self.total = 0.0

    def mark(self, now: float) -> None:
        """A piece came now, in seconds of a clock that never stands at 0. The first has no gap before it."""
        if self._last:
            gap = now - self._last
            self.counts[bisect_left(self._bounds, gap)] += 1
            self.total += gap
        self._last = now


class Metrics:
    """The series of this process.

    >>> metrics = Metrics(CellFile.create(data_dir / "metrics"))
    >>> metrics.counter(REQUESTS, "gpt", "completed").add()
    """

    def __init__(self, file: CellFile) -> None:
        self._file = file
        self._counters: dict[bytes, Counter] = {}
        self._gauges: dict[bytes, Gauge] = {}
        self._histograms: dict[bytes, Histogram] = {}

    def counter(self, family: Family, *labels: str) -> Counter:
        key = self._key(family, labels, self._counters)
        known = self._counters.get(key)
        if known is None:
            known = self._counters[key] = Counter(*self._file.cells(key, 1))
        return known

    def gauge(self, family: Family, *labels: str) -> Gauge:
        key = self._key(family, labels, self._gauges)
        known = self._gauges.get(key)
        if known is None:
            known = self._gauges[key] = Gauge(*self._file.cells(key, 1))
        return known

    def histogram(self, family: Family, *labels: str) -> Histogram:
        key = self._key(family, labels, self._histograms)
        known = self._histograms.get(key)
        if known is None:
            cells, at = self._file.cells(key, family.cell_count)
            known = self._histograms[key] = Histogram(cells, at, family.bounds)
        return known

    def close(self) -> None:
        """No more is counted. What was counted stays."""
        self._file.close()

    def _key(self, family: Family, labels: tuple[str, ...], known: Mapping[bytes, object]) -> bytes:
        assert len(labels) == len(family.labels), f"{family.name} has the labels {family.labels}"
        key = family.key(tuple(label[:_LONGEST_LABEL] for label in labels))
        if key in known or len(known) < MOST_SERIES:
            return key
        return family.key((OTHER,) * len(labels))

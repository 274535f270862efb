"""What the soak looks at every few seconds, and what it makes of it: did anything grow?

The first third of a soak is for filling pools and caches. Of the other two the medians are compared, each worker's for
itself: what only ever grows is greater in the last third, however slowly.
"""

import asyncio
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import psutil
from redis.asyncio import Redis

from tidegate.server.control import ask_root

RESIDENT = "resident memory, MiB"
TASKS = "tasks"
DESCRIPTORS = "descriptors"
FILES = "descriptors beside connections"
CLIENTS = "connections of clients"
OPEN_REQUESTS = "open requests"
SLOTS = "slots in use"
# What is bounded by time and has to run for so long before it stands still, in seconds: entries that a limit's window
# has counted, two sets of 10 minutes each; the buckets of limits by the minute; answers that are kept for 30 s.
_FILLS_FOR_S: Mapping[str, float] = {
    "{w}:e": 1200,
    "{w}:s": 70,
    "{w}:answer": 60,
    "{w}:answers": 60,
    "{w}:answer-sizes": 60,
}
_SIZES: Mapping[str, str] = {"hash": "hlen", "zset": "zcard", "set": "scard", "list": "llen"}
_AT_ONCE = 500

Measures = Mapping[str, float]


@dataclass(frozen=True)
class Sample:
    """`workers` are measures by pid. `keys` are how many there are in Redis by kind, `members` what stands in them."""

    workers: Mapping[int, Measures]
    keys: Measures
    members: Measures

    @property
    def totals(self) -> Measures:
        """Everything that is counted in workers, over all of them."""
        return {
            what: sum(measures[what] for measures in self.workers.values())
            for what in next(iter(self.workers.values()))
            if what != RESIDENT
        }


@dataclass(frozen=True)
class Grown:
    """A measure's medians in the thirds of a soak. `allowed` is the most that the last may be; None: it still fills."""

    whose: str
    what: str
    medians: tuple[float, float, float]
    allowed: float | None

    @property
    def is_too_much(self) -> bool:
        return self.allowed is not None and self.medians[2] > self.allowed

    @property
    def change(self) -> float:
        """Of the last third over the middle one, as a share of it."""
        return self.medians[2] / self.medians[1] - 1 if self.medians[1] else 0.0


class Eyes:
    """Looks at one server. `services` says which port is whose; every other connection of a worker is a client's."""

    def __init__(self, data_dir: Path, redis: "Redis", prefix: str, services: Mapping[int, str]) -> None:
        self._data_dir = data_dir
        self._redis = redis
        self._prefix = prefix
        self._services = services

    async def look(self) -> Sample | None:
        """None where a worker was too busy to say how it stands. Raises where one is gone."""
        told = await asyncio.to_thread(ask_root, self._data_dir, {"ask": "report"}, within_s=20)
        if any(worker["state"] == "silent" for worker in told["done"]["workers"]):
            return None
        workers = {worker["pid"]: self._measures(worker) for worker in told["done"]["workers"]}
        keys, members = await self._in_redis()
        return Sample(workers, keys, members)

    def _measures(self, report: Mapping[str, Any]) -> Measures:
        process = psutil.Process(report["pid"])
        found = Counter(dict.fromkeys((*self._services.values(), CLIENTS), 0))
        for connection in process.net_connections("tcp"):
            if connection.raddr:
                found[self._services.get(connection.raddr.port, CLIENTS)] += 1
        descriptors = process.num_fds()
        return {
            RESIDENT: process.memory_info().rss / 2**20,
            TASKS: report["tasks"],
            DESCRIPTORS: descriptors,
            FILES: descriptors - sum(found.values()),
            OPEN_REQUESTS: report["requests"],
            SLOTS: sum(report["slots"].values()),
            **found,
        }

    async def _in_redis(self) -> tuple[Measures, Measures]:
        keys: Counter[str] = Counter()
        members: Counter[str] = Counter()
        names = [name async for name in self._redis.scan_iter(match=f"{self._prefix}:*", count=1000)]
        for start in range(0, len(names), _AT_ONCE):
            some = names[start : start + _AT_ONCE]
            types = [kind.decode() for kind in await self._types(some)]
            sized = [(name, _SIZES[kind]) for name, kind in zip(some, types, strict=True) if kind in _SIZES]
            keys.update(kind_of(name.decode(), self._prefix) for name in some)
            async with self._redis.pipeline(transaction=False) as pipe:
                for name, size in sized:
                    getattr(pipe, size)(name)
                for (name, _), count in zip(sized, await pipe.execute(), strict=True):
                    members[kind_of(name.decode(), self._prefix)] += count
        return keys, members

    async def _types(self, names: Sequence[bytes]) -> list[bytes]:
        async with self._redis.pipeline(transaction=False) as pipe:
            for name in names:
                pipe.type(name)
            answers: list[bytes] = await pipe.execute()
        return answers


def kind_of(name: str, prefix: str) -> str:
    """A key's name without what is different in each: `tidegate:{w:7f…}:l:key:…` is `{w}:l`.

    >>> kind_of("tidegate:{u:openai}:h:4711-ab", "tidegate")
    '{u}:h'
    """
    tag, _, rest = name.removeprefix(f"{prefix}:").rpartition("}:")
    kind = re.sub(r"[0-9a-f-]{8,}|\d+", "*", rest.partition(":")[0] if tag else rest)
    return f"{tag.partition(':')[0]}}}:{kind}" if tag else kind


@dataclass(frozen=True)
class Bounds:
    """By how much the last third may be above the middle one: memory by the share `memory`, what is counted by the
    share `counts` and by `slack` pieces.
    """

    memory: float = 0.05
    counts: float = 0.02
    slack: float = 5.0

    def of(self, what: str, middle: float) -> float:
        return middle * (1 + self.memory) if what == RESIDENT else middle * (1 + self.counts) + self.slack


def growth(samples: Sequence[Sample], bounds: Bounds, *, seconds: float) -> list[Grown]:
    """Every measure of a soak of so many seconds: memory of each worker for itself; what each stream takes, of all, for
    the same number of streams is now more in this worker, now in that.

    Raises `ValueError` where a worker was not there all the time: what is compared is one process.
    """
    pids = sorted(samples[0].workers) if samples else []
    if any(sorted(sample.workers) != pids for sample in samples):
        raise ValueError("a worker left or came during the soak: see the log of the gateway")
    found = []
    for number, pid in enumerate(pids, start=1):
        medians = thirds([sample.workers[pid][RESIDENT] for sample in samples])
        found.append(Grown(f"worker {number}", RESIDENT, medians, bounds.of(RESIDENT, medians[1])))
    # Files are judged at rest: connections come and go between the look at them and the one at all descriptors.
    for what in (what for what in samples[0].totals if what != FILES):
        medians = thirds([sample.totals[what] for sample in samples])
        found.append(Grown("all workers", what, medians, bounds.of(what, medians[1])))
    in_redis = {"keys in Redis": [s.keys for s in samples], "members of them": [s.members for s in samples]}
    for whose, each in in_redis.items():
        for kind in sorted(set().union(*each)):
            medians = thirds([counts.get(kind, 0) for counts in each])
            stands = seconds / 3 >= _FILLS_FOR_S.get(kind, 0)
            found.append(Grown(whose, kind, medians, bounds.of(kind, medians[1]) if stands else None))
    return found


def thirds(values: Sequence[float]) -> tuple[float, float, float]:
    """The medians of the first, the middle and the last third."""
    third = len(values) // 3
    if not third:
        raise ValueError(f"{len(values)} samples have no thirds: let it run longer")
    first, middle, last = values[:third], values[third:-third], values[-third:]
    return median(first), median(middle), median(last)


def table(found: Sequence[Grown]) -> str:
    """A line a measure."""
    rows: list[tuple[str, ...]] = [("", "", "first third", "middle", "last", "change")]
    for grown in found:
        numbers = (f"{number:.1f}" if grown.what == RESIDENT else f"{number:.0f}" for number in grown.medians)
        mark = "  GROWS" if grown.is_too_much else "" if grown.allowed is not None else "  (still fills)"
        rows.append((grown.whose, grown.what, *numbers, f"{grown.change:+.1%}{mark}"))
    widths = [max(len(row[column]) for row in rows) for column in range(6)]
    aligned = (
        [
            *(text.ljust(width) for text, width in zip(row[:2], widths[:2], strict=True)),
            *(text.rjust(width) for text, width in zip(row[2:5], widths[2:5], strict=True)),
            row[5],
        ]
        for row in rows
    )
    return "\n".join("  ".join(cells).rstrip() for cells in aligned)

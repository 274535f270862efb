"""The measures. Each takes a bench and a subject and returns plain numbers; what it costs in time is bounded by `Size`.

CPU is user and system time of the subject's whole process tree. A chunk's is the slope between long streams and short
ones, as many of each, so that what a request costs cancels; the pace leaves the subject idle in between, so that every
chunk is a read of its own, and `reads_per_chunk` says whether it was. Latency is one request at a time, in turns with
the upstream asked directly; what is added is the difference of the medians.
"""

import asyncio
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from tests.support.client import RawClient

from benchmarks.client import Target
from benchmarks.machine import Cores, cpu_s, pin, rss_mb
from benchmarks.subjects import ROOT, Subject

PHASES = ("mid-stream", "slow reader", "before the first byte", "not streamed", "connecting", "queued")
SHORT_CHUNKS, LONG_CHUNKS = 10, 210
Numbers = dict[str, float | None]
_READ_WITHIN_S = 10.0
_BESIDE_S = 1.0


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    request_s: float = 6.0
    connections: int = 16
    stream_rounds: int = 3
    streams_at_once: int = 32
    gap_ms: int = 16
    latency_rounds: int = 10
    latency_batch: int = 60
    held_streams: int = 1000
    hang_ups: int = 50
    gate_rounds: int = 7
    gate_requests: int = 200

    @property
    def stream_models(self) -> tuple[str, str]:
        return f"stream-{SHORT_CHUNKS}-{self.gap_ms}", f"stream-{LONG_CHUNKS}-{self.gap_ms}"


QUICK = Size(
    request_s=1.5, stream_rounds=1, latency_rounds=4, latency_batch=30, hang_ups=20, gate_rounds=3, gate_requests=100
)


@dataclass
class Bench:
    """What every measure needs: the load process, the upstream asked directly, and where processes run."""

    size: Size
    direct: Subject
    cores: Cores | None
    hole_port: int
    errors: list[str] = field(default_factory=list)
    _load: subprocess.Popen[str] | None = None

    def start_load(self) -> "subprocess.Popen[str]":
        self._load = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.load"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        return self._load

    async def do(self, name: str, subject: Subject | None = None, **command: Any) -> dict[str, Any]:
        """Has the load process do something; raises `LoadFailed` with its fault."""
        if subject is not None:
            command["target"] = [subject.target.host, subject.target.port, subject.target.headers]
        answer = await asyncio.to_thread(self._exchange, json.dumps({"do": name, **command}))
        result: dict[str, Any] = json.loads(answer) or {}
        if "error" in result:
            raise LoadFailed(result["error"])
        return result

    def _exchange(self, line: str) -> str:
        assert self._load is not None
        assert self._load.stdin is not None
        assert self._load.stdout is not None
        self._load.stdin.write(line + "\n")
        answer = self._load.stdout.readline()
        if not answer:
            raise LoadFailed("the load process ended")
        return answer


class LoadFailed(Exception):
    """The load could not be put on the subject; the message says what it answered."""


async def warm_up(bench: Bench, subject: Subject) -> None:
    if bench.cores is not None:
        pin(subject.processes(), bench.cores.subject)
    await bench.do("requests", subject, model="small", connections=bench.size.connections, count=300)
    await bench.do("streams", subject, model="stream-2-1", connections=bench.size.connections, count=100)


async def request_cost(bench: Bench, subject: Subject, *, seconds: float | None = None) -> Numbers:
    """CPU of a small request that is not streamed, many at once, and how many a second one core does."""
    before = cpu_s(subject.processes())
    bound_s = seconds or bench.size.request_s
    done = await bench.do("requests", subject, model="small", connections=bench.size.connections, seconds=bound_s)
    used = cpu_s(subject.processes()) - before
    return {
        "cpu_us": used / done["count"] * 1e6 if subject.processes() else None,
        "per_second": done["count"] / done["seconds"],
    }


async def chunk_cost(bench: Bench, subject: Subject) -> Numbers:
    """CPU of one streamed chunk, and of a stream's other parts."""
    size = bench.size
    used: dict[str, float] = {}
    reads = chunks = 0
    count = size.streams_at_once * size.stream_rounds
    for model in size.stream_models:
        before = cpu_s(subject.processes())
        done = await bench.do("streams", subject, model=model, connections=size.streams_at_once, count=count)
        used[model] = cpu_s(subject.processes()) - before
        reads, chunks = done["reads"], done["chunks"]
    short, long = (used[model] / count for model in size.stream_models)
    a_chunk = (long - short) / (LONG_CHUNKS - SHORT_CHUNKS)
    seen = bool(subject.processes())
    return {
        "cpu_us": a_chunk * 1e6 if seen else None,
        "stream_cpu_us": (short - a_chunk * SHORT_CHUNKS) * 1e6 if seen else None,
        "reads_per_chunk": reads / chunks,
        "chunks_per_second": size.streams_at_once * 1000 / size.gap_ms,
    }


async def latency(bench: Bench, subject: Subject) -> Numbers:
    """Of a small request, and to the first token of a stream: direct, through, and what the subject adds."""
    size = bench.size
    times: dict[tuple[str, str], list[float]] = {}
    for _ in range(size.latency_rounds):
        for name, asked in (("direct", bench.direct), ("through", subject)):
            done = await bench.do("requests", asked, model="small", connections=1, count=size.latency_batch)
            times.setdefault((name, "whole"), []).extend(done["whole_ms"])
            done = await bench.do("streams", asked, model="stream-2-1", connections=1, count=size.latency_batch // 2)
            times.setdefault((name, "first"), []).extend(done["first_ms"])
    numbers: Numbers = {}
    for kind in ("whole", "first"):
        for share in (50, 99):
            direct, through = (percentile(times[name, kind], share) for name in ("direct", "through"))
            numbers[f"{kind}_p{share}_direct_ms"] = direct
            numbers[f"{kind}_p{share}_ms"] = through
            numbers[f"{kind}_p{share}_added_ms"] = through - direct
    return numbers


async def open_streams(bench: Bench, subject: Subject) -> Numbers:
    """Memory idle and with many streams open, what a request costs beside them, and how long all take to be gone."""
    if not subject.processes():
        return {}
    idle = rss_mb(subject.processes())
    held = await bench.do("hold", subject, count=bench.size.held_streams)
    full = rss_mb(subject.processes())
    beside = await request_cost(bench, subject, seconds=_BESIDE_S)
    released = await bench.do("release")
    return {
        "idle_mb": idle,
        "held_streams": held["open"],
        "held_mb": full,
        "per_stream_kb": (full - idle) * 1024 / bench.size.held_streams,
        "request_cpu_us": beside["cpu_us"],
        "all_closed_ms": released["ms"],
        "unseen": released["unseen"],
    }


async def hang_up(bench: Bench, subject: Subject, phase: str) -> Numbers:
    """From the client's hang-up until the upstream sees its connection closed; in the queue, until the entry ends."""
    if phase in ("queued", "connecting") and not subject.is_gateway:
        return {"p50_ms": None, "p95_ms": None, "unseen": None}
    count = bench.size.hang_ups
    if phase == "queued":
        times = await _hang_ups_queued(bench, subject, count)
    else:
        done = await bench.do("hang_ups", subject, phase=phase, count=count, port=bench.hole_port)
        times = done["ms"]
    seen = [ms for ms in times if ms is not None]
    return {
        "p50_ms": percentile(seen, 50) if seen else None,
        "p95_ms": percentile(seen, 95) if seen else None,
        "unseen": len(times) - len(seen),
    }


async def _hang_ups_queued(bench: Bench, subject: Subject, count: int) -> list[float | None]:
    """A queued request has reached no upstream: what tells that its place is free is the end of its ledger entry."""
    prefix = f"bench-queued-{time.time_ns()}"
    done = await bench.do("hang_ups_queued", subject, count=count, prefix=prefix)
    times: list[float | None] = []
    for n, hung_up_at in enumerate(done["at"]):
        ended_at = await _entry_ended_at(subject.target, f"{prefix}-{n}")
        times.append(None if ended_at is None else (ended_at - hung_up_at) * 1000)
    return times


async def _entry_ended_at(target: Target, request_id: str) -> float | None:
    """When a request's entry ended, by the wall clock; None where the ledger does not show it within the bound."""
    deadline = time.monotonic() + _READ_WITHIN_S
    while time.monotonic() < deadline:
        async with RawClient(f"http://{target.host}:{target.port}") as client:
            await client.send("GET", f"/api/requests?request_id={request_id}", headers=dict(target.headers))
            head = await client.head()
            body = await client.body()
        if head.status != 200:
            raise LoadFailed(f"GET /api/requests answered {head.status}: {body[:200]!r}")
        if entries := json.loads(body)["data"]:
            return datetime.fromisoformat(entries[0]["ended_at"]).timestamp()
        await asyncio.sleep(0.05)
    return None


def percentile(values: Sequence[float], share: int) -> float:
    """The value that `share` per cent do not exceed."""
    if len(values) < 2:
        return values[0] if values else float("nan")
    return statistics.quantiles(values, n=100, method="inclusive")[share - 1]

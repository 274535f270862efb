"""`make bench`: what the gateway costs, beside the same upstream asked directly and beside bare proxies.

    python -m benchmarks.run [--quick] [--only NAME] [--subject NAME] [--json FILE]

Everything runs on loopback, is bounded in count and time, and ends by itself: within 90 s with `--quick`, five minutes
without. A request and a chunk are measured before a thousand streams are opened, whose ends the subject is still
counting afterwards. What needs a Redis takes the machine's, else one of its own; where there is none it says so.
"""

import argparse
import asyncio
import dataclasses
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path

import psutil
from tests.support.blackhole import LOOPBACK, BlackHole
from tests.support.services import ServiceUnavailable, delete_keys, redis_service, redis_url

from benchmarks import subjects
from benchmarks.client import Target
from benchmarks.gate import Job, gate_cost
from benchmarks.machine import Cores, busy_share, facts, pin, speed_us, split_cores
from benchmarks.measures import (
    PHASES,
    QUICK,
    Bench,
    LoadFailed,
    Numbers,
    Size,
    chunk_cost,
    hang_up,
    latency,
    open_streams,
    request_cost,
    warm_up,
)
from benchmarks.report import Results, save, table
from benchmarks.subjects import ROOT, Subject

Measure = Callable[[Bench, Subject], Awaitable[Numbers]]
Openers = dict[str, Callable[[], AbstractAsyncContextManager[Subject]]]
MEASURES = ("request", "chunk", "latency", "open-streams", "hang-up", "gate")
SUBJECTS = ("hand", "httpx2", "gateway", "gateway-redis")
# Of the gateway on Redis only what limits and their store may change is measured; of the proxy on httpx2, in a quick
# run, what a client costs: a thousand streams through it take half a minute.
_NARROW: dict[str, tuple[str, ...]] = {"gateway-redis": ("request", "chunk")}
_QUICK_NARROW = {**_NARROW, "httpx2": ("request", "chunk")}
_QUIET = 0.15


def main() -> int:
    options = _parser().parse_args()
    results = asyncio.run(_run(options))
    return 1 if any("error" in measures for measures in results.values()) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="What the gateway costs, beside bare proxies and going direct.")
    parser.add_argument("--quick", action="store_true", help="within 90 s, with more noise")
    parser.add_argument("--only", action="append", choices=MEASURES, help="this measure; may be given several times")
    parser.add_argument("--subject", action="append", choices=SUBJECTS, help="this subject; likewise")
    parser.add_argument("--base-url", help="measure a server that runs already, such as http://127.0.0.1:8000")
    parser.add_argument("--key", help="its API key")
    parser.add_argument("--json", type=Path, help="where the numbers go; benchmarks/results/ by default")
    parser.add_argument("--no-pin", action="store_true", help="leave processes on whatever core they run")
    return parser


async def _run(options: argparse.Namespace) -> Results:
    began = time.monotonic()
    size = QUICK if options.quick else Size()
    busy = busy_share()
    measured_on = {**facts(), "busy_before": round(busy, 2), "speed_us": round(speed_us(), 1)}
    cores = None if options.no_pin else split_cores()
    measures = options.only or list(MEASURES)
    at_gate: Results = {}
    async with AsyncExitStack() as stack:
        folder = await stack.enter_async_context(subjects.working_folder())
        hole = await stack.enter_async_context(BlackHole())
        upstream_port = await stack.enter_async_context(_upstream(cores))
        direct = Subject("direct", Target(LOOPBACK, upstream_port))
        bench = Bench(size, direct, cores, hole.port)
        await stack.enter_async_context(_load(bench, upstream_port))
        if cores is not None:
            pin([psutil.Process()], cores.others)
        redis = None if options.base_url else _redis(stack)
        if "gate" in measures and not options.base_url and (options.only or not options.subject):
            at_gate = await _measure_gate(bench, redis)
        results: Results = {}
        if set(measures) != {"gate"}:
            results = await _measure_all(bench, _openers(options, bench, folder, redis), measures)
    seconds = time.monotonic() - began
    print("\n" + "\n\n".join(table(part) for part in (results, at_gate) if part))
    path = options.json or ROOT / "benchmarks" / "results" / f"{time.strftime('%Y%m%d-%H%M%S')}.json"
    save(results | at_gate, {**measured_on, "seconds": round(seconds, 1)}, dataclasses.asdict(size), path)
    _say(f"\n{measured_on['cpu']}, {measured_on['cores']} cores, {measured_on['system']}")
    _say(f"{seconds:.0f} s; {path}")
    _say(f"before the run {busy:.0%} of the machine was busy, and 1,000 additions took {measured_on['speed_us']} µs")
    if busy > _QUIET:
        _say(
            "Others were using the machine: CPU times are up to twice, and latencies many times, those of a quiet one."
        )
    return results | at_gate


def _openers(options: argparse.Namespace, bench: Bench, folder: Path, redis: str | None) -> Openers:
    """The subjects that are asked for, by name."""
    if options.base_url:
        return {"running": lambda: subjects.running_base_url(options.base_url, options.key)}
    upstream_port = bench.direct.target.port
    catalogue = subjects.catalogue(upstream_port, bench.hole_port, bench.size.stream_models)
    openers: Openers = {
        "hand": lambda: subjects.bare_proxy("hand", upstream_port, folder),
        "httpx2": lambda: subjects.bare_proxy("httpx2", upstream_port, folder),
        "gateway": lambda: subjects.gateway(folder, catalogue),
    }
    if redis is not None:
        openers["gateway-redis"] = lambda: subjects.gateway_on_redis(folder, catalogue, redis)
    return {name: opener for name, opener in openers.items() if name in (options.subject or openers)}


async def _measure_all(bench: Bench, openers: Openers, measures: Sequence[str]) -> Results:
    results: Results = {"direct": await _measure(bench, bench.direct, measures)}
    narrow = _QUICK_NARROW if bench.size == QUICK else _NARROW
    for name, opener in openers.items():
        wanted = [measure for measure in measures if measure in narrow.get(name, MEASURES)]
        if wanted:
            async with opener() as subject:
                results[subject.name] = await _measure(bench, subject, wanted)
    results["direct"] |= _direct_latency(results)
    return results


async def _measure(bench: Bench, subject: Subject, names: Sequence[str]) -> dict[str, Numbers]:
    """All numbers of a subject. What fails is said and left out, so that one fault does not hide the rest."""
    numbers: dict[str, Numbers] = {}
    steps: list[tuple[str, Measure]] = [("request", request_cost), ("chunk", chunk_cost)]
    if subject.target != bench.direct.target:
        steps.append(("latency", latency))
    steps.append(("open-streams", open_streams))
    steps += [(f"hang-up {phase}", _hang_up_in(phase)) for phase in PHASES]
    await warm_up(bench, subject)
    for name, measure in steps:
        if name.split(" ")[0] not in names:
            continue
        _say(f"{subject.name}: {name}", end="…\n")
        try:
            numbers[name] = await measure(bench, subject)
        except LoadFailed as fault:
            _say(f"{subject.name}: {name}: {fault}")
            numbers["error"] = {}
    return numbers


async def _measure_gate(bench: Bench, redis: str | None) -> Results:
    """The gate's own figures, by where its store is."""
    _say("the gate…")
    job = Job(redis, subjects.new_prefix(), bench.size.gate_rounds, bench.size.gate_requests)
    try:
        return {name: {"gate": numbers} for name, numbers in (await gate_cost(job, bench.cores)).items()}
    except RuntimeError as fault:
        _say(f"the gate: {fault}")
        return {"the gate": {"error": {}}}
    finally:
        if redis is not None:
            await asyncio.to_thread(delete_keys, redis, job.prefix)


def _redis(stack: AsyncExitStack) -> str | None:
    """The URL of a Redis for this run."""
    try:
        return redis_url(stack.enter_context(redis_service()))
    except ServiceUnavailable as reason:
        _say(f"Nothing is measured over Redis: {reason}")
        return None


def _direct_latency(results: Results) -> dict[str, Numbers]:
    """What the first subject's turns with the upstream itself took: the direct column's own."""
    for numbers in (measures["latency"] for measures in results.values() if "latency" in measures):
        ending = "_direct_ms"
        return {"latency": {f"{n.removesuffix(ending)}_ms": ms for n, ms in numbers.items() if n.endswith(ending)}}
    return {}


def _hang_up_in(phase: str) -> Measure:
    return lambda bench, subject: hang_up(bench, subject, phase)


@asynccontextmanager
async def _upstream(cores: Cores | None) -> AsyncIterator[int]:
    command = [sys.executable, "-m", "benchmarks.upstream"]
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        port = int(await asyncio.to_thread(process.stdout.readline))
        if cores is not None:
            pin([psutil.Process(process.pid)], cores.others)
        yield port
    finally:
        await _end(process)


@asynccontextmanager
async def _load(bench: Bench, upstream_port: int) -> AsyncIterator[None]:
    process = bench.start_load()
    try:
        if bench.cores is not None:
            pin([psutil.Process(process.pid)], bench.cores.others)
        await bench.do("watch", host=LOOPBACK, port=upstream_port)
        yield
    finally:
        await _end(process)


async def _end(process: "subprocess.Popen[str]") -> None:
    assert process.stdin is not None
    process.stdin.close()
    try:
        await asyncio.to_thread(process.wait, 5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stdout is not None:
        process.stdout.close()


def _say(text: str, end: str = "\n") -> None:
    print(text, end=end, flush=True)


if __name__ == "__main__":
    sys.exit(main())

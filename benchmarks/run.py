"""`make bench`: what the gateway costs, beside the same upstream asked directly and beside bare proxies.

    python -m benchmarks.run [--quick] [--only NAME] [--subject NAME] [--json FILE]

Everything runs on loopback, is bounded in count and time, and ends by itself: under a minute with `--quick`, under four
without.
"""

import argparse
import asyncio
import dataclasses
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path

import psutil
from tests.support.blackhole import LOOPBACK, BlackHole

from benchmarks import subjects
from benchmarks.client import Target
from benchmarks.machine import Cores, busy_share, facts, pin, split_cores
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
MEASURES = ("open-streams", "request", "chunk", "latency", "hang-up")
SUBJECTS = ("hand", "httpx2", "gateway")
_QUIET = 0.15


def main() -> int:
    options = _parser().parse_args()
    results = asyncio.run(_run(options))
    return 1 if any("error" in measures for measures in results.values()) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="What the gateway costs, beside bare proxies and going direct.")
    parser.add_argument("--quick", action="store_true", help="under a minute, with more noise")
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
    measured_on = {**facts(), "busy_before": round(busy, 2)}
    cores = None if options.no_pin else split_cores()
    async with AsyncExitStack() as stack:
        folder = await stack.enter_async_context(subjects.working_folder())
        hole = await stack.enter_async_context(BlackHole())
        upstream_port = await stack.enter_async_context(_upstream(cores))
        direct = Subject("direct", Target(LOOPBACK, upstream_port))
        bench = Bench(size, direct, cores, hole.port)
        await stack.enter_async_context(_load(bench, upstream_port))
        if cores is not None:
            pin([psutil.Process()], cores.others)
        openers: dict[str, Callable[[], AbstractAsyncContextManager[Subject]]] = {
            "hand": lambda: subjects.bare_proxy("hand", upstream_port, folder),
            "httpx2": lambda: subjects.bare_proxy("httpx2", upstream_port, folder),
            "gateway": lambda: subjects.gateway(upstream_port, hole.port, folder, size.stream_models),
        }
        if options.base_url:
            openers = {"running": lambda: subjects.running_base_url(options.base_url, options.key)}
        wanted = options.subject or list(openers)
        measures = options.only or list(MEASURES)
        results: Results = {"direct": await _measure(bench, direct, measures)}
        for name in wanted if not options.base_url else openers:
            async with openers[name]() as subject:
                results[subject.name] = await _measure(bench, subject, measures)
    results["direct"] |= _direct_latency(results)
    seconds = time.monotonic() - began
    print("\n" + table(results))
    path = options.json or ROOT / "benchmarks" / "results" / f"{time.strftime('%Y%m%d-%H%M%S')}.json"
    save(results, {**measured_on, "seconds": round(seconds, 1)}, dataclasses.asdict(size), path)
    _say(f"\n{measured_on['cpu']}, {measured_on['cores']} cores, {measured_on['system']}")
    _say(f"{seconds:.0f} s; before the run {busy:.0%} of the machine was busy; {path}")
    if busy > _QUIET:
        _say(
            "Others were using the machine: CPU times are up to twice, and latencies many times, those of a quiet one."
        )
    return results


async def _measure(bench: Bench, subject: Subject, names: list[str]) -> dict[str, Numbers]:
    """All numbers of a subject. What fails is said and left out, so that one fault does not hide the rest."""
    numbers: dict[str, Numbers] = {}
    steps: list[tuple[str, Measure]] = [
        ("open-streams", open_streams),
        ("request", request_cost),
        ("chunk", chunk_cost),
    ]
    if subject.target != bench.direct.target:
        steps.append(("latency", latency))
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

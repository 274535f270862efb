"""The gate's own cost, in a process of its own: `python -m benchmarks.gate` takes one job and gives figures, JSON each.

A request here is what the road asks of the gate and nothing else: `Gate.admit` with a key's four limits (requests and
tokens a minute, requests at once, a month's budget), an upstream's slot held and given back, what the request came to,
and the end of `Admitted`. CPU is this process's own, user and system, a request.

Over Redis a request waits while it holds its slot and after it, as it does on the road, so that its answers are read
and its releases written as they are there. What those waits cost alone is measured in turns with it and taken off; in
turns too, what four PINGs cost in the place of its four steps: no gate over this connection costs less. A round in
which Redis was too slow, so that the gate judged alone, is thrown away and told.
"""

import asyncio
import json
import statistics
import subprocess
import sys
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from decimal import Decimal
from pathlib import Path

import psutil
import uvloop
from tests.support.ledger_entries import an_attempt, an_entry

from benchmarks.machine import Cores, pin
from tidegate.accounts.models import DEFAULT_WORKSPACE_ID
from tidegate.admission.checks import Reserve
from tidegate.admission.desk import Desk
from tidegate.admission.gate import CallerAsk, Gate
from tidegate.admission.redis_store import SCRIPT, RedisStore, script_source
from tidegate.admission.slots import Capacity, SlotAsk, StoreSlots
from tidegate.admission.steps import Steps
from tidegate.admission.store import Check, Seeding, Spent
from tidegate.auth.principal import Principal
from tidegate.ledger.entry import Attribution, new_entry_id
from tidegate.limits.book import LimitBook
from tidegate.limits.matching import WorkspaceLimits
from tidegate.limits.values import MOST, Limit, Matched, Meter, Window
from tidegate.storage.pipeline import PipelinedRedis

ROOT = Path(__file__).resolve().parents[1]
Numbers = dict[str, float | None]
Work = Callable[[uuid.UUID], Awaitable[None]]

# What is promised of the gate (µs of CPU a request): in memory, and with Redis on loopback.
MEMORY_BOUND_US, REDIS_BOUND_US = 15.0, 100.0
AT_ONCE = 32
_ENDS_WITHIN_S = 120
_REST_S = 0.001
_FOUR: tuple[tuple[Meter, Window | None], ...] = (
    ("requests", "minute"),
    ("tokens", "minute"),
    ("concurrency", None),
    ("cost", "month"),
)
_RESERVE = Reserve(tokens=120, cost=700_000)


@dataclass(frozen=True)
class Job:
    """What is to be measured: so many rounds of so many requests, in memory ten times as many."""

    redis_url: str | None
    prefix: str
    rounds: int
    requests: int


async def gate_cost(job: Job, cores: Cores | None) -> dict[str, Numbers]:
    """Figures by where the gate's store is. Raises `RuntimeError` with what the process said where it failed."""
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.gate"],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    if cores is not None:
        pin([psutil.Process(process.pid)], cores.subject)
    try:
        told, complaint = await asyncio.to_thread(process.communicate, json.dumps(asdict(job)), _ENDS_WITHIN_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise RuntimeError(f"the gate's process took more than {_ENDS_WITHIN_S} s") from None
    if process.returncode:
        raise RuntimeError(complaint.strip().rpartition("\n")[2])
    figures: dict[str, Numbers] = json.loads(told)
    return figures


class Rig:
    """A gate, one upstream's slots and a key with four limits (or none), over the desk's store."""

    def __init__(self, desk: Desk, *, has_limits: bool = True) -> None:
        limits = WorkspaceLimits([_limit(meter, window) for meter, window in _FOUR] if has_limits else ())

        async def read(_: uuid.UUID) -> WorkspaceLimits:
            return limits

        self.desk = desk
        steps = Steps(desk, _FromNothing(desk))
        self.book = LimitBook(read)
        self._gate = Gate(steps, self.book)
        self.slots = StoreSlots(steps, "bench", Capacity(4000, 1000, 10))
        # Older than its limits' reading: a key as it is for all its life but the first seconds.
        self._principal = Principal(workspace_id=DEFAULT_WORKSPACE_ID, key_id=uuid.UUID(int=7 << 76 | 2 << 62 | 1))
        self._attribution = Attribution()
        tokens = {"input_tokens": 9, "output_tokens": 8}
        self._entry = an_entry(**tokens, cost=Decimal("0.000082"), attempts=[an_attempt()])

    async def request(self, entry_id: uuid.UUID, rest_s: float = 0.0) -> None:
        ask = CallerAsk(
            entry_id=entry_id,
            principal=self._principal,
            attribution=self._attribution,
            model="small",
            groups=(),
            reserve=_RESERVE,
            output_tokens=64,
            more=_RESERVE,
        )
        admitted = await self._gate.admit(ask)
        with admitted:
            slot_ask = SlotAsk(
                entry_id=entry_id,
                flow=(self._principal.key_id or self._principal.workspace_id).hex,
                reserve=_RESERVE,
                limits=admitted.limits.upstream("bench", "small", ()),
                spent=lambda: Spent(17, 82_000),
            )
            async with self.slots.hold(slot_ask, deadline_s=10):
                if rest_s:
                    await asyncio.sleep(rest_s)
            admitted.came_to(self._entry)
        if rest_s:
            await asyncio.sleep(rest_s)


@dataclass
class Round:
    """What one kind of work cost, a request, round by round: this process's CPU, and Redis' own (µs)."""

    own_us: list[float] = field(default_factory=list)
    redis_us: list[float] = field(default_factory=list)


class _FromNothing:
    """Seeds every budget with nothing spent."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def seed(self, tag: str, matched: Matched, check: Check) -> bool:
        await self._desk.seed(tag, Seeding(check.counter, check.starts, check.ends, check.amount, 0))
        # Also where another was first: it is known now.
        return True


def _limit(meter: Meter, window: Window | None) -> Limit:
    return Limit(
        id=new_entry_id(),
        workspace_id=DEFAULT_WORKSPACE_ID,
        scope="key",
        subject=None,
        model=None,
        meter=meter,
        window=window,
        zone=None,
        amount=MOST,
        action="refuse",
        on_overrun="finish",
    )


async def figures_of(job: Job) -> dict[str, Numbers]:
    """Every way in turn: in memory without and with limits, then over Redis one at a time and many at once."""
    found = {
        "memory, no limits": await _in_memory(job, has_limits=False),
        "memory": await _in_memory(job, has_limits=True),
    }
    if job.redis_url is None:
        return found
    scripts = {SCRIPT: script_source()}
    async with PipelinedRedis.running(job.redis_url, client_name="tidegate-bench", scripts=scripts) as pipe:
        for name, at_once, requests in (
            ("Redis, one at a time", 1, job.requests),
            (f"Redis, {AT_ONCE} at once", AT_ONCE, job.requests * 4),
        ):
            async with _rig_over(pipe, f"{job.prefix}-{at_once}") as rig:
                found[name] = await _over_redis(rig, pipe, job.rounds, (requests, at_once))
    return found


async def _in_memory(job: Job, *, has_limits: bool) -> Numbers:
    rig = Rig(Desk("bench"), has_limits=has_limits)
    count = job.requests * 10
    await _cpu_us(rig.request, count, 1)
    own = [await _cpu_us(rig.request, count, 1) for _ in range(job.rounds)]
    await rig.book.aclose()
    bound = MEMORY_BOUND_US if has_limits else None
    return {"cpu_us": statistics.median(own), "least_us": min(own), "bound_us": bound}


@asynccontextmanager
async def _rig_over(pipe: PipelinedRedis, prefix: str) -> AsyncIterator[Rig]:
    desk = Desk("bench")
    desk.shared = RedisStore(pipe, prefix, told=desk.granted, alerted=lambda *_: None)
    rig = Rig(desk)
    yield rig
    await rig.book.aclose()


async def _over_redis(rig: Rig, pipe: PipelinedRedis, rounds: int, load: tuple[int, int]) -> Numbers:
    async def request(entry_id: uuid.UUID) -> None:
        await rig.request(entry_id, _REST_S)

    async def pings(_: uuid.UUID) -> None:
        await pipe.send("PING")
        await pipe.send("PING")
        await asyncio.sleep(_REST_S)
        pipe.send("PING")
        pipe.send("PING")
        await asyncio.sleep(_REST_S)

    async def waits(_: uuid.UUID) -> None:
        await asyncio.sleep(_REST_S)
        await asyncio.sleep(_REST_S)

    await _cpu_us(request, *load)
    at_gate, pinging, waiting, dropped = Round(), Round(), Round(), 0
    for _ in range(rounds):
        judged_alone = rig.desk.judged_alone
        for work, costs in ((request, at_gate), (pings, pinging), (waits, waiting)):
            before = await _redis_cpu_s(pipe)
            costs.own_us.append(await _cpu_us(work, *load))
            costs.redis_us.append((await _redis_cpu_s(pipe) - before) / load[0] * 1e6)
        if rig.desk.judged_alone > judged_alone:
            dropped += 1
            at_gate.own_us.pop()
            at_gate.redis_us.pop()
            await rig.desk.come_back()
    return {**told_of(at_gate, pinging, waiting), "bound_us": REDIS_BOUND_US, "dropped": dropped}


def told_of(at_gate: Round, pinging: Round, waiting: Round) -> Numbers:
    """Medians without what the waits cost alone; of Redis, which others may be using, the least."""
    if not at_gate.own_us:
        return {"cpu_us": None, "least_us": None, "pings_us": None, "redis_cpu_us": None}
    floor_us, least_floor_us = statistics.median(waiting.own_us), min(waiting.own_us)
    return {
        "cpu_us": statistics.median(at_gate.own_us) - floor_us,
        "least_us": min(at_gate.own_us) - least_floor_us,
        "pings_us": statistics.median(pinging.own_us) - floor_us,
        "redis_cpu_us": min(at_gate.redis_us) - min(waiting.redis_us),
    }


async def _cpu_us(work: Work, count: int, at_once: int) -> float:
    """This process's CPU for each of so many, so many at once (µs)."""
    entry_ids: Sequence[uuid.UUID] = [new_entry_id() for _ in range(count)]
    left = iter(entry_ids)

    async def one_after_another() -> None:
        for entry_id in left:
            await work(entry_id)

    began = time.process_time()
    await asyncio.gather(*(one_after_another() for _ in range(at_once)))
    return (time.process_time() - began) / count * 1e6


async def _redis_cpu_s(pipe: PipelinedRedis) -> float:
    told: bytes = await pipe.send("INFO", "cpu")
    named = dict(line.split(":", 1) for line in told.decode().splitlines() if ":" in line)
    return float(named["used_cpu_user"]) + float(named["used_cpu_sys"])


if __name__ == "__main__":
    print(json.dumps(uvloop.run(figures_of(Job(**json.loads(sys.stdin.read()))))))

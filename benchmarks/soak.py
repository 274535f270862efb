"""`make soak`: a day in an hour. A gateway under streams, hang-ups, refusals and reloads, and what of it grows.

    python -m benchmarks.soak [--minutes 60] [--streams 300] [--workers 2]

The gateway runs as in production, on a PostgreSQL and a Redis of the machine or of its own; its workers are not
recycled, so that each is one process from beginning to end. Of each worker the resident memory, tasks, descriptors and
connections are taken every few seconds, and the keys in Redis: the median of the last third is compared with that of
the middle one. The exit code is 1 where something grew, where anything was not answered as it should be, where
something is still held once the load has ended, or where the ledger finds a fault in itself.
"""

import argparse
import asyncio
import re
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import orjson
import uvloop
from redis.asyncio import Redis
from sqlalchemy import text
from tests.support import services
from tests.support.server import LOOPBACK, GatewayPlan, GatewayProcess
from tests.support.waiting import NeverHappened, eventually

from benchmarks.soak_load import STREAMED_MODELS, Keys, SoakLoad
from benchmarks.soak_samples import (
    CLIENTS,
    DESCRIPTORS,
    FILES,
    OPEN_REQUESTS,
    RESIDENT,
    SLOTS,
    TASKS,
    Bounds,
    Eyes,
    Grown,
    Sample,
    growth,
    table,
)
from benchmarks.subjects import new_prefix, working_folder
from benchmarks.upstream import Board, UpstreamProtocol
from tidegate.server.control import ask_root
from tidegate.storage.database import Database

_REST_WITHIN_S = 60.0
_READ_WITHIN_S = 10.0
_OUTCOMES = ("completed", "client_disconnected")
_IS_ERROR = re.compile(r'"level": ?"(error|critical)"|Traceback')
_MOST_SHOWN = 20
_RATED = ("--rpm", "5")
_BUDGETED = ("--budget", "0.01", "--period", "day")


@dataclass(frozen=True)
class Plan:
    """How long and how hard, and how much may have grown."""

    minutes: float = 60.0
    streams: int = 300
    workers: int = 2
    sample_every_s: float = 5.0
    reload_every_s: float = 20.0
    bounds: Bounds = field(default_factory=Bounds)


@dataclass(frozen=True)
class Soaked:
    """What a soak came to. `rest`: what all workers had before the load, and after it."""

    grown: Sequence[Grown]
    rest: Mapping[str, tuple[float, float]]
    asked: dict[str, int]
    reloads: int
    faults: Sequence[str]

    @property
    def is_good(self) -> bool:
        return not self.faults and not any(grown.is_too_much for grown in self.grown)

    def told(self) -> str:
        lines = [table(self.grown), "", "at rest, before and after:"]
        lines += [f"{before:>9.0f} {after:>9.0f}  {what}" for what, (before, after) in self.rest.items()]
        lines += ["", f"{self.reloads:>9,}  reloads"]
        lines += [f"{count:>9,}  {what}" for what, count in sorted(self.asked.items())]
        lines += [f"FAULT  {fault}" for fault in self.faults[:_MOST_SHOWN]]
        if len(self.faults) > _MOST_SHOWN:
            lines.append(f"and {len(self.faults) - _MOST_SHOWN} faults more")
        return "\n".join(lines)


@dataclass(frozen=True)
class Stores:
    """An empty database, a Redis, and a prefix in it that nobody else has."""

    database_url: str
    redis_url: str
    prefix: str


@dataclass(frozen=True)
class Place:
    """Where a soak's files are, and its upstream."""

    folder: Path
    upstream_port: int

    @property
    def catalogue(self) -> Path:
        return self.folder / "tidegate.toml"


async def soak(plan: Plan, stores: Stores) -> Soaked:
    """Runs it. Raises what the start of a gateway raises."""
    async with AsyncExitStack() as stack:
        folder = await stack.enter_async_context(working_folder())
        place = Place(folder, await stack.enter_async_context(_upstream()))
        gateway = GatewayProcess(folder, _plan(plan, place, stores))
        await stack.enter_async_context(gateway)
        keys = Keys(gateway.api_key, await _key(gateway, _RATED), await _key(gateway, _BUDGETED))
        redis = Redis.from_url(stores.redis_url)
        stack.push_async_callback(redis.aclose)
        ports = {
            place.upstream_port: "connections to the upstream",
            urlsplit(stores.database_url).port or 5432: "connections to PostgreSQL",
            urlsplit(stores.redis_url).port or 6379: "connections to Redis",
        }
        eyes = Eyes(gateway.data_dir, redis, stores.prefix, ports)
        load = SoakLoad(LOOPBACK, gateway.port, keys, streams=plan.streams)
        return await _Run(plan, place, gateway, eyes, load).to_the_end()


@dataclass(frozen=True)
class Entries:
    """What a ledger holds: how many entries, of how many request ids, and how many with each outcome."""

    labels: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)

    @classmethod
    async def of(cls, database: Database) -> "Entries":
        # One statement, and so of one moment: the last ones may still be coming.
        labels = "(SELECT count(DISTINCT request_id) FROM ledger_entries)"
        asked = text(f"SELECT outcome, count(*), {labels} FROM ledger_entries GROUP BY outcome")
        async with database.session() as session:
            rows = (await session.execute(asked)).all()
        return cls(rows[0][2] if rows else 0, Counter({outcome: count for outcome, count, _ in rows}))

    @property
    def count(self) -> int:
        return self.outcomes.total()


class _Run:
    """One soak of a gateway that runs."""

    def __init__(self, plan: Plan, place: Place, gateway: GatewayProcess, eyes: Eyes, load: SoakLoad) -> None:
        self._plan = plan
        self._place = place
        self._gateway = gateway
        self._eyes = eyes
        self._load = load
        self._samples: list[Sample] = []
        self._faults: list[str] = []
        self._reloads = 0

    async def to_the_end(self) -> Soaked:
        before = await eventually(self._all_serve, within_s=60, poll_s=0.1)
        assert before is not None
        self._load.begin()
        ends_at = time.monotonic() + self._plan.minutes * 60
        async with asyncio.TaskGroup() as tasks:
            for work in (self._look_on(), self._reload_on()):
                tasks.create_task(work)
            await asyncio.sleep(max(0.0, ends_at - time.monotonic()))
            await self._load.end()
        after = await self._at_rest(before)
        await self._ledger_is_right()
        self._nothing_was_reported()
        grown = growth(self._samples, self._plan.bounds, seconds=self._plan.minutes * 60)
        rest = {what: (before.totals[what], after.totals[what]) for what in before.totals}
        return Soaked(grown, rest, dict(self._load.counts), self._reloads, [*self._load.faults, *self._faults])

    async def _look_on(self) -> None:
        while not self._load.is_over:
            if (sample := await self._eyes.look()) is not None:
                self._samples.append(sample)
                _say(self._samples)
            await self._load.passes(self._plan.sample_every_s)

    async def _reload_on(self) -> None:
        """Each time an upstream more or less, and other slots for the one that all use."""
        while not self._load.is_over:
            await self._load.passes(self._plan.reload_every_s)
            self._reloads += 1
            self._place.catalogue.write_text(catalogue(self._place.upstream_port, turn=self._reloads))
            ask = {"ask": "reload", "by": "soak"}
            told = await asyncio.to_thread(ask_root, self._gateway.data_dir, ask, within_s=30)
            if told.get("faults") or not told["done"]["is_whole"]:
                self._faults.append(f"reload {self._reloads}: {told}")

    async def _all_serve(self) -> Sample | None:
        sample = await self._eyes.look()
        return sample if sample is not None and len(sample.workers) == self._plan.workers else None

    async def _at_rest(self, before: Sample) -> Sample:
        """Once nothing is held for clients that are gone."""
        last = before

        async def rests() -> bool:
            nonlocal last
            sample = await self._eyes.look()
            last = sample or last
            return sample is not None and not self._still_held(before, sample)

        try:
            await eventually(rests, within_s=_REST_WITHIN_S, poll_s=0.5)
        except NeverHappened:
            self._faults += self._still_held(before, last)
        return last

    def _still_held(self, before: Sample, now: Sample) -> list[str]:
        held = [
            f"at rest: {now.totals[what]:.0f} {what}" for what in (CLIENTS, OPEN_REQUESTS, SLOTS) if now.totals[what]
        ]
        # What a worker starts once, when it is first needed, and what its background work has open just then.
        for what in (TASKS, FILES):
            more = now.totals[what] - before.totals[what]
            if more > self._plan.bounds.slack * self._plan.workers:
                held.append(f"at rest: {more:.0f} {what} more than before")
        return held

    async def _ledger_is_right(self) -> None:
        """One entry a request that reached the road, and each that was answered whole is completed."""
        database = await Database.open(self._gateway.plan.database_url or "")
        entries = Entries()

        async def all_are_there() -> bool:
            nonlocal entries
            entries = await Entries.of(database)
            return entries.outcomes["completed"] >= self._load.answered

        try:
            # An entry can be read within a second of its request's end.
            await eventually(all_are_there, within_s=_READ_WITHIN_S, poll_s=0.2)
        except NeverHappened:
            self._faults.append(f"{self._load.answered} answers, and these entries: {dict(entries.outcomes)}")
        finally:
            await database.aclose()
        if entries.count != entries.labels:
            self._faults.append(f"the ledger has {entries.count} entries of {entries.labels} requests")
        if others := entries.outcomes.keys() - _OUTCOMES:
            self._faults.append(f"the ledger has entries that ended otherwise than in {_OUTCOMES}: {sorted(others)}")

    def _nothing_was_reported(self) -> None:
        """An error in the gateway's log is a fault, whatever clients saw."""
        for name in ("stdout", "stderr"):
            with (self._gateway.folder / f"{name}.log").open(encoding="utf-8") as lines:
                self._faults += [f"logged: {line.strip()[:500]}" for line in lines if _IS_ERROR.search(line)]


def catalogue(upstream_port: int, *, turn: int) -> str:
    """What is reloaded: every second turn has an upstream more, and the one that all use has other slots each time."""
    tables = [_upstream_table("bench", upstream_port, 4000 + turn % 7)]
    if turn % 2:
        tables.append(_upstream_table("now-and-then", upstream_port, 10))
    price = 'price = { input = "2.00", output = "8.00" }'
    models = ("small", "silent", *STREAMED_MODELS)
    tables += [f'[[models]]\nname = "{model}"\nattempts = ["bench/{model}"]\n{price}\n' for model in models]
    return "\n".join(tables)


def _upstream_table(name: str, port: int, slots: int) -> str:
    place = f'base_url = "http://{LOOPBACK}:{port}/v1"\napi_key = "env:UPSTREAM_KEY"'
    return f'[upstreams.{name}]\nprovider = "openai"\n{place}\nmax_concurrency = {slots}\n'


def _plan(plan: Plan, place: Place, stores: Stores) -> GatewayPlan:
    place.catalogue.write_text(catalogue(place.upstream_port, turn=0))
    file = {"TIDEGATE_CONFIG_TOML": "", "TIDEGATE_CONFIG": str(place.catalogue)}
    return GatewayPlan(
        catalogue="",
        workers=plan.workers,
        environment="production",
        database_url=stores.database_url,
        redis_url=stores.redis_url,
        redis_prefix=stores.prefix,
        drain_s=20,
        cold=True,
        variables={**file, "TIDEGATE_SERVER__MAX_REQUESTS": "0"},
    )


@contextmanager
def _own_stores() -> Iterator[Stores]:
    """The machine's or those that are started for it; what the soak left there is taken away at the end."""
    with services.postgres_service() as postgres, services.redis_service() as redis:
        url, redis_url, prefix = services.create_database(postgres), services.redis_url(redis), new_prefix()
        try:
            yield Stores(url, redis_url, prefix)
        finally:
            services.drop_database(postgres, url)
            services.delete_keys(redis_url, prefix)


@asynccontextmanager
async def _upstream() -> AsyncIterator[int]:
    loop = asyncio.get_running_loop()
    board = Board()
    server = await loop.create_server(lambda: UpstreamProtocol(board, loop), LOOPBACK, 0, backlog=1024)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


async def _key(gateway: GatewayProcess, limits: Sequence[str]) -> str:
    made = await gateway.command("keys", "create", "--name", "soak", *limits, "--json")
    secret: Any = orjson.loads(made.stdout)["key"]
    return str(secret)


def _say(samples: Sequence[Sample]) -> None:
    """A line a minute or so, for whoever looks at the log."""
    if len(samples) % 12 == 1:
        sample = samples[-1]
        shown = "; ".join(
            f"{each[RESIDENT]:.1f} MiB, {each[TASKS]:.0f} tasks, {each[DESCRIPTORS]:.0f} descriptors"
            for each in sample.workers.values()
        )
        print(f"{time.strftime('%H:%M:%S')}  {shown}; {sum(sample.keys.values()):.0f} keys", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description="A gateway under load for long: does anything grow?")
    parser.add_argument("--minutes", type=float, default=Plan.minutes)
    parser.add_argument("--streams", type=int, default=Plan.streams, help="at any moment")
    parser.add_argument("--workers", type=int, default=Plan.workers)
    options = parser.parse_args()
    plan = Plan(minutes=options.minutes, streams=options.streams, workers=options.workers)
    with _own_stores() as stores:
        soaked = uvloop.run(soak(plan, stores))
    print(soaked.told())
    return 0 if soaked.is_good else 1


if __name__ == "__main__":
    sys.exit(main())

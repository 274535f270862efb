"""One worker's process that asks the gate's Redis store: `python -m tests.support.gate_racer URL PREFIX WORKER JOB`.

It says `ready`, waits for a line, does its job, and says what came of it as a line of JSON. `Racers` runs several.
"""

import asyncio
import contextlib
import json
import os
import random
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Self

from tests.support.warm import Warm, warm_start
from tidegate.admission.redis_store import RedisStore, script_source
from tidegate.admission.store import Asked, Check, Seat, Spent
from tidegate.storage.pipeline import PipelinedRedis
from tidegate.storage.pipeline_cluster import PipelinedCluster

ROOT = Path(__file__).resolve().parents[2]
WITHIN_S = 60
CLUSTER = "cluster:"
BUDGET = Check("budget", "calendar", "cost", 10_000, 130)
MINUTE = Check("minute", "sliding", "requests", 50, 1)
SLOTS = Check("slots", "held", "concurrency", 5, 1)
SEAT = Seat(4, 2, "flow")
ASKING_S = 6.0


@dataclass
class _Started:
    running: Warm
    stdin: IO[str]
    stdout: IO[str]

    @classmethod
    def by(cls, arguments: list[str]) -> Self:
        for_it, ours = os.pipe()
        answers, its = os.pipe()
        with os.fdopen(for_it, "rb") as stdin, os.fdopen(its, "wb") as stdout, os.fdopen(os.dup(2), "wb") as errors:
            running = warm_start(
                "tests.support.gate_racer",
                arguments,
                cwd=ROOT,
                env=os.environ,
                stdin=stdin,
                stdout=stdout,
                stderr=errors,
            )
        return cls(running, os.fdopen(ours, "w"), os.fdopen(answers))

    def kill(self) -> None:
        self.running.send_signal(signal.SIGKILL)
        self.running.wait(WITHIN_S)
        self.stdin.close()
        self.stdout.close()


@dataclass
class Racers:
    """Several such processes, that begin at once. `pids` are killed by their number alone."""

    processes: list[_Started] = field(default_factory=list)

    @classmethod
    @contextlib.contextmanager
    def ready(cls, url: str, prefix: str, jobs: list[str]) -> Iterator[Self]:
        """Ends with all of them dead."""
        racers = cls()
        try:
            for at, job in enumerate(jobs):
                racers.processes.append(_Started.by([url, prefix, f"racer-{at}", job]))
            for process in racers.processes:
                racers.line(process)
            yield racers
        finally:
            for process in racers.processes:
                process.kill()

    def begin(self) -> None:
        for process in self.processes:
            process.stdin.write("go\n")
            process.stdin.flush()

    def line(self, process: _Started) -> Any:
        line = process.stdout.readline()
        assert line, f"racer ended with {process.running.wait(WITHIN_S)}"
        return json.loads(line)

    def results(self) -> list[Any]:
        return [self.line(process) for process in self.processes]


class Racer:
    def __init__(self, pipe: PipelinedRedis | PipelinedCluster, prefix: str, worker: str) -> None:
        self.store = RedisStore(pipe, prefix, told=lambda *_: None, alerted=lambda *_: None)
        self._pipe = pipe
        self._prefix = prefix
        self._worker = worker
        self._random = random.Random(worker)

    async def cent(self) -> dict[str, Any]:
        """Fifty at once for what is left of a budget; each comes to what it reserved, or less."""
        names = [f"{self._worker}-{n}" for n in range(50)]
        replies = await asyncio.gather(*(self.store.take("w:1", self._worker, Asked(n, (BUDGET,))) for n in names))
        taken = [name for name, reply in zip(names, replies, strict=True) if reply.said == "taken"]
        spent = 0
        for name in taken:
            cost = self._random.randint(0, BUDGET.take)
            spent += cost
            self.store.release("w:1", self._worker, name, Spent(0, cost), (BUDGET,))
        # Answered after those releases, which went out before it.
        await self.store.place("w:1", self._worker, "nothing")
        return {"taken": len(taken), "spent": spent, "lost": self.store.lost_releases}

    async def minute(self) -> dict[str, Any]:
        """Asks for six seconds for a place in a minute."""
        loop = asyncio.get_running_loop()
        until, taken, asked = loop.time() + ASKING_S, 0, 0
        while loop.time() < until:
            asked += 1
            reply = await self.store.take("w:2", self._worker, Asked(f"{self._worker}-{asked}", (MINUTE,)))
            taken += reply.said == "taken"
            await asyncio.sleep(0.02)
        return {"taken": taken, "asked": asked}

    async def slots(self) -> dict[str, Any]:
        """Comes and goes; counts in Redis, beside the gate, how many are inside at once."""
        most, inside = [0, 0], 0
        for n in range(150):
            entry = f"{self._worker}-{n}"
            caller = await self.store.take("w:3", self._worker, Asked(entry, (SLOTS,)))
            if caller.said == "taken":
                most[0] = max(most[0], await self._pipe.send("INCR", f"{self._prefix}:{{count}}:slots"))
                seat = await self.store.take("u:3", self._worker, Asked(entry, (), SEAT))
                if seat.seat == "held":
                    inside += 1
                    most[1] = max(most[1], await self._pipe.send("INCR", f"{self._prefix}:{{count}}:seats"))
                    await self._pipe.send("DECR", f"{self._prefix}:{{count}}:seats")
                self.store.release("u:3", self._worker, entry, Spent())
                await self._pipe.send("DECR", f"{self._prefix}:{{count}}:slots")
                self.store.release("w:3", self._worker, entry, Spent())
        # Answered after the last releases, which went out before it.
        await self.store.place("w:3", self._worker, "nothing")
        return {"most_slots": most[0], "most_seats": most[1], "inside": inside}

    async def hold(self) -> dict[str, Any]:
        """Takes what it is to die with, and says so."""
        seats = [
            (await self.store.take("u:4", self._worker, Asked(f"{self._worker}-{n}", (SLOTS,), SEAT))).seat
            for n in range(4)
        ]
        return {"seats": seats}


async def run(url: str, prefix: str, worker: str, job: str) -> None:
    # A cluster is named as one by whoever starts it.
    kind = PipelinedCluster if url.startswith(CLUSTER) else PipelinedRedis
    address = url.removeprefix(CLUSTER)
    async with kind.running(address, client_name=worker, scripts={"gate": script_source()}) as pipe:
        racer = Racer(pipe, prefix, worker)
        sys.stdout.write(json.dumps("ready") + "\n")
        sys.stdout.flush()
        await asyncio.to_thread(sys.stdin.readline)
        sys.stdout.write(json.dumps(await getattr(racer, job)()) + "\n")
        sys.stdout.flush()
        await asyncio.to_thread(sys.stdin.readline)


if __name__ == "__main__":
    asyncio.run(run(*sys.argv[1:5]))

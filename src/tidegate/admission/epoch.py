"""Which life the shared store is in. A store that was restarted, emptied or restored knows less than its workers do.

A life is the server's run, and a mark that is set where there is none: an emptied store (FLUSHALL) has lost it. The
database remembers the life. When it changes, money is not seeded before every worker had the time to declare what it
holds: it looks every second, and declares at once. A store that was never seen before has nothing to lose.

A cluster has one life: its masters' that are connected, each with a mark, and whose the slots are. A master that died,
a replica that took its place, a slot that went to another: each is a new one.
"""

import asyncio
import hashlib
import secrets
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.dialects import postgresql, sqlite

from tidegate.admission.models import StoreEpoch
from tidegate.admission.store import RENEW_EVERY_S
from tidegate.storage.database import Database
from tidegate.storage.pipe import Pipe
from tidegate.storage.pipeline import StoreGone
from tidegate.storage.redis import key

SETTLE_S = RENEW_EVERY_S + 1
_NAME = "shared"

Life = Callable[[], Awaitable[str]]


def life_of(pipe: Pipe, prefix: str) -> Life:
    """Asks Redis which life it is in. What it gives raises `StoreGone` and `ScriptError`."""

    async def life() -> str:
        runs, layout = pipe.runs(), pipe.layout
        if not runs:
            raise StoreGone("not connected")
        marks = await asyncio.gather(*(_mark(pipe, key(prefix, tag, "life")) for tag in runs))
        lives = sorted(f"{run_id}@{mark}" for run_id, mark in zip(runs.values(), marks, strict=True))
        return lives[0] if not layout else hashlib.sha256("+".join((*lives, layout)).encode()).hexdigest()

    return life


async def _mark(pipe: Pipe, name: str) -> str:
    marked = pipe.send("SET", name, secrets.token_hex(8), "NX")
    marked.add_done_callback(looked_at)
    found: bytes = await pipe.send("GET", name)
    await marked
    return found.decode()


def looked_at(answer: "asyncio.Future[Any]") -> None:
    """An answer that nobody waits for may be an error, which is another command's to tell."""
    if not answer.cancelled():
        answer.exception()


class Epoch:
    """`may_seed` is asked by the seeder, `look` is called now and then."""

    def __init__(self, database: Database, life: Life) -> None:
        self._database = database
        self._life = life
        # How many lives this worker has seen: one more says that a new one began.
        self.lives = 0
        self._known: str | None = None
        self._settled_at = float("inf")

    async def may_seed(self) -> bool:
        """Whether every worker has declared what it holds, as far as is known. Raises what `look` raises."""
        await self.look()
        return time.monotonic() >= self._settled_at

    async def look(self) -> None:
        """Learns the store's life, or tells the database of a new one.

        Raises what the store and the database raise.
        """
        life = await self._life()
        if life == self._known:
            return
        now = datetime.now(UTC)
        async with self._database.transaction() as session:
            first = {"name": _NAME, "run_id": life, "changed_at": now - timedelta(days=1)}
            insert = sqlite.insert if self._database.dialect_name == "sqlite" else postgresql.insert
            await session.execute(insert(StoreEpoch).values(first).on_conflict_do_nothing())
            changed = update(StoreEpoch).where(StoreEpoch.name == _NAME, StoreEpoch.run_id != life)
            await session.execute(changed.values(run_id=life, changed_at=now))
            changed_at = (
                await session.execute(select(StoreEpoch.changed_at).where(StoreEpoch.name == _NAME))
            ).scalar_one()
        since_s = min(SETTLE_S, max(0.0, (now - changed_at).total_seconds()))
        self._settled_at = time.monotonic() + SETTLE_S - since_s
        self._known = life
        self.lives += 1

"""What dead workers left, told to the gate's store: each entry's money is counted once, however late it is told."""

import uuid
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, cast

from tests.support.ledger_entries import an_attempt, an_entry
from tests.unit.limits import a_limit
from tests.unit.scripted_store import START_S, ScriptedStore, a_desk
from tidegate.accounts.models import DEFAULT_WORKSPACE_ID
from tidegate.admission.checks import Reserve, check_of
from tidegate.admission.counters import COUNTED_MS
from tidegate.admission.gate import spent_of
from tidegate.admission.recovered import RecoveredEntries
from tidegate.admission.store import Asked, Check, Seeding
from tidegate.ledger.entry import Entry
from tidegate.limits.book import LimitBook
from tidegate.limits.matching import WorkspaceLimits
from tidegate.limits.values import Limit, Matched
from tidegate.storage.redis import workspace_tag

TAG = workspace_tag(DEFAULT_WORKSPACE_ID)
USD = 10**9


class Book:
    """Knows of one limit."""

    def __init__(self, limit: Limit) -> None:
        self._limits = WorkspaceLimits([limit])

    async def of(self, workspace_id: uuid.UUID, *, key_id: uuid.UUID | None = None) -> WorkspaceLimits:
        del workspace_id, key_id
        return self._limits


class Scene:
    """A budget of which nothing is spent, a worker that is dead, and one that recovers what it left."""

    def __init__(self, limit: Limit) -> None:
        self.store = ScriptedStore()
        self.check = check_of(Matched(limit, limit.id.hex), Reserve(cost=2 * USD), START_S)
        self.tell = RecoveredEntries(
            a_desk(self.store, worker="alive"),
            cast("LimitBook", Book(limit)),
            groups_of=lambda model: ("small",) if model == "smollm2" else (),
            clock=lambda: self.store.now_ms / 1000,
        )

    async def is_seeded(self) -> None:
        check = self.check
        assert await self.store.seed(TAG, Seeding(check.counter, check.starts, check.ends, check.amount, 0))

    def entry(self) -> Entry:
        """One USD, ended just now."""
        now = datetime.fromtimestamp(self.store.now_ms / 1000, UTC)
        times: dict[str, Any] = {"started_at": now - timedelta(seconds=1), "ended_at": now}
        return an_entry(**times, cost=Decimal(1), attempts=[an_attempt(cost=Decimal(1), **times)])

    async def spent(self) -> int:
        return await self.store.used(self.check, TAG)

    async def held_by_the_dead(self, entry: Entry, *checks: Check) -> None:
        reply = await self.store.take(TAG, "dead", Asked(entry.entry_id.hex, checks))
        assert reply.said == "taken"


def a_budget(**fields: object) -> Limit:
    return a_limit(scope="workspace", meter="cost", window="total", amount=100 * USD, **fields)


async def test_what_a_dead_worker_reserved_comes_to_what_the_ledger_says() -> None:
    scene = Scene(a_budget())
    await scene.is_seeded()
    entry = scene.entry()
    await scene.held_by_the_dead(entry, scene.check)
    assert await scene.spent() == 2 * USD
    await scene.tell([entry])
    assert await scene.spent() == USD


async def test_what_the_store_knows_nothing_of_is_counted_also_by_a_limit_on_a_group() -> None:
    scene = Scene(a_budget(model="small"))
    await scene.is_seeded()
    await scene.tell([scene.entry()])
    assert await scene.spent() == USD


async def test_what_was_settled_long_before_its_journal_was_recovered_is_not_counted_again() -> None:
    """Its database was away for hours, then it was killed: the store was told of each end when it ended."""
    scene = Scene(a_budget())
    await scene.is_seeded()
    entry = scene.entry()
    await scene.held_by_the_dead(entry, scene.check)
    scene.store.release(TAG, "dead", entry.entry_id.hex, spent_of(entry))
    scene.store.now_ms += 5 * COUNTED_MS
    await scene.tell([entry])
    assert await scene.spent() == USD

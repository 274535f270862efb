"""The ledger is the truth of spend: what a store is told of it, when, and that nothing is counted twice."""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import update

from tests.support.credentials import database_at_head, keyrings
from tests.support.ledger_entries import an_attempt, an_entry
from tests.support.services import delete_keys
from tests.support.waiting import eventually
from tests.unit.limits import a_limit
from tests.unit.scripted_store import TAG, ScriptedStore, a_desk
from tidegate.accounts.api_keys.keys import ApiKeys
from tidegate.accounts.schemas import NewKey
from tidegate.admission.budgets import LedgerSeeder, LedgerSum
from tidegate.admission.checks import Reserve, check_of
from tidegate.admission.epoch import SETTLE_S, Epoch, life_of
from tidegate.admission.models import StoreEpoch
from tidegate.admission.steps import Steps
from tidegate.admission.store import Spent
from tidegate.errors import InsufficientQuota, Unavailable
from tidegate.ledger.entry import Entry
from tidegate.ledger.store import LedgerStore
from tidegate.ledger.sums import SEEN_S, DatabaseSums
from tidegate.limits.values import Limit, Matched, nano_usd
from tidegate.storage.database import Database
from tidegate.storage.pipeline import PipelinedRedis

KEY, USER = uuid.uuid4(), uuid.uuid4()
USD = 10**9


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    async with database_at_head(database_url) as opened:
        yield opened


@pytest.fixture
async def on_sqlite(sqlite_url: str) -> AsyncIterator[Database]:
    async with database_at_head(sqlite_url) as opened:
        yield opened


def served(cost: str | None = "0.000000000001", **fields: Any) -> Entry:
    """An entry of today that reached an upstream, with ten tokens."""
    at = datetime.now(UTC)
    used: dict[str, Any] = {"input_tokens": 4, "output_tokens": 6, "cost": None if cost is None else Decimal(cost)}
    said = {"upstream": "local", "key_id": KEY, "user_id": USER, "started_at": at, "ended_at": at, **used, **fields}
    times = {name: said[name] for name in ("started_at", "ended_at")}
    attempts = [an_attempt(upstream=said["upstream"], **used, **times)] if said["upstream"] else []
    return an_entry(**{"attempts": attempts, **said})


async def sum_of(database: Database, limit: Limit, subject: str | None = None) -> LedgerSum:
    check = check_of(Matched(limit, "c"), Reserve(), time.time())
    return await DatabaseSums(database, lambda model: ("small",) if model == "smollm2" else ()).of(
        limit, subject or limit.subject, check.starts, check.ends
    )


async def test_sums_are_of_what_a_limit_is_about(database: Database) -> None:
    yesterday = datetime.now(UTC) - timedelta(days=1)
    front_end = NewKey(name="front end", trusts_attribution=True)
    trusted = await ApiKeys(database, keyrings().peppers).create(front_end)
    other_workspace = served("0.5", workspace_id=uuid.uuid4(), key_id=uuid.uuid4(), user_id=uuid.uuid4())
    entries = [
        served("1.25"),
        served("0.000000000001", key_id=None),
        served("2", key_id=trusted.id, user_id=None, end_user="zoë", tags={"team": 'a"b', "x.y": "1"}),
        served(None, model="other"),
        served("4", started_at=yesterday, ended_at=datetime.now(UTC)),
        served("8", upstream="azure"),
    ]
    await LedgerStore(database).insert([*entries, other_workspace])
    budget = {"meter": "cost", "window": "day"}
    everything = nano_usd(Decimal("11.250000000001"))
    for used, limit, subject in (
        (everything, a_limit(**budget, scope="workspace"), None),
        (everything + USD // 2, a_limit(**budget, scope="deployment"), None),
        (9_250_000_000, a_limit(**budget), str(KEY)),
        (9_250_000_001, a_limit(**budget, scope="user"), str(USER)),
        (2 * USD, a_limit(**budget, scope="end_user"), "zoë"),
        (2 * USD, a_limit(**budget, scope="tag", subject='team=a"b'), None),
        (2 * USD, a_limit(**budget, scope="tag", subject="x.y=1"), None),
        (8 * USD, a_limit(**budget, scope="upstream"), "azure"),
        (0, a_limit(**budget, scope="workspace", model="other"), None),
        (everything, a_limit(**budget, scope="workspace", model="smol*"), None),
        (everything, a_limit(**budget, scope="workspace", model="small"), None),
        (everything + 4 * USD, a_limit(meter="cost", window="total", scope="workspace"), None),
        (50, a_limit(meter="tokens", window="day", scope="workspace"), None),
        (5, a_limit(window="day", scope="workspace"), None),
        (1, a_limit(window="day", scope="upstream"), "azure"),
    ):
        found = await sum_of(database, limit, subject)
        assert found.used == used, limit


async def test_what_never_reached_an_upstream_is_nothing(database: Database) -> None:
    never = [
        served(upstream=None, outcome="client_disconnected"),
        served(upstream=None, outcome="rejected"),
        served(upstream=None, outcome="timed_out"),
    ]
    # An answer from the cache is a request all the same.
    counted = [served("0", outcome="upstream_failed"), served("0", cache="hit", upstream=None, attempts=[])]
    await LedgerStore(database).insert([*never, *counted])
    found = await sum_of(database, a_limit(window="day", scope="workspace"))
    assert (found.used, {*found.seen}) == (2, {entry.entry_id.hex for entry in counted})


async def test_what_ended_lately_is_named_by_attempt_where_an_upstreams_limit_counts_them(database: Database) -> None:
    long_ago = datetime.now(UTC) - timedelta(seconds=SEEN_S + 60)
    late, early = served("1"), served("1", started_at=long_ago, ended_at=long_ago)
    await LedgerStore(database).insert([late, early])
    total = {"meter": "cost", "window": "total"}
    found = await sum_of(database, a_limit(**total, scope="workspace"))
    assert (found.used, found.seen) == (2 * USD, (late.entry_id.hex,))
    assert ms_of(long_ago) < found.seen_since_ms <= ms_of(late.ended_at) - SEEN_S * 1000 + 60_000
    named = await sum_of(database, a_limit(**total, scope="upstream"), "local")
    assert (named.used, named.seen) == (2 * USD, (f"{late.entry_id.hex}.1",))


async def test_all_that_ended_since_a_sum_says_are_named_in_it_however_many_did(database: Database) -> None:
    now = datetime.now(UTC)
    # The third and the fourth ended at once, and only three are named.
    ends = [now - timedelta(seconds=ago) for ago in (1, 2, 3, 3, 4, 200)]
    entries = [served("1", started_at=end, ended_at=end) for end in ends]
    await LedgerStore(database).insert(entries)
    limit = a_limit(meter="cost", window="total", scope="workspace")
    found = await DatabaseSums(database, most_seen=3).of(limit, None, 0, 0)
    assert found.used == 6 * USD
    assert {*found.seen} > {entry.entry_id.hex for entry in entries[:2]}
    assert ms_of(ends[2]) < found.seen_since_ms <= ms_of(ends[1])
    assert (await DatabaseSums(database, most_seen=7).of(limit, None, 0, 0)).seen_since_ms < ms_of(ends[4])


def ms_of(moment: datetime) -> int:
    return int(moment.timestamp() * 1000)


async def test_what_was_spent_alone_in_a_long_outage_is_counted_once(on_sqlite: Database) -> None:
    """The store comes back empty, and each entry that ended without it is told with its checks."""
    shared = ScriptedStore()
    shared.now_ms = int(time.time() * 1000)
    desk = a_desk(shared)
    now = datetime.now(UTC)
    ends = [now - timedelta(seconds=ago) for ago in (600, 300, 130, 119, 30, 1)]
    entries = [served("1", started_at=end, ended_at=end) for end in ends]
    # The last is not in the ledger yet.
    await LedgerStore(on_sqlite).insert(entries[:-1])
    limit = a_limit(meter="cost", window="total", amount=10 * USD, subject=str(KEY))
    limits, one = [Matched(limit, limit.id.hex)], Reserve(cost=USD)
    checks = (check_of(limits[0], Reserve(), time.time()),)

    def tells(named: list[Entry]) -> None:
        for entry in named:
            spent = Spent(cost=USD, ended_ms=ms_of(entry.ended_at) + 500)
            shared.release(TAG, "w1", entry.entry_id.hex, spent, checks)

    # One worker is back before the counter is seeded, the other after.
    tells(entries[::2])
    steps = Steps(desk, LedgerSeeder(desk, DatabaseSums(on_sqlite)))
    assert (await steps.take(TAG, "e1", limits, one)).reply.used == (6 * USD,)
    tells(entries)
    assert (await steps.take(TAG, "e2", limits, one)).reply.used == (8 * USD,)


class Lives:
    """Which life a store is in, as a test says."""

    def __init__(self) -> None:
        self.life = "run@mark"

    async def __call__(self) -> str:
        return self.life


async def test_a_store_that_was_never_seen_is_seeded_at_once_and_another_life_is_waited_for(database: Database) -> None:
    lives = Lives()
    first, second = Epoch(database, lives), Epoch(database, lives)
    assert await first.may_seed()
    assert await second.may_seed()
    lives.life = "run@emptied"
    assert not await second.may_seed()
    assert not await first.may_seed()
    for epoch in (first, second):
        await epoch.look()
        # The first and the other: to look again makes no more of them.
        assert epoch.lives == 2
    await long_ago(database, timedelta(seconds=SETTLE_S))
    # Who comes now knows by the database that all have had their time.
    assert await Epoch(database, lives).may_seed()


async def test_a_redis_that_was_emptied_is_in_another_life(redis_url: str, redis_prefix: str) -> None:
    async with PipelinedRedis.running(redis_url, client_name=redis_prefix, scripts={}) as pipe:
        here, there = life_of(pipe, redis_prefix), life_of(pipe, redis_prefix)
        life = await here()
        assert pipe.run_id is not None
        assert life.startswith(pipe.run_id)
        assert await there() == await here() == life
        delete_keys(redis_url, redis_prefix)
        assert await there() == await here() != life


async def long_ago(database: Database, by: timedelta) -> None:
    async with database.transaction() as session:
        await session.execute(update(StoreEpoch).values(changed_at=datetime.now(UTC) - by))


async def test_a_store_that_lost_its_memory_counts_everything_once(on_sqlite: Database) -> None:
    shared, lives = ScriptedStore(), Lives()
    shared.now_ms = int(time.time() * 1000)
    desk, other = a_desk(shared), a_desk(shared, worker="w2")
    epoch = Epoch(on_sqlite, lives)
    seeder = LedgerSeeder(desk, DatabaseSums(on_sqlite), epoch.may_seed)
    steps = Steps(desk, seeder)
    others = Steps(other, LedgerSeeder(other, DatabaseSums(on_sqlite), epoch.may_seed))
    limit = a_limit(meter="cost", window="total", amount=10 * USD, subject=str(KEY))
    limits, one = [Matched(limit, limit.id.hex)], Reserve(cost=USD)
    entries = [served("1") for _ in range(6)]
    for entry in entries:
        await steps.take(TAG, entry.entry_id.hex, limits, one)
    await others.take(TAG, "others", limits, one)
    # Two have ended and are entered, one has ended and is not yet; three and the other worker's are in flight.
    for entry in entries[:2]:
        desk.release(TAG, entry.entry_id.hex, Spent(cost=USD))
    await LedgerStore(on_sqlite).insert(entries[:2])
    shared.forgets()
    lives.life = "run@emptied"
    desk.release(TAG, entries[2].entry_id.hex, Spent(cost=USD))
    await desk.declare(TAG)
    await other.declare(TAG)
    with pytest.raises((InsufficientQuota, Unavailable)):
        # Not seeded yet: of what was known to remain, this worker's part is too small for this.
        await steps.take(TAG, "early", limits, Reserve(cost=4 * USD))
    await LedgerStore(on_sqlite).insert(entries[2:3])
    await long_ago(on_sqlite, timedelta(seconds=60))
    fresh = Epoch(on_sqlite, lives)
    seeder = LedgerSeeder(desk, DatabaseSums(on_sqlite), fresh.may_seed)
    steps = Steps(desk, seeder)
    taken = await steps.take(TAG, "late", limits, Reserve(cost=3 * USD))
    assert taken.reply.used == (10 * USD,)
    with pytest.raises(InsufficientQuota):
        await steps.take(TAG, "one too many", limits, Reserve(cost=1))


class SlowSums:
    """Gives a sum when it is let, or fails."""

    def __init__(self) -> None:
        self.asked = 0
        self.gate = asyncio.Event()
        self.error: Exception | None = None

    async def of(self, limit: Limit, subject: str | None, starts: int, ends: int) -> LedgerSum:
        self.asked += 1
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        return LedgerSum(7 * USD, ())


async def test_a_sum_is_asked_for_once_and_outlives_who_asked_first() -> None:
    shared, sums = ScriptedStore(), SlowSums()
    steps = Steps(a_desk(shared), LedgerSeeder(a_desk(shared), sums))
    limit = a_limit(meter="cost", window="total", amount=10 * USD)
    asking = [asyncio.create_task(steps.take(TAG, f"e{n}", [Matched(limit, "c")], Reserve(cost=USD))) for n in range(5)]
    await eventually(lambda: sums.asked)
    asking[0].cancel()
    sums.gate.set()
    outcomes = await asyncio.gather(*asking, return_exceptions=True)
    assert sums.asked == 1
    assert [type(one).__name__ for one in outcomes] == [
        "CancelledError",
        "Taken",
        "Taken",
        "Taken",
        "InsufficientQuota",
    ]


@pytest.mark.parametrize("error", [OSError("no database"), TimeoutError()])
async def test_without_a_sum_a_budget_is_judged_without_the_store(error: Exception) -> None:
    shared, sums = ScriptedStore(), SlowSums()
    sums.error = error
    sums.gate.set()
    steps = Steps(a_desk(shared), LedgerSeeder(a_desk(shared), sums))
    limit = a_limit(meter="cost", window="total", amount=10 * USD)
    with pytest.raises(Unavailable):
        await steps.take(TAG, "e1", [Matched(limit, "c")], Reserve(cost=USD))
    assert await shared.entries() == 0


async def test_a_slow_sum_holds_a_request_up_for_a_second_at_most_and_serves_the_next() -> None:
    shared, sums = ScriptedStore(), SlowSums()
    seeder = LedgerSeeder(a_desk(shared), sums)
    steps = Steps(a_desk(shared), seeder)
    limits = [Matched(a_limit(meter="cost", window="total", amount=10 * USD), "c")]
    with pytest.raises(Unavailable):
        await steps.take(TAG, "e1", limits, Reserve(cost=USD))
    assert sums.asked == 1
    sums.gate.set()
    assert (await steps.take(TAG, "e2", limits, Reserve(cost=USD))).reply.used == (8 * USD,)
    assert sums.asked == 1
    await seeder.aclose()

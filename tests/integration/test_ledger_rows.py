"""The ledger's rows: what was settled is stored once, whole, whatever it holds."""

import uuid
from collections.abc import AsyncIterator, Iterable
from datetime import timedelta
from decimal import Decimal

import anyio
import msgspec
import pytest
from sqlalchemy import func, select

from tests.support.ledger_entries import NOON, a_full_entry, an_attempt, an_entry
from tests.support.schema import bring_to_head
from tests.support.sqlite_threads import no_sqlite_threads
from tidegate.accounts.models import DEFAULT_WORKSPACE_ID
from tidegate.errors import Unavailable
from tidegate.ledger.entry import Attempt, Entry
from tidegate.ledger.models import NO_KEY_ID, LedgerAttempt, LedgerEntry, Refusal
from tidegate.ledger.store import BATCH, LARGEST_COUNT, LARGEST_USD, LedgerStore, RefusalCount
from tidegate.storage.database import Database


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    await bring_to_head(database_url)
    database = await Database.open(database_url)
    yield database
    await database.aclose()


@pytest.fixture
def store(database: Database) -> LedgerStore:
    return LedgerStore(database)


async def stored(database: Database) -> list[Entry]:
    """Every entry as the ORM reads it, oldest first."""
    async with database.session() as session:
        rows = (await session.scalars(select(LedgerEntry).order_by(LedgerEntry.entry_id))).all()
        attempts = (await session.scalars(select(LedgerAttempt).order_by(LedgerAttempt.n))).all()
    assert {attempt.workspace_id for attempt in attempts} <= {row.workspace_id for row in rows}
    return [
        Entry(
            **{name: getattr(row, name) for name in Entry.__struct_fields__ if name != "attempts"},
            attempts=[
                Attempt(**{name: getattr(attempt, name) for name in Attempt.__struct_fields__})
                for attempt in attempts
                if attempt.entry_id == row.entry_id
            ],
        )
        for row in rows
    ]


def by_id(entries: Iterable[Entry]) -> list[Entry]:
    """Ids made in one millisecond are in no order."""
    return sorted(entries, key=lambda entry: entry.entry_id)


def test_each_field_of_an_entry_has_its_column() -> None:
    assert {c.name for c in LedgerEntry.__table__.c} == set(Entry.__struct_fields__) - {"attempts"}
    assert {c.name for c in LedgerAttempt.__table__.c} == {*Attempt.__struct_fields__, "entry_id", "workspace_id"}


async def test_an_entry_comes_back_as_it_was(database: Database, store: LedgerStore) -> None:
    entries = [a_full_entry(), an_entry(), a_full_entry(cost=None, attempts=[])]
    await store.insert(entries)
    assert await stored(database) == by_id(entries)


async def test_zero_is_a_value_and_null_is_none(database: Database, store: LedgerStore) -> None:
    await store.insert([an_entry(cost=Decimal(0), ttft_ms=0, end_user=""), an_entry()])
    nothing, zero = sorted(await stored(database), key=lambda entry: entry.cost is not None)
    assert (zero.cost, zero.ttft_ms, zero.end_user) == (Decimal(0), 0, "")
    assert (nothing.cost, nothing.ttft_ms, nothing.end_user) == (None, None, None)


async def test_a_batch_that_is_sent_again_changes_nothing(database: Database, store: LedgerStore) -> None:
    entries = [a_full_entry() for _ in range(3)]
    await store.insert(entries[:2])
    await store.insert(entries)
    await store.insert([entries[2], entries[2]])
    assert await stored(database) == by_id(entries)


async def test_the_first_to_arrive_stays_with_its_own_attempts(database: Database, store: LedgerStore) -> None:
    """Who recovers a journal may tell another end of an entry that its writer had settled."""
    first = an_entry(input_tokens=3, attempts=[an_attempt(1, input_tokens=3)])
    other = msgspec.structs.replace(first, outcome="interrupted", attempts=[an_attempt(1), an_attempt(2)])
    beside = a_full_entry()
    await store.insert([first])
    await store.insert([other, beside])
    assert await stored(database) == by_id([first, beside])


async def test_batches_sent_at_once_in_any_order_are_stored_once(database: Database, store: LedgerStore) -> None:
    entries = [a_full_entry() for _ in range(300)]
    async with anyio.create_task_group() as group:
        for _ in range(2):
            group.start_soon(store.insert, entries)
            group.start_soon(store.insert, entries[::-1])
    assert await stored(database) == by_id(entries)


async def test_more_than_a_batch_is_stored_whole(database: Database, store: LedgerStore) -> None:
    entries = [an_entry(attempts=[an_attempt()]) for _ in range(2 * BATCH + 1)]
    await store.insert(entries)
    async with database.session() as session:
        assert await session.scalar(select(func.count()).select_from(LedgerEntry)) == len(entries)
        assert await session.scalar(select(func.count()).select_from(LedgerAttempt)) == len(entries)


async def test_nothing_to_store_is_no_fault(database: Database, store: LedgerStore) -> None:
    await store.insert([])
    await store.add_refusals([])
    assert await stored(database) == []


async def test_a_value_that_cannot_be_stored_does_not_stop_the_entries_around_it(
    database: Database, store: LedgerStore
) -> None:
    before, after = a_full_entry(), a_full_entry()
    odd = an_entry(
        end_user="half a pair \ud83c and a NUL \0",
        tags={"\0": "\udc00"},
        input_tokens=10**30,
        cost=Decimal(10) ** 20,
        reserved_cost=Decimal(10) ** 13,
        attempts=[an_attempt(1, output_tokens=-(10**30), cost=Decimal(10) ** 20)],
    )
    await store.insert([before, odd, after])
    found = await stored(database)
    (kept,) = (entry for entry in found if entry.entry_id == odd.entry_id)
    assert [entry for entry in found if entry is not kept] == by_id([before, after])
    assert kept.end_user == "half a pair ? and a NUL \ufffd"
    assert kept.tags == {"\ufffd": "?"}
    assert (kept.input_tokens, kept.cost, kept.reserved_cost) == (LARGEST_COUNT, LARGEST_USD, LARGEST_USD)
    assert (kept.attempts[0].output_tokens, kept.attempts[0].cost) == (-LARGEST_COUNT, LARGEST_USD)


async def test_each_value_that_cannot_be_stored_is_fitted(database: Database, store: LedgerStore) -> None:
    odd: list[dict[str, object]] = [
        {"user_agent": "\0"},
        {"user_agent": "\ud83c"},
        {"tags": {"a": "\0"}},
        {"tags": {"a": "\ud83c"}},
        {"input_tokens": 2**63},
        {"cost": Decimal(10) ** 12},
        {"cost": Decimal(10) ** 30},
    ]
    for fields in odd:
        await store.insert([an_entry(**fields)])
    assert len(await stored(database)) == len(odd)


async def test_spend_is_summed_exactly(database: Database, store: LedgerStore) -> None:
    costs = [Decimal("0.1"), Decimal("0.2"), Decimal("0.000000000001"), None] * 25
    await store.insert([an_entry(cost=cost) for cost in costs])
    async with database.session() as session:
        total = await session.scalar(select(func.sum(LedgerEntry.cost)))
        dear = await session.scalar(select(func.count()).where(LedgerEntry.cost > Decimal("0.1")))
    assert isinstance(total, Decimal)
    assert total == Decimal("7.500000000025")
    assert dear == 25


async def test_times_are_compared_as_times(database: Database, store: LedgerStore) -> None:
    moments = [NOON, NOON + timedelta(microseconds=1), NOON + timedelta(seconds=1)]
    await store.insert([an_entry(started_at=moment) for moment in moments])
    async with database.session() as session:
        query = select(LedgerEntry.started_at).order_by(LedgerEntry.started_at)
        assert list(await session.scalars(query)) == moments
        assert list(await session.scalars(query.where(LedgerEntry.started_at > NOON))) == moments[1:]
        assert list(await session.scalars(query.where(LedgerEntry.started_at == NOON))) == moments[:1]


async def test_refusals_add_up_by_key_code_and_minute(database: Database, store: LedgerStore) -> None:
    key_id = uuid.uuid4()

    def refused(key: uuid.UUID | None, code: str, seconds: float, count: int = 1) -> RefusalCount:
        return RefusalCount(DEFAULT_WORKSPACE_ID, key, code, NOON + timedelta(seconds=seconds), count)

    async def send() -> None:
        await store.add_refusals(
            [
                refused(None, "missing_credentials", 1),
                refused(key_id, "model_not_found", 59.9, 2),
                refused(key_id, "model_not_found", 0),
                refused(key_id, "model_not_found", 60),
            ]
        )

    async with anyio.create_task_group() as group:
        for _ in range(5):
            group.start_soon(send)
    async with database.session() as session:
        rows = (await session.scalars(select(Refusal))).all()
    assert {(row.key_id, row.code, row.minute): row.count for row in rows} == {
        (NO_KEY_ID, "missing_credentials", NOON): 5,
        (key_id, "model_not_found", NOON): 15,
        (key_id, "model_not_found", NOON + timedelta(minutes=1)): 5,
    }


async def test_refusals_sent_at_once_in_any_order_all_count(database: Database, store: LedgerStore) -> None:
    refusals = [RefusalCount(DEFAULT_WORKSPACE_ID, uuid.uuid4(), "overloaded", NOON) for _ in range(300)]
    async with anyio.create_task_group() as group:
        for _ in range(2):
            group.start_soon(store.add_refusals, refusals)
            group.start_soon(store.add_refusals, refusals[::-1])
    async with database.session() as session:
        assert set(await session.scalars(select(Refusal.count))) == {4}


@pytest.mark.parametrize(
    "url",
    ["postgresql+asyncpg://postgres@127.0.0.1:1/nothing", "sqlite+aiosqlite:////nonexistent/tidegate.db"],
    ids=["postgresql", "sqlite"],
)
async def test_a_database_that_is_down_is_unavailable(url: str) -> None:
    database = await Database.open(url)
    try:
        with pytest.raises(Unavailable):
            await LedgerStore(database).insert([an_entry()])
    finally:
        await database.aclose()
        await no_sqlite_threads()

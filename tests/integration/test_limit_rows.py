"""Limits as rows: what the database holds of them, and what the road reads."""

import uuid
from collections.abc import AsyncIterator

import pytest
from alembic import command
from sqlalchemy import Connection, delete, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import IntegrityError

from tests.support.credentials import database_at_head
from tests.support.limits_api import Json, LimitsApi
from tidegate.accounts.models import DEFAULT_WORKSPACE_ID
from tidegate.auth.models import ApiKey
from tidegate.auth.principal import Principal
from tidegate.ledger.entry import Attribution
from tidegate.limits.book import BookBounds, LimitBook
from tidegate.limits.metered import MeteredAmount
from tidegate.limits.models import LimitRow
from tidegate.limits.reading import LimitReader
from tidegate.storage import migrate as migration
from tidegate.storage.database import Database
from tidegate.storage.migrate import migrate


@pytest.fixture
async def api(database_url: str) -> AsyncIterator[LimitsApi]:
    async with LimitsApi.open(database_url) as api:
        yield api


@pytest.fixture
async def on_sqlite(sqlite_url: str) -> AsyncIterator[LimitsApi]:
    async with LimitsApi.open(sqlite_url) as api:
        yield api


async def test_the_book_has_a_workspace_s_limits_and_those_of_all(api: LimitsApi) -> None:
    key = await api.key()
    await api.create(scope="key", subject=str(key.id), zone="Europe/Berlin")
    await api.create(scope="deployment")
    await api.create(scope="upstream", subject="openai")
    await api.create(workspace_id=str(api.research))
    book = LimitBook(LimitReader(api.database), BookBounds(answer_s=30))
    default, research = await book.of(DEFAULT_WORKSPACE_ID, key_id=key.id), await book.of(api.research)
    caller = Principal(workspace_id=DEFAULT_WORKSPACE_ID, key_id=key.id)
    stranger = Principal(workspace_id=api.research)
    (met,) = default.caller(caller, Attribution(), "gpt-4.1", ())
    assert (met.limit.label, met.limit.amount, met.limit.zone) == ("key-cost-month", 100 * 10**9, "Europe/Berlin")
    assert type(met.limit.id) is type(met.limit.workspace_id) is uuid.UUID
    assert [one.limit.label for one in research.caller(stranger, Attribution(), "m", ())] == ["workspace-cost-month"]
    for limits in (default, research):
        assert len(limits.deployment("m", ())) == len(limits.upstream("openai", "m", ())) == 1
        assert limits.upstream("azure", "m", ()) == ()
    await book.aclose()


async def test_a_zone_that_is_not_known_here_is_counted_in_utc(on_sqlite: LimitsApi) -> None:
    created = await on_sqlite.create(scope="deployment", window="day", zone="Europe/Berlin")
    async with on_sqlite.database.transaction() as session:
        (await session.get_one(LimitRow, uuid.UUID(created["id"]))).zone = "Mars/Phobos"
    (met,) = (await LimitReader(on_sqlite.database)(on_sqlite.research)).deployment("m", ())
    assert met.limit.zone is None


async def test_a_key_s_end_leaves_its_limits(api: LimitsApi) -> None:
    key = await api.key(limits=(MeteredAmount(meter="concurrency", amount=1),))
    async with api.database.transaction() as session:
        await session.execute(delete(ApiKey).where(ApiKey.id == key.id))
    assert [limit["subject"] for limit in await api.listed()] == [str(key.id)]


@pytest.mark.parametrize(
    "wrong",
    [
        {"scope": "everyone"},
        {"meter": "money"},
        {"window": "year"},
        {"window": None},
        {"meter": "concurrency"},
        {"amount": 0},
        {"action": "shout"},
        {"on_overrun": "die"},
        {"workspace_id": uuid.UUID(int=7)},
    ],
)
async def test_the_database_itself_refuses_what_is_no_limit(database_url: str, wrong: Json) -> None:
    right = {"workspace_id": DEFAULT_WORKSPACE_ID, "scope": "key", "meter": "cost", "window": "day", "amount": 1}
    async with database_at_head(database_url) as database:
        async with database.transaction() as session:
            session.add(LimitRow(**right))
        with pytest.raises(IntegrityError):
            async with database.transaction() as session:
                session.add(LimitRow(**right | wrong))


async def test_keys_of_before_the_migration_are_kept_with_a_weight_of_one(database_url: str) -> None:
    def to_first(connection: Connection) -> None:
        command.upgrade(migration._configuration(connection), "0001")

    await migration._on(make_url(database_url), to_first, begin="BEGIN IMMEDIATE")
    database = await Database.open(database_url)
    try:
        workspace, account = (f"'{name}'" for name in (DEFAULT_WORKSPACE_ID, uuid.uuid4()))
        if database.dialect_name == "sqlite":
            workspace, account = workspace.replace("-", ""), account.replace("-", "")
        insert_key = (
            "INSERT INTO api_keys (id, workspace_id, name, prefix, secret_hash, hash_scheme, owner_service_account_id,"
            f" scopes) VALUES ({{}}, {workspace}, 'k', '{{}}', '', 's', {account}, '[]')"
        )
        async with database.transaction() as session:
            await session.execute(
                text(f"INSERT INTO service_accounts (id, workspace_id, name) VALUES ({account}, {workspace}, 's')")
            )
            await session.execute(text(insert_key.format(account, "before")))
        assert (await migrate(database_url))[0] == "0002"
        async with database.transaction() as session:
            # The version before this one names no weight.
            await session.execute(text(insert_key.format(workspace, "after")))
            assert list(await session.scalars(text("SELECT queue_weight FROM api_keys"))) == [1, 1]
        for weight in (0, 101):
            with pytest.raises(IntegrityError):
                async with database.transaction() as session:
                    await session.execute(text(f"UPDATE api_keys SET queue_weight = {weight}"))
    finally:
        await database.aclose()

"""`GET /api/requests`: whole entries in the contract's form, newest first, to those who may see them."""

import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from decimal import Decimal
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI

from tests.support.ledger_entries import NOON, a_full_entry, an_attempt, an_entry
from tests.support.schema import bring_to_head
from tidegate.accounts.models import DEFAULT_WORKSPACE_ID
from tidegate.auth.dependencies import get_caller
from tidegate.auth.principal import Principal
from tidegate.http.errors import install_error_handlers
from tidegate.ledger.endpoints import router
from tidegate.ledger.entry import Attempt, Entry
from tidegate.ledger.store import LedgerStore
from tidegate.storage.database import Database
from tidegate.storage.dependencies import get_database

ADMIN = Principal(workspace_id=DEFAULT_WORKSPACE_ID, user_id=uuid.UUID(int=1), role="admin")
Json = dict[str, Any]


class Reader:
    """The routes over a database, called as `caller`."""

    def __init__(self, database: Database) -> None:
        self.caller = ADMIN
        self.store = LedgerStore(database)
        app = FastAPI()
        app.include_router(router)
        install_error_handlers(app)
        app.dependency_overrides = {get_database: lambda: database, get_caller: lambda: self.caller}
        self._transport = httpx2.ASGITransport(app)

    async def get(self, path: str, **query: Any) -> httpx2.Response:
        async with httpx2.AsyncClient(transport=self._transport, base_url="http://tidegate") as client:
            return await client.get(f"/api/requests{path}", params=query)

    async def page(self, **query: Any) -> Json:
        response = await self.get("", **query)
        assert response.status_code == 200, response.text
        answer: Json = response.json()
        return answer

    async def ids(self, **query: Any) -> list[uuid.UUID]:
        return [uuid.UUID(entry["entry_id"]) for entry in (await self.page(**query))["data"]]


@pytest.fixture
async def reader(database_url: str) -> AsyncIterator[Reader]:
    await bring_to_head(database_url)
    database = await Database.open(database_url)
    yield Reader(database)
    await database.aclose()


def newest_first(*entries: Entry) -> list[uuid.UUID]:
    return sorted((entry.entry_id for entry in entries), reverse=True)


async def test_an_entry_is_shown_whole_in_the_contracts_form(reader: Reader) -> None:
    entry = a_full_entry()
    await reader.store.insert([entry])
    (shown,) = (await reader.page())["data"]
    assert list(shown) == list(Entry.__struct_fields__)
    assert [list(attempt) for attempt in shown["attempts"]] == 2 * [list(Attempt.__struct_fields__)]
    assert shown["schema"] == 1
    assert shown["tags"] == entry.tags
    assert shown["cost"] == "1.000000000001"
    assert shown["reserved_cost"] == "1.5"
    assert shown["started_at"] == "2026-11-22T12:00:00.000001Z"
    assert shown["attempts"][0]["started_at"] == "2026-11-22T12:00:00Z"
    assert [attempt["cost"] for attempt in shown["attempts"]] == [None, "1.000000000001"]
    assert shown["duration_ms"] == 2**33
    assert (await reader.get(f"/{entry.entry_id}")).json() == shown


async def test_what_is_unpriced_is_null_and_what_is_free_is_zero(reader: Reader) -> None:
    costs = {None: None, "0": "0", "0.0018": "0.0018", "1E-12": "0.000000000001", "1E+3": "1000", "2.50": "2.5"}
    for cost, shown in costs.items():
        entry = an_entry(cost=cost and Decimal(cost), attempts=[an_attempt(cost=cost and Decimal(cost))])
        await reader.store.insert([entry])
        answer = (await reader.get(f"/{entry.entry_id}")).json()
        assert (answer["cost"], answer["attempts"][0]["cost"]) == (shown, shown)


async def test_pages_hold_every_entry_once_newest_first(reader: Reader) -> None:
    entries = [an_entry(attempts=[an_attempt(2), an_attempt(1)]) for _ in range(7)]
    await reader.store.insert(entries)
    seen: list[uuid.UUID] = []
    page = await reader.page(limit=3)
    sizes = [len(page["data"])]
    while page["next"]:
        seen += [uuid.UUID(entry["entry_id"]) for entry in page["data"]]
        page = await reader.page(limit=3, after=page["next"])
        sizes.append(len(page["data"]))
    seen += [uuid.UUID(entry["entry_id"]) for entry in page["data"]]
    assert seen == newest_first(*entries)
    assert sizes == [3, 3, 1]
    assert [attempt["n"] for attempt in page["data"][0]["attempts"]] == [1, 2]
    assert (await reader.page(limit=7))["next"] is None


async def test_filters_hold_together(reader: Reader) -> None:
    key_id, user_id = uuid.uuid4(), uuid.uuid4()
    wanted: Json = {"request_id": "r-2", "key_id": key_id, "user_id": user_id, "model": "gpt-4.1", "upstream": "azure"}
    wanted |= {"outcome": "timed_out", "end_user": "Zoë", "session_id": "s"}
    entry = an_entry(**wanted, started_at=NOON + timedelta(hours=1))
    await reader.store.insert([entry, an_entry()])
    for name, value in wanted.items():
        assert await reader.ids(**{name: str(value)}) == [entry.entry_id], name
    assert await reader.ids(**{name: str(value) for name, value in wanted.items()}) == [entry.entry_id]
    assert await reader.ids(**{**wanted, "model": "smollm2"}) == []


async def test_since_is_included_and_until_is_not(reader: Reader) -> None:
    hours = [an_entry(started_at=NOON + timedelta(hours=n)) for n in range(3)]
    await reader.store.insert(hours)
    one, two = "2026-11-22T13:00:00Z", "2026-11-22T15:00:00+01:00"
    assert await reader.ids(since=one) == newest_first(*hours[1:])
    assert await reader.ids(until=one) == newest_first(hours[0])
    assert await reader.ids(since=one, until=two) == newest_first(hours[1])


@pytest.mark.parametrize(
    "query",
    [
        {"limit": 0},
        {"limit": 201},
        {"limit": "many"},
        {"key_id": "tg_1"},
        {"outcome": "lost"},
        {"after": "x"},
        {"since": "2026-11-22T13:00:00"},
        {"since": "0001-01-01T00:00:00+14:00"},
        {"until": "9999-12-31T23:59:59-14:00"},
        {"model": "a\0b"},
        {"end_user": ""},
        {"end_usr": "a"},
    ],
    ids=str,
)
async def test_a_wrong_filter_is_a_422_that_names_it(query: Json) -> None:
    async with a_reader_of_nothing() as reader:
        response = await reader.get("", **query)
    assert response.status_code == 422
    error = response.json()["error"]
    assert error["code"] == "validation_error"
    assert list(query) == [error["errors"][0]["loc"][-1]]


@asynccontextmanager
async def a_reader_of_nothing() -> AsyncIterator[Reader]:
    database = await Database.open("postgresql+asyncpg://postgres@127.0.0.1:1/nothing")
    try:
        yield Reader(database)
    finally:
        await database.aclose()


async def test_a_database_that_is_down_is_a_503() -> None:
    async with a_reader_of_nothing() as reader:
        response = await reader.get("")
    assert (response.status_code, response.json()["error"]["code"]) == (503, "unavailable")
    assert response.headers["Retry-After"] == "1"


async def test_each_caller_sees_what_is_theirs(reader: Reader) -> None:
    elsewhere, key_id, other_key_id, user_id = (uuid.uuid4() for _ in range(4))
    by_key = an_entry(key_id=key_id)
    by_other_key = an_entry(key_id=other_key_id)
    by_user = an_entry(user_id=user_id)
    of_others = an_entry(workspace_id=elsewhere, key_id=other_key_id)
    # A key's id is what it is in any workspace; a row of another one is not its own.
    misplaced = an_entry(workspace_id=elsewhere, key_id=key_id)
    everything = (by_key, by_other_key, by_user, of_others, misplaced)
    await reader.store.insert(everything)

    def key(*scopes: Any, role: Any = None) -> Principal:
        return Principal(
            workspace_id=DEFAULT_WORKSPACE_ID, key_id=key_id, user_id=user_id, scopes=frozenset(scopes), role=role
        )

    def user(role: Any) -> Principal:
        return Principal(workspace_id=DEFAULT_WORKSPACE_ID, user_id=user_id, role=role, scopes=frozenset({"usage"}))

    ours = (by_key, by_other_key, by_user)
    visible: list[tuple[Principal, tuple[Entry, ...]]] = [
        (user("admin"), everything),
        (user("member"), ours),
        (user(None), ()),
        (key("inference", "usage"), ours),
        (key("manage"), ours),
        (key("manage", role="admin"), ours),
        (key("inference"), (by_key,)),
        (key("inference", role="admin"), (by_key,)),
        (key("metrics"), (by_key,)),
    ]
    for caller, entries in visible:
        reader.caller = caller
        assert await reader.ids() == newest_first(*entries), caller
        for entry in everything:
            response = await reader.get(f"/{entry.entry_id}")
            assert response.status_code == (200 if entry in entries else 404), caller
            if entry not in entries:
                assert response.json()["error"]["code"] == "not_found"


async def test_an_entry_that_is_not_there_is_a_404(reader: Reader) -> None:
    response = await reader.get(f"/{uuid.uuid4()}")
    assert (response.status_code, response.json()["error"]["code"]) == (404, "not_found")

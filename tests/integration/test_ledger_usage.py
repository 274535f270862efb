"""`GET /api/usage` and `tidegate usage`: totals of the ledger, to those who may see them."""

import asyncio
import json
import os
import uuid
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx2
import pytest
from click.testing import CliRunner, Result
from fastapi import FastAPI

from tests.support.credentials import JWT_SECRET, PEPPER, database_at_head, keyrings
from tests.support.ledger_entries import NOON, an_attempt, an_entry
from tidegate.accounts.api_keys.keys import ApiKeys
from tidegate.accounts.models import DEFAULT_WORKSPACE_ID
from tidegate.accounts.schemas import NewKey, NewUser
from tidegate.accounts.service import Accounts
from tidegate.auth.dependencies import get_caller
from tidegate.auth.passwords import Passwords
from tidegate.auth.principal import Principal
from tidegate.cli.main import root
from tidegate.http.errors import install_error_handlers
from tidegate.ledger.dependencies import get_read_through
from tidegate.ledger.endpoints import router
from tidegate.ledger.entry import Entry
from tidegate.ledger.reports import MOST_ROWS, TOKEN_CLASSES, since_moment
from tidegate.ledger.store import LedgerStore
from tidegate.storage.database import Database
from tidegate.storage.dependencies import get_database
from tidegate.storage.read_through import ReadThrough

ELSEWHERE = uuid.uuid4()
ADMIN = Principal(
    workspace_id=DEFAULT_WORKSPACE_ID, user_id=uuid.UUID(int=1), role="admin", scopes=frozenset({"usage"})
)
Json = dict[str, Any]


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


class Reports:
    """The routes over a database, called as `caller`, without Redis. Every answer is made anew unless `keeps`."""

    def __init__(self, database: Database) -> None:
        self.caller = ADMIN
        self.keeps = False
        self.clock = Clock()
        self.database = database
        self.store = LedgerStore(database)
        self.cache = ReadThrough(None, "tidegate", clock=self.clock)
        app = FastAPI()
        app.include_router(router)
        install_error_handlers(app)
        app.dependency_overrides = {
            get_database: lambda: database,
            get_caller: lambda: self.caller,
            get_read_through: lambda: self.cache,
        }
        self._transport = httpx2.ASGITransport(app)

    async def get(self, **query: Any) -> httpx2.Response:
        if not self.keeps:
            self.clock.now += 1_000
        async with httpx2.AsyncClient(transport=self._transport, base_url="http://tidegate") as client:
            return await client.get("/api/usage", params={"since": "2026-11-01", **query})

    async def report(self, **query: Any) -> Json:
        response = await self.get(**query)
        assert response.status_code == 200, response.text
        answer: Json = response.json()
        return answer

    async def rows(self, **query: Any) -> list[Json]:
        rows: list[Json] = (await self.report(**query))["data"]
        return rows

    async def counts(self, **query: Any) -> dict[str | None, int]:
        return {row["value"]: row["requests"] for row in await self.rows(**query)}


@pytest.fixture
async def reports(database_url: str) -> AsyncIterator[Reports]:
    async with database_at_head(database_url) as database:
        reports = Reports(database)
        yield reports
        await reports.cache.aclose()


def a_priced_entry(cost: str | None, **fields: Any) -> Entry:
    price = None if cost is None else Decimal(cost)
    used = {name: 2**n for n, name in enumerate(TOKEN_CLASSES)}
    said = {"cost": price, "usage_source": "provider", **used, **fields}
    return an_entry(**said, attempts=[an_attempt(cost=price)])


async def test_a_row_has_the_sums_of_its_group(reports: Reports) -> None:
    await reports.store.insert(
        [
            a_priced_entry("0.1", model="a"),
            a_priced_entry("0.200000000001", model="a", outcome="client_disconnected"),
            a_priced_entry(None, model="a"),
            a_priced_entry("0", model="b"),
        ]
    )
    report = await reports.report(by="model")
    assert {name: report[name] for name in ("by", "since", "workspace_id", "truncated")} == {
        "by": "model",
        "since": "2026-11-01T00:00:00Z",
        "workspace_id": None,
        "truncated": False,
    }
    a, b = report["data"]
    assert a == {
        "value": "a",
        "name": None,
        "prefix": None,
        "requests": 3,
        "outcomes": {"completed": 2, "client_disconnected": 1},
        **{name: 3 * 2**n for n, name in enumerate(TOKEN_CLASSES)},
        "cost": "0.300000000001",
        "unpriced_requests": 1,
    }
    assert (b["value"], b["requests"], b["cost"], b["unpriced_requests"]) == ("b", 1, "0", 0)


async def test_what_is_all_unpriced_has_no_cost_and_what_used_nothing_cost_nothing(reports: Reports) -> None:
    rejected = an_entry(model="never reached", outcome="rejected")
    await reports.store.insert([a_priced_entry(None, model="unpriced"), rejected])
    rows = {row["value"]: (row["cost"], row["unpriced_requests"]) for row in await reports.rows(by="model")}
    assert rows == {"unpriced": (None, 1), "never reached": ("0", 0)}


async def test_groups_carry_the_names_of_what_they_are(reports: Reports) -> None:
    key = await ApiKeys(reports.database, keyrings().peppers).create(NewKey(name="search"))
    user = await Accounts(reports.database, Passwords()).create(NewUser(email="ada@example.com"))
    gone = uuid.uuid4()
    await reports.store.insert(
        [an_entry(key_id=key.id, user_id=user.id), an_entry(key_id=gone, user_id=gone), an_entry(workspace_id=gone)]
    )

    async def named(by: str) -> set[tuple[str | None, ...]]:
        return {(row["value"], row["name"], row["prefix"]) for row in await reports.rows(by=by)}

    nobody = {(str(gone), None, None), (None, None, None)}
    assert await named("key") == {(str(key.id), "search", key.prefix), *nobody}
    assert await named("user") == {(str(user.id), "ada@example.com", None), *nobody}
    assert await named("workspace") == {(str(DEFAULT_WORKSPACE_ID), "default", None), (str(gone), None, None)}


async def test_a_tag_is_a_group_and_an_entry_is_in_each_of_its_tags(reports: Reports) -> None:
    await reports.store.insert(
        [
            an_entry(tags={"team": "search", "stage": "a\"'b=c"}),
            an_entry(tags={"team": "search"}),
            an_entry(tags={"team": "chat", "": "empty"}),
            an_entry(),
        ]
    )
    assert await reports.counts(by="tag") == {
        "team=search": 2,
        "team=chat": 1,
        "stage=a\"'b=c": 1,
        "=empty": 1,
        None: 1,
    }


async def test_end_users_and_days_are_groups_days_in_utc_and_newest_first(reports: Reports) -> None:
    midnight = NOON.replace(hour=0)
    await reports.store.insert(
        [
            an_entry(end_user="Zoë", started_at=midnight - timedelta(microseconds=1)),
            an_entry(end_user="Zoë", started_at=midnight),
            an_entry(started_at=NOON + timedelta(hours=11)),
        ]
    )
    assert await reports.counts(by="end_user") == {"Zoë": 2, None: 1}
    rows = await reports.rows(by="day")
    assert [(row["value"], row["requests"]) for row in rows] == [("2026-11-22", 2), ("2026-11-21", 1)]


async def test_only_what_began_since_then_counts(reports: Reports) -> None:
    now = datetime.now(UTC)
    ages = [timedelta(minutes=1), timedelta(hours=5), timedelta(days=6), timedelta(days=20)]
    await reports.store.insert([an_entry(started_at=now - age) for age in ages])
    for since, count in {"30m": 1, "12h": 2, "7d": 3, "4w": 4, now.strftime("%Y-%m-%dT%H:%M:%S+00:00"): 0}.items():
        assert sum((await reports.counts(since=since)).values()) == count, since


async def test_more_groups_than_are_shown_are_said_to_be_there(reports: Reports) -> None:
    await reports.store.insert([an_entry(end_user=f"{n:05}") for n in range(MOST_ROWS)])
    assert (await reports.report(by="end_user"))["truncated"] is False
    await reports.store.insert([an_entry(end_user="one more") for _ in range(2)])
    report = await reports.report(by="end_user")
    assert (report["truncated"], len(report["data"])) == (True, MOST_ROWS)
    assert report["data"][0]["value"] == "one more"


async def test_each_caller_sees_the_totals_that_are_theirs(reports: Reports) -> None:
    key_id = uuid.uuid4()
    await reports.store.insert([an_entry(), an_entry(key_id=key_id), an_entry(workspace_id=ELSEWHERE)])

    def key(*scopes: Any, role: Any = None) -> Principal:
        return Principal(workspace_id=DEFAULT_WORKSPACE_ID, key_id=key_id, scopes=frozenset(scopes), role=role)

    def user(role: Any, *scopes: Any) -> Principal:
        return Principal(workspace_id=DEFAULT_WORKSPACE_ID, user_id=key_id, role=role, scopes=frozenset(scopes))

    ours, theirs = str(DEFAULT_WORKSPACE_ID), str(ELSEWHERE)
    everything, own, refused = {ours: 2, theirs: 1}, {ours: 2}, None
    visible: list[tuple[Principal, Json, dict[str, int] | None]] = [
        (user("admin", "usage"), {}, everything),
        (user("admin", "usage"), {"workspace_id": theirs}, {theirs: 1}),
        (user("member", "usage"), {}, own),
        (user("member", "usage"), {"workspace_id": ours}, own),
        (user("member", "usage"), {"workspace_id": theirs}, refused),
        (user(None), {}, refused),
        (key("usage"), {}, own),
        (key("manage"), {}, own),
        (key("manage", role="admin"), {}, own),
        (key("usage", role="admin"), {"workspace_id": theirs}, refused),
        (key("inference"), {}, refused),
        (key("inference", "metrics", role="admin"), {}, refused),
    ]
    # What one is shown is not kept for another: nothing expires meanwhile.
    reports.keeps = True
    for caller, query, rows in visible:
        reports.caller = caller
        response = await reports.get(by="workspace", **query)
        if rows is None:
            assert (response.status_code, response.json()["error"]["code"]) == (403, "permission_denied"), caller
        else:
            assert {row["value"]: row["requests"] for row in response.json()["data"]} == rows, caller


async def test_totals_are_kept_for_ten_seconds(reports: Reports) -> None:
    reports.keeps = True
    assert await reports.counts() == {}
    await reports.store.insert([an_entry()])
    reports.clock.now += 7.9
    assert await reports.counts() == {}
    reports.clock.now += 2.1
    assert await reports.counts() == {"smollm2": 1}
    assert reports.cache.loads == 2


@pytest.mark.parametrize(
    "query",
    [
        {"by": "colour"},
        {"since": "yesterday"},
        {"since": "0d"},
        {"since": "7"},
        {"since": "2026-13-01"},
        {"since": "2026-11-01T10:00:00"},
        {"since": "0001-01-01"},
        {"since": "9999-12-31T23:59:59-14:00"},
        {"since": ""},
        {"workspace_id": "default"},
        {"sinse": "7d"},
    ],
    ids=str,
)
async def test_a_wrong_question_is_a_422_that_names_it(query: Json, sqlite_url: str) -> None:
    database = await Database.open(sqlite_url)
    response = await Reports(database).get(**query)
    await database.aclose()
    assert response.status_code == 422
    assert [error["loc"][-1] for error in response.json()["error"]["errors"]] == list(query)


async def test_a_database_that_is_down_is_a_503() -> None:
    database = await Database.open("postgresql+asyncpg://postgres@127.0.0.1:1/nothing")
    response = await Reports(database).get()
    await database.aclose()
    assert (response.status_code, response.json()["error"]["code"]) == (503, "unavailable")


def test_a_length_of_time_reaches_no_further_back_than_times_do() -> None:
    assert since_moment("999999w", NOON) == since_moment("36500d", NOON) == datetime(1970, 1, 2, tzinfo=UTC)


class Shell:
    def __init__(self, url: str, data_dir: Path) -> None:
        self.environment: dict[str, str | None] = {
            **dict.fromkeys((name for name in os.environ if name.startswith("TIDEGATE_")), None),
            "TIDEGATE_ENVIRONMENT": "test",
            "TIDEGATE_DATA_DIR": str(data_dir),
            "TIDEGATE_DATABASE__URL": url,
            "TIDEGATE_AUTH__JWT_KEYS": f"1:{JWT_SECRET}",
            "TIDEGATE_AUTH__API_KEY_PEPPERS": f"1:{PEPPER}",
        }

    def usage(self, *arguments: str) -> Result:
        return CliRunner().invoke(root, ["usage", *arguments], env=self.environment)


@pytest.fixture
def shell(database_url: str, tmp_path: Path) -> Shell:
    async def fill() -> None:
        async with database_at_head(database_url) as database:
            key = await ApiKeys(database, keyrings().peppers).create(NewKey(name="search"))
            await LedgerStore(database).insert(
                [
                    a_priced_entry("0.0018", key_id=key.id),
                    a_priced_entry(None, workspace_id=ELSEWHERE, model="free", outcome="timed_out"),
                ]
            )

    asyncio.run(fill())
    return Shell(database_url, tmp_path / "var")


def test_the_command_prints_the_totals_of_every_workspace(shell: Shell) -> None:
    printed = shell.usage("--by", "key", "--since", "2026-11-01")
    assert printed.exit_code == 0, printed.output
    header, *lines = printed.stdout.splitlines()
    assert header.split()[:3] == ["KEY", "REQUESTS", "COMPLETED"]
    assert sorted(line.split()[0] for line in lines) == ["-", "search"]
    (line,) = [line for line in lines if "search" in line]
    assert line.split()[2:] == ["1", "1", "1", "14", "16", "32", "0.0018", "0"]
    assert "tg_" in line


def test_the_command_prints_json_in_the_form_of_the_route(shell: Shell) -> None:
    printed = shell.usage("--since", "2026-11-01", "--json")
    assert printed.exit_code == 0, printed.output
    report = json.loads(printed.stdout)
    assert (report["by"], report["since"], report["truncated"]) == ("model", "2026-11-01T00:00:00Z", False)
    assert {row["value"]: row["cost"] for row in report["data"]} == {"smollm2": "0.0018", "free": None}


def test_the_command_says_what_is_wrong_and_where_there_is_nothing(shell: Shell) -> None:
    wrong = shell.usage("--since", "yesterday")
    assert (wrong.exit_code, "--since" in wrong.stderr) == (2, True)
    assert "Nothing was requested since" in shell.usage("--since", "9000-01-01").stdout

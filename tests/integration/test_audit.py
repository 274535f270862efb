"""The audit trail: what is written of keys and limits, by whom it is read, and that nothing changes it."""

import uuid
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from sqlalchemy import func, select, text
from sqlalchemy.exc import DBAPIError

from tests.support.credentials import database_at_head, keyrings
from tests.support.keys_api import Json, KeysApi
from tidegate.accounts.api_keys.keys import ApiKeys
from tidegate.accounts.bootstrap import FIRST_ADMIN, bootstrap
from tidegate.accounts.models import DEFAULT_WORKSPACE_ID
from tidegate.audit.models import AuditEvent
from tidegate.audit.trail import SYSTEM, Actor, Event, Subject, differences, note, write
from tidegate.auth.api_keys import generate_key
from tidegate.settings import Settings
from tidegate.settings.groups import BootstrapSettings
from tidegate.storage.database import Database

AGENT = "curl/8.5"
PEER = "192.0.2.7"
A_RATE: Json = {"meter": "requests", "window": "minute", "amount": 60}
A_LIMIT: Json = {"scope": "workspace", "meter": "cost", "window": "month", "amount": "100.00"}


@pytest.fixture
async def api(database_url: str, tmp_path: Path) -> AsyncIterator[KeysApi]:
    async with KeysApi.open(database_url, tmp_path) as api:
        api.client.headers["User-Agent"] = AGENT
        api.peer = PEER
        yield api


@pytest.fixture
async def on_sqlite(sqlite_url: str, tmp_path: Path) -> AsyncIterator[KeysApi]:
    async with KeysApi.open(sqlite_url, tmp_path) as api:
        yield api


async def trail(api: KeysApi, *, by: str = "admin", **query: Any) -> list[Json]:
    answer = await api.call("GET", by=by, at="/api/audit", params=query)
    assert answer.status_code == 200, answer.text
    found: list[Json] = answer.json()["data"]
    return found


async def told(api: KeysApi, prefix: str) -> list[tuple[str, Json]]:
    """Actions and details of this kind, the oldest first."""
    return [(event["action"], event["details"]) for event in reversed(await trail(api, action=prefix))]


async def test_what_becomes_of_a_key_is_written_with_who_from_where_and_what_changed(api: KeysApi) -> None:
    later = "2090-01-31T12:00:00Z"
    made = await api.make(name="app", limits=[A_RATE], allowed_addresses=["192.0.2.0/24"])
    path = f"/{made['id']}"
    change: Json = {"name": "renamed", "models": ["small"], "expires_at": later, "allowed_addresses": None}
    await api.call("PATCH", path, json=change)
    await api.call("PATCH", path, json={"name": "renamed"})
    first = (await api.call("POST", f"{path}/rotate", json={"overlap": "1h"})).json()
    await api.call("DELETE", f"{path}/retiring/{made['prefix']}")
    second = (await api.call("POST", f"{path}/rotate", json={"overlap": "1h"})).json()
    third = (await api.call("POST", f"{path}/rotate")).json()
    for _ in range(2):
        await api.call("DELETE", path)
    old, one, two, three = (f"tg_{key['prefix']}" for key in (made, first, second, third))
    events = await told(api, "key.")
    ends = [details.pop("old_secret_ends_at") for _, details in events if "old_secret_ends_at" in details]
    assert len(ends) == 2
    created = {
        "owner": "admin@example.com",
        "scopes": ["inference"],
        "name": "app",
        "models": None,
        "expires_at": None,
        "allowed_addresses": ["192.0.2.0/24"],
        "trusts_attribution": False,
        "queue_weight": 1,
        "limits": {"key-requests-minute": 60},
    }
    changed = {
        "name": {"from": "app", "to": "renamed"},
        "models": {"from": None, "to": ["small"]},
        "expires_at": {"from": None, "to": "2090-01-31T12:00:00+00:00"},
        "allowed_addresses": {"from": ["192.0.2.0/24"], "to": None},
    }
    assert events == [
        ("key.created", created),
        ("key.changed", changed),
        ("key.rotated", {"prefix": {"from": old, "to": one}}),
        ("key.secret_ended", {"ended": [old]}),
        ("key.rotated", {"prefix": {"from": one, "to": two}}),
        ("key.rotated", {"prefix": {"from": two, "to": three}, "ended": [one]}),
        ("key.revoked", {}),
    ]
    whole = (await api.call("GET", at="/api/audit", params={"action": "key."})).text
    assert not any(key["key"][12:] in whole for key in (made, first, second, third))
    assert "hash" not in whole
    (newest, *_) = await trail(api, action="key.")
    actor = {"kind": "user", "id": str(api.users["admin"]), "name": "admin@example.com"}
    subject = {"kind": "key", "id": made["id"], "name": three}
    assert (newest["actor"], newest["subject"], newest["outcome"]) == (actor, subject, "done")
    assert (newest["client_address"], newest["user_agent"]) == (PEER, AGENT)
    assert newest["workspace_id"] == str(DEFAULT_WORKSPACE_ID)
    assert len(newest["request_id"]) == 32


async def test_a_key_that_acts_is_named_by_its_prefix(on_sqlite: KeysApi) -> None:
    manager = await on_sqlite.make(scopes=["manage"])
    await on_sqlite.make(by=manager["key"])
    (newest, *_) = await trail(on_sqlite, action="key.created")
    assert newest["actor"] == {"kind": "key", "id": manager["id"], "name": f"tg_{manager['prefix']}"}


async def test_limits_and_policies_are_written_with_what_changed(api: KeysApi) -> None:
    limit = (await api.call("POST", at="/api/limits", json=A_LIMIT)).json()
    path = f"/{limit['id']}"
    for body in ({"amount": "150.00", "action": "alert"}, {"amount": "150"}):
        assert (await api.call("PATCH", path, at="/api/limits", json=body)).status_code == 200
    assert (await api.call("DELETE", path, at="/api/limits")).status_code == 204
    policy = {"meter": "requests", "window": "minute", "default_amount": 60, "most_amount": 100}
    for _ in range(2):
        await api.set_policies(policy)
    whole = {"subject": None, "model": None, "zone": None, "amount": "100", "action": "refuse", "on_overrun": "finish"}
    assert await told(api, "limit.") == [
        ("limit.created", whole),
        ("limit.changed", {"amount": {"from": "100", "to": "150"}, "action": {"from": "refuse", "to": "alert"}}),
        ("limit.deleted", whole | {"amount": "150", "action": "alert"}),
    ]
    assert await told(api, "key_policies.") == [("key_policies.replaced", {"data": {"from": [], "to": [policy]}})]
    (newest, *_) = await trail(api, action="limit.")
    assert newest["subject"] == {"kind": "limit", "id": limit["id"], "name": "workspace-cost-month"}
    # What its limits are changed to is not of keys.
    assert await told(api, "key.") == []


async def test_what_is_refused_leaves_no_event(api: KeysApi) -> None:
    policy = {"meter": "requests", "window": "minute", "most_amount": 100}
    await api.set_policies(policy)
    made = await api.make()
    too_much = {"name": "k", "limits": [A_RATE | {"amount": 101}]}
    assert (await api.call("POST", by="member", json=too_much)).status_code == 400
    assert (await api.call("PATCH", f"/{made['id']}", by="member", json={"name": "mine"})).status_code == 403
    assert (await api.call("POST", f"/{made['id']}/rotate", by="stranger")).status_code == 404
    assert (await api.call("POST", by="member", at="/api/limits", json=A_LIMIT)).status_code == 403
    assert [action for action, _ in await told(api, "key.")] == ["key.created"]
    assert await told(api, "limit.") == []


async def test_a_change_that_is_rolled_back_leaves_no_event(database_url: str) -> None:
    async with database_at_head(database_url) as database:

        async def fail() -> None:
            async with database.transaction() as session:
                note(session, SYSTEM, Event("key.revoked"))
                await session.flush()
                raise RuntimeError

        with pytest.raises(RuntimeError):
            await fail()
        assert await count(database) == 0
        await write(database, Actor("nobody"), Event("account.sign_in_refused", outcome="refused"))
        assert await count(database) == 1


async def count(database: Database) -> int:
    async with database.session() as session:
        return await session.scalar(select(func.count()).select_from(AuditEvent)) or 0


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE audit_events SET outcome = 'done'",
        "UPDATE audit_events SET details = details",
        "DELETE FROM audit_events",
        "DELETE FROM audit_events WHERE action = 'key.revoked'",
    ],
)
async def test_the_database_itself_refuses_to_change_or_delete_an_event(database_url: str, statement: str) -> None:
    async with database_at_head(database_url) as database:
        await write(database, SYSTEM, Event("key.revoked", outcome="refused", details={"a": 1}))

        async def change_the_row() -> None:
            async with database.transaction() as session:
                row = (await session.scalars(select(AuditEvent))).one()
                row.outcome = "done"

        with pytest.raises(DBAPIError, match="append-only"):
            async with database.transaction() as session:
                await session.execute(text(statement))
        with pytest.raises(DBAPIError, match="append-only"):
            await change_the_row()
        async with database.session() as session:
            row = (await session.scalars(select(AuditEvent))).one()
        assert (row.outcome, row.details) == ("refused", {"a": 1})


async def test_no_event_is_replaced_or_swept_away(database_url: str) -> None:
    sweep = "TRUNCATE audit_events" if database_url.startswith("postgresql") else None
    replace = "INSERT OR REPLACE INTO audit_events SELECT * FROM audit_events"
    async with database_at_head(database_url) as database:
        await write(database, SYSTEM, Event("key.revoked"))
        with pytest.raises(DBAPIError, match="append-only"):
            async with database.transaction() as session:
                await session.execute(text(sweep or replace))
        assert await count(database) == 1


async def test_admins_read_every_workspace_managing_keys_their_own_and_members_none(api: KeysApi) -> None:
    here, there = await api.make(), await api.make(workspace_id=str(api.research))
    manager = await api.make(scopes=["manage"], workspace_id=str(api.research))
    assert {event["subject"]["id"] for event in await trail(api, action="key.")} == {
        key["id"] for key in (here, there, manager)
    }
    in_research = [manager["id"], there["id"]]
    for by, query in (("admin", {"workspace_id": str(api.research)}), (manager["key"], {})):
        found = await trail(api, by=by, action="key.", **query)
        assert [event["subject"]["id"] for event in found] == in_research
    assert await trail(api, by=manager["key"], subject_id=here["id"]) == []
    others = {"workspace_id": str(DEFAULT_WORKSPACE_ID)}
    assert (await api.call("GET", by=manager["key"], at="/api/audit", params=others)).status_code == 404
    unknown = {"workspace_id": str(uuid.uuid4())}
    assert (await api.call("GET", at="/api/audit", params=unknown)).status_code == 404
    plain = await api.make(scopes=["inference", "usage", "metrics"])
    for by in ("member", "stranger", plain["key"]):
        refused = await api.call("GET", by=by, at="/api/audit")
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "permission_denied")
    assert (await api.client.get("/api/audit")).status_code == 401


async def test_an_address_that_was_refused_a_log_in_is_shown_to_admins_alone(api: KeysApi) -> None:
    manager = await api.make(scopes=["manage"])
    for email in ("stranger@example.com", "nobody@example.com"):
        answer = await api.client.post("/auth/login", json={"email": email, "password": "not the password"})
        assert answer.status_code == 401
    refused = {event["subject"]["name"] for event in await trail(api, action="account.sign_in_refused")}
    assert refused == {"stranger@example.com", "nobody@example.com"}
    # Both stand in `default`, the key's own workspace, and one is of a user of another.
    assert await trail(api, by=manager["key"], action="account.sign_in_refused") == []
    assert [event["action"] for event in await trail(api, by=manager["key"], action="key.")] == ["key.created"]


async def test_filters_find_what_they_name(api: KeysApi) -> None:
    key = await api.make()
    headers = {"Authorization": f"Bearer {api.tokens['admin']}", "X-Request-ID": "r-7"}
    await api.client.delete(f"/api/keys/{key['id']}", headers=headers)
    of_member = await api.make(by="member")
    await api.call("POST", at="/api/limits", json=A_LIMIT)
    for query, actions in (
        ({"action": "key.revoked"}, ["key.revoked"]),
        ({"action": "key."}, ["key.created", "key.revoked", "key.created"]),
        ({"action": "key.re"}, []),
        ({"action": "ke_."}, []),
        ({"actor": "Member@example.com", "action": "key."}, ["key.created"]),
        ({"actor": str(api.users["member"]), "action": "key."}, ["key.created"]),
        ({"actor": "system", "action": "key."}, []),
        ({"subject_id": key["id"]}, ["key.revoked", "key.created"]),
        ({"subject_id": of_member["id"]}, ["key.created"]),
        ({"request_id": "r-7"}, ["key.revoked"]),
        ({"since": "1h", "action": "limit."}, ["limit.created"]),
        ({"until": "1h"}, []),
        ({"since": "2090-01-01"}, []),
    ):
        assert [event["action"] for event in await trail(api, **query)] == actions, query


async def test_pages_hold_every_event_once_the_newest_first(api: KeysApi) -> None:
    keys = [await api.make(name=f"k{n}") for n in range(5)]
    seen: list[str] = []
    query: Json = {"limit": 2, "action": "key."}
    while True:
        page = (await api.call("GET", at="/api/audit", params=query)).json()
        seen += [event["subject"]["id"] for event in page["data"]]
        if page["next"] is None:
            break
        query |= {"after": page["next"]}
    assert seen == [key["id"] for key in reversed(keys)]


@pytest.mark.parametrize(
    "query",
    [
        {"limit": 0},
        {"limit": 1001},
        {"action": "key"},
        {"action": "key.%"},
        {"since": "soon"},
        {"after": "1"},
        {"surprise": 1},
        {"actor": ""},
        {"workspace_id": "default"},
    ],
)
async def test_what_is_no_query_is_a_422(on_sqlite: KeysApi, query: Json) -> None:
    assert (await on_sqlite.call("GET", at="/api/audit", params=query)).status_code == 422


async def test_the_bootstrap_is_the_gateway_s_own_doing(database_url: str, tmp_path: Path) -> None:
    async with database_at_head(database_url) as database:
        made = await bootstrap(database, Settings(environment="development", data_dir=tmp_path), keyrings())
        assert made.api_key is not None
        async with database.session() as session:
            rows = (await session.scalars(select(AuditEvent).order_by(AuditEvent.id))).all()
        assert [(row.action, row.actor_kind, row.subject) for row in rows] == [
            ("user.created", "system", FIRST_ADMIN),
            ("key.created", "system", made.api_key[:11]),
        ]
        assert rows[1].details["owner"] == FIRST_ADMIN


@pytest.mark.parametrize("overlap", [timedelta(0), timedelta(hours=1)])
async def test_a_bootstrap_key_that_was_rotated_is_not_made_again(
    database_url: str, tmp_path: Path, overlap: timedelta
) -> None:
    key = generate_key()
    given = BootstrapSettings(admin_email="root@example.com", api_key=SecretStr(key.secret))
    settings = Settings(environment="test", data_dir=tmp_path, bootstrap=given)
    async with database_at_head(database_url) as database:
        await bootstrap(database, settings, keyrings())
        rotated = await ApiKeys(database, keyrings().peppers).rotate(key.prefix, overlap)
        await bootstrap(database, settings, keyrings())
        (listed,) = await ApiKeys(database, keyrings().peppers).list()
        assert listed.row.prefix == rotated.prefix
        # The new secret is known, and not refused.
        new = BootstrapSettings(admin_email="root@example.com", api_key=SecretStr(rotated.secret))
        await bootstrap(database, settings.model_copy(update={"bootstrap": new}), keyrings())
        assert len(await ApiKeys(database, keyrings().peppers).list()) == 1


def test_what_differs_is_told_from_what_to_what() -> None:
    assert differences({"a": 1, "b": None}, {"a": 1, "b": [2]}) == {"b": {"from": None, "to": [2]}}
    assert differences({"a": 1}, {"a": 1}) == {}


async def test_an_event_names_its_subject_as_it_was(database_url: str) -> None:
    async with database_at_head(database_url) as database:
        await write(
            database, SYSTEM, Event("user.disabled", subject=Subject("user", uuid.UUID(int=7), "a@example.com"))
        )
        async with database.session() as session:
            row = (await session.scalars(select(AuditEvent))).one()
        assert (row.subject_kind, row.subject_id, row.subject) == ("user", str(uuid.UUID(int=7)), "a@example.com")
        assert row.workspace_id == DEFAULT_WORKSPACE_ID

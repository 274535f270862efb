"""`/api/keys`: keys made, listed, changed, rotated and revoked over HTTP, by those who may."""

import uuid
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute
from sqlalchemy import text

from tests.support.keys_api import Json, KeysApi
from tidegate.accounts.api_keys.dependencies import get_key_keeper
from tidegate.accounts.api_keys.endpoints import router
from tidegate.accounts.models import DEFAULT_WORKSPACE_ID, User
from tidegate.app import create_app
from tidegate.ledger.entry import utc_now
from tidegate.settings import Settings

A_RATE: Json = {"meter": "requests", "window": "minute", "amount": 60}
A_BUDGET: Json = {"meter": "cost", "window": "month", "amount": "10.50"}


@pytest.fixture
async def api(database_url: str, tmp_path: Path) -> AsyncIterator[KeysApi]:
    async with KeysApi.open(database_url, tmp_path) as api:
        yield api


@pytest.fixture
async def on_sqlite(sqlite_url: str, tmp_path: Path) -> AsyncIterator[KeysApi]:
    async with KeysApi.open(sqlite_url, tmp_path) as api:
        yield api


async def test_a_key_is_made_with_its_limits_and_shown_once(api: KeysApi) -> None:
    expires_at = (datetime.now(UTC) + timedelta(days=30)).isoformat()
    body = {"name": "search", "models": ["gpt-*"], "scopes": ["usage", "inference"], "expires_at": expires_at}
    answer = await api.call("POST", json={**body, "limits": [A_RATE, A_BUDGET], "queue_weight": 5})
    assert (answer.status_code, answer.headers["cache-control"]) == (201, "no-store")
    made = answer.json()
    assert made["key"].startswith(f"tg_{made['prefix']}_")
    assert [(limit["label"], limit["amount"]) for limit in made["limits"]] == [
        ("key-requests-minute", 60),
        ("key-cost-month", "10.5"),
    ]
    assert datetime.fromisoformat(made["expires_at"]) == datetime.fromisoformat(expires_at)
    assert made["owner"] == {"kind": "user", "id": str(api.users["admin"]), "name": "admin@example.com"}
    fields = ("name", "workspace_id", "scopes", "models", "queue_weight", "state", "revoked_at", "last_used_at")
    assert {name: made[name] for name in fields} == {
        "name": "search",
        "workspace_id": str(DEFAULT_WORKSPACE_ID),
        "scopes": ["inference", "usage"],
        "models": ["gpt-*"],
        "queue_weight": 5,
        "state": "active",
        "revoked_at": None,
        "last_used_at": None,
    }
    assert api.told == [f"limits:{DEFAULT_WORKSPACE_ID}"]
    rows = (await api.call("GET", at="/api/limits", params={"key_prefix": made["prefix"]})).json()["data"]
    assert {row["id"] for row in rows} == {limit["id"] for limit in made["limits"]}
    listed = await api.call("GET")
    secret = made.pop("key")
    assert await api.status_of(secret) == 200
    assert listed.json() == {"data": [made], "next": None}
    assert secret[12:] not in listed.text
    assert "hash" not in listed.text


async def test_pages_hold_every_key_once_and_filters_find_by_prefix_and_workspace(api: KeysApi) -> None:
    made = [await api.make(name=f"k{n}") for n in range(3)]
    elsewhere = await api.make(name="theirs", workspace_id=str(api.research))
    seen: list[str] = []
    after: Json = {}
    while True:
        page = (await api.call("GET", params={"limit": 3, **after})).json()
        seen += [key["id"] for key in page["data"]]
        if page["next"] is None:
            break
        after = {"after": page["next"]}
    assert seen == [key["id"] for key in (elsewhere, *reversed(made))]
    for prefix in (made[1]["prefix"], f"tg_{made[1]['prefix']}"):
        assert [key["name"] for key in await api.listed(prefix=prefix)] == ["k1"]
    assert [key["name"] for key in await api.listed(workspace_id=str(api.research))] == ["theirs"]
    assert (await api.call("GET", params={"workspace_id": str(uuid.uuid4())})).status_code == 404


async def test_a_key_s_limits_are_its_own_alone(api: KeysApi) -> None:
    of_each = {"scope": "key", "meter": "tokens", "window": "day", "amount": 1}
    assert (await api.call("POST", at="/api/limits", json=of_each)).status_code == 201
    first, second = await api.make(limits=[A_RATE]), await api.make()
    of_namesake = {"scope": "end_user", "subject": second["id"], "meter": "tokens", "window": "day", "amount": 1}
    assert (await api.call("POST", at="/api/limits", json=of_namesake)).status_code == 201
    listed = {key["id"]: [limit["label"] for limit in key["limits"]] for key in await api.listed()}
    assert listed == {first["id"]: ["key-requests-minute"], second["id"]: []}


async def test_name_models_and_expiry_change_and_are_told(api: KeysApi) -> None:
    made = await api.make(models=["small"])
    made.pop("key")
    path = f"/{made['id']}"
    later = "2090-01-31T12:00:00+02:00"
    changed = await api.call("PATCH", path, json={"name": "renamed", "models": ["gpt-4.1", "*"], "expires_at": later})
    assert changed.status_code == 200, changed.text
    assert changed.json() == made | {
        "name": "renamed",
        "models": ["gpt-4.1", "*"],
        "expires_at": "2090-01-31T10:00:00Z",
    }
    freed = await api.call("PATCH", path, json={"models": None, "expires_at": None})
    assert freed.json() == made | {"name": "renamed", "models": None}
    assert (await api.call("PATCH", path, json={})).json() == freed.json()
    assert await api.listed() == [freed.json()]
    assert api.told == [f"key:{made['id']}"] * 3


async def test_a_rotated_key_keeps_all_but_its_secret(api: KeysApi) -> None:
    made = await api.make(limits=[A_RATE])
    api.told.clear()
    assert await api.status_of(made["key"]) == 200
    answer = await api.call("POST", f"/{made['id']}/rotate")
    assert (answer.status_code, answer.headers["cache-control"]) == (200, "no-store")
    rotated = answer.json()
    assert rotated["prefix"] != made["prefix"]
    assert rotated | dict.fromkeys(("key", "prefix", "last_used_at")) == made | dict.fromkeys(
        ("key", "prefix", "last_used_at")
    )
    assert api.told == [f"key:{made['id']}"]
    assert (await api.status_of(made["key"]), await api.status_of(rotated["key"])) == (401, 200)


async def test_a_revoked_key_is_refused_at_once_and_stays_so(api: KeysApi) -> None:
    made = await api.make()
    assert await api.status_of(made["key"]) == 200
    path = f"/{made['id']}"
    answer = await api.call("DELETE", path)
    assert (answer.status_code, answer.content) == (204, b"")
    assert await api.status_of(made["key"]) == 401
    (listed,) = await api.listed()
    assert listed["state"] == "revoked"
    assert (await api.call("DELETE", path)).status_code == 204
    assert (await api.listed())[0]["revoked_at"] == listed["revoked_at"]
    assert api.told == [f"key:{made['id']}"] * 2
    for method, where, body in (("POST", f"{path}/rotate", None), ("PATCH", path, {"expires_at": None})):
        refused = await api.call(method, where, json=body)
        assert (refused.status_code, refused.json()["error"]["code"]) == (409, "conflict")


async def test_an_expired_key_is_listed_as_such(api: KeysApi) -> None:
    made = await api.make(expires_at="2090-01-31T12:00:00Z")
    async with api.database.transaction() as session:
        await session.execute(text("UPDATE api_keys SET expires_at = created_at"))
    assert [(key["id"], key["state"]) for key in await api.listed()] == [(made["id"], "expired")]


async def test_an_admin_makes_keys_for_others(api: KeysApi) -> None:
    of_member = await api.make(owner="Member@example.com")
    assert of_member["owner"]["id"] == str(api.users["member"])
    of_stranger = await api.make(owner="stranger@example.com")
    assert of_stranger["workspace_id"] == str(api.research)
    of_account = await api.make(name="nightly", service_account=True)
    assert (of_account["owner"]["kind"], of_account["owner"]["name"]) == ("service_account", "nightly")
    elsewhere = await api.make(name="theirs", workspace_id=str(api.research))
    assert (elsewhere["owner"]["kind"], elsewhere["workspace_id"]) == ("service_account", str(api.research))
    everything = await api.make(scopes=["inference", "usage", "manage", "metrics"])
    assert await api.status_of(everything["key"]) == 200


async def test_an_owner_must_be_there_and_enabled(api: KeysApi) -> None:
    for body in (
        {"owner": "nobody@example.com"},
        {"owner": "stranger@example.com", "workspace_id": str(DEFAULT_WORKSPACE_ID)},
    ):
        refused = await api.call("POST", json={"name": "k"} | body)
        assert refused.status_code == 422, refused.text
        assert refused.json()["error"]["errors"][0]["loc"] == ["body", "owner"]
    unknown = await api.call("POST", json={"name": "k", "workspace_id": str(uuid.uuid4())})
    assert (unknown.status_code, unknown.json()["error"]["param"]) == (404, "workspace_id")
    async with api.database.transaction() as session:
        (await session.get_one(User, api.users["member"])).disabled_at = utc_now()
    disabled = await api.call("POST", json={"name": "k", "owner": "member@example.com"})
    assert (disabled.status_code, disabled.json()["error"]["param"]) == (409, "owner")
    assert await api.listed() == []


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"name": ""}, "name"),
        ({"name": "a\x1b[2Jb"}, "name"),
        ({"name": "x" * 129}, "name"),
        ({"name": 7}, "name"),
        ({"scopes": []}, "scopes"),
        ({"scopes": "inference"}, "scopes"),
        ({"scopes": ["everything"]}, "scopes.0"),
        ({"models": []}, "models"),
        ({"models": ["a\1"]}, "models.0"),
        ({"models": ["m"] * 101}, "models"),
        ({"expires_at": "2001-01-01T00:00:00Z"}, "expires_at"),
        ({"expires_at": "2090-01-01T00:00:00"}, "expires_at"),
        ({"expires_at": "9999-12-31T23:59:59-14:00"}, "expires_at"),
        ({"expires_at": "0001-01-01T00:00:00+14:00"}, "expires_at"),
        ({"expires_at": "2090-13-01T00:00:00Z"}, "expires_at"),
        ({"expires_at": 4102444800}, "expires_at"),
        ({"expires_at": "4102444800"}, "expires_at"),
        ({"expires_at": ["2090-01-01T00:00:00Z"]}, "expires_at"),
        ({"limits": [A_RATE | {"amount": 0}]}, "limits.0.amount"),
        ({"limits": [A_RATE | {"window": None}]}, "limits.0.window"),
        ({"limits": [A_RATE | {"action": "alert"}]}, "limits.0.action"),
        ({"limits": [A_RATE] * 33}, "limits"),
        ({"limits": A_RATE}, "limits"),
        ({"queue_weight": 0}, "queue_weight"),
        ({"queue_weight": 101}, "queue_weight"),
        ({"owner": "nobody"}, "owner"),
        ({"owner": "admin@example.com", "service_account": True}, "service_account"),
        ({"service_account": "yes"}, "service_account"),
        ({"workspace_id": "default"}, "workspace_id"),
        ({"key": "tg_of_mine"}, "key"),
    ],
)
async def test_what_is_no_key_is_a_422_that_names_the_field(on_sqlite: KeysApi, body: Json, field: str) -> None:
    refused = await on_sqlite.call("POST", json={"name": "k"} | body)
    error = refused.json()["error"]
    assert (refused.status_code, error["code"]) == (422, "validation_error")
    # A bad item may be missing from the count as well.
    first, *more = (".".join(map(str, fault["loc"])) for fault in error["errors"])
    assert first == f"body.{field}"
    assert all(first.startswith(other) for other in more)
    assert await on_sqlite.listed() == []


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"name": None}, "name"),
        ({"name": ""}, "name"),
        ({"models": []}, "models"),
        ({"expires_at": "2001-01-01T00:00:00Z"}, "expires_at"),
        ({"scopes": ["manage"]}, "scopes"),
        ({"owner": "admin@example.com"}, "owner"),
        ({"queue_weight": 2}, "queue_weight"),
        ({"limits": []}, "limits"),
    ],
)
async def test_a_change_is_of_name_models_and_expiry_alone(on_sqlite: KeysApi, body: Json, field: str) -> None:
    made = await on_sqlite.make()
    made.pop("key")
    refused = await on_sqlite.call("PATCH", f"/{made['id']}", json=body)
    assert refused.status_code == 422
    assert refused.json()["error"]["errors"][0]["loc"] == ["body", field]
    assert await on_sqlite.listed() == [made]


@pytest.mark.parametrize("query", [{"limit": 0}, {"limit": 1001}, {"prefix": "x"}, {"after": "1"}, {"surprise": 1}])
async def test_what_is_no_query_is_a_422(on_sqlite: KeysApi, query: Json) -> None:
    assert (await on_sqlite.call("GET", params=query)).status_code == 422


async def test_a_name_that_is_no_text_is_no_json(on_sqlite: KeysApi) -> None:
    headers = {"Authorization": f"Bearer {on_sqlite.tokens['admin']}", "Content-Type": "application/json"}
    refused = await on_sqlite.client.post("/api/keys", content=b'{"name": "\\ud800"}', headers=headers)
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "invalid_request")


async def test_an_id_that_is_none_is_a_422_and_one_of_nothing_a_404(on_sqlite: KeysApi) -> None:
    for key_id, status in (("tg_abcdefgh", 422), (str(uuid.uuid4()), 404)):
        for method, path in (("PATCH", ""), ("DELETE", ""), ("POST", "/rotate")):
            assert (await on_sqlite.call(method, f"/{key_id}{path}", json={})).status_code == status


def test_who_may_call_hangs_on_the_route() -> None:
    def calls(dependant: Dependant) -> list[Any]:
        return [found for inner in dependant.dependencies for found in (inner.call, *calls(inner))]

    routes = [route for route in router.routes if isinstance(route, APIRoute)]
    assert len(routes) == len(router.routes) == 6
    assert all(get_key_keeper in calls(route.dependant) for route in routes)


def test_the_document_has_the_routes_and_their_forms() -> None:
    document = create_app(Settings(environment="test")).openapi()
    paths = {path: set(methods) for path, methods in document["paths"].items() if path.startswith("/api/keys")}
    one = "/api/keys/{key_id}"
    assert paths == {
        "/api/keys": {"get", "post"},
        one: {"patch", "delete"},
        f"{one}/rotate": {"post"},
        f"{one}/retiring/{{prefix}}": {"delete"},
    }
    form = document["components"]["schemas"]["KeyForm"]
    assert form["required"] == ["name"]
    assert form["additionalProperties"] is False
    assert {"type": "string", "format": "date-time"} in form["properties"]["expires_at"]["anyOf"]
    assert "key" not in document["components"]["schemas"]["KeyView"]["properties"]
    overlap = document["components"]["schemas"]["Rotation"]["properties"]["overlap"]
    assert [each["type"] for each in overlap["anyOf"]] == ["integer", "string"]

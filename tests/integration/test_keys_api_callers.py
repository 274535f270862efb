"""Who may do what with which key: members under their workspace's policies, keys with `manage`, and nobody else."""

import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy import text, update

from tests.support.keys_api import Json, KeysApi
from tidegate.accounts.models import DEFAULT_WORKSPACE_ID
from tidegate.auth.models import ApiKey
from tidegate.limits.metered import MeteredAmount

RATE: Json = {"meter": "requests", "window": "minute"}
RATE_POLICY: Json = RATE | {"default_amount": 60, "most_amount": 100}
BUDGET_POLICY: Json = {"meter": "cost", "window": "month", "most_amount": "20.00"}
LATER = "2090-01-31T12:00:00Z"
MUCH = MeteredAmount(meter="requests", window="minute", amount=1000)


@pytest.fixture
async def api(database_url: str, tmp_path: Path) -> AsyncIterator[KeysApi]:
    async with KeysApi.open(database_url, tmp_path) as api:
        yield api


@pytest.fixture
async def on_sqlite(sqlite_url: str, tmp_path: Path) -> AsyncIterator[KeysApi]:
    async with KeysApi.open(sqlite_url, tmp_path) as api:
        yield api


async def refused(api: KeysApi, method: str, path: str = "", *, by: str, json: Json | None = None) -> tuple[int, str]:
    answer = await api.call(method, path, by=by, json=json)
    error = answer.json()["error"]
    assert set(answer.json()) == {"type", "error", "request_id"}
    return answer.status_code, error["message"]


async def count(api: KeysApi, table: str) -> int:
    async with api.database.session() as session:
        found: int = (await session.execute(text(f"SELECT count(*) FROM {table}"))).scalar_one()
    return found


async def test_a_member_s_key_has_the_defaults_of_its_workspace(api: KeysApi) -> None:
    await api.set_policies(RATE_POLICY, BUDGET_POLICY)
    made = await api.make(by="member")
    assert made["owner"]["name"] == "member@example.com"
    assert {limit["label"]: limit["amount"] for limit in made["limits"]} == {
        "key-requests-minute": 60,
        "key-cost-month": "20",
    }
    assert api.told == [f"limits:{DEFAULT_WORKSPACE_ID}"]
    asked = await api.make(by="member", limits=[RATE | {"amount": 100}])
    assert {limit["label"]: limit["amount"] for limit in asked["limits"]}["key-requests-minute"] == 100
    # Another workspace has policies of its own, and an admin is under none.
    for by in ("stranger", "admin"):
        assert [limit["amount"] for limit in (await api.make(by=by, limits=[RATE | {"amount": 101}]))["limits"]] == [
            101
        ]


async def test_more_than_the_bound_is_refused_with_the_bound_and_leaves_nothing(api: KeysApi) -> None:
    await api.set_policies(RATE_POLICY, BUDGET_POLICY)
    for limit, says in (
        (RATE | {"amount": 101}, "at most 100 requests a minute"),
        ({"meter": "cost", "window": "month", "amount": "20.01"}, "at most 20 USD a month"),
    ):
        answer = await api.call("POST", by="member", json={"name": "k", "limits": [limit]})
        error = answer.json()["error"]
        assert (answer.status_code, error["param"]) == (400, "limits")
        assert says in error["message"]
    assert (await count(api, "api_keys"), await count(api, "limits")) == (0, 0)
    assert api.told == []


async def test_a_limit_that_binds_little_does_not_stand_in_for_the_default(on_sqlite: KeysApi) -> None:
    await on_sqlite.set_policies(RATE_POLICY)
    for little in ({"model": "no-such-model"}, {"action": "alert"}):
        answer = await on_sqlite.call(
            "POST", by="member", json={"name": "k", "limits": [RATE | {"amount": 100} | little]}
        )
        assert answer.status_code == 422


async def test_a_member_gives_no_more_than_they_have(api: KeysApi) -> None:
    assert (await api.make(by="member", scopes=["inference", "usage"]))["scopes"] == ["inference", "usage"]
    for body, names in (
        ({"scopes": ["manage"]}, "'manage'"),
        ({"scopes": ["inference", "metrics"]}, "'metrics'"),
        ({"owner": "other@example.com"}, "owner"),
        ({"queue_weight": 2}, "queue_weight"),
        ({"service_account": True}, "service account"),
    ):
        status, message = await refused(api, "POST", by="member", json={"name": "k"} | body)
        assert status == 403
        assert names in message
    assert (await refused(api, "POST", by="member", json={"name": "k", "workspace_id": str(api.research)}))[0] == 404
    assert len(await api.listed()) == 1


async def test_a_member_sees_the_keys_of_their_workspace_and_keeps_their_own(api: KeysApi) -> None:
    own, other = await api.make(by="member"), await api.make(by="other")
    of_account = await api.make(service_account=True)
    elsewhere = await api.make(by="stranger")
    theirs = [key["id"] for key in (of_account, other, own)]
    assert [key["id"] for key in await api.listed(by="member")] == theirs
    assert [key["id"] for key in await api.listed(by="stranger")] == [elsewhere["id"]]
    assert await api.listed(by="stranger", prefix=own["prefix"]) == []
    elsewhere_asked = await api.call("GET", by="member", params={"workspace_id": str(api.research)})
    assert elsewhere_asked.status_code == 404
    for key, status in ((other, 403), (of_account, 403), (elsewhere, 404)):
        for method, path, body in (("PATCH", "", {"name": "mine"}), ("POST", "/rotate", None), ("DELETE", "", None)):
            assert (await refused(api, method, f"/{key['id']}{path}", by="member", json=body))[0] == status
    for key in (own, other, of_account, elsewhere):
        assert await api.status_of(key["key"]) == 200
    renamed = await api.call("PATCH", f"/{own['id']}", by="member", json={"name": "mine", "expires_at": LATER})
    assert (renamed.json()["name"], renamed.json()["expires_at"]) == ("mine", LATER)
    rotated = (await api.call("POST", f"/{own['id']}/rotate", by="member")).json()
    assert await api.status_of(rotated["key"]) == 200
    assert (await api.call("DELETE", f"/{own['id']}", by="member")).status_code == 204
    assert await api.status_of(rotated["key"]) == 401


async def test_a_member_widens_no_key_that_an_admin_made_generous(api: KeysApi) -> None:
    await api.set_policies(RATE_POLICY)
    bounds: Json = {"owner": "member@example.com", "models": ["small", "large"], "expires_at": LATER}
    generous = await api.make(**bounds, limits=[RATE | {"amount": 1000}])
    without = await api.make(**bounds)
    heavy = await api.make(**bounds, limits=[RATE | {"amount": 1}], queue_weight=2)
    scoped = await api.make(**bounds, limits=[RATE | {"amount": 1}], scopes=["inference", "manage"])
    trusted = await api.make(**bounds, limits=[RATE | {"amount": 1}])
    async with api.database.transaction() as session:
        await session.execute(
            update(ApiKey).where(ApiKey.id == uuid.UUID(trusted["id"])).values(trusts_attribution=True)
        )
    for key in (generous, without, heavy, scoped, trusted):
        for wider in ({"models": None}, {"models": ["small", "*"]}, {"expires_at": None}):
            assert (await refused(api, "PATCH", f"/{key['id']}", by="member", json=wider))[0] == 403, key
        narrower = {"name": "mine", "models": ["small"], "expires_at": "2089-01-31T12:00:00Z"}
        assert (await api.call("PATCH", f"/{key['id']}", by="member", json=narrower)).status_code == 200
        assert (await api.call("PATCH", f"/{key['id']}", json={"models": None})).status_code == 200
    modest = await api.make(**bounds, limits=[RATE | {"amount": 100}])
    freed = await api.call("PATCH", f"/{modest['id']}", by="member", json={"models": None, "expires_at": None})
    assert (freed.status_code, freed.json()["models"]) == (200, None)


async def test_a_rotation_shows_no_member_a_secret_with_more_scopes_than_theirs(api: KeysApi) -> None:
    scoped = await api.make(owner="member@example.com", scopes=["inference", "manage"])
    status, message = await refused(api, "POST", f"/{scoped['id']}/rotate", by="member")
    assert (status, "'manage'" in message) == (403, True)
    assert await api.status_of(scoped["key"]) == 200
    assert (await api.call("DELETE", f"/{scoped['id']}", by="member")).status_code == 204


async def test_a_key_with_manage_keeps_the_keys_of_its_own_workspace(api: KeysApi) -> None:
    await api.set_policies(RATE_POLICY)
    # Its owner being an admin makes it no admin.
    manage = (await api.by_command(scopes=("manage",), owner="admin@example.com")).secret
    theirs, elsewhere = await api.make(by="member"), await api.make(by="stranger")
    made = await api.make(by=manage, scopes=["inference", "usage", "manage"], limits=[RATE | {"amount": 500}])
    assert (made["owner"]["name"], made["limits"][0]["amount"]) == ("admin@example.com", 500)
    assert elsewhere["id"] not in {key["id"] for key in await api.listed(by=manage)}
    assert (await api.call("PATCH", f"/{theirs['id']}", by=manage, json={"name": "ours"})).status_code == 200
    assert (await api.call("POST", f"/{theirs['id']}/rotate", by=manage)).status_code == 200
    assert (await api.call("DELETE", f"/{theirs['id']}", by=manage)).status_code == 204
    for method, path in (("PATCH", ""), ("POST", "/rotate"), ("DELETE", "")):
        assert (await refused(api, method, f"/{elsewhere['id']}{path}", by=manage, json={}))[0] == 404
    for body, status in (
        ({"workspace_id": str(api.research)}, 404),
        ({"owner": "member@example.com"}, 403),
        ({"queue_weight": 2}, 403),
        ({"scopes": ["metrics"]}, 403),
    ):
        assert (await refused(api, "POST", by=manage, json={"name": "k"} | body))[0] == status
    metrics = await api.make(scopes=["metrics"])
    assert (await refused(api, "POST", f"/{metrics['id']}/rotate", by=manage))[0] == 403


async def test_a_key_whose_owner_moved_makes_no_key_elsewhere(api: KeysApi) -> None:
    manager = await api.make(owner="other@example.com", scopes=["manage"])
    await moved(api, "other")
    status, message = await refused(api, "POST", by=manager["key"], json={"name": "k", "scopes": ["manage"]})
    assert (status, "another workspace" in message) == (403, True)
    assert await api.listed(workspace_id=str(api.research)) == []
    # What is in its own workspace it keeps, and makes keys there.
    made = await api.make(by=manager["key"], service_account=True)
    assert made["workspace_id"] == str(DEFAULT_WORKSPACE_ID)


async def moved(api: KeysApi, name: str) -> None:
    """Has a user belong to `research`."""
    body = {"workspace_id": str(api.research)}
    answer = await api.call("PATCH", f"/{api.users[name]}", at="/api/users", json=body)
    assert answer.status_code == 200, answer.text


async def test_a_service_account_s_key_makes_keys_of_that_account(api: KeysApi) -> None:
    manage = (await api.by_command(scopes=("manage",))).secret
    (own,) = await api.listed()
    assert (await api.make(by=manage))["owner"] == own["owner"]
    apart = await api.make(by=manage, name="nightly", service_account=True)
    assert apart["owner"]["name"] == "nightly"


async def test_without_credentials_or_manage_nothing_is_seen_or_changed(api: KeysApi) -> None:
    theirs = await api.make(by="member")
    usage = (await api.by_command(scopes=("inference", "usage", "metrics"), owner="admin@example.com")).secret
    path = f"/{theirs['id']}"
    for method, where in (("GET", ""), ("POST", ""), ("PATCH", path), ("DELETE", path), ("POST", f"{path}/rotate")):
        assert (await refused(api, method, where, by=usage, json={"name": "k"}))[0] == 403
        nobody = await api.client.request(method, f"/api/keys{where}", json={"name": "k"})
        assert (nobody.status_code, nobody.json()["error"]["code"]) == (401, "missing_credentials")
    assert await api.status_of(theirs["key"]) == 200
    assert len(await api.listed()) == 2
    # A caller that may see none is told so before what it sent is judged.
    assert (await refused(api, "POST", by=usage, json={}))[0] == 403

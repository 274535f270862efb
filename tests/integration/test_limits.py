"""`/api/limits`: limits and key policies as rows, for those who may see and change them."""

import uuid
from collections.abc import AsyncIterator
from typing import Any

import pytest
from fastapi.routing import APIRoute
from sqlalchemy import text

from tests.support.limits_api import A_BUDGET, Json, LimitsApi
from tidegate.accounts.models import DEFAULT_WORKSPACE_ID
from tidegate.accounts.schemas import NewKey
from tidegate.auth.dependencies import RequireScope
from tidegate.errors import InvalidRequest
from tidegate.limits.endpoints import router
from tidegate.limits.metered import MeteredAmount
from tidegate.limits.values import MOST

A_RATE: Json = {"meter": "requests", "window": "minute", "amount": 60}


@pytest.fixture
async def api(database_url: str) -> AsyncIterator[LimitsApi]:
    async with LimitsApi.open(database_url) as api:
        yield api


@pytest.fixture
async def on_sqlite(sqlite_url: str) -> AsyncIterator[LimitsApi]:
    async with LimitsApi.open(sqlite_url) as api:
        yield api


async def test_a_limit_is_created_listed_changed_and_deleted(api: LimitsApi) -> None:
    assert (await api.call("GET")).json() == {"data": [], "next": None}
    created = await api.create(zone="Europe/Berlin", model="gpt-*", on_overrun="cut")
    fields = "id workspace_id scope subject model meter window zone amount action on_overrun label created_at"
    assert list(created) == fields.split()
    assert created | {"id": None, "created_at": None} == {
        **dict.fromkeys(("id", "subject", "created_at")),
        "workspace_id": str(DEFAULT_WORKSPACE_ID),
        "scope": "workspace",
        "model": "gpt-*",
        "meter": "cost",
        "window": "month",
        "zone": "Europe/Berlin",
        "amount": "100",
        "action": "refuse",
        "on_overrun": "cut",
        "label": "workspace-cost-month",
    }
    assert created["created_at"].endswith("Z")
    path = f"/{created['id']}"
    changed = await api.call("PATCH", path, json={"amount": 12, "action": "alert"})
    assert changed.json() == created | {"amount": "12", "action": "alert"}
    assert await api.listed() == [changed.json()]
    deleted = await api.call("DELETE", path)
    assert (deleted.status_code, deleted.content) == (204, b"")
    assert await api.listed() == []
    assert (await api.call("DELETE", path)).json()["error"]["code"] == "not_found"
    assert api.changed == [DEFAULT_WORKSPACE_ID] * 3


async def test_amounts_are_exact_however_they_are_written(api: LimitsApi) -> None:
    for meter, written, shown in (
        ("cost", "0.000000001", "0.000000001"),
        ("cost", "9000000.00", "9000000"),
        ("cost", 7, "7"),
        ("tokens", MOST, MOST),
        ("tokens", "5", 5),
        ("requests", 1, 1),
    ):
        created = await api.create(meter=meter, amount=written)
        assert created["amount"] == shown
    assert [limit["amount"] for limit in await api.listed()] == [1, 5, MOST, "7", "9000000", "0.000000001"]


async def test_pages_hold_every_limit_once(api: LimitsApi) -> None:
    made = [(await api.create(amount=n + 1))["id"] for n in range(5)]
    seen: list[str] = []
    after: Json = {}
    while True:
        page = (await api.call("GET", params={"limit": 2, **after})).json()
        seen += [limit["id"] for limit in page["data"]]
        if page["next"] is None:
            break
        after = {"after": page["next"]}
    assert seen == sorted(made, reverse=True)


async def test_filters_find_by_scope_subject_key_and_workspace(api: LimitsApi) -> None:
    key = await api.key()
    of_key = await api.create(scope="key", subject=str(key.id).upper())
    each = await api.create(scope="key")
    user = await api.create(scope="user", subject=str(api.users["stranger"]))
    assert of_key["subject"] == str(key.id)
    assert user["workspace_id"] == str(api.research)
    assert await api.listed(scope="key") == [each, of_key]
    assert await api.listed(subject=str(key.id)) == [of_key]
    assert await api.listed(key_prefix=key.prefix) == await api.listed(key_prefix=f"tg_{key.prefix}") == [of_key]
    assert await api.listed(key_prefix="nokey000") == []
    assert await api.listed(workspace_id=str(api.research)) == [user]


async def test_what_a_limit_is_of_must_be_there(api: LimitsApi) -> None:
    await api.create(scope="upstream", subject="openai")
    key = await api.key()
    for body, names in (
        ({"scope": "key", "subject": str(uuid.uuid4())}, "no API key"),
        ({"scope": "user", "subject": str(uuid.uuid4())}, "no user"),
        (
            {"scope": "user", "subject": str(api.users["stranger"]), "workspace_id": str(DEFAULT_WORKSPACE_ID)},
            "no user",
        ),
        ({"scope": "key", "subject": str(key.id), "workspace_id": str(api.research)}, "no API key"),
        ({"scope": "upstream", "subject": "nobody"}, "azure, openai"),
        ({"scope": "deployment", "workspace_id": str(api.research)}, "every workspace"),
    ):
        refused = await api.call("POST", json=A_BUDGET | body)
        assert refused.status_code == 422, refused.text
        (fault,) = refused.json()["error"]["errors"]
        assert fault["loc"] == ["body", "workspace_id" if body["scope"] == "deployment" else "subject"]
        assert names in fault["message"]
    unknown = await api.call("POST", json=A_BUDGET | {"workspace_id": str(uuid.uuid4())})
    assert (unknown.status_code, unknown.json()["error"]["param"]) == (404, "workspace_id")
    assert len(await api.listed()) == 1


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"scope": "everyone"}, "scope"),
        ({"scope": "key", "subject": "app"}, "subject"),
        ({"subject": str(DEFAULT_WORKSPACE_ID)}, "subject"),
        ({"scope": "tag", "subject": "team"}, "subject"),
        ({"scope": "tag", "subject": "=red"}, "subject"),
        ({"scope": "end_user", "subject": ""}, "subject"),
        ({"scope": "end_user", "subject": "a\1b"}, "subject"),
        ({"scope": "end_user", "subject": "x" * 322}, "subject"),
        ({"model": ""}, "model"),
        ({"model": 4}, "model"),
        ({"meter": "money"}, "meter"),
        ({"window": None}, "window"),
        ({"window": "year"}, "window"),
        ({"meter": "concurrency", "amount": 1}, "window"),
        ({"zone": "Mars/Phobos"}, "zone"),
        ({"zone": "../../etc/passwd"}, "zone"),
        ({"zone": "Europe/Berlin", "window": "minute"}, "zone"),
        ({"amount": 0}, "amount"),
        ({"amount": 1.5}, "amount"),
        ({"amount": True}, "amount"),
        ({"amount": None}, "amount"),
        ({"amount": "1e3"}, "amount"),
        ({"amount": "0.0000000001"}, "amount"),
        ({"amount": "9000000.000000001"}, "amount"),
        ({"meter": "requests", "amount": "1.5"}, "amount"),
        ({"action": "shout"}, "action"),
        ({"on_overrun": "die"}, "on_overrun"),
        ({"workspace_id": "default"}, "workspace_id"),
        ({"surprise": 1}, "surprise"),
    ],
)
async def test_what_is_no_limit_is_a_422_that_names_the_field(on_sqlite: LimitsApi, body: Json, field: str) -> None:
    refused = await on_sqlite.call("POST", json=A_BUDGET | body)
    error = refused.json()["error"]
    assert (refused.status_code, error["code"]) == (422, "validation_error")
    assert [fault["loc"] for fault in error["errors"]] == [["body", field]]
    assert await on_sqlite.listed() == []


async def test_a_change_is_of_amount_action_and_overrun_alone(on_sqlite: LimitsApi) -> None:
    created = await on_sqlite.create(**A_RATE)
    for body, field in (
        ({"amount": "1.5"}, "amount"),
        ({"amount": None}, "amount"),
        ({"amount": False}, "amount"),
        ({"action": None}, "action"),
        ({"window": "day"}, "window"),
        ({"scope": "key"}, "scope"),
    ):
        refused = await on_sqlite.call("PATCH", f"/{created['id']}", json=body)
        assert refused.status_code == 422
        assert refused.json()["error"]["errors"][0]["loc"] == ["body", field]
    unchanged = await on_sqlite.call("PATCH", f"/{created['id']}", json={})
    assert unchanged.json() == created
    cut = await on_sqlite.call("PATCH", f"/{created['id']}", json={"on_overrun": "cut", "amount": "61"})
    assert cut.json() == created | {"on_overrun": "cut", "amount": 61}


async def test_an_upstreams_limit_cuts_nothing(on_sqlite: LimitsApi) -> None:
    cut: Json = {"on_overrun": "cut"}
    created = await on_sqlite.create(scope="upstream", subject="openai")
    for method, path, body in (
        ("POST", "", A_BUDGET | {"scope": "upstream", "subject": "openai"} | cut),
        ("POST", "", A_BUDGET | {"scope": "upstream"} | cut),
        ("PATCH", f"/{created['id']}", cut),
    ):
        refused = await on_sqlite.call(method, path, json=body)
        assert refused.status_code == 422
        (fault,) = refused.json()["error"]["errors"]
        assert fault["loc"] == ["body", "on_overrun"]
        assert "must be finish" in fault["message"]
    assert await on_sqlite.listed() == [created]


async def test_a_member_reads_the_limits_of_their_workspace_and_changes_none(api: LimitsApi) -> None:
    own, other = await api.create(), await api.create(workspace_id=str(api.research))
    shared = await api.create(scope="deployment")
    assert await api.listed() == [shared, other, own]
    assert await api.listed(by="member") == [own]
    assert await api.listed(by="stranger") == [other]
    assert await api.listed(by="stranger", workspace_id=str(DEFAULT_WORKSPACE_ID)) == []
    for method, path, body in (
        ("POST", "", A_BUDGET),
        ("PATCH", f"/{own['id']}", {}),
        ("DELETE", f"/{own['id']}", None),
    ):
        refused = await api.call(method, path, by="member", json=body)
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "permission_denied")
    assert len(await api.listed()) == 3


async def test_a_key_with_manage_acts_in_its_own_workspace_alone(api: LimitsApi) -> None:
    # Its owner being an admin makes it no admin.
    manage = (await api.key(scopes=("manage",), owner="admin@example.com")).secret
    other = await api.create(workspace_id=str(api.research))
    shared = await api.create(scope="upstream")
    own = await api.create(by=manage, **A_RATE)
    assert await api.listed(by=manage) == [own]
    assert (await api.call("PATCH", f"/{own['id']}", by=manage, json={"amount": 5})).status_code == 200
    for limit in (other, shared):
        for method in ("PATCH", "DELETE"):
            assert (await api.call(method, f"/{limit['id']}", by=manage, json={"amount": 1})).status_code == 404
    for body in ({"scope": "deployment"}, {"scope": "upstream", "subject": "openai"}):
        assert (await api.call("POST", by=manage, json=A_BUDGET | body)).status_code == 403
    elsewhere = await api.call("POST", by=manage, json=A_BUDGET | {"workspace_id": str(api.research)})
    assert elsewhere.status_code == 404
    of_stranger = {"scope": "user", "subject": str(api.users["stranger"])}
    assert (await api.call("POST", by=manage, json=A_BUDGET | of_stranger)).status_code == 422
    # Who is where is not told either.
    for name in ("stranger", "member"):
        subject = {"scope": "user", "subject": str(api.users[name]), "workspace_id": str(api.research)}
        assert (await api.call("POST", by=manage, json=A_BUDGET | subject)).status_code == 404
    assert (await api.call("PUT", "/key-policies", by=manage, json={"data": []})).status_code == 403
    assert (await api.call("DELETE", f"/{own['id']}", by=manage)).status_code == 204
    assert len(await api.listed()) == 2


def test_who_may_change_hangs_on_the_route() -> None:
    for route in router.routes:
        assert isinstance(route, APIRoute)
        needs = {dependency.call for dependency in route.dependant.dependencies}
        assert (RequireScope("manage") in needs) == (route.methods != {"GET"}), route.path


async def test_a_key_without_manage_is_refused(on_sqlite: LimitsApi) -> None:
    usage = (await on_sqlite.key(scopes=("inference", "usage"))).secret
    for method, path in (("GET", ""), ("POST", ""), ("GET", "/key-policies"), ("DELETE", f"/{uuid.uuid4()}")):
        assert (await on_sqlite.call(method, path, by=usage, json=A_BUDGET)).status_code == 403
    assert (await on_sqlite.client.get("/api/limits")).status_code == 401


async def test_key_policies_are_set_all_at_once_by_admins_and_read_by_members(api: LimitsApi) -> None:
    assert (await api.call("GET", "/key-policies")).json() == {"data": []}
    rate = {"meter": "requests", "window": "minute", "default_amount": 60, "most_amount": 100}
    budget = {"meter": "cost", "window": "month", "default_amount": None, "most_amount": "10.5"}
    slots = {"meter": "concurrency", "window": None, "default_amount": 2, "most_amount": None}
    answer = await api.call("PUT", "/key-policies", json={"data": [rate, {**budget, "most_amount": "10.50"}, slots]})
    assert answer.json() == {"data": [slots, budget, rate]}
    assert (await api.call("GET", "/key-policies", by="member")).json() == answer.json()
    assert (await api.call("GET", "/key-policies", by="stranger")).json() == {"data": []}
    elsewhere = {"workspace_id": str(DEFAULT_WORKSPACE_ID)}
    assert (await api.call("GET", "/key-policies", by="stranger", params=elsewhere)).status_code == 404
    assert (await api.call("PUT", "/key-policies", by="member", json={"data": []})).status_code == 403
    research = {"workspace_id": str(api.research)}
    assert (await api.call("PUT", "/key-policies", params=research, json={"data": [slots]})).status_code == 200
    assert (await api.call("PUT", "/key-policies", json={"data": [slots]})).json() == {"data": [slots]}


@pytest.mark.parametrize(
    "policies",
    [
        [{"meter": "requests", "window": "minute"}],
        [{"meter": "requests", "default_amount": 1}],
        [{"meter": "concurrency", "window": "day", "most_amount": 1}],
        [{"meter": "requests", "window": "minute", "default_amount": 2, "most_amount": 1}],
        [{"meter": "requests", "window": "minute", "most_amount": "1.5"}],
        [{"meter": "requests", "window": "minute", "most_amount": 0}],
        [{"meter": "concurrency", "most_amount": 1}, {"meter": "concurrency", "most_amount": 2}],
        [{"meter": "cost", "window": "day", "most_amount": 1}] * 2,
        [{"meter": "concurrency", "most_amount": 1, "surprise": 1}],
        None,
    ],
)
async def test_what_is_no_policy_is_a_422(on_sqlite: LimitsApi, policies: Any) -> None:
    refused = await on_sqlite.call("PUT", "/key-policies", json={"data": policies})
    assert (refused.status_code, refused.json()["error"]["code"]) == (422, "validation_error")
    assert (await on_sqlite.call("GET", "/key-policies")).json() == {"data": []}


async def test_a_member_s_key_is_under_the_policies_and_others_are_not(api: LimitsApi) -> None:
    rate = {"meter": "requests", "window": "minute", "default_amount": 60, "most_amount": 100}
    await api.call("PUT", "/key-policies", json={"data": [rate]})
    asked = MeteredAmount(meter="requests", window="minute", amount=101)
    with pytest.raises(InvalidRequest, match="at most 100 requests a minute"):
        await api.keys.create(new_key(limits=(asked,)), made_by_member=True)
    async with api.database.session() as session:
        assert await session.scalar(text("SELECT count(*) FROM api_keys")) == 0
        assert await session.scalar(text("SELECT count(*) FROM service_accounts")) == 0
    made = await api.keys.create(new_key(), made_by_member=True)
    assert [limit["amount"] for limit in await api.listed(key_prefix=made.prefix)] == [60]
    by_admin = await api.keys.create(new_key(limits=(asked,)))
    assert [limit["amount"] for limit in await api.listed(key_prefix=by_admin.prefix)] == [101]


def new_key(**fields: Any) -> NewKey:
    return NewKey(name="mine", **fields)

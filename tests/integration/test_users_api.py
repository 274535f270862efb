"""Users and workspaces over HTTP: who sees whom, who changes whom, and what that ends."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select

from tests.support.credentials import keyrings
from tests.support.people import BETTER, PASSWORD, People
from tests.support.waiting import eventually
from tidegate.accounts.api_keys.keys import ApiKeys
from tidegate.accounts.models import DEFAULT_WORKSPACE_ID, User
from tidegate.accounts.schemas import NewKey

USERS = "/api/users"
WORKSPACES = "/api/workspaces"


@pytest.fixture
async def people(database_url: str, tmp_path: Path) -> AsyncIterator[People]:
    async with People.open(database_url, tmp_path) as people:
        yield people


async def _emails(people: People, by: str = "admin", **query: str) -> list[str]:
    found = await people.done("GET", USERS, by=by, params=query)
    return [user["email"].partition("@")[0] for user in found["data"]]


async def _change(people: People, name: str, **change: Any) -> dict[str, Any]:
    return await people.done("PATCH", f"{USERS}/{people.users[name]}", json=change)


async def _key_of(people: People, name: str) -> str:
    keys = ApiKeys(people.database, keyrings().peppers)
    return (await keys.create(NewKey(name="theirs", owner=f"{name}@example.com"))).secret


async def test_everyone_sees_whom_they_may(people: People) -> None:
    assert sorted(await _emails(people)) == ["admin", "member", "other", "stranger"]
    assert sorted(await _emails(people, by="keeper")) == ["admin", "member", "other"]
    assert await _emails(people, by="warden") == ["stranger"]
    assert await _emails(people, by="member") == ["member"]
    assert await _emails(people, by="stranger") == ["stranger"]
    for by, status in (("caller", 403), (None, 401)):
        await people.refused(status, "GET", USERS, by=by)
        await people.refused(status, "GET", WORKSPACES, by=by)


async def test_users_are_found_by_what_they_are_and_come_in_pages(people: People) -> None:
    await _change(people, "other", disabled=True)
    assert await _emails(people, email="Member@example.com") == ["member"]
    assert await _emails(people, role="admin") == ["admin"]
    assert await _emails(people, state="disabled") == ["other"]
    assert await _emails(people, workspace_id=str(people.research)) == ["stranger"]
    assert await _emails(people, by="warden", workspace_id=str(DEFAULT_WORKSPACE_ID)) == []
    first = await people.done("GET", USERS, params={"limit": 3})
    rest = await people.done("GET", USERS, params={"limit": 3, "after": first["next"]})
    assert (len(first["data"]), len(rest["data"]), rest["next"]) == (3, 1, None)


async def test_what_another_workspace_has_is_as_if_there_were_none(people: People) -> None:
    unknown = str(uuid.uuid4())
    for by, wanted in (("warden", "member"), ("stranger", "member"), ("member", "other"), ("keeper", "stranger")):
        theirs = str(people.users[wanted])
        one = await people.refused(404, "GET", f"{USERS}/{theirs}", by=by)
        other = await people.refused(404, "GET", f"{USERS}/{unknown}", by=by)
        assert one["message"].replace(theirs, "") == other["message"].replace(unknown, "")
    assert (await people.done("GET", f"{USERS}/{people.users['member']}", by="member"))["role"] == "member"


@pytest.mark.parametrize(("by", "status"), [("member", 403), ("keeper", 403), ("caller", 403), (None, 401)])
async def test_nobody_but_an_admin_who_is_signed_in_changes_anything(
    people: People, by: str | None, status: int
) -> None:
    own, foreign = people.users["member"], people.users["stranger"]
    for user_id in (own, foreign, uuid.uuid4()):
        await people.refused(status, "PATCH", f"{USERS}/{user_id}", by=by, json={"role": "admin"})
        await people.refused(status, "POST", f"{USERS}/{user_id}/sign-out", by=by)
    await people.refused(status, "POST", USERS, by=by, json={"email": "new@example.com"})
    await people.refused(status, "POST", WORKSPACES, by=by, json={"name": "mine"})
    for workspace_id in (DEFAULT_WORKSPACE_ID, people.research, uuid.uuid4()):
        await people.refused(status, "PATCH", f"{WORKSPACES}/{workspace_id}", by=by, json={"name": "mine"})
    assert len(await _emails(people)) == 4


async def test_a_key_of_an_admin_is_no_admin(people: People) -> None:
    keys = ApiKeys(people.database, keyrings().peppers)
    key = (await keys.create(NewKey(name="theirs", owner="admin@example.com", scopes=("manage",)))).secret
    await people.refused(403, "PATCH", f"{USERS}/{people.users['member']}", by=key, json={"disabled": True})
    assert "stranger" not in await _emails(people, by=key)


async def test_an_admin_creates_a_user_who_can_sign_in(people: People) -> None:
    form = {"email": "New@example.com", "password": BETTER, "workspace_id": str(people.research)}
    made = await people.done("POST", USERS, json=form)
    assert (made["email"], made["role"], made["state"], made["has_password"]) == (
        "new@example.com",
        "member",
        "active",
        True,
    )
    assert made["workspace_id"] == str(people.research)
    assert BETTER not in str(made)
    assert await people.log_in("new@example.com", BETTER) is not None
    await people.refused(409, "POST", USERS, json=form)
    await people.refused(404, "POST", USERS, json={"email": "b@example.com", "workspace_id": str(uuid.uuid4())})
    error = await people.refused(422, "POST", USERS, json={"email": "b@example.com", "password": "qwertyuiop123"})
    assert "guessed first" in error["message"]
    (created,) = await people.trail("user.created")
    assert (created.actor, created.subject) == ("admin@example.com", "new@example.com")


async def test_who_is_disabled_loses_sign_ins_keys_and_links_and_gets_back_the_keys(people: People) -> None:
    here, key = await people.log_in("member@example.com"), await _key_of(people, "member")
    assert here is not None
    await people.forget("member@example.com")
    assert [await people.status_of(one) for one in (here, key)] == [200, 200]
    view = await _change(people, "member", disabled=True)
    assert (view["state"], view["disabled_at"] is None) == ("disabled", False)
    assert [await people.status_of(one) for one in (here, key)] == [401, 401]
    assert await people.log_in("member@example.com") is None
    assert (await _change(people, "member", disabled=False))["state"] == "active"

    async def key_is_back() -> bool:
        return await people.status_of(key) == 200

    # That it was refused is remembered for some seconds.
    await eventually(key_is_back, within_s=60)
    assert await people.status_of(here) == 401
    assert await people.log_in("member@example.com") is not None
    body = {"token": people.mailer.token("password_reset"), "password": BETTER}
    await people.refused(400, "POST", "/auth/password/reset", by=None, json=body)
    for action in ("user.disabled", "user.enabled"):
        (one,) = await people.trail(action)
        assert (one.actor, one.subject) == ("admin@example.com", "member@example.com")


async def test_who_gets_another_role_or_moves_signs_in_again(people: People) -> None:
    here, key = await people.log_in("member@example.com"), await _key_of(people, "member")
    assert here is not None
    await _change(people, "member", role="admin")
    assert await people.status_of(here) == 401
    here = await people.log_in("member@example.com")
    assert here is not None
    assert len((await people.done("GET", USERS, by=here))["data"]) == 4
    await _change(people, "member", role="member", workspace_id=str(people.research))
    assert await people.status_of(here) == 401
    here = await people.log_in("member@example.com")
    assert here is not None
    assert (await people.done("GET", "/auth/me", by=here))["workspace"] == "research"
    # Keys stay where they are.
    assert (await people.done("GET", "/auth/me", by=key))["workspace"] == "default"
    first, second = await people.trail("user.changed")
    assert first.details == {"role": {"from": "member", "to": "admin"}}
    assert second.details["workspace_id"] == {"from": str(DEFAULT_WORKSPACE_ID), "to": str(people.research)}


@pytest.mark.parametrize("change", [{"disabled": True}, {"role": "member"}], ids=["disabled", "made a member"])
async def test_the_open_invitations_of_an_admin_end_with_their_power(people: People, change: dict[str, Any]) -> None:
    await _change(people, "member", role="admin")
    accepted = await people.invite("first@example.com", by="member", role="admin")
    await _accept(people, accepted, 201)
    theirs = [await people.invite(f"{role}@example.org", by="member", role=role) for role in ("admin", "member")]
    another_s = await people.invite("kept@example.org")
    # Another address changes nothing of it.
    body = {"email": "renamed@example.com", "current_password": PASSWORD}
    assert (await people.call("POST", "/auth/email", by="member", json=body)).is_success
    await people.sent()
    confirmed = {"token": people.mailer.token("email_change")}
    assert (await people.call("POST", "/auth/email/confirm", by=None, json=confirmed)).is_success
    await _change(people, "member", **change)
    for token in theirs:
        await _accept(people, token, 400)
    await _accept(people, another_s, 201)
    ended = await people.trail("user.invitation_withdrawn")
    assert sorted((one.actor, one.subject, one.details["role"], one.details["made_by"]) for one in ended) == [
        ("admin@example.com", f"{role}@example.org", role, "renamed@example.com") for role in ("admin", "member")
    ]


async def test_a_promoted_admin_s_invitations_stay(people: People) -> None:
    await _change(people, "member", role="admin")
    token = await people.invite("new@example.org", by="member")
    await _change(people, "member", workspace_id=str(people.research))
    await _accept(people, token, 201)


async def _accept(people: People, token: str, status: int) -> None:
    body = {"token": token, "password": BETTER}
    answer = await people.call("POST", "/auth/invitations/accept", by=None, json=body)
    assert answer.status_code == status, answer.text


async def test_a_change_to_what_is_so_already_ends_nothing(people: People) -> None:
    here = await people.log_in("member@example.com")
    assert here is not None
    await _change(people, "member", role="member", workspace_id=str(DEFAULT_WORKSPACE_ID), disabled=False)
    await _change(people, "member")
    assert await people.status_of(here) == 200
    assert await people.trail("user.changed") == await people.trail("user.enabled") == []


async def test_a_user_is_signed_out_everywhere(people: People) -> None:
    here, key = await people.log_in("member@example.com"), await _key_of(people, "member")
    assert here is not None
    await people.done("POST", f"{USERS}/{people.users['member']}/sign-out")
    assert [await people.status_of(one) for one in (here, key)] == [401, 200]
    assert await people.log_in("member@example.com") is not None
    await people.refused(404, "POST", f"{USERS}/{uuid.uuid4()}/sign-out")
    (one,) = await people.trail("account.signed_out_everywhere")
    assert (one.actor, one.subject) == ("admin@example.com", "member@example.com")


@pytest.mark.parametrize("change", [{"disabled": True}, {"role": "member"}, {"role": "member", "disabled": True}])
async def test_the_last_admin_stays(people: People, change: dict[str, Any]) -> None:
    admin = people.users["admin"]
    await people.refused(409, "PATCH", f"{USERS}/{admin}", json=change)
    await _change(people, "other", role="admin", disabled=True)
    # A disabled admin is none.
    await people.refused(409, "PATCH", f"{USERS}/{admin}", json=change)
    await _change(people, "other", disabled=False)
    await people.done("PATCH", f"{USERS}/{admin}", json=change)


async def test_of_admins_who_take_each_other_s_place_at_once_one_stays(people: People) -> None:
    for name in ("member", "other", "stranger"):
        await _change(people, name, role="admin")
    names = ("admin", "member", "other", "stranger")
    by = {name: await people.log_in(f"{name}@example.com") for name in names}
    changes = [{"disabled": True}, {"role": "member"}]
    answers = await asyncio.gather(
        *(
            people.call("PATCH", f"{USERS}/{people.users[name]}", by=by[name], json=changes[n % 2])
            for n, name in enumerate(names)
        )
    )
    statuses = sorted(answer.status_code for answer in answers)
    assert statuses == [200, 200, 200, 409]
    enabled = (User.role == "admin", User.disabled_at.is_(None))
    async with people.database.session() as session:
        assert await session.scalar(select(func.count()).select_from(User).where(*enabled)) == 1


async def test_what_stays_is_left_out_and_what_is_unknown_is_not_found(people: People) -> None:
    member = people.users["member"]
    for body in (
        {"role": None},
        {"disabled": None},
        {"workspace_id": None},
        {"role": "owner"},
        {"email": "a@b.example"},
    ):
        await people.refused(422, "PATCH", f"{USERS}/{member}", json=body)
    await people.refused(404, "PATCH", f"{USERS}/{member}", json={"workspace_id": str(uuid.uuid4())})
    await people.refused(404, "PATCH", f"{USERS}/{uuid.uuid4()}", json={"role": "admin"})


async def test_workspaces_are_an_admin_s_and_each_has_a_name_of_its_own(people: People) -> None:
    made = await people.done("POST", WORKSPACES, json={"name": "sales"})
    names = [one["name"] for one in (await people.done("GET", WORKSPACES))["data"]]
    assert sorted(names) == ["default", "research", "sales"]
    for by in ("warden", "stranger"):
        (own,) = (await people.done("GET", WORKSPACES, by=by))["data"]
        assert own["name"] == "research"
    assert (await people.done("GET", WORKSPACES, by="stranger", params={"name": "sales"}))["data"] == []
    await people.refused(409, "POST", WORKSPACES, json={"name": "sales"})
    await people.refused(409, "PATCH", f"{WORKSPACES}/{made['id']}", json={"name": "research"})
    renamed = await people.done("PATCH", f"{WORKSPACES}/{made['id']}", json={"name": "trade"})
    assert renamed == made | {"name": "trade"}
    await people.done("PATCH", f"{WORKSPACES}/{made['id']}", json={"name": "trade"})
    await people.refused(404, "PATCH", f"{WORKSPACES}/{uuid.uuid4()}", json={"name": "x"})
    await people.refused(409, "PATCH", f"{WORKSPACES}/{DEFAULT_WORKSPACE_ID}", json={"name": "x"})
    await people.refused(422, "POST", WORKSPACES, json={"name": "a\nb"})
    (created,) = await people.trail("workspace.created")
    (changed,) = await people.trail("workspace.changed")
    assert (created.subject, changed.details) == ("sales", {"name": {"from": "sales", "to": "trade"}})

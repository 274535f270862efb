"""Roles by groups, and users who are found, linked and made once, on either database."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select

from tests.support.credentials import database_at_head
from tests.support.sso_gateway import SsoGateway, leads_to, refused
from tests.support.sso_provider import ScriptedProvider
from tidegate.accounts.mailed.tokens import add_token, find_live
from tidegate.accounts.models import DEFAULT_WORKSPACE_ID, Identity, MailedToken, User
from tidegate.accounts.sign_ins.service import Client
from tidegate.accounts.single_sign_on.linking import admit
from tidegate.accounts.single_sign_on.people import Person, person_of
from tidegate.accounts.single_sign_on.refusals import Refused
from tidegate.accounts.users.schemas import ChangedUser
from tidegate.accounts.users.service import CallersUsers
from tidegate.audit.trail import SYSTEM
from tidegate.auth.principal import Principal, Role
from tidegate.errors import Conflict, InvalidRequest
from tidegate.settings.groups import SingleSignOnSettings
from tidegate.storage.database import Database

ISSUER = "https://idp.example.com"
GROUPS = {"admin_groups": ("ops",), "member_groups": ("staff", "guests")}


@asynccontextmanager
async def _gateway(url: str, folder: Path, **single_sign_on: Any) -> AsyncIterator[tuple[SsoGateway, ScriptedProvider]]:
    async with (
        ScriptedProvider.running() as provider,
        SsoGateway.open(url, folder, provider.issuer, **single_sign_on) as gateway,
    ):
        yield gateway, provider


def _settings(*admins: str, members: tuple[str, ...] = ()) -> SingleSignOnSettings:
    return SingleSignOnSettings(issuer=ISSUER, client_id="gateway", admin_groups=admins, member_groups=members)


@pytest.mark.parametrize(
    ("admins", "members", "claim", "role"),
    [
        ((), (), None, None),
        ((), (), ["ops"], None),
        (("ops",), (), ["staff", "ops"], "admin"),
        (("ops",), (), ["staff"], "member"),
        (("ops",), (), None, "member"),
        (("ops",), ("staff",), ["ops"], "admin"),
        (("ops",), ("staff",), ["staff"], "member"),
        (("ops",), ("staff",), "staff", "member"),
        (("ops",), ("staff",), ["ops", "staff"], "admin"),
        ((), ("staff",), ["staff", "ops"], None),
    ],
)
def test_groups_give_roles(admins: tuple[str, ...], members: tuple[str, ...], claim: object, role: Role | None) -> None:
    assert person_of({"sub": "s", "groups": claim}, ISSUER, _settings(*admins, members=members)).role == role


@pytest.mark.parametrize(
    "claim", [None, [], ["STAFF"], ["staff "], "staff,ops", "staf", 7, {"staff": True}, [["staff"]], [None]]
)
def test_whom_no_group_lets_in_is_refused(claim: object) -> None:
    with pytest.raises(Refused) as refusal:
        person_of({"sub": "s", "groups": claim}, ISSUER, _settings("ops", members=("staff",)))
    assert refusal.value.reason == "no_group"


async def test_the_role_follows_the_groups_at_each_log_in(sqlite_url: str, tmp_path: Path) -> None:
    async with _gateway(sqlite_url, tmp_path, **GROUPS) as (gateway, provider):
        await gateway.add_user("root@example.com", "admin")
        browser = gateway.browser()
        provider.is_person("subject-1", "ada@example.com", "ops")
        leads_to(await browser.log_in())
        user = (await gateway.users())["ada@example.com"]
        assert user.role == "admin"
        assert gateway.told == []
        # Another role ends what was signed in under the old one.
        elsewhere = gateway.browser()
        provider.is_person("subject-1", "ada@example.com", "guests")
        leads_to(await elsewhere.log_in())
        assert (await gateway.users())["ada@example.com"].role == "member"
        assert gateway.told == [f"user:{user.id}"]
        assert (await browser.email(), await elsewhere.email()) == (None, "ada@example.com")
        [changed] = await gateway.events("user.changed")
        assert changed.details == {"role": {"from": "admin", "to": "member"}, "by": "single_sign_on"}
        provider.is_person("subject-1", "ada@example.com", "ops", "guests")
        leads_to(await gateway.browser().log_in())
        assert (await gateway.users())["ada@example.com"].role == "admin"


async def test_the_open_invitations_of_an_admin_end_where_their_groups_make_them_a_member(
    sqlite_url: str, tmp_path: Path
) -> None:
    async with _gateway(sqlite_url, tmp_path, **GROUPS) as (gateway, provider):
        await gateway.add_user("root@example.com", "admin")
        provider.is_person("subject-1", "ada@example.com", "ops")
        leads_to(await gateway.browser().log_in())
        async with gateway.database.transaction() as session:
            row = MailedToken(
                workspace_id=DEFAULT_WORKSPACE_ID,
                purpose="invitation",
                email="new@example.com",
                role="admin",
                made_by="ada@example.com",
            )
            token = add_token(session, row)
        provider.is_person("subject-1", "ada@example.com", "guests")
        leads_to(await gateway.browser().log_in())
        async with gateway.database.session() as session:
            with pytest.raises(InvalidRequest):
                await find_live(session, token, "invitation")
        [ended] = await gateway.events("user.invitation_withdrawn")
        assert (ended.subject, ended.actor) == ("new@example.com", "ada@example.com")


async def test_who_left_all_groups_is_refused_and_their_account_stays_as_it_is(sqlite_url: str, tmp_path: Path) -> None:
    async with _gateway(sqlite_url, tmp_path, **GROUPS) as (gateway, provider):
        browser = gateway.browser()
        provider.is_person("subject-1", "ada@example.com", "staff")
        leads_to(await browser.log_in())
        provider.is_person("subject-1", "ada@example.com")
        assert "groups" in refused(await gateway.browser().log_in(), 403, "permission_denied")
        [event] = await gateway.events("account.sign_in_refused")
        assert (event.details["reason"], event.subject) == ("no_group", "ada@example.com")
        # What they had goes on until it ends.
        assert await browser.email() == "ada@example.com"


async def test_the_last_admin_keeps_the_role_with_a_warning(
    sqlite_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with _gateway(sqlite_url, tmp_path, **GROUPS) as (gateway, provider):
        provider.is_person("subject-1", "ada@example.com", "ops")
        leads_to(await gateway.browser().log_in())
        provider.is_person("subject-1", "ada@example.com", "staff")
        browser = gateway.browser()
        caplog.clear()
        leads_to(await browser.log_in())
        said = [line.levelname for line in caplog.records if "last admin keeps the role" in str(line.msg)]
        assert said == ["WARNING"]
        assert (await gateway.users())["ada@example.com"].role == "admin"
        [event] = await gateway.events("user.changed")
        assert event.outcome == "refused"


# Races


def _person(subject: str = "subject-1", role: Role | None = None) -> Person:
    return Person(ISSUER, subject, "ada@example.com", role)


async def _all(database: Database, table: type[User] | type[Identity]) -> int:
    async with database.session() as session:
        return await session.scalar(select(func.count()).select_from(table)) or 0


async def _admit(database: Database, person: Person) -> str:
    try:
        return str((await admit(database, person, "default", Client())).user.id)
    except Refused as refusal:
        return refusal.reason


async def test_several_first_log_ins_of_one_person_make_one_user(database_url: str) -> None:
    async with database_at_head(database_url) as database:
        found = await asyncio.gather(*(_admit(database, _person()) for _ in range(6)))
        assert len(set(found)) == 1
        assert (await _all(database, User), await _all(database, Identity)) == (1, 1)


async def test_several_first_log_ins_of_a_user_who_is_there_link_them_once(database_url: str) -> None:
    async with database_at_head(database_url) as database:
        async with database.transaction() as session:
            user = User(workspace_id=DEFAULT_WORKSPACE_ID, email="ada@example.com", role="member")
            session.add(user)
        found = await asyncio.gather(*(_admit(database, _person()) for _ in range(6)))
        assert set(found) == {str(user.id)}
        assert (await _all(database, User), await _all(database, Identity)) == (1, 1)


@pytest.mark.parametrize("is_there", [False, True])
async def test_of_several_people_with_one_address_one_gets_the_account(database_url: str, *, is_there: bool) -> None:
    async with database_at_head(database_url) as database:
        if is_there:
            async with database.transaction() as session:
                session.add(User(workspace_id=DEFAULT_WORKSPACE_ID, email="ada@example.com", role="member"))
        found = Counter(await asyncio.gather(*(_admit(database, _person(f"subject-{n}")) for n in range(4))))
        assert found.pop("linked_to_another") == 3
        assert (len(found), await _all(database, Identity)) == (1, 1)


async def test_one_admin_remains_though_all_lose_their_groups_at_once(database_url: str) -> None:
    async with database_at_head(database_url) as database:
        people = [Person(ISSUER, f"subject-{n}", f"admin-{n}@example.com", "admin") for n in range(3)]
        for person in people:
            await _admit(database, person)
        demoted = [Person(ISSUER, person.subject, person.verified_email, "member") for person in people]
        found = await asyncio.gather(*(_admit(database, person) for person in demoted))
        assert len(set(found)) == 3
        assert sorted(await _roles(database)) == ["admin", "member", "member"]


async def test_one_admin_remains_though_one_is_changed_as_the_other_logs_in(database_url: str) -> None:
    async with database_at_head(database_url) as database:
        first = await admit(database, Person(ISSUER, "subject-1", "a@example.com", "admin"), "default", Client())
        second = await admit(database, Person(ISSUER, "subject-2", "b@example.com", "admin"), "default", Client())
        caller = Principal(
            workspace_id=DEFAULT_WORKSPACE_ID, user_id=first.user.id, role="admin", scopes=frozenset(), expires_at=None
        )
        users = CallersUsers(database, caller, SYSTEM)
        results = await asyncio.gather(
            users.change(second.user.id, ChangedUser(role="member")),
            _admit(database, Person(ISSUER, "subject-1", "a@example.com", "member")),
            return_exceptions=True,
        )
        assert not [one for one in results if isinstance(one, BaseException) and not isinstance(one, Conflict)]
        assert sorted(await _roles(database)) == ["admin", "member"]


async def _roles(database: Database) -> list[str]:
    async with database.session() as session:
        return list(await session.scalars(select(User.role)))

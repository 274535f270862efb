"""Invitations: who may invite whom to where, and what a link gives."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import select

from tests.support.people import BETTER, URL, People
from tidegate.accounts.mailed.tokens import hash_of
from tidegate.accounts.models import DEFAULT_WORKSPACE_ID, MailedToken
from tidegate.accounts.tries import SENSITIVE
from tidegate.errors import MailRefused, Unavailable
from tidegate.ledger.entry import utc_now

NEW = "new@example.com"
INVITATIONS = "/api/invitations"


@pytest.fixture
async def people(database_url: str, tmp_path: Path) -> AsyncIterator[People]:
    async with People.open(database_url, tmp_path) as people:
        yield people


async def _accept(people: People, token: str, password: str = BETTER) -> int:
    body = {"token": token, "password": password}
    return (await people.call("POST", "/auth/invitations/accept", by=None, json=body)).status_code


async def _listed(people: People, by: str = "admin", **query: str) -> list[str]:
    found = await people.done("GET", INVITATIONS, by=by, params=query)
    return [f"{one['email']} {one['state']}" for one in found["data"]]


async def test_an_invitation_makes_the_user_that_it_is_for(people: People) -> None:
    form = {"email": "New@Example.com", "workspace_id": str(people.research), "role": "admin"}
    view = await people.done("POST", INVITATIONS, json=form)
    assert (view["email"], view["state"], view["made_by"], view["role"]) == (NEW, "open", "admin@example.com", "admin")
    message, token = people.mailer.last("invitation"), people.mailer.token("invitation")
    assert (message.to, message.link) == (NEW, f"{URL}/invitation#token={token}")
    assert "research" in message.text
    assert token not in str(view)
    body = {"token": token, "password": BETTER}
    answer = await people.call("POST", "/auth/invitations/accept", by=None, json=body)
    made = answer.json()
    assert (answer.status_code, made["email"], made["role"]) == (201, NEW, "admin")
    assert made["workspace_id"] == str(people.research)
    assert await people.log_in(NEW, BETTER) is not None
    assert await _accept(people, token) == 400
    assert await _listed(people) == [f"{NEW} accepted"]
    (invited,) = await people.trail("user.invited")
    (created,) = await people.trail("user.created")
    assert (invited.actor, invited.subject, invited.workspace_id) == ("admin@example.com", NEW, people.research)
    assert (created.actor, created.details["invited_by"]) == (NEW, "admin@example.com")


async def test_of_eight_who_accept_at_once_one_is_made(people: People) -> None:
    token = await people.invite(NEW)
    statuses = await asyncio.gather(*(_accept(people, token) for _ in range(8)))
    assert sorted(statuses) == [201] + [400] * 7
    assert len(await people.trail("user.created")) == 1


async def test_a_token_of_a_week_is_stored_as_a_hash(people: People) -> None:
    token = await people.invite(NEW)
    async with people.database.session() as session:
        row = (await session.scalars(select(MailedToken))).one()
    assert row.token_hash == hash_of(token)
    assert timedelta(days=6, hours=23) < row.expires_at - utc_now() <= timedelta(days=7)


async def test_an_address_that_was_taken_meanwhile_is_a_conflict(people: People) -> None:
    token = await people.invite(NEW)
    await people.done("POST", "/api/users", json={"email": NEW})
    assert await _accept(people, token) == 409
    error = await people.refused(409, "POST", INVITATIONS, json={"email": NEW})
    assert error["param"] == "email"


async def test_a_withdrawn_invitation_opens_nothing(people: People) -> None:
    token = await people.invite(NEW)
    (one,) = (await people.done("GET", INVITATIONS))["data"]
    for _ in range(2):
        await people.done("DELETE", f"{INVITATIONS}/{one['id']}")
    assert await _accept(people, token) == 400
    assert await _listed(people) == [f"{NEW} withdrawn"]
    await people.refused(409, "POST", f"{INVITATIONS}/{one['id']}/send")
    assert len(await people.trail("user.invitation_withdrawn")) == 1


async def test_an_accepted_invitation_is_neither_withdrawn_nor_sent_again(people: People) -> None:
    assert await _accept(people, await people.invite(NEW)) == 201
    (one,) = (await people.done("GET", INVITATIONS))["data"]
    await people.refused(409, "DELETE", f"{INVITATIONS}/{one['id']}")
    await people.refused(409, "POST", f"{INVITATIONS}/{one['id']}/send")


async def test_an_invitation_that_is_sent_again_has_a_new_link(people: People) -> None:
    first = await people.invite(NEW)
    (one,) = (await people.done("GET", INVITATIONS))["data"]
    again = await people.done("POST", f"{INVITATIONS}/{one['id']}/send")
    assert again["id"] == one["id"]
    second = people.mailer.token("invitation")
    assert second != first
    assert await _accept(people, first) == 400
    assert await _accept(people, second) == 201


async def test_a_newer_invitation_to_a_workspace_ends_the_older(people: People) -> None:
    elsewhere = await people.invite(NEW, workspace_id=str(people.research))
    older, newer = await people.invite(NEW), await people.invite(NEW)
    assert await _accept(people, older) == 400
    assert await _listed(people, state="open") == [f"{NEW} open"] * 2
    assert await _accept(people, newer) == 201
    assert await _accept(people, elsewhere) == 409


async def test_invitations_of_an_address_at_once_leave_one_that_works(people: People) -> None:
    await people.log_in("admin@example.com")
    # With connections that stand, so that they do meet.
    await asyncio.gather(*(people.done("GET", "/api/users") for _ in range(8)))
    await asyncio.gather(*(people.invite(NEW) for _ in range(8)))
    assert sorted(await _listed(people)) == [f"{NEW} open"] + [f"{NEW} withdrawn"] * 7


async def test_a_common_password_is_refused_and_the_link_works_on(people: People) -> None:
    token = await people.invite(NEW)
    assert await _accept(people, token, "newexamplecom") == 422
    assert await _accept(people, token) == 201


async def test_a_key_invites_members_to_its_own_workspace(people: People) -> None:
    token = await people.invite(NEW, by="warden")
    assert "@" not in people.mailer.last("invitation").text
    assert await _accept(people, token) == 201
    async with people.database.session() as session:
        row = (await session.scalars(select(MailedToken))).one()
    assert (row.workspace_id, row.role) == (people.research, "member")
    assert row.made_by is not None
    assert row.made_by.startswith("tg_")
    await people.refused(403, "POST", INVITATIONS, by="warden", json={"email": "b@example.com", "role": "admin"})
    other = {"email": "b@example.com", "workspace_id": str(DEFAULT_WORKSPACE_ID)}
    unknown = {"email": "b@example.com", "workspace_id": str(uuid.uuid4())}
    refusals = [await people.refused(404, "POST", INVITATIONS, by="warden", json=form) for form in (other, unknown)]
    assert refusals[0]["message"].partition("workspace ")[0] == refusals[1]["message"].partition("workspace ")[0]


async def test_a_key_learns_nothing_of_another_workspace_s_users(people: People) -> None:
    forms = [{"email": "member@example.com"}, {"email": "nobody@example.com"}]
    answers = [await people.call("POST", INVITATIONS, by="warden", json=form) for form in forms]
    assert [answer.status_code for answer in answers] == [201, 201]
    assert {key for answer in answers for key in answer.json()} == set(answers[0].json())
    await people.refused(409, "POST", INVITATIONS, by="warden", json={"email": "stranger@example.com"})


async def test_what_another_workspace_invited_is_as_if_there_were_none(people: People) -> None:
    await people.invite(NEW)
    (one,) = (await people.done("GET", INVITATIONS))["data"]
    assert await _listed(people, by="warden") == []
    assert await _listed(people, by="warden", workspace_id=str(DEFAULT_WORKSPACE_ID)) == []
    unknown = str(uuid.uuid4())
    for method, path in (("DELETE", ""), ("POST", "/send")):
        answers = [
            await people.refused(404, method, f"{INVITATIONS}/{wanted}{path}", by="warden")
            for wanted in (one["id"], unknown)
        ]
        assert answers[0]["message"].replace(one["id"], "") == answers[1]["message"].replace(unknown, "")
    await people.done("POST", f"{INVITATIONS}/{one['id']}/send", by="keeper")
    await people.done("DELETE", f"{INVITATIONS}/{one['id']}", by="keeper")


async def test_a_key_changes_no_invitation_of_an_admin(people: People) -> None:
    token = await people.invite(NEW, role="admin")
    (one,) = (await people.done("GET", INVITATIONS, by="keeper"))["data"]
    await people.refused(403, "DELETE", f"{INVITATIONS}/{one['id']}", by="keeper")
    await people.refused(403, "POST", f"{INVITATIONS}/{one['id']}/send", by="keeper")
    assert await _accept(people, token) == 201


@pytest.mark.parametrize(("by", "status"), [("member", 403), ("caller", 403), (None, 401)])
async def test_who_may_not_invite_sees_no_invitation_either(people: People, by: str | None, status: int) -> None:
    await people.invite(NEW)
    (one,) = (await people.done("GET", INVITATIONS))["data"]
    sent = len(people.mailer.messages)
    await people.refused(status, "GET", INVITATIONS, by=by)
    await people.refused(status, "POST", INVITATIONS, by=by, json={"email": "b@example.com"})
    await people.refused(status, "DELETE", f"{INVITATIONS}/{one['id']}", by=by)
    await people.refused(status, "POST", f"{INVITATIONS}/{one['id']}/send", by=by)
    assert len(people.mailer.messages) == sent


async def test_a_gateway_without_mail_invites_nobody_and_says_why(people: People) -> None:
    people.mailer.refuses = MailRefused("No e-mail can be sent: set TIDEGATE_MAIL__SMTP_HOST.")
    error = await people.refused(503, "POST", INVITATIONS, json={"email": NEW})
    assert (error["code"], "TIDEGATE_MAIL__SMTP_HOST" in error["message"]) == ("unavailable", True)
    assert await _listed(people) == []


async def test_an_invitation_that_could_not_be_sent_stays_to_be_sent_again(people: People) -> None:
    people.mailer.fails = Unavailable("The mail server did not take the e-mail.")
    await people.refused(503, "POST", INVITATIONS, json={"email": NEW})
    people.mailer.fails = None
    (one,) = (await people.done("GET", INVITATIONS))["data"]
    await people.done("POST", f"{INVITATIONS}/{one['id']}/send")
    assert await _accept(people, people.mailer.token("invitation")) == 201


async def test_nobody_has_e_mails_sent_without_bound(people: People) -> None:
    nowhere = {"email": NEW, "workspace_id": str(uuid.uuid4())}
    for _ in range(SENSITIVE["invite"].by_account):
        await people.refused(404, "POST", INVITATIONS, by="keeper", json=nowhere)
    await people.refused(429, "POST", INVITATIONS, by="keeper", json={"email": NEW})
    await people.refused(429, "POST", f"{INVITATIONS}/{uuid.uuid4()}/send", by="keeper")
    assert await people.sent() == []


async def test_invitations_come_in_pages(people: People) -> None:
    for n in range(3):
        await people.invite(f"n{n}@example.com")
    first = await people.done("GET", INVITATIONS, params={"limit": 2})
    assert [one["email"] for one in first["data"]] == ["n2@example.com", "n1@example.com"]
    second = await people.done("GET", INVITATIONS, params={"limit": 2, "after": first["next"]})
    assert ([one["email"] for one in second["data"]], second["next"]) == (["n0@example.com"], None)
    assert await _listed(people, email="N1@example.com") == ["n1@example.com open"]
    assert await _listed(people, state="expired") == []

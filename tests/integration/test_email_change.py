"""A user's e-mail address, changed: who may ask, who confirms, and what either learns."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import select

from tests.support.people import BETTER, PASSWORD, URL, People
from tidegate.accounts.models import MailedToken, User
from tidegate.errors import MailRefused
from tidegate.ledger.entry import utc_now

MEMBER = "member@example.com"
NEW = "new@example.com"


@pytest.fixture
async def people(database_url: str, tmp_path: Path) -> AsyncIterator[People]:
    async with People.open(database_url, tmp_path) as people:
        yield people


async def _ask(people: People, email: str = NEW, by: str = "member") -> int:
    body = {"email": email, "current_password": PASSWORD}
    answer = await people.call("POST", "/auth/email", by=by, json=body)
    await people.outbox.settled()
    return answer.status_code


async def _confirm(people: People, token: str) -> int:
    return (await people.call("POST", "/auth/email/confirm", by=None, json={"token": token})).status_code


async def test_who_reads_the_new_address_makes_it_the_account_s_and_sign_ins_end(people: People) -> None:
    here = await people.log_in(MEMBER)
    assert here is not None
    assert await _ask(people, "New@example.com", by=here) == 202
    message, notice = people.mailer.last("email_change"), people.mailer.last("email_change_asked")
    token = people.mailer.token("email_change")
    assert (message.to, notice.to) == (NEW, MEMBER)
    assert message.link == f"{URL}/confirm-email#token={token}"
    assert notice.link is None
    assert token not in notice.text
    assert await people.status_of(here) == 200
    assert await _confirm(people, token) == 204
    assert await people.status_of(here) == 401
    assert (await people.log_in(MEMBER), await people.log_in(NEW) is not None) == (None, True)
    assert (await people.sent())[-1].kind == "email_changed"
    assert people.mailer.last("email_changed").to == MEMBER
    (asked,) = await people.trail("account.email_change_asked")
    (done,) = await people.trail("account.email_changed")
    assert (asked.actor, asked.details, done.details["email"]) == (MEMBER, {"to": NEW}, {"from": MEMBER, "to": NEW})
    assert await _confirm(people, token) == 400


async def test_an_address_that_is_taken_is_answered_as_a_free_one_and_gets_nothing(people: People) -> None:
    body = {"email": "stranger@example.com", "current_password": PASSWORD}
    answers = {
        (answer.status_code, answer.text)
        for email in ("stranger@example.com", NEW)
        for answer in [await people.call("POST", "/auth/email", by="member", json=body | {"email": email})]
    }
    assert answers == {(202, "{}")}
    assert [(one.kind, one.to) for one in await people.sent()] == [
        ("email_change_asked", MEMBER),
        ("email_change", NEW),
        ("email_change_asked", MEMBER),
    ]


async def test_an_address_that_was_taken_meanwhile_stays_whose_it_is(people: People) -> None:
    assert await _ask(people) == 202
    await people.done("POST", "/api/users", json={"email": NEW, "password": BETTER})
    assert await _confirm(people, people.mailer.token("email_change")) == 409
    assert await people.log_in(MEMBER) is not None
    assert await people.log_in(NEW, BETTER) is not None


async def test_of_eight_who_confirm_at_once_one_succeeds(people: People) -> None:
    assert await _ask(people) == 202
    token = people.mailer.token("email_change")
    statuses = await asyncio.gather(*(_confirm(people, token) for _ in range(8)))
    assert sorted(statuses) == [204] + [400] * 7
    assert len(await people.trail("account.email_changed")) == 1


async def test_a_link_of_a_day_ends_with_a_newer_one_and_with_the_password(people: People) -> None:
    assert await _ask(people, "first@example.com") == 202
    replaced = people.mailer.token("email_change")
    async with people.database.session() as session:
        row = (await session.scalars(select(MailedToken))).one()
    assert timedelta(hours=23) < row.expires_at - utc_now() <= timedelta(hours=24)
    assert await _ask(people) == 202
    ended = people.mailer.token("email_change")
    assert await _confirm(people, replaced) == 400
    await people.done("POST", "/auth/password", by="member", json={"current_password": PASSWORD, "password": BETTER})
    assert await _confirm(people, ended) == 400
    async with people.database.session() as session:
        assert (await session.get_one(User, people.users["member"])).email == MEMBER


async def test_a_link_that_was_sent_to_the_old_address_ends_with_it(people: People) -> None:
    await people.forget(MEMBER)
    to_the_old = people.mailer.token("password_reset")
    assert await _ask(people) == 202
    assert await _confirm(people, people.mailer.token("email_change")) == 204
    body = {"token": to_the_old, "password": BETTER}
    await people.refused(400, "POST", "/auth/password/reset", by=None, json=body)


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({"email": NEW, "current_password": "wrong"}, 400, "current_password"),
        ({"email": "Member@example.com", "current_password": PASSWORD}, 400, "email"),
        ({"email": "a@b.example\r\nBcc: c@d.example", "current_password": PASSWORD}, 422, None),
        ({"email": NEW}, 422, None),
    ],
)
async def test_what_does_not_ask_rightly_sends_nothing(
    people: People, body: dict[str, str], status: int, param: str | None
) -> None:
    error = await people.refused(status, "POST", "/auth/email", by="member", json=body)
    assert error["param"] == param
    assert await people.sent() == []


async def test_a_gateway_without_mail_says_which_setting_is_missing(people: People) -> None:
    people.mailer.refuses = MailRefused("No e-mail can be sent: set TIDEGATE_MAIL__SMTP_HOST.")
    body = {"email": NEW, "current_password": PASSWORD}
    error = await people.refused(503, "POST", "/auth/email", by="member", json=body)
    assert (error["code"], "TIDEGATE_MAIL__SMTP_HOST" in error["message"]) == ("unavailable", True)
    await people.refused(403, "POST", "/auth/email", by="keeper", json=body)

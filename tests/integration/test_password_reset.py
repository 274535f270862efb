"""Forgotten and changed passwords over HTTP, and what an outsider may learn from them."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import select, update

from tests.support.people import BETTER, PASSWORD, URL, People
from tidegate.accounts.mailed.tokens import hash_of, new_token
from tidegate.accounts.models import Identity, MailedToken, User
from tidegate.errors import MailRefused
from tidegate.ledger.entry import utc_now

MEMBER = "member@example.com"


@pytest.fixture
async def people(database_url: str, tmp_path: Path) -> AsyncIterator[People]:
    async with People.open(database_url, tmp_path) as people:
        yield people


async def _reset(people: People, token: str, password: str = BETTER) -> int:
    body = {"token": token, "password": password}
    return (await people.call("POST", "/auth/password/reset", by=None, json=body)).status_code


async def test_a_link_by_e_mail_sets_a_new_password_and_ends_every_sign_in(people: People) -> None:
    here, there = await people.log_in(MEMBER), await people.log_in(MEMBER)
    assert here is not None
    assert there is not None
    await people.forget("Member@Example.com")
    message = people.mailer.last("password_reset")
    token = people.mailer.token("password_reset")
    assert message.to == MEMBER
    assert message.link == f"{URL}/reset-password#token={token}"
    assert await _reset(people, token) == 204
    assert await people.status_of(here) == await people.status_of(there) == 401
    assert await people.log_in(MEMBER) is None
    assert await people.log_in(MEMBER, BETTER) is not None
    assert (await people.sent())[-1].kind == "password_changed"
    (done,) = await people.trail("account.password_reset")
    assert (done.actor, done.client_address, done.subject) == (MEMBER, "192.0.2.1", MEMBER)


async def test_neither_the_answer_nor_the_work_before_it_tells_who_has_an_account(people: People) -> None:
    async with people.database.transaction() as session:
        await session.execute(update(User).where(User.email == "other@example.com").values(disabled_at=utc_now()))
    statements = people.statements()
    answers = set()
    for email in (MEMBER, "nobody@example.com", "other@example.com"):
        queued, computations = people.outbox.put_in, people.hasher.computations
        # No other task runs between the request and its answer's end where the route awaits nothing of the database.
        answer = await people.call(
            "POST", "/auth/password/forgot", by=None, json={"email": email}, headers={"X-Request-ID": "r-1"}
        )
        headers = {name: value for name, value in answer.headers.items() if name != "ratelimit"}
        answers.add((answer.status_code, answer.text, tuple(sorted(headers.items()))))
        assert people.outbox.put_in == queued + 1
        assert people.hasher.computations == computations
        await people.outbox.settled()
    assert len(answers) == 1
    assert [message.to for message in await people.sent()] == [MEMBER]
    # The look-ups are the errand's: had the route any of its own, there would be more.
    assert sum("FROM users" in statement for statement in statements) == 3
    refused = await people.trail("account.password_forgotten")
    assert [(one.subject, one.outcome) for one in refused] == [
        (MEMBER, "done"),
        ("nobody@example.com", "refused"),
        ("other@example.com", "refused"),
    ]


async def test_the_answer_waits_for_no_mail_server(people: People) -> None:
    people.mailer.takes.clear()
    for email in (MEMBER, "nobody@example.com", "other@example.com"):
        answer = await people.call("POST", "/auth/password/forgot", by=None, json={"email": email})
        assert answer.status_code == 202
    assert people.mailer.messages == []
    people.mailer.takes.set()
    assert len(await people.sent()) == 2


async def test_a_gateway_without_mail_answers_as_ever_and_says_so_in_its_log(
    people: People, caplog: pytest.LogCaptureFixture
) -> None:
    people.mailer.refuses = MailRefused("No e-mail can be sent: set TIDEGATE_MAIL__SMTP_HOST.")
    for email in (MEMBER, "nobody@example.com"):
        await people.forget(email)
    warnings = [record.getMessage() for record in caplog.records if "an e-mail was not sent" in record.getMessage()]
    assert len(warnings) == 2
    assert all("TIDEGATE_MAIL__SMTP_HOST" in warning for warning in warnings)
    assert MEMBER not in "".join(warnings)
    async with people.database.session() as session:
        assert (await session.scalars(select(MailedToken))).all() == []


async def test_of_eight_who_use_a_token_at_once_one_succeeds(people: People) -> None:
    await people.forget(MEMBER)
    token = people.mailer.token("password_reset")
    statuses = await asyncio.gather(*(_reset(people, token, f"{BETTER} {n}") for n in range(8)))
    assert sorted(statuses) == [204] + [400] * 7
    assert len(await people.trail("account.password_reset")) == 1
    opened = [await people.log_in(MEMBER, f"{BETTER} {n}") is not None for n in range(8)]
    assert opened.index(True) == statuses.index(204)
    assert sum(opened) == 1


async def test_every_token_that_does_not_work_is_refused_with_the_same_words(people: People) -> None:
    await people.forget(MEMBER)
    replaced = people.mailer.token("password_reset")
    await people.forget(MEMBER)
    used = people.mailer.token("password_reset")
    assert await _reset(people, replaced) == 400
    assert await _reset(people, used) == 204
    await people.forget(MEMBER)
    expired = people.mailer.token("password_reset")
    async with people.database.transaction() as session:
        late = update(MailedToken).where(MailedToken.token_hash == hash_of(expired))
        await session.execute(late.values(expires_at=utc_now() - timedelta(seconds=1)))
    await people.forget("other@example.com")
    of_disabled = people.mailer.token("password_reset")
    await people.done("PATCH", f"/api/users/{people.users['other']}", json={"disabled": True})
    of_another_purpose = await people.invite("new@example.com")
    tokens = [replaced, used, expired, of_disabled, of_another_purpose, new_token(), "tgm_short", "ä"]
    refusals = [
        await people.refused(400, "POST", "/auth/password/reset", by=None, json={"token": token, "password": BETTER})
        for token in tokens
    ]
    assert {(one["code"], one["param"]) for one in refusals} == {("invalid_request", "token")}
    assert len({one["message"] for one in refusals}) == 1


async def test_a_token_of_half_an_hour_is_stored_as_a_hash(people: People) -> None:
    await people.forget(MEMBER)
    token = people.mailer.token("password_reset")
    async with people.database.session() as session:
        row = (await session.scalars(select(MailedToken))).one()
    assert row.token_hash == hash_of(token)
    assert timedelta(minutes=29) < row.expires_at - utc_now() <= timedelta(minutes=30)
    columns = [getattr(row, column.key) for column in MailedToken.__table__.columns]
    assert token not in str(columns)


async def test_a_password_that_is_guessed_first_is_refused_and_the_link_works_on(people: People) -> None:
    await people.forget(MEMBER)
    token = people.mailer.token("password_reset")
    for password, words in (("password1234", "guessed first"), ("member@example.com", "guessed first")):
        body = {"token": token, "password": password}
        error = await people.refused(422, "POST", "/auth/password/reset", by=None, json=body)
        assert error["code"] == "validation_error"
        assert words in error["message"]
        assert error["errors"][0]["loc"] == ["body", "password"]
    body = {"token": token, "password": "short"}
    await people.refused(422, "POST", "/auth/password/reset", by=None, json=body)
    assert await _reset(people, token) == 204


async def test_somebody_who_comes_by_single_sign_on_alone_gets_no_password(people: People) -> None:
    async with people.database.transaction() as session:
        user = await session.get_one(User, people.users["other"])
        user.password_hash = None
        identity = Identity(
            workspace_id=user.workspace_id, user_id=user.id, issuer="https://idp.example.com", subject="1"
        )
        session.add(identity)
    await people.forget("other@example.com")
    assert await people.sent() == []


async def test_somebody_without_a_password_gets_one_by_e_mail(people: People) -> None:
    await people.done("POST", "/api/users", json={"email": "new@example.com"})
    await people.forget("new@example.com")
    assert await _reset(people, people.mailer.token("password_reset")) == 204
    assert await people.log_in("new@example.com", BETTER) is not None


async def test_who_changes_a_password_stays_signed_in_and_others_do_not(people: People) -> None:
    here, there = await people.log_in(MEMBER), await people.log_in(MEMBER)
    assert here is not None
    assert there is not None
    await people.forget(MEMBER)
    sent_before = people.mailer.token("password_reset")
    body = {"current_password": PASSWORD, "password": BETTER}
    await people.done("POST", "/auth/password", by=here, json=body)
    assert (await people.status_of(here), await people.status_of(there)) == (200, 401)
    assert await people.log_in(MEMBER) is None
    assert await people.log_in(MEMBER, BETTER) is not None
    assert await _reset(people, sent_before) == 400
    assert (await people.sent())[-1].kind == "password_changed"
    (done,) = await people.trail("account.password_changed")
    assert (done.outcome, done.actor, done.actor_id) == ("done", MEMBER, people.users["member"])


async def test_a_wrong_current_password_changes_nothing_and_is_written_down(people: People) -> None:
    body = {"current_password": "wrong", "password": BETTER}
    error = await people.refused(400, "POST", "/auth/password", by="member", json=body)
    assert error["param"] == "current_password"
    assert await people.log_in(MEMBER) is not None
    assert [one.outcome for one in await people.trail("account.password_changed")] == ["refused"]


async def test_of_two_changes_of_a_password_at_once_one_holds(people: People) -> None:
    one, two = await people.log_in(MEMBER), await people.log_in(MEMBER)
    bodies = [{"current_password": PASSWORD, "password": f"{BETTER} {n}"} for n in range(2)]
    answers = await asyncio.gather(
        *(people.call("POST", "/auth/password", by=by, json=body) for by, body in zip((one, two), bodies, strict=True))
    )
    statuses = [answer.status_code for answer in answers]
    # The other finds the password changed, or itself signed out.
    assert statuses.count(204) == 1, statuses
    assert set(statuses) <= {204, 400, 401, 409}
    opened = [await people.log_in(MEMBER, body["password"]) is not None for body in bodies]
    assert opened.index(True) == statuses.index(204)
    assert sum(opened) == 1


async def test_a_key_changes_nobody_s_password(people: People) -> None:
    body = {"current_password": PASSWORD, "password": BETTER}
    await people.refused(403, "POST", "/auth/password", by="keeper", json=body)
    await people.refused(401, "POST", "/auth/password", by=None, json=body)


async def test_guesses_of_a_current_password_are_counted_by_the_user(people: People) -> None:
    body = {"current_password": "wrong", "password": BETTER}
    for _ in range(10):
        await people.refused(400, "POST", "/auth/password", by="member", json=body)
    computations = people.hasher.computations
    await people.refused(429, "POST", "/auth/password", by="member", json=body)
    assert people.hasher.computations == computations
    await people.refused(400, "POST", "/auth/password", by="other", json=body)


async def test_links_that_are_asked_for_are_counted_by_the_address_that_they_would_go_to(people: People) -> None:
    for email in ("nobody@example.com", MEMBER):
        for _ in range(5):
            await people.forget(email)
        await people.refused(429, "POST", "/auth/password/forgot", by=None, json={"email": email})
    assert len(await people.sent()) == 5


async def test_no_token_is_in_a_log(people: People, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    await people.forget(MEMBER)
    token = people.mailer.token("password_reset")
    await _reset(people, token)
    await _reset(people, token)
    assert "tgm_" not in caplog.text

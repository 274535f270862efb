"""A second factor over HTTP: set up, asked for, used once, lost; and what of it is written down and told."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest
from sqlalchemy import select, update

from tests.support.people import BETTER, PASSWORD, People
from tests.support.second_factor import Phone
from tidegate.accounts.models import RecoveryCode, SecondFactor, SignIn
from tidegate.accounts.second_factor.codes import MOST_WRONG_CODES, PENDING_FOR, WARNED_AFTER, use_code
from tidegate.accounts.second_factor.totp import STEP_S, code_at
from tidegate.accounts.tries import SENSITIVE

SET_UP, CONFIRM = "/auth/second-factor", "/auth/second-factor/confirm"
RECOVERY = "/auth/second-factor/recovery-codes"
LOGIN = SENSITIVE["login"]


@pytest.fixture
async def people(sqlite_url: str, tmp_path: Path) -> AsyncIterator[People]:
    async with People.open(sqlite_url, tmp_path) as people:
        yield people


@pytest.fixture
async def on_both(database_url: str, tmp_path: Path) -> AsyncIterator[People]:
    async with People.open(database_url, tmp_path) as people:
        yield people


def refused(answer: httpx2.Response, status: int, code: str) -> str:
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code), answer.text
    message: str = answer.json()["error"]["message"]
    return message


async def state_of(people: People, access: str) -> dict[str, Any]:
    state: dict[str, Any] = (await people.done("GET", "/auth/me", by=access))["second_factor"]
    return state


async def row_of(people: People, whose: str) -> SecondFactor:
    async with people.database.session() as session:
        query = select(SecondFactor).where(SecondFactor.user_id == people.users[whose])
        return (await session.scalars(query)).one()


async def test_who_has_one_logs_in_by_password_and_code(on_both: People) -> None:
    people = on_both
    before = await people.log_in("member@example.com")
    assert before is not None
    elsewhere = await people.log_in("member@example.com")
    assert elsewhere is not None
    assert await state_of(people, before) == {"is_on": False, "recovery_codes_left": 0, "must_be_set_up": False}
    phone = await Phone.set_up(people, "member", before)
    # It was turned on here: what was signed in elsewhere is not any more.
    assert [await people.status_of(each) for each in (before, elsewhere)] == [200, 401]
    assert await state_of(people, before) == {"is_on": True, "recovery_codes_left": 10, "must_be_set_up": False}
    assert len(set(phone.recovery_codes)) == 10
    asked = await phone.log_in(None)
    assert "`code`" in refused(asked, 401, "second_factor_required")
    assert asked.headers["www-authenticate"] == "Bearer"
    answer = await phone.log_in(phone.next_code())
    assert answer.status_code == 200, answer.text
    assert answer.json().keys() == {"access_token", "refresh_token", "token_type", "expires_in"}
    assert (await people.done("GET", "/auth/me", by="keeper"))["second_factor"] is None
    # Whoever has none is asked for none, and one that is sent all the same is let be.
    other = {"email": "other@example.com", "password": PASSWORD}
    for form in (other, other | {"code": "123456"}):
        assert (await people.client.post("/auth/login", json=form)).status_code == 200


async def test_one_that_is_not_confirmed_counts_for_nothing(people: People) -> None:
    phone = await Phone.begun(people, "member")
    assert (await phone.log_in(None)).status_code == 200
    assert (await state_of(people, phone.access))["is_on"] is False
    for wrong in (phone.code(beside=2), phone.code(beside=-2), "000000x", "１２３４５６", "0" * 64):
        error = await people.refused(400, "POST", CONFIRM, by=phone.access, json={"code": wrong})
        assert error["param"] == "code"
    # Another begin makes the first void.
    again = await Phone.begun(people, "member", phone.access)
    await people.refused(400, "POST", CONFIRM, by=phone.access, json={"code": phone.code()})
    people.clock.now += PENDING_FOR
    await people.refused(409, "POST", CONFIRM, by=phone.access, json={"code": again.code()})


async def test_a_stolen_access_token_sets_up_nothing(people: People) -> None:
    access = await people.log_in("member@example.com")
    for body, status in (({}, 422), ({"password": "another one"}, 400), ({"password": None}, 422)):
        await people.refused(status, "POST", SET_UP, by=access, json=body)
    await people.refused(409, "POST", CONFIRM, by=access, json={"code": "123456"})
    assert (await people.refused(403, "POST", SET_UP, by="caller", json={"password": PASSWORD}))["code"]
    assert [event.outcome for event in await people.trail("account.proof_refused")] == ["refused"]
    # One that was begun by its user is confirmed by no code of another's.
    phone, thiefs = await Phone.begun(people, "member", access), await Phone.begun(people, "other")
    await people.refused(400, "POST", CONFIRM, by=access, json={"code": thiefs.code()})
    await people.done("POST", CONFIRM, by=access, json={"code": phone.code()})
    # There is one: a second is not set up over it.
    await people.refused(409, "POST", SET_UP, by=access, json={"password": PASSWORD})


async def test_a_code_is_used_once(on_both: People) -> None:
    people = on_both
    phone = await Phone.set_up(people, "member")
    # The one that confirmed it, and older ones, are used up.
    for used in (phone.code(), phone.code(beside=-1)):
        refused(await phone.log_in(used), 401, "invalid_token")
    later = phone.next_code()
    assert (await phone.log_in(later)).status_code == 200
    refused(await phone.log_in(later), 401, "invalid_token")
    # The next step's, written by a clock that is ahead, closes this one too.
    assert (await phone.log_in(phone.code(beside=1))).status_code == 200
    people.clock.now += timedelta(seconds=STEP_S)
    refused(await phone.log_in(phone.code()), 401, "invalid_token")


async def test_of_many_log_ins_by_one_code_one_gets_in(on_both: People) -> None:
    people = on_both
    phone = await Phone.set_up(people, "member")
    for code in (phone.next_code(), phone.recovery_codes[0]):
        answers = await asyncio.gather(*(phone.log_in(code) for _ in range(4)))
        assert Counter(answer.status_code for answer in answers) == {200: 1, 401: 3}
    assert len(await people.trail("account.recovery_code_used")) == 1


async def test_of_many_who_read_the_same_row_one_uses_the_code(on_both: People) -> None:
    people = on_both
    phone = await Phone.set_up(people, "member")
    read = await row_of(people, "member")

    async def use(code: str) -> str | None:
        async with people.database.transaction() as session:
            return (await use_code(session, read, code, people.sealing, people.clock.now)).means

    for code, means in ((phone.next_code(), "totp"), (phone.recovery_codes[0], "recovery_code")):
        assert Counter(await asyncio.gather(*(use(code) for _ in range(4)))) == {means: 1, None: 3}
    # Each that was wrong is counted, at once or not.
    assert (await row_of(people, "member")).wrong_codes == 3


async def test_another_users_code_opens_nothing(people: People) -> None:
    phone, other = await Phone.set_up(people, "member"), await Phone.set_up(people, "other")
    refused(await phone.log_in(other.next_code()), 401, "invalid_token")
    refused(await phone.log_in(other.recovery_codes[0]), 401, "invalid_token")
    # And is not used up by who tried it elsewhere.
    assert (await other.log_in(other.recovery_codes[0])).status_code == 200


@pytest.mark.parametrize(
    "code",
    [
        "１２３４５６",
        "١٢٣٤٥٦",
        "12345²",
        "12345\n",
        " ",
        "-",
        "null",
        "' OR 1=1 --",
        "x" * 64,
    ],
)
async def test_what_is_no_code_is_refused_as_a_wrong_one(people: People, code: str) -> None:
    phone = await Phone.set_up(people, "member")
    refused(await phone.log_in(code), 401, "invalid_token")


@pytest.mark.parametrize(("code", "status"), [("\x0012345", 400), ("1" * 65, 422), ("", 422)])
async def test_what_no_code_could_be_is_refused_before_it_is_judged(people: People, code: str, status: int) -> None:
    phone = await Phone.set_up(people, "member")
    assert (await phone.log_in(code)).status_code == status
    assert (await row_of(people, "member")).wrong_codes == 0


async def test_a_wrong_password_and_a_wrong_code_are_answered_alike(people: People) -> None:
    phone = await Phone.set_up(people, "member")
    people.clock.now += timedelta(seconds=STEP_S)
    before = people.hasher.computations
    answers = [
        await phone.log_in(phone.code(), "another password"),
        await phone.log_in("000000"),
        await phone.log_in(phone.code(), "another password", email="nobody@example.com"),
    ]
    assert {refused(answer, 401, "invalid_token") for answer in answers} == {
        "The e-mail address, the password or the code is wrong, or the code was used before."
    }
    assert people.hasher.computations - before == len(answers)
    # A wrong password used no code up, and says nothing of whether there is a second factor.
    refused(await phone.log_in(None, "another password"), 401, "invalid_token")
    assert (await phone.log_in(phone.code())).status_code == 200
    reasons = [event.details.get("reason") for event in await people.trail("account.sign_in_refused")]
    assert reasons == [None, "wrong_code", None, None]


async def test_guessing_codes_ends_with_the_tries_of_the_account(people: People) -> None:
    phone = await Phone.set_up(people, "member")
    tried = [(await phone.log_in(f"{n:06}")).status_code for n in range(LOGIN.by_account + 5)]
    # One try went into setting up.
    assert Counter(tried) == {401: LOGIN.by_account - 1, 429: 6}
    assert (await phone.log_in(phone.next_code())).status_code == 429


async def test_after_a_hundred_wrong_codes_a_recovery_code_alone_opens_and_the_owner_was_told(people: People) -> None:
    phone = await Phone.set_up(people, "member")
    async with people.database.transaction() as session:
        await session.execute(update(SecondFactor).values(wrong_codes=WARNED_AFTER - 1))
    refused(await phone.log_in("000000"), 401, "invalid_token")
    await people.sent()
    assert people.mailer.last("codes_are_guessed").to == "member@example.com"
    async with people.database.transaction() as session:
        await session.execute(update(SecondFactor).values(wrong_codes=MOST_WRONG_CODES))
    refused(await phone.log_in(phone.next_code()), 401, "invalid_token")
    assert (await phone.log_in(phone.recovery_codes[0])).status_code == 200
    assert (await row_of(people, "member")).wrong_codes == 0
    assert (await phone.log_in(phone.next_code())).status_code == 200


async def test_a_recovery_code_is_used_once_and_its_owner_is_told(people: People) -> None:
    phone = await Phone.set_up(people, "member")
    first = phone.recovery_codes[0]
    assert (await phone.log_in(first.upper().replace("-", " "))).status_code == 200
    refused(await phone.log_in(first), 401, "invalid_token")
    assert (await state_of(people, phone.access))["recovery_codes_left"] == 9
    await people.sent()
    told = people.mailer.last("recovery_code_used")
    assert told.to == "member@example.com"
    assert first not in told.text
    assert len(await people.trail("account.recovery_code_used")) == 1
    proof = {"password": PASSWORD, "code": phone.next_code()}
    renewed = (await people.done("POST", RECOVERY, by=phone.access, json=proof))["recovery_codes"]
    assert not set(renewed) & set(phone.recovery_codes)
    refused(await phone.log_in(phone.recovery_codes[1]), 401, "invalid_token")
    assert (await phone.log_in(renewed[0])).status_code == 200


@pytest.mark.parametrize(("method", "path"), [("DELETE", SET_UP), ("POST", RECOVERY)])
async def test_password_and_code_are_needed_to_change_it(people: People, method: str, path: str) -> None:
    phone = await Phone.set_up(people, "member")
    people.clock.now += timedelta(seconds=STEP_S)
    wrong = [{"password": "another one", "code": phone.code()}, {"password": PASSWORD, "code": "000000"}]
    messages = {(await people.refused(400, method, path, by=phone.access, json=body))["message"] for body in wrong}
    assert len(messages) == 1
    for body in ({"password": PASSWORD}, {"code": phone.code()}, {"password": PASSWORD, "code": ""}):
        await people.refused(422, method, path, by=phone.access, json=body)
    assert (await state_of(people, phone.access))["recovery_codes_left"] == 10
    # The wrong password did not use the code up.
    await people.done(method, path, by=phone.access, json={"password": PASSWORD, "code": phone.code()})
    # Who has none has nothing to change.
    other = await people.log_in("other@example.com")
    await people.refused(409, method, path, by=other, json={"password": PASSWORD, "code": "123456"})


@pytest.mark.parametrize(
    ("path", "change"), [("/auth/password", {"password": BETTER}), ("/auth/email", {"email": "new@example.com"})]
)
async def test_password_and_address_are_changed_by_password_and_code(
    people: People, path: str, change: dict[str, str]
) -> None:
    phone = await Phone.set_up(people, "member")
    body = {"current_password": PASSWORD, **change}
    assert (await people.refused(400, "POST", path, by=phone.access, json=body))["param"] == "code"
    wrong = [body | {"code": phone.code()}, body | {"current_password": "another one", "code": phone.next_code()}]
    messages = {(await people.refused(400, "POST", path, by=phone.access, json=each))["message"] for each in wrong}
    assert len(messages) == 1
    await people.done("POST", path, by=phone.access, json=body | {"code": phone.code()})


async def test_who_turned_it_off_logs_in_by_password_and_is_told_of_each_step(people: People) -> None:
    phone = await Phone.set_up(people, "member")
    await people.done("DELETE", SET_UP, by=phone.access, json={"password": PASSWORD, "code": phone.next_code()})
    assert await people.status_of(phone.access) == 200
    assert (await phone.log_in(None)).status_code == 200
    async with people.database.session() as session:
        assert (await session.scalars(select(RecoveryCode))).all() == []
    kinds = [message.kind for message in await people.sent()]
    assert kinds == ["second_factor_on", "second_factor_off"]
    for action in ("begun", "on", "off"):
        (event,) = await people.trail(f"account.second_factor_{action}")
        assert (event.actor, event.subject, event.details) == ("member@example.com", "member@example.com", {})
    again = await Phone.set_up(people, "member")
    assert again.secret != phone.secret


async def test_an_admin_takes_away_what_another_lost_and_not_their_own(people: People) -> None:
    phone, own = await Phone.set_up(people, "member"), await Phone.set_up(people, "admin")
    people.tokens["admin"] = own.access
    path = f"/api/users/{people.users['member']}/second-factor"
    for by, status in (("other", 403), ("keeper", 403), ("caller", 403)):
        await people.refused(status, "DELETE", path, by=by)
    own_path = f"/api/users/{people.users['admin']}/second-factor"
    assert "DELETE /auth/second-factor" in (await people.refused(403, "DELETE", own_path))["message"]
    await people.refused(404, "DELETE", "/api/users/00000000-0000-7000-8000-000000000009/second-factor")
    for _ in range(2):
        await people.done("DELETE", path)
    assert await people.status_of(phone.access) == 401
    assert (await phone.log_in(None)).status_code == 200
    assert [message.to for message in await people.sent() if message.kind == "second_factor_reset"] == [
        "member@example.com"
    ]
    (event,) = await people.trail("account.second_factor_reset")
    assert (event.actor, event.subject) == ("admin@example.com", "member@example.com")


async def test_a_new_password_by_e_mail_takes_no_second_factor_away(people: People) -> None:
    phone = await Phone.set_up(people, "member")
    await people.forget("member@example.com")
    form = {"token": people.mailer.token("password_reset"), "password": BETTER}
    assert (await people.call("POST", "/auth/password/reset", by=None, json=form)).status_code == 204
    refused(await phone.log_in(None, BETTER), 401, "second_factor_required")
    assert (await phone.log_in(phone.next_code(), BETTER)).status_code == 200


async def test_a_log_in_under_way_while_it_is_confirmed_is_not_without_it(on_both: People) -> None:
    people = on_both
    for whose in ("member", "other", "stranger"):
        phone = await Phone.begun(people, whose)
        confirming = asyncio.create_task(people.done("POST", CONFIRM, by=phone.access, json={"code": phone.code()}))
        answers = await asyncio.gather(*(phone.log_in(None) for _ in range(3)))
        await confirming
        for answer in answers:
            # Refused, or ended by what came after it.
            if answer.status_code == 200:
                assert await people.status_of(answer.json()["access_token"]) == 401
    async with people.database.session() as session:
        live = (await session.scalars(select(SignIn.user_id).where(SignIn.ended_at.is_(None)))).all()
    assert set(Counter(live).values()) == {1}


async def test_nothing_of_it_is_stored_in_the_clear(people: People) -> None:
    phone = await Phone.set_up(people, "member")
    row = await row_of(people, "member")
    assert phone.secret not in row.sealed_secret
    assert row.secret_kid == "generated-1"
    # The rows of one user put in place of another's open nothing.
    other = await Phone.set_up(people, "other")
    async with people.database.transaction() as session:
        await session.execute(
            update(SecondFactor)
            .where(SecondFactor.user_id == people.users["member"])
            .values(sealed_secret=(await row_of(people, "other")).sealed_secret)
        )
    refused(await phone.log_in(other.next_code()), 401, "invalid_token")
    refused(await phone.log_in(phone.code()), 401, "invalid_token")


async def test_a_page_is_signed_in_by_password_and_code(people: People) -> None:
    phone = await Phone.set_up(people, "member")
    form = {"email": "member@example.com", "password": PASSWORD}
    headers = {"X-Tidegate-CSRF": "1"}
    asked = await people.client.post("/auth/page/login", json=form, headers=headers)
    refused(asked, 401, "second_factor_required")
    # The browser is not known before all of it was right.
    assert "set-cookie" not in asked.headers
    code = code_at(phone.secret, int(people.clock.now.timestamp() // STEP_S) + 1)
    answer = await people.client.post("/auth/page/login", json=form | {"code": code}, headers=headers)
    assert answer.status_code == 200, answer.text
    assert answer.json().keys() == {"expires_in", "refresh_expires_in"}

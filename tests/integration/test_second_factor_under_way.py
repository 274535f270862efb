"""A second factor while something else of its user is under way, and a secret that this gateway cannot decrypt."""

import asyncio
import itertools
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import select, text, update

from tests.support.people import People
from tests.support.second_factor import Phone
from tests.support.waiting import eventually
from tidegate.accounts.models import RecoveryCode, SecondFactor, SignIn, User
from tidegate.accounts.second_factor.codes import MOST_WRONG_CODES, remove, use_code
from tidegate.accounts.second_factor.sealing import Sealing
from tidegate.accounts.second_factor.totp import STEP_S
from tidegate.accounts.service import locked_user
from tidegate.ledger.entry import utc_now


@pytest.fixture
async def people(sqlite_url: str, tmp_path: Path) -> AsyncIterator[People]:
    async with People.open(sqlite_url, tmp_path) as people:
        yield people


async def row_of(people: People) -> SecondFactor:
    async with people.database.session() as session:
        return (await session.scalars(select(SecondFactor))).one()


async def test_a_recovery_code_and_a_reset_at_once_do_not_wait_for_each_other(
    postgres_url: str, tmp_path: Path
) -> None:
    someone_waits = text(
        "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )
    async with People.open(postgres_url, tmp_path) as people:
        phone = await Phone.set_up(people, "member")
        read = await row_of(people)

        async def use() -> str | None:
            async with people.database.transaction() as session:
                judged = await use_code(session, read, phone.recovery_codes[0], people.sealing, people.clock.now)
                return judged.means

        async def waits() -> bool:
            async with people.database.session() as session:
                return await session.scalar(someone_waits) is not None

        async with people.database.transaction() as session:
            await locked_user(session, people.users["member"])
            # Where a reset is after its first statement.
            await session.execute(select(SecondFactor.id).with_for_update())
            using = asyncio.create_task(use())
            await eventually(waits)
            assert await remove(session, people.users["member"])
        # It was taken away: there is nothing that the code stands for.
        assert await using is None
        async with people.database.session() as session:
            assert (await session.scalars(select(RecoveryCode))).all() == []


@pytest.mark.parametrize("what", ["sign-in", "user"])
async def test_who_was_signed_out_at_this_moment_confirms_nothing(people: People, what: str) -> None:
    phone = await Phone.begun(people, "member")
    # As by another worker, whose word has not come yet: what is known here is remembered.
    async with people.database.transaction() as session:
        if what == "sign-in":
            await session.execute(update(SignIn).values(ended_at=utc_now(), ended_because="password_changed"))
        else:
            await session.execute(update(User).values(disabled_at=utc_now()))
    await people.refused(401, "POST", "/auth/second-factor/confirm", by=phone.access, json={"code": phone.code()})
    assert (await row_of(people)).confirmed_at is None


async def test_right_codes_that_cannot_be_judged_are_not_counted_as_wrong(people: People) -> None:
    phone = await Phone.set_up(people, "member")
    sealing = people.sealing
    people.sealing = Sealing(None)
    assert (await phone.log_in(phone.next_code())).status_code == 401
    assert (await row_of(people)).wrong_codes == 0
    # What has no code's form of the app is counted all the same.
    assert (await phone.log_in("y" * 24)).status_code == 401
    assert (await row_of(people)).wrong_codes == 1
    people.sealing = sealing
    # And the code was not used up.
    assert (await phone.log_in(phone.code())).status_code == 200


async def test_the_owner_is_told_that_a_recovery_code_alone_opens_the_account(people: People) -> None:
    phone = await Phone.set_up(people, "member")
    for wrong_codes in (MOST_WRONG_CODES - 2, MOST_WRONG_CODES - 1, MOST_WRONG_CODES):
        async with people.database.transaction() as session:
            await session.execute(update(SecondFactor).values(wrong_codes=wrong_codes))
        assert (await phone.log_in("y" * 24)).status_code == 401
    told = [message for message in await people.sent() if message.kind == "codes_are_refused"]
    assert [message.to for message in told] == ["member@example.com"]
    assert "recovery code" in told[0].text


async def test_who_does_not_know_the_password_closes_nobodys_app(people: People) -> None:
    phone = await Phone.set_up(people, "member")
    people.clock.now += timedelta(seconds=STEP_S)
    for code, _ in zip(itertools.cycle(("000000", phone.code(), "y" * 24)), range(6), strict=False):
        assert (await phone.log_in(code, "another password")).status_code == 401
    row = await row_of(people)
    assert row.wrong_codes == 0
    assert (await phone.log_in(phone.code())).status_code == 200

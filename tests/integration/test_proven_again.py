"""Ending one's sign-ins takes somebody who logged in lately, or proves again who they are; a log-out takes neither."""

from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, update

from tests.support.credentials import EMAIL, quick_passwords
from tests.support.people import PASSWORD, People
from tests.support.second_factor import Phone
from tests.support.sso_gateway import SsoGateway, leads_to, refused
from tests.support.sso_provider import ScriptedProvider
from tidegate.accounts.models import SignIn
from tidegate.accounts.second_factor.proving import FRESH_FOR_S
from tidegate.accounts.tries import SENSITIVE
from tidegate.ledger.entry import utc_now

EVERYWHERE = ("POST", "/auth/logout/everywhere")
LEEWAY_S = 60


@pytest.fixture
async def people(sqlite_url: str, tmp_path: Path) -> AsyncIterator[People]:
    async with People.open(sqlite_url, tmp_path) as people:
        yield people


async def aged(people: Any, seconds: int) -> None:
    """Every sign-in there is began so long ago. To be called before its token is used: what is known is remembered."""
    async with people.database.transaction() as session:
        await session.execute(update(SignIn).values(created_at=utc_now() - timedelta(seconds=seconds)))


async def tokens_of(people: People, whose: str = "member") -> dict[str, str]:
    form = {"email": f"{whose}@example.com", "password": PASSWORD}
    tokens: dict[str, str] = (await people.client.post("/auth/login", json=form)).json()
    return tokens


async def ways(people: People) -> list[tuple[str, str]]:
    """Both ways to end sign-ins: one of the member's, the first that they have, and all."""
    async with people.database.session() as session:
        query = select(SignIn.id).where(SignIn.user_id == people.users["member"]).order_by(SignIn.id)
        (first, *_) = await session.scalars(query)
    return [("DELETE", f"/auth/sign-ins/{first}"), EVERYWHERE]


@pytest.mark.parametrize("at", [0, 1])
async def test_who_logged_in_lately_needs_nothing_more(people: People, at: int) -> None:
    first, tokens = await tokens_of(people), await tokens_of(people)
    await aged(people, FRESH_FOR_S - LEEWAY_S)
    assert (await people.call(*(await ways(people))[at], by=tokens["access_token"])).status_code == 204
    assert await people.status_of(first["access_token"]) == 401


async def test_a_proof_that_is_sent_is_judged_though_none_is_needed(people: People) -> None:
    access = (await tokens_of(people))["access_token"]
    await people.refused(400, *EVERYWHERE, by=access, json={"password": "another one"})
    await people.refused(403, *EVERYWHERE, by=access, json={"code": "123456"})
    assert await people.status_of(access) == 200
    assert (await people.call(*EVERYWHERE, by=access, json={"password": PASSWORD})).status_code == 204


async def test_an_old_sign_in_ends_none_without_the_password(people: People) -> None:
    tokens = await tokens_of(people)
    access = tokens["access_token"]
    await aged(people, FRESH_FOR_S + LEEWAY_S)
    for method, path in await ways(people):
        for body in (None, {}, {"password": None}, {"code": "123456"}):
            options = {} if body is None else {"json": body}
            error = await people.refused(403, method, path, by=access, **options)
            assert error["code"] == "reauthentication_required"
        error = await people.refused(400, method, path, by=access, json={"password": "another one"})
        assert (error["param"], error["code"]) == ("password", "invalid_request")
        await people.refused(422, method, path, by=access, json={"password": ""})
    assert await people.status_of(access) == 200
    # A refresh makes no sign-in younger.
    renewed = (await people.client.post("/auth/refresh", json={"refresh_token": tokens["refresh_token"]})).json()
    await people.refused(403, *EVERYWHERE, by=renewed["access_token"])
    # One's own log-out never needs it, by whichever token.
    body = {"refresh_token": renewed["refresh_token"]}
    assert (await people.client.post("/auth/logout", json=body)).status_code == 204
    assert await people.status_of(access) == 401


@pytest.mark.parametrize("at", [0, 1])
async def test_the_password_is_proof(people: People, at: int) -> None:
    access = (await tokens_of(people))["access_token"]
    await aged(people, FRESH_FOR_S + LEEWAY_S)
    method, path = (await ways(people))[at]
    assert (await people.call(method, path, by=access, json={"password": PASSWORD})).status_code == 204
    assert await people.status_of(access) == 401


async def test_with_a_second_factor_its_code_is_needed_too(people: People) -> None:
    phone = await Phone.set_up(people, "member")
    answer = await phone.log_in(phone.next_code())
    access = answer.json()["access_token"]
    await aged(people, FRESH_FOR_S + LEEWAY_S)
    assert (await people.refused(400, *EVERYWHERE, by=access, json={"password": PASSWORD}))["param"] == "code"
    used = {"password": PASSWORD, "code": phone.code()}
    await people.refused(400, *EVERYWHERE, by=access, json=used)
    right = {"password": PASSWORD, "code": phone.next_code()}
    assert (await people.call(*EVERYWHERE, by=access, json=right)).status_code == 204
    assert await people.status_of(access) == 401


async def test_a_stolen_sign_in_guesses_no_password_by_it(people: People) -> None:
    access = (await tokens_of(people))["access_token"]
    await aged(people, FRESH_FOR_S + LEEWAY_S)
    most = SENSITIVE["prove-again"].by_account
    for _ in range(most):
        await people.refused(400, *EVERYWHERE, by=access, json={"password": "another one"})
    await people.refused(429, *EVERYWHERE, by=access, json={"password": PASSWORD})
    assert len(await people.trail("account.proof_refused")) == most
    # Without a proof nothing is tried, and nothing counted.
    await people.refused(403, *EVERYWHERE, by=access)


@pytest.mark.parametrize("password_log_in", [True, False])
async def test_a_log_in_by_the_provider_is_proof_while_it_is_fresh(
    sqlite_url: str, tmp_path: Path, password_log_in: bool
) -> None:
    own_page = {"X-Tidegate-CSRF": "1"}
    async with ScriptedProvider.running() as provider:
        provider.is_person("subject-1", EMAIL)
        async with SsoGateway.open(sqlite_url, tmp_path, provider.issuer, password_log_in=password_log_in) as gateway:
            await gateway.add_user(EMAIL, password_hash=await quick_passwords().hash(PASSWORD))
            old, fresh = gateway.browser(), gateway.browser()
            leads_to(await old.log_in())
            await aged(gateway, FRESH_FOR_S + LEEWAY_S)
            leads_to(await fresh.log_in())
            for body in ({}, {"password": PASSWORD}) if not password_log_in else ({},):
                answer = await old.client.post(EVERYWHERE[1], json=body, headers=own_page)
                assert "sign in again" in refused(answer, 403, "reauthentication_required")
            answer = await fresh.client.post(EVERYWHERE[1], headers=own_page)
            assert answer.status_code == 204, answer.text

"""Stolen refresh tokens at the real gateway: replayed, raced, and tried where they do not belong."""

import asyncio
from collections import Counter
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import select, update

from tests.security.attacked import PUBLIC_URL, Attacked
from tests.support.waiting import eventually
from tidegate.accounts.models import RefreshToken, SignIn
from tidegate.accounts.sign_ins.refresh_tokens import GRACE, hash_of
from tidegate.accounts.sign_ins.service import IssuedTokens

Json = dict[str, Any]
OWN_PAGE = {"X-Tidegate-CSRF": "1", "Origin": PUBLIC_URL, "Sec-Fetch-Site": "same-origin"}


class Family:
    """A sign-in at the gateway, and what it was given so far. `by_page` has it in the cookies of a browser."""

    def __init__(self, attacked: Attacked, issued: IssuedTokens, *, by_page: bool) -> None:
        self.attacked = attacked
        self.sign_in_id = issued.sign_in_id
        self.refresh_tokens = [issued.refresh_token]
        self.access_tokens = [issued.access_token]
        self._by_page = by_page

    async def present(self, token: str) -> tuple[int, str]:
        """The status and the code of an answer, "" where it gave tokens, which are kept."""
        if self._by_page:
            headers = {**OWN_PAGE, "Cookie": f"tidegate_refresh={token}"}
            answer = await self.attacked.call("POST", "/auth/page/refresh", headers=headers)
            given = {f"{name}_token": answer.cookies.get(f"tidegate_{name}") or "" for name in ("refresh", "access")}
        else:
            answer = await self.attacked.call("POST", "/auth/refresh", json={"refresh_token": token})
            given = answer.json() if answer.is_success else {}
        if not answer.is_success:
            assert "set-cookie" not in answer.headers
            return answer.status_code, answer.json()["error"]["code"]
        self.refresh_tokens.append(given["refresh_token"])
        self.access_tokens.append(given["access_token"])
        return answer.status_code, ""

    async def lives(self) -> bool:
        status = (await self.attacked.call("GET", "/auth/me", by=self.access_tokens[-1])).status_code
        assert status in (200, 401)
        return status == 200

    async def ended_because(self) -> str | None:
        query = select(SignIn.ended_because).where(SignIn.id == self.sign_in_id)
        async with self.attacked.database.session() as session:
            because: str | None = await session.scalar(query)
        return because

    async def is_over(self) -> None:
        """Waits until none of its tokens opens anything."""

        async def nothing_opens() -> bool:
            answers = [await self.attacked.call("GET", "/auth/me", by=token) for token in self.access_tokens]
            return all(answer.status_code == 401 for answer in answers)

        await eventually(nothing_opens)
        for token in self.refresh_tokens:
            assert (await self.present(token))[0] == 401

    async def pass_time(self, token: str) -> None:
        """Has a token's use lie further back than two tabs may be apart."""
        async with self.attacked.database.transaction() as session:
            row = await session.scalar(select(RefreshToken).where(RefreshToken.token_hash == hash_of(token)))
            assert row is not None
            assert row.used_at is not None
            earlier = row.used_at - GRACE - timedelta(seconds=1)
            await session.execute(update(RefreshToken).where(RefreshToken.id == row.id).values(used_at=earlier))


@pytest.fixture(params=["by its body", "by its cookie"])
async def family(request: pytest.FixtureRequest, attacked: Attacked) -> Family:
    return Family(attacked, await attacked.begin("member"), by_page=request.param == "by its cookie")


async def test_a_token_that_is_replayed_later_ends_all_that_came_of_it(family: Family) -> None:
    stolen = family.refresh_tokens[0]
    assert await family.present(stolen) == (200, "")
    assert await family.lives()
    await family.pass_time(stolen)
    assert await family.present(stolen) == (401, "invalid_token")
    await family.is_over()
    assert await family.ended_because() == "reused"


async def test_a_token_of_two_uses_ago_ends_all_at_once_however_soon_it_comes(family: Family) -> None:
    stolen = family.refresh_tokens[0]
    await family.present(stolen)
    await family.present(family.refresh_tokens[-1])
    assert await family.present(stolen) == (401, "invalid_token")
    await family.is_over()


async def test_of_many_at_once_one_is_given_tokens_and_the_sign_in_goes_on(family: Family) -> None:
    token = family.refresh_tokens[0]
    for _ in range(3):
        answers = Counter(await asyncio.gather(*(family.present(token) for _ in range(12))))
        assert answers == {(200, ""): 1, (409, "conflict"): 11}
        token = family.refresh_tokens[-1]
    assert len(set(family.refresh_tokens)) == 4
    assert await family.lives()


async def test_who_signs_out_while_a_thief_refreshes_is_signed_out(family: Family) -> None:
    token = family.refresh_tokens[0]

    async def sign_out() -> None:
        answer = await family.attacked.call("POST", "/auth/logout", json={"refresh_token": token})
        assert answer.status_code == 204

    await asyncio.gather(*(family.present(token) for _ in range(4)), sign_out(), sign_out())
    await family.is_over()
    assert await family.ended_because() is not None


async def test_many_thieves_with_an_old_token_get_nothing(family: Family) -> None:
    stolen = family.refresh_tokens[0]
    await family.present(stolen)
    await family.pass_time(stolen)
    answers = await asyncio.gather(*(family.present(stolen) for _ in range(8)))
    assert set(answers) == {(401, "invalid_token")}
    await family.is_over()


async def test_a_token_is_good_for_what_it_is_alone(attacked: Attacked) -> None:
    mine, other = await attacked.begin("member"), await attacked.begin("stranger")
    for path in ("/auth/me", "/api/keys", "/v1/models"):
        assert (await attacked.call("GET", path, by=mine.refresh_token)).status_code == 401
    head, secret = mine.refresh_token[:4], mine.refresh_token[4:]
    wrong = [
        mine.access_token,
        attacked.credentials["keeper"],
        mine.refresh_token[:-1],
        mine.refresh_token + "A",
        mine.refresh_token.upper(),
        head + secret[:20] + other.refresh_token[24:],
        "tgm_" + secret,
        secret,
        "' OR '1'='1",
        "%",
    ]
    for token in wrong:
        answer = await attacked.call("POST", "/auth/refresh", json={"refresh_token": token})
        assert answer.status_code in (401, 422), token
    for issued in (mine, other):
        assert (await attacked.call("GET", "/auth/me", by=issued.access_token)).status_code == 200


async def test_a_cookie_of_the_page_is_of_no_use_to_another_page(attacked: Attacked) -> None:
    issued = await attacked.begin("member")
    cookies = {"Cookie": f"tidegate_refresh={issued.refresh_token}; tidegate_access={issued.access_token}"}
    elsewhere: tuple[dict[str, str], ...] = (
        {},
        {"X-Tidegate-CSRF": "0"},
        {**OWN_PAGE, "Origin": "https://gateway.example.com.evil.example"},
        {**OWN_PAGE, "Origin": "null"},
        {**OWN_PAGE, "Sec-Fetch-Site": "cross-site"},
        {**OWN_PAGE, "Sec-Fetch-Site": "same-site"},
    )
    for headers in elsewhere:
        for path in ("/auth/page/refresh", "/auth/page/logout", "/auth/logout/everywhere", "/api/keys"):
            answer = await attacked.call("POST", path, headers=headers | cookies, json={"name": "x"})
            assert answer.status_code == 403, f"{path} {headers}: {answer.text}"
    assert (await attacked.call("GET", "/auth/me", by=issued.access_token)).status_code == 200

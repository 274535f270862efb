"""Whoever guesses an account keeps nobody out who logs in from a browser that is known for it."""

from collections.abc import AsyncIterator
from pathlib import Path

import httpx2
import pytest

from tests.support.credentials import EMAIL, PASSWORD
from tests.support.sign_in_api import OTHER, SignInApi
from tidegate.accounts.tries import SENSITIVE
from tidegate.settings.groups import HttpSettings

MOST = SENSITIVE["login"]
COOKIE = "tidegate_known_browser"


class Callers:
    """Every try comes from an address of its own, but where one is named."""

    def __init__(self, api: SignInApi) -> None:
        self._api = api
        self._n = 0

    async def log_in(
        self, password: str, cookie: str | None = None, *, email: str = EMAIL, path: str = "/auth/page/login"
    ) -> httpx2.Response:
        self._n += 1
        # No browser but the one whose cookie is named.
        self._api.client.cookies.clear()
        headers = {"X-Tidegate-CSRF": "1", "X-Forwarded-For": f"198.51.100.{self._n}"}
        if cookie is not None:
            headers["Cookie"] = f"{COOKIE}={cookie}"
        body = {"email": email, "password": password}
        return await self._api.client.post(path, json=body, headers=headers)

    async def known(self, email: str = EMAIL, cookie: str | None = None) -> str:
        """The cookie of a browser that logs in now."""
        answer = await self.log_in(PASSWORD, cookie, email=email)
        assert answer.status_code == 200, answer.text
        return answer.cookies[COOKIE]

    async def use_up(self) -> None:
        """Guesses until everybody's tries of the account are gone."""
        while (answer := await self.log_in("a wrong password")).status_code == 401:
            pass
        assert answer.status_code == 429


@pytest.fixture
async def callers(sqlite_url: str, tmp_path: Path) -> AsyncIterator[Callers]:
    http = HttpSettings(trusted_proxies=("192.0.2.7",))
    async with SignInApi.open(sqlite_url, tmp_path, http=http) as api:
        yield Callers(api)


async def test_guessing_from_elsewhere_keeps_no_owner_out_of_their_browser(callers: Callers) -> None:
    cookie = await callers.known()
    await callers.use_up()
    assert (await callers.log_in(PASSWORD)).status_code == 429
    assert (await callers.log_in(PASSWORD, path="/auth/login")).status_code == 429
    again = await callers.known(cookie=cookie)
    assert (await callers.log_in(PASSWORD, again)).status_code == 200


async def test_a_known_browser_tries_ten_times_and_costs_nobody_else_theirs(callers: Callers) -> None:
    cookie = await callers.known()
    for _ in range(MOST.by_browser):
        assert (await callers.log_in("a wrong password", cookie)).status_code == 401
    refused = await callers.log_in(PASSWORD, cookie)
    assert refused.status_code == 429
    assert "for one browser" in refused.json()["error"]["message"]
    assert (await callers.log_in(PASSWORD)).status_code == 200


async def test_all_known_browsers_of_an_account_are_bounded_together(callers: Callers) -> None:
    cookies = [await callers.known() for _ in range(4)]
    wrong = [await callers.log_in("a wrong password", cookie) for cookie in cookies for _ in range(MOST.by_browser)]
    refused = [answer for answer in wrong if answer.status_code == 429]
    assert len(wrong) - len(refused) == MOST.by_known_browsers
    assert "30 in 15 minutes for one account" in refused[0].json()["error"]["message"]


async def test_a_browser_is_known_for_the_account_it_logged_in_as_alone(callers: Callers) -> None:
    cookie = await callers.known(OTHER)
    await callers.use_up()
    assert (await callers.log_in(PASSWORD, cookie)).status_code == 429
    assert (await callers.log_in(PASSWORD, cookie[:-3] + "abc", email=OTHER)).status_code == 200


async def test_it_is_no_credential_and_only_a_log_in_gives_one(callers: Callers) -> None:
    cookie = await callers.known()
    assert (await callers.log_in("a wrong password", cookie)).status_code == 401
    assert COOKIE not in (await callers.log_in("a wrong password")).cookies
    assert COOKIE not in (await callers.log_in(PASSWORD, path="/auth/login")).cookies

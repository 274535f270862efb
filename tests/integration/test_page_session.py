"""The page's session: cookies that no script reads, and that no other site can use."""

from collections.abc import AsyncIterator
from http.cookies import Morsel, SimpleCookie
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.support.credentials import EMAIL, PASSWORD
from tests.support.sign_in_api import SignInApi
from tidegate.settings.groups import HttpSettings

OURS = {"X-Tidegate-CSRF": "1"}
BODY = {"email": EMAIL, "password": PASSWORD}
ACCESS, REFRESH, MARK = "tidegate_access", "tidegate_refresh", "tidegate_signed_in"
KNOWN = "tidegate_known_browser"


class Page:
    """A browser's page: it keeps cookies by their path, and sends the headers of a request of its own."""

    def __init__(self, api: SignInApi, base_url: str = "http://gateway") -> None:
        self.api = api
        self.base_url = base_url
        self.cookies: dict[str, Morsel[str]] = {}

    async def send(
        self, method: str, path: str, headers: dict[str, str] | None = None, body: Any = None
    ) -> httpx2.Response:
        sent = {name: one.value for name, one in self.cookies.items() if path.startswith(one["path"])}
        cookie = {"Cookie": "; ".join(f"{name}={value}" for name, value in sent.items())} if sent else {}
        given = OURS if headers is None else headers
        answer = await self.api.client.request(method, f"{self.base_url}{path}", headers=given | cookie, json=body)
        for line in answer.headers.get_list("set-cookie"):
            for name, morsel in SimpleCookie(line).items():
                self.cookies[name] = morsel
                if morsel["max-age"] == "0":
                    del self.cookies[name]
        return answer

    async def log_in(self) -> None:
        answer = await self.send("POST", "/auth/page/login", body=BODY)
        assert answer.status_code == 200, answer.text

    async def me(self, headers: dict[str, str] | None = None) -> int:
        return (await self.send("GET", "/auth/me", headers)).status_code


@pytest.fixture
async def api(sqlite_url: str, tmp_path: Path) -> AsyncIterator[SignInApi]:
    async with SignInApi.open(sqlite_url, tmp_path) as api:
        yield api


@pytest.fixture
async def page(api: SignInApi) -> Page:
    return Page(api)


def _refused(answer: httpx2.Response, status: int, code: str) -> str:
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code), answer.text
    message: str = answer.json()["error"]["message"]
    return message


async def test_a_page_signs_in_refreshes_and_signs_out_and_never_sees_a_token(page: Page) -> None:
    answer = await page.send("POST", "/auth/page/login", body=BODY)
    assert answer.status_code == 200
    assert answer.json() == {"expires_in": 900, "refresh_expires_in": 7 * 24 * 3600}
    assert answer.headers["cache-control"] == "no-store"
    assert await page.me() == 200
    before = {name: morsel.value for name, morsel in page.cookies.items()}
    assert before.keys() == {ACCESS, REFRESH, MARK, KNOWN}
    answer = await page.send("POST", "/auth/page/refresh")
    assert answer.status_code == 200
    assert answer.json().keys() == {"expires_in", "refresh_expires_in"}
    assert page.cookies[REFRESH].value != before[REFRESH]
    assert await page.me() == 200
    kept = dict(page.cookies)
    answer = await page.send("POST", "/auth/page/logout")
    assert (answer.status_code, set(page.cookies)) == (204, {KNOWN})
    page.cookies = kept
    _refused(await page.send("GET", "/auth/me"), 401, "invalid_token")


async def test_cookies_of_plain_http_outside_production(page: Page) -> None:
    answer = await page.send("POST", "/auth/page/login", body=BODY)
    lines = sorted(answer.headers.get_list("set-cookie"))
    assert [line.partition("=")[0] for line in lines] == [ACCESS, KNOWN, REFRESH, MARK]
    for line, age in zip(lines, (900, 365 * 24 * 3600, 7 * 24 * 3600, 7 * 24 * 3600), strict=True):
        parts = {part.strip() for part in line.split(";")[1:]}
        hidden = set() if line.startswith(MARK) else {"HttpOnly"}
        assert parts == hidden | {f"Max-Age={age}", "Path=/", "SameSite=strict"}


async def test_the_cookie_that_scripts_may_read_holds_no_secret_and_stands_for_nobody(page: Page) -> None:
    await page.log_in()
    assert page.cookies[MARK].value == "1"
    page.cookies = {MARK: page.cookies[MARK]}
    _refused(await page.send("GET", "/auth/me"), 401, "missing_credentials")
    _refused(await page.send("POST", "/auth/page/refresh"), 401, "missing_credentials")


async def test_cookies_of_https_are_secure_and_fixed_to_this_host(api: SignInApi) -> None:
    page = Page(api, "https://gateway")
    answer = await page.send("POST", "/auth/page/login", body=BODY)
    lines = sorted(answer.headers.get_list("set-cookie"))
    assert [line.partition("=")[0] for line in lines] == [f"__Host-{name}" for name in (ACCESS, KNOWN, REFRESH, MARK)]
    assert all("; Secure" in line and "Domain" not in line for line in lines)
    assert all("; HttpOnly" in line for line in lines[:3])
    assert await page.me() == 200
    assert (await page.send("POST", "/auth/page/refresh")).status_code == 200
    # A neighbour of the domain can set a cookie without the prefix, and is not believed.
    cookie = {"Cookie": f"{ACCESS}={page.cookies['__Host-tidegate_access'].value}"}
    refused = await api.client.get("https://gateway/auth/me", headers=cookie)
    _refused(refused, 401, "missing_credentials")


FOREIGN = [
    ({}, "X-Tidegate-CSRF: 1"),
    ({"X-Tidegate-CSRF": "0"}, "X-Tidegate-CSRF: 1"),
    ({"X-Tidegate-CSRF": "1, 1"}, "X-Tidegate-CSRF: 1"),
    (OURS | {"Sec-Fetch-Site": "cross-site"}, "Sec-Fetch-Site"),
    (OURS | {"Sec-Fetch-Site": "same-site"}, "Sec-Fetch-Site"),
    (OURS | {"Origin": "http://evil.example"}, "Origin"),
    (OURS | {"Origin": "http://gateway:8080"}, "Origin"),
    (OURS | {"Origin": "https://gateway"}, "Origin"),
    (OURS | {"Origin": "http://gateway.evil.example"}, "Origin"),
    (OURS | {"Origin": "http://gateway@evil.example"}, "Origin"),
    (OURS | {"Origin": "null"}, "Origin"),
    (OURS | {"Origin": ""}, "Origin"),
]


@pytest.mark.parametrize(("headers", "said"), FOREIGN)
@pytest.mark.parametrize(
    "path", ["/auth/page/login", "/auth/page/refresh", "/auth/page/logout", "/auth/logout/everywhere"]
)
async def test_what_another_site_sends_changes_nothing(
    page: Page, path: str, headers: dict[str, str], said: str
) -> None:
    await page.log_in()
    body = BODY if path.endswith("login") else None
    refused = await page.send("POST", path, headers, body)
    assert said in _refused(refused, 403, "permission_denied")
    assert "set-cookie" not in refused.headers
    assert await page.me() == 200


async def test_another_sites_log_ins_are_no_tries_of_the_account(page: Page) -> None:
    for _ in range(12):
        refused = await page.send("POST", "/auth/page/login", {}, BODY | {"password": "wrong"})
        assert refused.status_code == 403
    await page.log_in()


@pytest.mark.parametrize(
    "headers",
    [
        OURS,
        OURS | {"Sec-Fetch-Site": "same-origin", "Origin": "http://gateway"},
        OURS | {"Sec-Fetch-Site": "none"},
        OURS | {"Origin": "http://GATEWAY:80"},
    ],
)
async def test_what_the_page_itself_sends_is_let_through(page: Page, headers: dict[str, str]) -> None:
    await page.log_in()
    assert (await page.send("POST", "/auth/page/refresh", headers)).status_code == 200
    assert (await page.send("POST", "/auth/logout/everywhere", headers)).status_code == 204


async def test_behind_a_proxy_the_public_url_is_the_pages_origin(sqlite_url: str, tmp_path: Path) -> None:
    http = HttpSettings(public_url="https://gateway.example.com")
    async with SignInApi.open(sqlite_url, tmp_path, http=http) as api:
        page = Page(api)
        await page.log_in()
        origin = OURS | {"Origin": "https://gateway.example.com"}
        assert (await page.send("POST", "/auth/page/refresh", origin)).status_code == 200
        other = OURS | {"Origin": "http://gateway.example.com"}
        assert "TIDEGATE_HTTP__PUBLIC_URL" in _refused(
            await page.send("POST", "/auth/page/refresh", other), 403, "permission_denied"
        )


async def test_reading_needs_no_header_and_changing_does(page: Page) -> None:
    await page.log_in()
    assert await page.me({}) == 200
    created = {"name": "from the page"}
    _refused(await page.send("POST", "/api/keys", {}, created), 403, "permission_denied")
    assert (await page.send("POST", "/api/keys", OURS, created)).status_code == 201


async def test_a_credential_in_a_header_is_the_one_that_is_judged(page: Page) -> None:
    await page.log_in()
    for headers in ({"Authorization": "Bearer nonsense"}, {"x-api-key": "tg_nonsense"}):
        assert await page.me(headers) == 401
    for headers in ({"Authorization": "Basic QQ=="}, {"Authorization": ""}, {"x-api-key": ""}):
        _refused(await page.send("GET", "/auth/me", headers), 401, "missing_credentials")
    # It is nobody's cookie then, so no page has to be asked.
    tokens = await page.api.log_in()
    bearer = {"Authorization": f"Bearer {tokens['access_token']}"}
    assert (await page.send("POST", "/auth/logout/everywhere", bearer)).status_code == 204


@pytest.mark.parametrize("value", ["nonsense", "tg_abcdefgh_" + "A" * 43, "a b", "x" * 5000])
async def test_a_cookie_that_holds_no_access_token_is_refused(page: Page, value: str) -> None:
    answer = await page.api.client.get("/auth/me", headers={"Cookie": f"{ACCESS}={value}"})
    _refused(answer, 401, "invalid_token")


async def test_an_api_key_is_none_of_a_pages_credentials(page: Page) -> None:
    await page.log_in()
    key = (await page.send("POST", "/api/keys", OURS, {"name": "k"})).json()["key"]
    assert await page.me({"Authorization": f"Bearer {key}"}) == 200
    answer = await page.api.client.get("/auth/me", headers={"Cookie": f"{ACCESS}={key}"})
    assert "no API key" in _refused(answer, 401, "invalid_token")


async def test_a_page_without_a_session_is_told_so_and_may_sign_out(page: Page) -> None:
    _refused(await page.send("POST", "/auth/page/refresh"), 401, "missing_credentials")
    assert (await page.send("POST", "/auth/page/logout")).status_code == 204
    _refused(await page.send("GET", "/auth/me"), 401, "missing_credentials")


async def test_a_log_in_ends_the_sign_in_that_the_browser_had(page: Page) -> None:
    await page.log_in()
    before = Page(page.api)
    before.cookies = dict(page.cookies)
    elsewhere = await page.api.log_in()
    await page.log_in()
    assert await page.me() == 200
    assert await before.me() == 401
    _refused(await before.send("POST", "/auth/page/refresh"), 401, "invalid_token")
    assert await page.api.status_of(elsewhere) == 200
    (ended,) = await page.api.events("account.signed_out")
    assert (ended.actor, ended.outcome) == (EMAIL, "done")
    # A log-in that is refused ends nothing.
    answer = await page.send("POST", "/auth/page/login", body=BODY | {"password": "quite another one"})
    assert (answer.status_code, await page.me()) == (401, 200)


async def test_the_access_line_says_who_is_signed_in(page: Page, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="tidegate.access")
    await page.log_in()
    caplog.clear()
    assert await page.me() == 200
    (line,) = [record.msg for record in caplog.records if record.name == "tidegate.access"]
    assert isinstance(line, dict)
    assert (line["status"], line["user"]) == (200, page.api.users[EMAIL])


async def test_two_tabs_keep_one_session(page: Page) -> None:
    await page.log_in()
    late = Page(page.api)
    late.cookies = dict(page.cookies)
    assert (await page.send("POST", "/auth/page/refresh")).status_code == 200
    refused = await late.send("POST", "/auth/page/refresh")
    _refused(refused, 409, "conflict")
    assert "set-cookie" not in refused.headers
    assert await page.me() == 200


async def test_wrong_passwords_of_the_page_are_counted_with_all_others(page: Page) -> None:
    wrong = BODY | {"password": "wrong"}
    for _ in range(5):
        assert (await page.send("POST", "/auth/page/login", body=wrong)).status_code == 401
        assert (await page.api.post("/login", wrong)).status_code == 401
    assert (await page.send("POST", "/auth/page/login", body=BODY)).status_code == 429
    assert len(await page.api.events("account.sign_in_refused")) == 10

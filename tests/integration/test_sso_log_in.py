"""Single sign-on, the whole way: who gets in, as whom, and where the browser is led."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy import update

from tests.support.credentials import quick_passwords
from tests.support.sso_gateway import CALLBACK, PENDING, SsoGateway, leads_to, query_of, refused
from tests.support.sso_provider import CLIENT_ID, CLIENT_SECRET, ScriptedProvider, credentials_of, fixed
from tidegate.accounts.models import User
from tidegate.accounts.service import Accounts
from tidegate.ledger.entry import utc_now


@pytest.fixture
async def provider() -> AsyncIterator[ScriptedProvider]:
    async with ScriptedProvider.running() as provider:
        provider.is_person("subject-1", "ada@example.com")
        yield provider


@pytest.fixture
async def gateway(provider: ScriptedProvider, sqlite_url: str, tmp_path: Path) -> AsyncIterator[SsoGateway]:
    async with SsoGateway.open(sqlite_url, tmp_path, provider.issuer) as gateway:
        yield gateway


async def test_a_new_person_is_signed_in_and_led_on(gateway: SsoGateway, provider: ScriptedProvider) -> None:
    browser = gateway.browser()
    page = await browser.log_in("?next=/usage?day=1%26all%23top")
    assert leads_to(page) == "/usage?day=1&amp;all#top"
    assert page.headers["content-type"].startswith("text/html")
    assert page.headers["content-security-policy"].startswith("default-src 'none'")
    assert page.headers["cache-control"] == "no-store"
    assert page.headers["referrer-policy"] == "no-referrer"
    lines = {line.partition("=")[0]: line for line in page.headers.get_list("set-cookie")}
    session = {f"__Host-tidegate_{name}" for name in ("access", "refresh", "signed_in")}
    assert lines.keys() == session | {PENDING}
    assert "Max-Age=0" in lines[PENDING]
    assert all("SameSite=strict" in lines[name] for name in lines.keys() - {PENDING})
    assert await browser.email() == "ada@example.com"
    users = await gateway.users()
    assert users["ada@example.com"].role == "member"
    assert users["ada@example.com"].password_hash is None
    assert await gateway.identities() == [("subject-1", users["ada@example.com"].id)]


async def test_the_provider_is_asked_as_the_standards_say(gateway: SsoGateway, provider: ScriptedProvider) -> None:
    browser = gateway.browser()
    began = await browser.client.get("/auth/sso/login")
    line = began.headers["set-cookie"]
    parts = {part.strip() for part in line.split(";")[1:]}
    assert line.startswith(f"{PENDING}=")
    assert parts == {"HttpOnly", "Max-Age=600", "Path=/", "SameSite=lax", "Secure"}
    asked = query_of(began.headers["location"])
    assert asked["response_type"] == "code"
    assert asked["scope"] == "openid email profile"
    assert asked["redirect_uri"] == CALLBACK
    assert asked["code_challenge_method"] == "S256"
    assert min(len(asked[name]) for name in ("state", "nonce", "code_challenge")) == 43
    assert len({asked[name] for name in ("state", "nonce", "code_challenge")}) == 3
    assert not any(asked[name] in line for name in ("state", "nonce"))
    leads_to(await browser.client.get(await browser.answer_of(began.headers["location"])))
    assert credentials_of(provider.authorizations[0]) == (CLIENT_ID, CLIENT_SECRET)
    assert "client_id" not in provider.forms[0]
    assert len(provider.forms[0]["code_verifier"]) == 43
    again = query_of(await browser.begin())
    assert not {again[name] for name in ("state", "nonce", "code_challenge")} & set(asked.values())


async def test_what_a_page_is_told_of_it(gateway: SsoGateway, sqlite_url: str, tmp_path: Path) -> None:
    told = await gateway.browser().client.get("/auth/sso")
    assert told.json() == {"enabled": True, "label": "single sign-on", "password_log_in": True}
    async with SsoGateway.open(sqlite_url, tmp_path, None) as off:
        browser = off.browser()
        off_state = {"enabled": False, "label": None, "password_log_in": True}
        assert (await browser.client.get("/auth/sso")).json() == off_state
        for path in ("login", "callback?code=1&state=2"):
            answer = await browser.client.get(f"/auth/sso/{path}")
            assert "TIDEGATE_SINGLE_SIGN_ON__ISSUER" in refused(answer, 404, "not_found")


async def test_a_client_without_a_secret_names_itself(
    provider: ScriptedProvider, sqlite_url: str, tmp_path: Path
) -> None:
    async with SsoGateway.open(sqlite_url, tmp_path, provider.issuer, client_secret=None) as gateway:
        leads_to(await gateway.browser().log_in())
    assert provider.authorizations == [None]
    assert provider.forms[0]["client_id"] == CLIENT_ID


async def test_the_trail_has_the_user_the_link_and_the_sign_in(gateway: SsoGateway, provider: ScriptedProvider) -> None:
    leads_to(await gateway.browser().log_in())
    [created] = await gateway.events("user.created")
    assert created.details == {"role": "member", "by": "single_sign_on", "issuer": provider.issuer}
    assert created.actor == created.subject == "ada@example.com"
    [signed_in] = await gateway.events("account.signed_in")
    assert signed_in.details["method"] == "single_sign_on"
    assert signed_in.client_address == "192.0.2.7"


async def test_a_person_is_the_same_user_whatever_their_address_becomes(
    gateway: SsoGateway, provider: ScriptedProvider
) -> None:
    leads_to(await gateway.browser().log_in())
    provider.is_person("subject-1", "ada.lovelace@example.com")
    browser = gateway.browser()
    leads_to(await browser.log_in())
    assert await browser.email() == "ada@example.com"
    assert len(await gateway.identities()) == 1


@pytest.mark.parametrize("email", ["Ada@Example.com", "ada@example.com"])
async def test_a_user_of_this_verified_address_is_linked(
    gateway: SsoGateway, provider: ScriptedProvider, email: str
) -> None:
    user_id = await gateway.add_user("ada@example.com", "admin")
    provider.is_person("subject-1", email)
    leads_to(await gateway.browser().log_in())
    assert await gateway.identities() == [("subject-1", user_id)]
    # Without groups in the settings the role is set here.
    assert (await gateway.users())["ada@example.com"].role == "admin"
    [changed] = await gateway.events("user.changed")
    assert changed.details == {"identity": {"from": None, "to": provider.issuer}, "by": "single_sign_on"}


async def test_an_address_that_another_person_had_opens_nothing(
    gateway: SsoGateway, provider: ScriptedProvider
) -> None:
    leads_to(await gateway.browser().log_in())
    provider.is_person("subject-2", "ada@example.com")
    answer = await gateway.browser().log_in()
    assert "somebody else's" in refused(answer, 403, "permission_denied")
    assert await gateway.reasons() == ["linked_to_another"]
    assert [subject for subject, _ in await gateway.identities()] == ["subject-1"]
    # Until an operator gives the account to them.
    accounts = Accounts(gateway.database, quick_passwords())
    user = await accounts.unlink("ada@example.com")
    await accounts.unlink("ada@example.com")
    assert [event.details["identity"]["from"] for event in await gateway.events("user.changed")] == [provider.issuer]
    leads_to(await gateway.browser().log_in())
    assert await gateway.identities() == [("subject-2", user.id)]


UNVERIFIED = [
    ({"email_verified": False}, "email_not_verified"),
    ({"email_verified": "false"}, "email_not_verified"),
    ({"email_verified": None}, "no_email"),
    ({"email_verified": 1}, "no_email"),
    ({"email_verified": ["true"]}, "no_email"),
    ({"email": None}, "no_email"),
    ({"email": "no address"}, "no_email"),
    ({"email": "Ada <ada@example.com>"}, "no_email"),
    ({"email": ["ada@example.com"]}, "no_email"),
    ({"email": "a" * 300 + "@example.com"}, "no_email"),
]


@pytest.mark.parametrize(("claims", "reason"), UNVERIFIED)
async def test_an_address_that_is_not_verified_opens_nothing(
    gateway: SsoGateway, provider: ScriptedProvider, claims: dict[str, object], reason: str
) -> None:
    await gateway.add_user("ada@example.com")
    provider.claims |= claims
    refused(await gateway.browser().log_in(), 403, "permission_denied")
    assert await gateway.reasons() == [reason]
    assert (await gateway.identities(), set(await gateway.users())) == ([], {"ada@example.com"})


@pytest.mark.parametrize("email", ["\u212aate@example.com", "mi\u212aE@example.com", "\u212aate@EXAMPLE.com"])
async def test_another_mailbox_that_is_only_folded_into_a_users_address_opens_nothing(
    gateway: SsoGateway, provider: ScriptedProvider, email: str
) -> None:
    # The Kelvin sign: Unicode makes it a K, mail servers do not.
    for known in ("kate@example.com", "mike@example.com"):
        await gateway.add_user(known, "admin")
    provider.is_person("subject-1", email)
    refused(await gateway.browser().log_in(), 403, "permission_denied")
    assert await gateway.reasons() == ["no_email"]
    assert await gateway.identities() == []


async def test_who_is_linked_needs_no_address_but_none_that_is_unverified(
    gateway: SsoGateway, provider: ScriptedProvider
) -> None:
    leads_to(await gateway.browser().log_in())
    provider.claims |= {"email": None, "email_verified": None}
    browser = gateway.browser()
    leads_to(await browser.log_in())
    assert await browser.email() == "ada@example.com"
    provider.is_person("subject-1", "new@example.com", email_verified=False)
    refused(await gateway.browser().log_in(), 403, "permission_denied")


async def test_a_disabled_user_is_refused(gateway: SsoGateway, provider: ScriptedProvider) -> None:
    leads_to(await gateway.browser().log_in())
    async with gateway.database.transaction() as session:
        await session.execute(update(User).values(disabled_at=utc_now()))
    assert "disabled" in refused(await gateway.browser().log_in(), 401, "invalid_token")
    assert await gateway.reasons() == ["disabled"]
    [event] = await gateway.events("account.sign_in_refused")
    assert (event.subject, event.outcome) == ("ada@example.com", "refused")


async def test_a_disabled_user_is_not_linked(gateway: SsoGateway, provider: ScriptedProvider) -> None:
    await gateway.add_user("ada@example.com", disabled_at=utc_now())
    refused(await gateway.browser().log_in(), 401, "invalid_token")
    assert (await gateway.identities(), await gateway.events("user.changed")) == ([], [])


async def test_userinfo_tells_what_the_token_does_not(
    provider: ScriptedProvider, sqlite_url: str, tmp_path: Path
) -> None:
    provider.claims = {"sub": "subject-1"}
    provider.userinfo = {"sub": "subject-1", "email": "ada@example.com", "email_verified": True, "groups": ["ops"]}
    async with SsoGateway.open(sqlite_url, tmp_path, provider.issuer, admin_groups=("ops",)) as gateway:
        leads_to(await gateway.browser().log_in())
        assert (await gateway.users())["ada@example.com"].role == "admin"
        provider.userinfo["sub"] = "subject-2"
        answer = await gateway.browser().log_in()
        assert "somebody else" in refused(answer, 502, "upstream_error")
        # An address that userinfo verified is no word on the token's.
        provider.userinfo["sub"] = "subject-3"
        provider.claims = {"sub": "subject-3", "email": "grace@example.com"}
        refused(await gateway.browser().log_in(), 403, "permission_denied")
        assert set(await gateway.users()) == {"ada@example.com"}


async def test_a_missing_workspace_is_named(provider: ScriptedProvider, sqlite_url: str, tmp_path: Path) -> None:
    async with SsoGateway.open(sqlite_url, tmp_path, provider.issuer, workspace="nowhere") as gateway:
        answer = await gateway.browser().log_in()
        assert "TIDEGATE_SINGLE_SIGN_ON__WORKSPACE" in refused(answer, 503, "unavailable")
        assert await gateway.users() == {}


async def test_what_the_provider_refuses_is_said_and_ends_the_log_in(
    gateway: SsoGateway, provider: ScriptedProvider
) -> None:
    browser = gateway.browser()
    state = query_of(await browser.begin())["state"]
    answer = await browser.client.get(f"/auth/sso/callback?error=access_denied&state={state}&error_description=x")
    assert "access_denied" in refused(answer, 401, "invalid_token")
    assert await gateway.reasons() == ["refused_by_provider"]
    assert f'{PENDING}="' not in (line := answer.headers["set-cookie"])
    assert "Max-Age=0" in line
    refused(await browser.client.get(f"/auth/sso/callback?code=1&state={state}"), 400, "invalid_request")


@pytest.mark.parametrize("error", ["server_error", "invalid_scope", "<script>", "x" * 100])
async def test_a_fault_of_the_provider_is_no_refusal(gateway: SsoGateway, error: str) -> None:
    browser = gateway.browser()
    state = query_of(await browser.begin())["state"]
    answer = await browser.client.get("/auth/sso/callback", params={"error": error, "state": state})
    message = refused(answer, 502, "upstream_error")
    assert "TIDEGATE_SINGLE_SIGN_ON__ISSUER" in message
    assert "<" not in message
    assert "xx" not in message
    assert await gateway.reasons() == []


async def test_credentials_that_the_provider_does_not_know_name_their_settings(
    gateway: SsoGateway, provider: ScriptedProvider
) -> None:
    provider.answers["/token"] = fixed(401, {"error": "invalid_client"})
    message = refused(await gateway.browser().log_in(), 502, "upstream_error")
    assert "TIDEGATE_SINGLE_SIGN_ON__CLIENT_SECRET" in message


@pytest.mark.parametrize("wanted", ["https://evil.example", "//evil.example", "/\\evil.example", "/\t/evil.example"])
async def test_a_log_in_leads_to_no_other_site(gateway: SsoGateway, provider: ScriptedProvider, wanted: str) -> None:
    browser = gateway.browser()
    began = await browser.client.get("/auth/sso/login", params={"next": wanted})
    assert began.headers["location"].startswith(f"{provider.issuer}/authorize?")
    page = await browser.client.get(await browser.answer_of(began.headers["location"]))
    assert leads_to(page) == "/"
    assert page.text.count('<a href="/">') == page.text.count("href=") == 1


async def test_a_log_in_ends_the_sign_in_that_the_browser_had(gateway: SsoGateway) -> None:
    browser, other = gateway.browser(), gateway.browser()
    leads_to(await browser.log_in())
    leads_to(await other.log_in())
    before = browser.client.cookies["__Host-tidegate_access"]
    leads_to(await browser.log_in())
    ended = await gateway.browser().client.get("/auth/me", headers={"Authorization": f"Bearer {before}"})
    refused(ended, 401, "invalid_token")
    assert await browser.email() == await other.email() == "ada@example.com"
    assert len(await gateway.events("account.signed_out")) == 1


async def test_a_log_in_ends_it_though_its_tokens_were_refreshed_meanwhile(gateway: SsoGateway) -> None:
    browser = gateway.browser()
    leads_to(await browser.log_in())
    began = await browser.begin()
    assert (await browser.client.post("/auth/page/refresh", headers={"X-Tidegate-CSRF": "1"})).status_code == 200
    before = browser.client.cookies["__Host-tidegate_access"]
    # The way back is the provider's: no cookie that is `SameSite=Strict` comes along.
    kept = {name: value for name, value in browser.client.cookies.items() if name == PENDING}
    browser.client.cookies.clear()
    browser.client.cookies.update(kept)
    leads_to(await browser.client.get(await browser.answer_of(began)))
    ended = await gateway.browser().client.get("/auth/me", headers={"Authorization": f"Bearer {before}"})
    refused(ended, 401, "invalid_token")


async def test_a_log_in_that_is_refused_ends_nothing_and_says_why_on_a_page(
    gateway: SsoGateway, provider: ScriptedProvider
) -> None:
    browser = gateway.browser()
    leads_to(await browser.log_in())
    async with gateway.database.transaction() as session:
        await session.execute(update(User).values(disabled_at=utc_now()))
    answer = await browser.answer_of(await browser.begin())
    page = await browser.client.get(answer, headers={"Accept": "text/html,*/*;q=0.8", "X-Request-ID": "r-7"})
    assert page.status_code == 401
    assert page.headers["content-type"].startswith("text/html")
    assert page.headers["content-security-policy"].startswith("default-src 'none'")
    assert "This account is disabled: ask an admin." in page.text
    assert '<a href="/sign-in">' in page.text
    assert "r-7" in page.text
    lines = page.headers.get_list("set-cookie")
    assert [line.partition("=")[0] for line in lines] == [PENDING]
    assert not await gateway.events("account.signed_out")
    stray = await gateway.browser().client.get("/auth/sso/callback?code=1&state=2", headers={"Accept": "text/html"})
    assert stray.status_code == 400
    assert "sign in again" in stray.text
    assert stray.headers["content-type"].startswith("text/html")

"""What a forged, replayed or redirected answer of a provider gets: no session, a reason in the trail, and no user."""

import base64
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.credentials import JWT_SECRET
from tests.support.sso_gateway import CALLBACK, PENDING, Browser, SsoGateway, leads_to, query_of, refused
from tests.support.sso_provider import (
    CLIENT_ID,
    Json,
    ScriptedProvider,
    fixed,
    giant,
    signed,
)
from tidegate.accounts.single_sign_on.pending import PendingLogIn
from tidegate.accounts.single_sign_on.seals import Seals
from tidegate.auth.keyring import Keyring


@pytest.fixture
async def provider() -> AsyncIterator[ScriptedProvider]:
    async with ScriptedProvider.running() as provider:
        provider.is_person("subject-1", "ada@example.com")
        yield provider


@pytest.fixture
async def gateway(provider: ScriptedProvider, sqlite_url: str, tmp_path: Path) -> AsyncIterator[SsoGateway]:
    async with SsoGateway.open(sqlite_url, tmp_path, provider.issuer) as gateway:
        yield gateway


@pytest.fixture
def browser(gateway: SsoGateway) -> Browser:
    return gateway.browser()


def _callback(url: str, **changed: str | None) -> str:
    """An answer with parameters of it changed; None takes one away."""
    query = {name: value for name, value in {**query_of(url), **changed}.items() if value is not None}
    return f"{CALLBACK}?" + "&".join(f"{name}={value}" for name, value in query.items())


# State, codes and cookies


async def test_an_answer_without_the_browsers_own_log_in_is_refused(gateway: SsoGateway, browser: Browser) -> None:
    # Cross-site request forgery: the answer of the attacker's own log-in, in another's browser.
    answer = await browser.answer_of(await browser.begin())
    victim = gateway.browser()
    refused(await victim.client.get(answer), 400, "invalid_request")
    await victim.begin()
    refused(await victim.client.get(answer), 400, "invalid_request")
    assert await gateway.reasons() == ["no_log_in_under_way", "other_state"]
    assert await victim.email() is None
    # What another sent does not end a browser's own log-in.
    assert PENDING in victim.client.cookies
    leads_to(await browser.client.get(answer))


async def test_an_answer_works_once(gateway: SsoGateway, browser: Browser) -> None:
    answer = await browser.answer_of(await browser.begin())
    kept = browser.client.cookies[PENDING]
    leads_to(await browser.client.get(answer))
    refused(await browser.client.get(answer), 400, "invalid_request")
    # With the cookie brought back the provider does not take the code again.
    thief = gateway.browser()
    refused(await thief.client.get(answer, headers={"Cookie": f"{PENDING}={kept}"}), 401, "invalid_token")
    assert await gateway.reasons() == ["no_log_in_under_way", "code_not_accepted"]


@pytest.mark.parametrize("state", [None, "", "x", "%00", "%C3%A9", "%ED%A0%80"])
async def test_another_state_is_refused(gateway: SsoGateway, browser: Browser, state: str | None) -> None:
    answer = await browser.answer_of(await browser.begin())
    refused(await browser.client.get(_callback(answer, state=state)), 400, "invalid_request")
    leads_to(await browser.client.get(answer))


async def test_the_code_of_anothers_log_in_is_refused(
    gateway: SsoGateway, provider: ScriptedProvider, browser: Browser
) -> None:
    # Code injection: the victim's code, in the attacker's own log-in.
    stolen = query_of(await gateway.browser().answer_of(await gateway.browser().begin()))["code"]
    answer = await browser.answer_of(await browser.begin())
    refused(await browser.client.get(_callback(answer, code=stolen)), 401, "invalid_token")
    assert await gateway.reasons() == ["code_not_accepted"]


async def test_a_token_of_anothers_log_in_is_refused_where_the_provider_knows_no_pkce(
    gateway: SsoGateway, provider: ScriptedProvider, browser: Browser
) -> None:
    victims = query_of(await gateway.browser().begin())
    provider.is_person("victim", "victim@example.com")
    code = provider.codes[provider.new_code(victims)]
    provider.answers["/token"] = fixed(200, {"access_token": "a", "id_token": signed(provider, code.claims)})
    refused(await browser.log_in(), 401, "invalid_token")
    assert await gateway.users() == {}


@pytest.mark.parametrize("twice", ["code", "state", "iss", "error"])
async def test_a_parameter_that_stands_there_twice_is_refused(browser: Browser, twice: str) -> None:
    answer = await browser.answer_of(await browser.begin())
    doubled = f"{_callback(answer, **{twice: 'x'})}&{twice}=y"
    assert twice in refused(await browser.client.get(doubled), 400, "invalid_request")


async def test_parameters_that_are_not_known_are_let_be(browser: Browser) -> None:
    answer = await browser.answer_of(await browser.begin())
    leads_to(await browser.client.get(f"{answer}&session_state=x&scope=y&scope=z"))


async def test_an_answer_without_a_code_is_refused(gateway: SsoGateway, browser: Browser) -> None:
    answer = await browser.answer_of(await browser.begin())
    refused(await browser.client.get(_callback(answer, code=None)), 400, "invalid_request")


@pytest.mark.parametrize(
    ("says_so", "issuer", "is_let_in"),
    [
        (False, None, True),
        (True, None, False),
        (True, "own", True),
        (False, "own", True),
        (True, "https://evil.example", False),
        (False, "https://evil.example", False),
        (False, "", False),
    ],
)
async def test_an_answer_of_another_provider_is_refused(
    gateway: SsoGateway,
    provider: ScriptedProvider,
    browser: Browser,
    *,
    says_so: bool,
    issuer: str | None,
    is_let_in: bool,
) -> None:
    # RFC 9207: a mix-up would have this provider's code go to another.
    provider.metadata["authorization_response_iss_parameter_supported"] = says_so
    answer = await browser.answer_of(await browser.begin())
    brought = await browser.client.get(_callback(answer, iss=provider.issuer if issuer == "own" else issuer))
    if is_let_in:
        leads_to(brought)
    else:
        refused(brought, 400, "invalid_request")
        assert await gateway.reasons() == ["other_issuer"]
        assert provider.seen["/token"] == 0


def _sealed(pending: PendingLogIn, *, secret: str = JWT_SECRET, bound_to: str) -> str:
    return Seals(Keyring({"1": secret.encode()}), bound_to=bound_to).seal(pending)


@pytest.mark.parametrize("how", ["flipped", "cut", "empty", "long", "other key", "other client", "expired", "no text"])
async def test_a_cookie_that_was_not_sealed_here_for_this_provider_is_nothing(
    gateway: SsoGateway, provider: ScriptedProvider, browser: Browser, how: str
) -> None:
    answer = await browser.answer_of(await browser.begin())
    cookie = browser.client.cookies[PENDING]
    bound_to = f"{provider.issuer} {CLIENT_ID}"
    pending = PendingLogIn.begin("/", time.time())
    expired = PendingLogIn.begin("/", time.time() - 601)
    shown = {
        "flipped": cookie[:40] + ("A" if cookie[40] != "A" else "B") + cookie[41:],
        "cut": cookie[:-8],
        "empty": "",
        "long": cookie + "A" * 5000,
        "other key": _sealed(pending, secret="another-secret-0123456789-abcdefghij", bound_to=bound_to),
        "other client": _sealed(pending, bound_to=f"{provider.issuer} another"),
        "expired": _sealed(expired, bound_to=bound_to),
        "no text": "\u00e9\u00e8".encode("latin-1").decode("latin-1"),
    }[how]
    state = {"other key": pending.state, "other client": pending.state, "expired": expired.state}.get(how)
    url = answer if state is None else _callback(answer, state=state)
    thief = gateway.browser()
    raw = [(b"cookie", f"{PENDING}={shown}".encode("latin-1"))]
    refused(await thief.client.get(url, headers=raw), 400, "invalid_request")
    assert await gateway.reasons() == ["no_log_in_under_way"]
    assert provider.seen["/token"] == 0


async def test_a_cookie_of_a_neighbour_of_the_domain_is_not_read(gateway: SsoGateway, browser: Browser) -> None:
    answer = await browser.answer_of(await browser.begin())
    cookie = browser.client.cookies[PENDING]
    victim = gateway.browser()
    headers = {"Cookie": f"{PENDING.removeprefix('__Host-')}={cookie}"}
    refused(await victim.client.get(answer, headers=headers), 400, "invalid_request")


async def test_what_was_sealed_says_nothing(browser: Browser) -> None:
    began = query_of(await browser.begin("?next=/usage"))
    cookie = browser.client.cookies[PENDING]
    whole = base64.urlsafe_b64decode(cookie + "=" * (-len(cookie) % 4))
    assert not any(word.encode() in whole for word in (began["state"], began["nonce"], "/usage", "verifier"))


# The provider's own answers


BAD_ANSWERS: list[tuple[str, Any, str]] = [
    ("/token", fixed(302, b"", location="https://evil.example/token"), "led elsewhere"),
    ("/token", fixed(307, b"", location="/jwks"), "led elsewhere"),
    ("/token", fixed(200, b"not json"), "without an ID token"),
    ("/token", fixed(200, b"[]"), "without an ID token"),
    ("/token", fixed(200, b"[" * 100_000), "without an ID token"),
    ("/token", fixed(200, {"id_token": 7}), "without an ID token"),
    ("/token", fixed(500, b""), "answered 500"),
    ("/token", fixed(400, {"error": "<b>"}), "no code that is known"),
    ("/token", fixed(200, b"\x1f\x8b", content_encoding="gzip"), "compressed"),
    ("/jwks", fixed(200, {"keys": []}), "no key"),
    ("/jwks", fixed(200, {"keys": [{"kty": "oct", "k": "AAAA"}, {"kty": "EC"}, 7]}), "no key"),
    ("/jwks", fixed(200, {"keys": "key-1"}), "no key"),
    ("/jwks", fixed(404, b""), "answered 404"),
    ("/jwks", fixed(303, b"", location="/jwks2"), "led elsewhere"),
]


@pytest.mark.parametrize(("path", "answering", "said"), BAD_ANSWERS)
async def test_a_bad_answer_of_the_provider_is_told_with_its_setting(
    gateway: SsoGateway, provider: ScriptedProvider, browser: Browser, *, path: str, answering: Any, said: str
) -> None:
    provider.answers[path] = answering
    message = refused(await browser.log_in(), 502, "upstream_error")
    assert said in message
    assert "TIDEGATE_SINGLE_SIGN_ON__ISSUER" in message
    # It is no refusal of anybody, and mends itself.
    assert await gateway.reasons() == []
    del provider.answers[path]
    leads_to(await browser.log_in())


@pytest.mark.parametrize("path", ["/.well-known/openid-configuration", "/token", "/jwks"])
async def test_a_giant_answer_is_cut(provider: ScriptedProvider, browser: Browser, path: str) -> None:
    provider.answers[path] = giant()
    answer = await browser.client.get("/auth/sso/login")
    if answer.status_code == 302:
        answer = await browser.client.get(await browser.answer_of(answer.headers["location"]))
    assert "256 KiB" in refused(answer, 502, "upstream_error")


BAD_METADATA: list[tuple[Json, str]] = [
    ({"issuer": "https://evil.example"}, "https://evil.example"),
    ({"issuer": None}, "issuer"),
    ({"token_endpoint": None}, "token_endpoint"),
    ({"jwks_uri": "http://keys.example.com/"}, "jwks_uri"),
    ({"token_endpoint": "http://169.254.169.254/token"}, "169.254.169.254"),
    ({"token_endpoint": "file:///etc/passwd"}, "token_endpoint"),
    ({"authorization_endpoint": "javascript:alert(1)"}, "authorization_endpoint"),
    ({"authorization_endpoint": "https://idp.example\r\nSet-Cookie: a=b"}, "authorization_endpoint"),
    ({"token_endpoint": "https://user:password@idp.example/token"}, "token_endpoint"),
]


@pytest.mark.parametrize(("metadata", "said"), BAD_METADATA)
async def test_a_discovery_document_that_leads_astray_is_refused(
    provider: ScriptedProvider, browser: Browser, metadata: Json, said: str
) -> None:
    provider.metadata = metadata
    message = refused(await browser.client.get("/auth/sso/login"), 502, "upstream_error")
    assert said in message
    assert "TIDEGATE_SINGLE_SIGN_ON__ISSUER" in message


LED_ON = [
    ("", "/sign-in"),
    ("?next=/usage?day=1%26all%23top", "/sign-in?next=/usage%3Fday%3D1%26all%23top"),
    ("?next=//evil.example", "/sign-in"),
    ("?next=https://evil.example", "/sign-in"),
]


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
@pytest.mark.parametrize(("query", "page"), LED_ON)
async def test_another_sites_link_begins_no_log_in_but_leads_to_the_page_for_it(
    provider: ScriptedProvider, browser: Browser, query: str, page: str, site: str
) -> None:
    led = await browser.client.get(f"/auth/sso/login{query}", headers={"Sec-Fetch-Site": site})
    assert (led.status_code, led.headers["location"]) == (302, page)
    assert "set-cookie" not in led.headers
    assert led.headers["cache-control"] == "no-store"
    assert not provider.seen


@pytest.mark.parametrize("site", ["same-origin", "none"])
async def test_the_pages_button_and_a_typed_address_begin_a_log_in(browser: Browser, site: str) -> None:
    began = await browser.client.get("/auth/sso/login", headers={"Sec-Fetch-Site": site})
    leads_to(await browser.client.get(await browser.answer_of(began.headers["location"])))


async def test_who_comes_too_often_is_told_to_wait(gateway: SsoGateway, browser: Browser) -> None:
    for path in ("login", "callback?state=x&code=y"):
        told = await browser.client.get(f"/auth/sso/{path}")
        while told.status_code != 429:
            told = await browser.client.get(f"/auth/sso/{path}")
        assert int(told.headers["retry-after"]) >= 1
    assert len(await gateway.reasons()) == 300

"""An ID token signs somebody in only where the provider signed it, for this client, in this log-in, a moment ago."""

import base64
import hashlib
import hmac
import time
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path

import pytest
from joserfc import jwt
from joserfc.jwk import OctKey

from tests.support.sso_gateway import Browser, SsoGateway, leads_to, refused
from tests.support.sso_provider import (
    CLIENT_ID,
    Json,
    ScriptedProvider,
    new_key,
    signed,
    unsigned_parts,
)


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


def _is_of(past_s: int) -> Json:
    return {"iat": int(time.time()) - past_s - 300, "exp": int(time.time()) - past_s}


WRONG_CLAIMS: list[tuple[Json, str]] = [
    ({"nonce": "another"}, "nonce"),
    ({"nonce": None}, "nonce"),
    ({"nonce": ""}, "nonce"),
    ({"iss": "https://evil.example"}, "iss"),
    ({"iss": None}, "iss"),
    ({"aud": "another client"}, "aud"),
    ({"aud": []}, "aud"),
    ({"aud": ["another client"]}, "aud"),
    ({"aud": [CLIENT_ID, "another client"]}, "azp"),
    ({"aud": [CLIENT_ID, "another client"], "azp": "another client"}, "azp"),
    ({"azp": "another client"}, "azp"),
    (_is_of(61), "exp"),
    ({"exp": None}, "exp"),
    ({"exp": "9999999999"}, "exp"),
    ({"iat": None}, "iat"),
    ({"iat": int(time.time()) + 3600}, "iat"),
    ({"nbf": int(time.time()) + 3600}, "nbf"),
    ({"at_hash": "not-of-this-token"}, "at_hash"),
    ({"sub": None}, "sub"),
    ({"sub": ""}, "sub"),
    ({"sub": 7}, "sub"),
    ({"sub": "s" * 256}, "sub"),
    ({"sub": ["subject-1"]}, "sub"),
    ({"sub": "subject-1\0"}, "sub"),
]


@pytest.mark.parametrize(("claims", "named"), WRONG_CLAIMS)
async def test_an_id_token_with_a_wrong_claim_signs_nobody_in(
    gateway: SsoGateway, provider: ScriptedProvider, browser: Browser, claims: Json, named: str
) -> None:
    provider.claims |= claims
    message = refused(await browser.log_in(), 401, "invalid_token")
    assert f"because of {named}:" in message
    assert await gateway.reasons() == ["id_token_not_trusted"]
    assert (await browser.email(), await gateway.users()) == (None, {})


async def test_claims_that_are_right_let_in(gateway: SsoGateway, provider: ScriptedProvider, browser: Browser) -> None:
    half = hashlib.sha256(b"access-1").digest()[:16]
    provider.claims |= {
        "aud": [CLIENT_ID, "another client"],
        "azp": CLIENT_ID,
        "at_hash": base64.urlsafe_b64encode(half).rstrip(b"=").decode(),
        **_is_of(30),
    }
    leads_to(await browser.log_in())


def _without_signature(provider: ScriptedProvider, claims: Json) -> str:
    return unsigned_parts({"alg": "none", "kid": "key-1"}, claims) + "."


def _by_the_public_key(provider: ScriptedProvider, claims: Json) -> str:
    """HS256, with what everybody knows as the secret."""
    parts = unsigned_parts({"alg": "HS256", "kid": "key-1"}, claims)
    secret = provider.keys[0].as_pem(private=False)
    signature = hmac.new(secret, parts.encode(), hashlib.sha256).digest()
    return f"{parts}.{base64.urlsafe_b64encode(signature).rstrip(b'=').decode()}"


def _by_the_client_secret(provider: ScriptedProvider, claims: Json) -> str:
    key = OctKey.import_key(b"a secret with + and % and :")
    return jwt.encode({"alg": "HS256"}, claims, key)


def _by_a_key_named(key_id: str, provider: ScriptedProvider, claims: Json) -> str:
    return jwt.encode({"alg": "ES256", "kid": key_id}, claims, new_key(key_id))


def _by_an_embedded_key(provider: ScriptedProvider, claims: Json) -> str:
    key = new_key("key-1")
    return jwt.encode({"alg": "ES256", "kid": "key-1", "jwk": key.as_dict(private=False)}, claims, key)


def _changed(provider: ScriptedProvider, claims: Json) -> str:
    header, _, signature = signed(provider, claims).split(".")
    return ".".join([header, unsigned_parts({}, {**claims, "sub": "admin"}).partition(".")[2], signature])


def _with_a_critical_extension(provider: ScriptedProvider, claims: Json) -> str:
    header = {"alg": "ES256", "kid": "key-1", "crit": ["x"], "x": 1}
    parts = unsigned_parts(header, claims)
    return f"{parts}.{signed(provider, claims).rpartition('.')[2]}"


def _with_an_odd_kid(provider: ScriptedProvider, claims: Json) -> str:
    return unsigned_parts({"alg": "ES256", "kid": ["key-1"]}, claims) + ".AA"


def _nothing(provider: ScriptedProvider, claims: Json) -> str:
    return "not.a.token"


@pytest.mark.parametrize(
    "sign",
    [
        _without_signature,
        _by_the_public_key,
        _by_the_client_secret,
        partial(_by_a_key_named, "key-1"),
        partial(_by_a_key_named, "key-2"),
        _by_an_embedded_key,
        _changed,
        _with_a_critical_extension,
        _with_an_odd_kid,
        _nothing,
    ],
)
async def test_an_id_token_that_the_provider_did_not_sign_signs_nobody_in(
    gateway: SsoGateway, provider: ScriptedProvider, browser: Browser, sign: Callable[[ScriptedProvider, Json], str]
) -> None:
    provider.sign = sign
    refused(await browser.log_in(), 401, "invalid_token")
    assert await gateway.reasons() == ["id_token_not_trusted"]
    assert await gateway.users() == {}


async def test_keys_may_rotate_in_mid_flight(provider: ScriptedProvider, browser: Browser) -> None:
    leads_to(await browser.log_in())
    answer = await browser.answer_of(await browser.begin())
    provider.keys = [new_key("key-2")]
    leads_to(await browser.client.get(answer))
    assert provider.seen["/jwks"] == 2


async def test_a_flood_of_unknown_keys_has_the_keys_fetched_once_more(
    gateway: SsoGateway, provider: ScriptedProvider, browser: Browser
) -> None:
    leads_to(await browser.log_in())
    for n in range(8):
        provider.sign = partial(_by_a_key_named, f"made-up-{n}")
        refused(await gateway.browser().log_in(), 401, "invalid_token")
    assert provider.seen["/jwks"] == 2
    assert provider.seen["/.well-known/openid-configuration"] == 1
    provider.sign = signed
    leads_to(await browser.log_in())

"""RSA keys of a provider are taken from the size on that the setting says; keys of curves are not concerned."""

import functools
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from joserfc import jwt
from joserfc.jwk import RSAKey

from tests.support.sso_gateway import SsoGateway, leads_to, refused
from tests.support.sso_provider import Json, ScriptedProvider, fixed, new_key


@functools.cache
def _rsa(bits: int) -> RSAKey:
    return RSAKey.generate_key(bits, {"kid": f"rsa-{bits}", "use": "sig", "alg": "RS256"})


def _by(key: RSAKey, provider: ScriptedProvider, claims: Json) -> str:
    return jwt.encode({"alg": "RS256", "kid": key.kid}, claims, key)


@pytest.fixture
async def provider() -> AsyncIterator[ScriptedProvider]:
    async with ScriptedProvider.running() as provider:
        provider.is_person("subject-1", "ada@example.com")
        yield provider


@pytest.mark.parametrize(
    ("bits", "chosen"), [(2048, {}), (1024, {}), (3072, {"min_rsa_bits": 3072}), (2048, {"min_rsa_bits": 3072})]
)
@pytest.mark.filterwarnings("ignore::joserfc.errors.SecurityWarning")
async def test_a_smaller_rsa_key_signs_nobody_in(
    provider: ScriptedProvider, sqlite_url: str, tmp_path: Path, bits: int, chosen: dict[str, Any]
) -> None:
    key = _rsa(bits)
    # A key of a curve beside it: what it signs is another matter.
    others = [new_key("key-1").as_dict(private=False)]
    provider.answers["/jwks"] = fixed(200, {"keys": [key.as_dict(private=False), *others]})
    provider.sign = partial(_by, key)
    async with SsoGateway.open(sqlite_url, tmp_path, provider.issuer, **chosen) as gateway:
        answer = await gateway.browser().log_in()
        is_taken = bits >= chosen.get("min_rsa_bits", 2048)
        if is_taken:
            leads_to(answer)
        else:
            refused(answer, 401, "invalid_token")
        assert len(await gateway.users()) == is_taken


async def test_a_provider_with_no_key_that_is_large_enough_is_told_of_the_setting(
    provider: ScriptedProvider, sqlite_url: str, tmp_path: Path
) -> None:
    provider.answers["/jwks"] = fixed(200, {"keys": [_rsa(2048).as_dict(private=False)]})
    provider.sign = partial(_by, _rsa(2048))
    async with SsoGateway.open(sqlite_url, tmp_path, provider.issuer, min_rsa_bits=3072) as gateway:
        message = refused(await gateway.browser().log_in(), 502, "upstream_error")
        assert "3072 bits of TIDEGATE_SINGLE_SIGN_ON__MIN_RSA_BITS" in message
        assert await gateway.users() == {}

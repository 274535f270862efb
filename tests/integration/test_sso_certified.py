"""Single sign-on with a real provider, certified to speak OpenID Connect, over its own sockets."""

import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.oidc_provider import CertifiedProvider, installed_provider, running_provider
from tests.support.services import ServiceUnavailable
from tests.support.sso_gateway import CALLBACK, PENDING, SsoGateway, leads_to, query_of, refused

GROUPS: dict[str, Any] = {
    "scopes": ("openid", "email", "groups"),
    "admin_groups": ("ops",),
    "member_groups": ("staff",),
}


@pytest.fixture(scope="module")
def folder(request: pytest.FixtureRequest) -> Path:
    assert request.config.cache is not None
    try:
        return installed_provider(request.config.cache.mkdir("oidc"))
    except ServiceUnavailable as reason:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(reason))


@pytest.fixture
async def provider(folder: Path) -> AsyncIterator[CertifiedProvider]:
    async with running_provider(folder, CALLBACK) as provider:
        await provider.logs_in("subject-1", "ada@example.com", "ops")
        yield provider


async def test_people_come_in_with_the_roles_of_their_groups(
    provider: CertifiedProvider, database_url: str, tmp_path: Path
) -> None:
    async with SsoGateway.open(database_url, tmp_path, provider.issuer, **GROUPS) as gateway:
        browser = gateway.browser()
        assert leads_to(await browser.log_in("?next=/usage")) == "/usage"
        assert await browser.email() == "ada@example.com"
        ada = (await gateway.users())["ada@example.com"]
        assert ada.role == "admin"
        assert await gateway.identities() == [("subject-1", ada.id)]
        # A browser that the provider knows comes in again, as the same user.
        leads_to(await browser.log_in())
        await provider.logs_in("subject-2", "grace@example.com", "staff", "others")
        other = gateway.browser()
        leads_to(await other.log_in())
        assert await other.email() == "grace@example.com"
        assert (await gateway.users())["grace@example.com"].role == "member"
        await provider.logs_in("subject-3", "eve@example.com", "others")
        refused(await gateway.browser().log_in(), 403, "permission_denied")
        assert await gateway.reasons() == ["no_group"]
        assert set(await gateway.users()) == {"ada@example.com", "grace@example.com"}


async def test_a_public_client_and_keys_of_elliptic_curves(
    provider: CertifiedProvider, sqlite_url: str, tmp_path: Path
) -> None:
    public: dict[str, Any] = {"client_id": "public", "client_secret": None}
    async with SsoGateway.open(sqlite_url, tmp_path, provider.issuer, **public) as gateway:
        browser = gateway.browser()
        leads_to(await browser.log_in())
        assert await browser.email() == "ada@example.com"


async def test_what_the_provider_refuses(provider: CertifiedProvider, sqlite_url: str, tmp_path: Path) -> None:
    async with SsoGateway.open(sqlite_url, tmp_path, provider.issuer) as gateway:
        await provider.refuses()
        assert "access_denied" in refused(await gateway.browser().log_in(), 401, "invalid_token")
        await provider.logs_in("subject-1", "ada@example.com", email_verified=False)
        refused(await gateway.browser().log_in(), 403, "permission_denied")
        assert await gateway.reasons() == ["refused_by_provider", "email_not_verified"]


async def test_a_code_works_once_and_in_its_own_log_in_alone(
    provider: CertifiedProvider, sqlite_url: str, tmp_path: Path
) -> None:
    async with SsoGateway.open(sqlite_url, tmp_path, provider.issuer) as gateway:
        browser, thief = gateway.browser(), gateway.browser()
        answer = await browser.answer_of(await browser.begin())
        assert query_of(answer)["iss"] == provider.issuer
        code = query_of(answer)["code"]
        stolen = _with_code(await thief.answer_of(await thief.begin()), code)
        refused(await thief.client.get(stolen), 401, "invalid_token")
        kept = browser.client.cookies[PENDING]
        leads_to(await browser.client.get(answer))
        again = await gateway.browser().client.get(answer, headers={"Cookie": f"{PENDING}={kept}"})
        refused(again, 401, "invalid_token")
        assert await gateway.reasons() == ["code_not_accepted", "code_not_accepted"]


@pytest.mark.parametrize("wrong", [{"client_secret": "another secret"}, {"client_id": "public"}])
async def test_a_client_that_the_provider_does_not_know_names_its_settings(
    provider: CertifiedProvider, sqlite_url: str, tmp_path: Path, wrong: dict[str, Any]
) -> None:
    async with SsoGateway.open(sqlite_url, tmp_path, provider.issuer, **wrong) as gateway:
        message = refused(await gateway.browser().log_in(), 502, "upstream_error")
        assert "TIDEGATE_SINGLE_SIGN_ON__CLIENT_ID" in message


async def test_an_issuer_that_calls_itself_otherwise_is_refused(
    provider: CertifiedProvider, sqlite_url: str, tmp_path: Path
) -> None:
    async with SsoGateway.open(sqlite_url, tmp_path, f"{provider.issuer}/") as gateway:
        message = refused(await gateway.browser().client.get("/auth/sso/login"), 502, "upstream_error")
        assert repr(provider.issuer) in message


def _with_code(url: str, code: str) -> str:
    return url.replace(query_of(url)["code"], code)

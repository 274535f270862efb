"""Where passwords are off, none of what they are good for is taken, and everybody is told where to sign in."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute, iter_route_contexts

from tests.support.credentials import EMAIL, PASSWORD, quick_passwords
from tests.support.sso_gateway import GATEWAY, SsoGateway, leads_to, refused
from tests.support.sso_provider import ScriptedProvider
from tidegate.accounts.dependencies import SensitiveRoute, require_password_log_in
from tidegate.app import create_app
from tidegate.settings import Settings

TOKEN = "tgm_" + "x" * 43
BODIES = {
    "/auth/login": {"email": EMAIL, "password": PASSWORD},
    "/auth/page/login": {"email": EMAIL, "password": PASSWORD},
    "/auth/password/forgot": {"email": EMAIL},
    "/auth/password/reset": {"token": TOKEN, "password": PASSWORD},
    "/auth/password": {"current_password": PASSWORD, "password": PASSWORD},
    "/auth/second-factor": {"password": PASSWORD},
    "/auth/second-factor/confirm": {"code": "123456"},
    "/auth/second-factor/recovery-codes": {"password": PASSWORD, "code": "123456"},
    "/auth/email": {"email": "new@example.com", "current_password": PASSWORD},
    "/auth/invitations/accept": {"token": TOKEN, "password": PASSWORD},
}
OF_PASSWORDS = {"login", "forgot", "reset", "accept", "change-password", "change-email", "second-factor"}


@pytest.fixture
async def gateway(sqlite_url: str, tmp_path: Path) -> AsyncIterator[SsoGateway]:
    async with ScriptedProvider.running() as provider:
        provider.is_person("subject-1", EMAIL)
        async with SsoGateway.open(sqlite_url, tmp_path, provider.issuer, password_log_in=False) as gateway:
            yield gateway


@pytest.mark.parametrize("path", BODIES)
async def test_a_password_is_good_for_nothing(gateway: SsoGateway, path: str) -> None:
    await gateway.add_user(EMAIL, password_hash=await quick_passwords().hash(PASSWORD))
    answer = await gateway.browser().client.post(path, json=BODIES[path], headers={"X-Tidegate-CSRF": "1"})
    message = refused(answer, 403, "permission_denied")
    assert f"single sign-on, at {GATEWAY}/sign-in" in message
    assert "TIDEGATE_AUTH__PASSWORD_LOG_IN" in message


async def test_nobody_is_sent_an_invitation_that_could_not_be_accepted(gateway: SsoGateway) -> None:
    await gateway.add_user(EMAIL, role="admin")
    browser = gateway.browser()
    leads_to(await browser.log_in())
    for path in ("/api/invitations", "/api/invitations/00000000-0000-0000-0000-000000000000/send"):
        answer = await browser.client.post(path, json={"email": "new@example.com"}, headers={"X-Tidegate-CSRF": "1"})
        assert "Passwords are off here" in refused(answer, 403, "permission_denied")
    assert await gateway.events("user.invited") == []


async def test_people_come_in_by_single_sign_on_and_a_page_is_told_so(gateway: SsoGateway) -> None:
    browser = gateway.browser()
    told = await browser.client.get("/auth/sso")
    assert told.json() == {"enabled": True, "label": "single sign-on", "password_log_in": False}
    leads_to(await browser.log_in())
    assert await browser.email() == EMAIL


def _flat(dependant: Dependant) -> Iterator[object]:
    yield dependant.call
    for inner in dependant.dependencies:
        yield from _flat(inner)


def test_every_route_that_takes_a_password_as_a_way_in_is_one_of_them() -> None:
    guarded = set()
    for route in iter_route_contexts(create_app(Settings(environment="test")).routes):
        if not isinstance(route.original_route, APIRoute):
            continue
        calls = list(_flat(route.dependant))
        if any(isinstance(call, SensitiveRoute) and call.name in OF_PASSWORDS for call in calls):
            assert require_password_log_in in calls, route.path
            # Before the try is counted, or anything else is asked.
            assert calls.index(require_password_log_in) < next(
                n for n, call in enumerate(calls) if isinstance(call, SensitiveRoute)
            )
            guarded.add(route.path)
    assert guarded == set(BODIES)

"""Where a second factor is needed: who has none may set one up and do nothing else; and the keys it is encrypted by."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from pydantic import SecretStr
from sqlalchemy import select, update

from tests.security.routes import callers_routes
from tests.support.credentials import access_token
from tests.support.people import PASSWORD, People
from tests.support.second_factor import Phone
from tidegate.accounts.models import SecondFactor, User
from tidegate.accounts.second_factor.sealing import Sealing
from tidegate.auth.authenticator import Authenticator
from tidegate.auth.keyring import Keyring
from tidegate.auth.principal import SecondFactorRule
from tidegate.settings import Settings
from tidegate.settings.groups import AuthSettings
from tidegate.settings.rules import production_faults

OPEN = {"POST /auth/second-factor", "POST /auth/second-factor/confirm", "GET /auth/me"}
OLD, NEW = "old-secret-0123456789-abcdefghijklmnop", "new-secret-0123456789-abcdefghijklmnop"


@asynccontextmanager
async def people_under(rule: SecondFactorRule, url: str, folder: Path) -> AsyncIterator[People]:
    async with People.open(url, folder, second_factor=rule) as people:
        yield people


async def test_who_owes_one_may_only_set_it_up(sqlite_url: str, tmp_path: Path) -> None:
    async with people_under("required", sqlite_url, tmp_path) as people:
        access = await people.log_in("admin@example.com")
        for route in callers_routes():
            body = {"json": route.sample()} if route.body is not None else {}
            answer = await people.call(route.method, route.url(), by=access, **body)
            is_closed = answer.status_code == 403 and (
                route.method == "HEAD" or "second factor" in answer.json()["error"]["message"]
            )
            assert is_closed == (str(route) not in OPEN), f"{route}: {answer.status_code} {answer.text}"
        assert (await people.done("GET", "/auth/me", by=access))["second_factor"]["must_be_set_up"] is True
        phone = await Phone.set_up(people, "admin", access)
        await people.done("GET", "/api/users", by=phone.access)
        answer = await phone.log_in(phone.next_code())
        await people.done("GET", "/api/users", by=answer.json()["access_token"])
        # One who turns it off owes it again.
        proof = {"password": PASSWORD, "code": phone.next_code()}
        await people.done("DELETE", "/auth/second-factor", by=phone.access, json=proof)
        assert "second factor" in (await people.refused(403, "GET", "/api/users", by=phone.access))["message"]


async def test_who_owes_one_may_log_out(sqlite_url: str, tmp_path: Path) -> None:
    async with people_under("required", sqlite_url, tmp_path) as people:
        form = {"email": "member@example.com", "password": PASSWORD}
        tokens = (await people.client.post("/auth/login", json=form)).json()
        renewed = await people.client.post("/auth/refresh", json={"refresh_token": tokens["refresh_token"]})
        # A refresh opens no more than the log-in did.
        assert (await people.call("GET", "/auth/sign-ins", by=renewed.json()["access_token"])).status_code == 403
        body = {"refresh_token": renewed.json()["refresh_token"]}
        assert (await people.client.post("/auth/logout", json=body)).status_code == 204
        assert await people.status_of(tokens["access_token"]) == 401


async def test_keys_and_single_sign_on_owe_none(sqlite_url: str, tmp_path: Path) -> None:
    async with people_under("required", sqlite_url, tmp_path) as people:
        await people.done("GET", "/api/users", by="keeper")
        async with people.database.session() as session:
            user = (await session.scalars(select(User).where(User.email == "member@example.com"))).one()
        authenticator = Authenticator(people.database, people.keyrings, second_factor="required")
        access = await access_token(people.database, authenticator, user.id)
        await people.done("GET", "/auth/sign-ins", by=access)


async def test_admins_alone_may_be_asked_for_one(sqlite_url: str, tmp_path: Path) -> None:
    async with people_under("admins", sqlite_url, tmp_path) as people:
        await people.refused(403, "GET", "/auth/sign-ins", by="admin")
        await people.done("GET", "/auth/sign-ins", by="member")
        phone = await Phone.set_up(people, "admin")
        await people.done("PATCH", f"/api/users/{people.users['member']}", by=phone.access, json={"role": "admin"})
        made = await people.log_in("member@example.com")
        await people.refused(403, "GET", "/auth/sign-ins", by=made)


async def test_a_key_that_was_rotated_decrypts_until_a_log_in_encrypts_anew(sqlite_url: str, tmp_path: Path) -> None:
    async with People.open(sqlite_url, tmp_path, encryption_keys=(("1", SecretStr(OLD)),)) as people:
        phone = await Phone.set_up(people, "member")
        # What a worker after the rotation does.
        people.sealing = Sealing(Keyring({"2": NEW.encode(), "1": OLD.encode()}))
        assert (await phone.log_in(phone.next_code())).status_code == 200
        async with people.database.session() as session:
            assert (await session.scalars(select(SecondFactor.secret_kid))).one() == "2"
        people.sealing = Sealing(Keyring({"2": NEW.encode()}))
        assert (await phone.log_in(phone.next_code())).status_code == 200
        # A key that is gone closes the app, and leaves the recovery codes.
        async with people.database.transaction() as session:
            await session.execute(update(SecondFactor).values(secret_kid="1"))
        assert (await phone.log_in(phone.next_code())).status_code == 401
        assert (await phone.log_in(phone.recovery_codes[0])).status_code == 200
        people.sealing = Sealing(None)
        error = await people.refused(503, "POST", "/auth/second-factor", by="other", json={"password": PASSWORD})
        assert "TIDEGATE_AUTH__ENCRYPTION_KEYS" in error["message"]


@pytest.mark.parametrize(("rule", "is_refused"), [("optional", False), ("required", True), ("admins", True)])
def test_production_is_not_started_where_nobody_could_have_the_one_they_need(
    rule: SecondFactorRule, is_refused: bool
) -> None:
    settings = Settings(environment="test", auth=AuthSettings(second_factor=rule))
    told = [fault for fault in production_faults(settings) if fault.startswith("TIDEGATE_AUTH__ENCRYPTION_KEYS")]
    assert bool(told) == is_refused
    weak = AuthSettings(second_factor=rule, encryption_keys=(("1", SecretStr("changeme-changeme-0123456789-secrets")),))
    told = production_faults(Settings(environment="test", auth=weak))
    assert any(fault.startswith("TIDEGATE_AUTH__ENCRYPTION_KEYS") for fault in told)

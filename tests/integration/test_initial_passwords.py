"""A password that its user did not choose opens log-ins for some days; one of their own does for good."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from sqlalchemy import select, update

from tests.support.credentials import EMAIL, PASSWORD, database_at_head, keyrings
from tests.support.sign_in_api import SignInApi
from tidegate.accounts.bootstrap import FIRST_ADMIN, bootstrap
from tidegate.accounts.mailed.tokens import add_token
from tidegate.accounts.models import MailedToken, User
from tidegate.accounts.schemas import NewUser
from tidegate.ledger.entry import utc_now
from tidegate.settings import Settings
from tidegate.settings.groups import AuthSettings, BootstrapSettings
from tidegate.storage.database import Database

GIVEN = "a password that an admin gave"
OWN = "a password of her own choice"
NEW = "new@example.com"


@pytest.fixture
async def api(database_url: str, tmp_path: Path) -> AsyncIterator[SignInApi]:
    async with SignInApi.open(database_url, tmp_path, initial_password_days=3) as api:
        yield api


async def _ends_at(database: Database, email: str) -> datetime | None:
    async with database.session() as session:
        user = await session.scalar(select(User).where(User.email == email))
    assert user is not None
    return user.password_ends_at


async def _end(api: SignInApi, email: str) -> None:
    async with api.database.transaction() as session:
        ended = utc_now() - timedelta(seconds=1)
        await session.execute(update(User).where(User.email == email).values(password_ends_at=ended))


async def _given(api: SignInApi) -> str:
    """An admin creates a user with a password; returns an access token of that user."""
    admin = (await api.log_in())["access_token"]
    headers = {"Authorization": f"Bearer {admin}"}
    made = await api.client.post("/api/users", json={"email": NEW, "password": GIVEN}, headers=headers)
    assert made.status_code == 201, made.text
    answer = await api.post("/login", {"email": NEW, "password": GIVEN})
    assert answer.status_code == 200, answer.text
    token: str = answer.json()["access_token"]
    return token


async def test_a_password_that_an_admin_gave_ends_and_what_to_do_is_said(api: SignInApi) -> None:
    token = await _given(api)
    ends_at = await _ends_at(api.database, NEW)
    assert ends_at is not None
    assert timedelta(days=2, hours=23) < ends_at - datetime.now(UTC) <= timedelta(days=3)
    told = (await api.get("/me", by=token)).json()["password_ends_at"]
    assert datetime.fromisoformat(told) == ends_at
    await _end(api, NEW)
    refused = await api.post("/login", {"email": NEW, "password": GIVEN})
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "permission_denied")
    assert "/forgot-password" in refused.json()["error"]["message"]
    events = await api.events("account.sign_in_refused")
    assert [event.subject for event in events] == [NEW]


async def test_that_it_ended_is_told_only_to_who_knows_it(api: SignInApi) -> None:
    await _given(api)
    await _end(api, NEW)
    wrong = await api.post("/login", {"email": NEW, "password": "a wrong password"})
    nobody = await api.post("/login", {"email": "nobody@example.com", "password": GIVEN})
    assert wrong.status_code == nobody.status_code == 401
    assert wrong.json()["error"] == nobody.json()["error"]


async def test_who_chooses_their_own_in_time_keeps_it(api: SignInApi) -> None:
    token = await _given(api)
    changed = await api.post("/password", {"current_password": GIVEN, "password": OWN}, by=token)
    assert changed.status_code == 204, changed.text
    assert await _ends_at(api.database, NEW) is None
    assert (await api.get("/me", by=token)).json()["password_ends_at"] is None


async def test_who_is_signed_in_may_change_it_though_it_ended(api: SignInApi) -> None:
    token = await _given(api)
    await _end(api, NEW)
    changed = await api.post("/password", {"current_password": GIVEN, "password": OWN}, by=token)
    assert changed.status_code == 204, changed.text
    assert (await api.post("/login", {"email": NEW, "password": OWN})).status_code == 200


async def test_the_password_that_was_given_is_not_ones_own_choice(api: SignInApi) -> None:
    token = await _given(api)
    ends_at = await _ends_at(api.database, NEW)
    same = await api.post("/password", {"current_password": GIVEN, "password": GIVEN}, by=token)
    assert same.status_code == 422, same.text
    assert "another" in same.json()["error"]["errors"][0]["message"]
    async with api.database.transaction() as session:
        user = (await session.scalars(select(User).where(User.email == NEW))).one()
        row = MailedToken(workspace_id=user.workspace_id, purpose="password_reset", user_id=user.id, email=NEW)
        link = add_token(session, row)
    assert (await api.post("/password/reset", {"token": link, "password": GIVEN})).status_code == 422
    assert await _ends_at(api.database, NEW) == ends_at
    # The link still works for one that is.
    assert (await api.post("/password/reset", {"token": link, "password": OWN})).status_code == 204
    assert await _ends_at(api.database, NEW) is None


async def test_what_the_command_sets_ends_and_sets_a_new_end(api: SignInApi) -> None:
    made = await api.accounts.create(NewUser(email=NEW, password=SecretStr(GIVEN)))
    assert made.password_ends_at is not None
    await _end(api, NEW)
    assert (await api.post("/login", {"email": NEW, "password": GIVEN})).status_code == 403
    await api.accounts.set_password(NEW, OWN)
    ends_at = await _ends_at(api.database, NEW)
    assert ends_at is not None
    assert ends_at > datetime.now(UTC)
    assert (await api.post("/login", {"email": NEW, "password": OWN})).status_code == 200


async def test_a_user_without_a_password_has_no_end_and_those_before_it_was_known_go_on(api: SignInApi) -> None:
    assert (await api.accounts.create(NewUser(email=NEW))).password_ends_at is None
    assert await _ends_at(api.database, EMAIL) is None
    assert (await api.post("/login", {"email": EMAIL, "password": PASSWORD})).status_code == 200


def _settings(folder: Path, **bootstrap: Any) -> Settings:
    auth = AuthSettings(initial_password_days=3)
    given = BootstrapSettings.model_validate(bootstrap)
    return Settings(environment="development", data_dir=folder, auth=auth, bootstrap=given)


@pytest.mark.parametrize("given", ["nothing", "an address", "an address and a password"])
async def test_a_first_admins_password_ends_where_it_was_made_up(database_url: str, tmp_path: Path, given: str) -> None:
    chosen: dict[str, str] = {}
    if given != "nothing":
        chosen["admin_email"] = EMAIL
    if given == "an address and a password":
        chosen["admin_password"] = PASSWORD
    async with database_at_head(database_url) as database:
        made = await bootstrap(database, _settings(tmp_path, **chosen), keyrings())
        ends_at = await _ends_at(database, EMAIL if chosen else FIRST_ADMIN)
    # Scripts log in by what the settings bring, over and over.
    assert (ends_at is None) == (given == "an address and a password")
    assert (made.admin_password is None) == (ends_at is None)
    if ends_at is not None:
        assert timedelta(days=2, hours=23) < ends_at - datetime.now(UTC) <= timedelta(days=3)

"""The first admin and key: made once, whoever asks and however often, and shown only where they were made up."""

import asyncio
import stat
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from sqlalchemy import func, select, text

from tests.support.credentials import bearer, database_at_head, keyrings, secret_settings
from tests.support.waiting import eventually
from tidegate.accounts.api_keys.keys import ApiKeys
from tidegate.accounts.bootstrap import FIRST_ADMIN, FIRST_KEY_FILE, Bootstrapped, bootstrap, locked
from tidegate.accounts.models import DEFAULT_WORKSPACE_ID, User
from tidegate.accounts.schemas import NewUser
from tidegate.accounts.service import Accounts
from tidegate.auth.api_keys import generate_key
from tidegate.auth.authenticator import Authenticator
from tidegate.auth.models import ApiKey
from tidegate.auth.passwords import Passwords
from tidegate.auth.principal_cache import CacheBounds
from tidegate.errors import AuthenticationError
from tidegate.settings import Settings, SettingsError
from tidegate.settings.groups import AuthSettings, BootstrapSettings, DatabaseSettings
from tidegate.storage.database import Database

EMAIL = "Root@example.com"
PASSWORD = "a long enough password"


def _given(data_dir: Path, key: str | None = None, password: str | None = PASSWORD, **others: Any) -> Settings:
    given = BootstrapSettings(
        admin_email=EMAIL,
        admin_password=SecretStr(password) if password else None,
        api_key=SecretStr(key) if key else None,
    )
    return Settings.model_validate({"environment": "test", "data_dir": data_dir, "bootstrap": given, **others})


def _nothing_given(data_dir: Path) -> Settings:
    return Settings(environment="development", data_dir=data_dir)


async def _count(database: Database) -> tuple[int, int]:
    async with database.session() as session:
        users = await session.scalar(select(func.count()).select_from(User))
        keys = await session.scalar(select(func.count()).select_from(ApiKey))
    return users or 0, keys or 0


async def _sign_in(database: Database, email: str, password: str) -> User:
    return await Accounts(database, Passwords()).sign_in(email, password)


async def test_a_new_gateway_gets_an_admin_and_a_key_which_are_shown_once(database_url: str, tmp_path: Path) -> None:
    async with database_at_head(database_url) as database:
        made = await bootstrap(database, _nothing_given(tmp_path), keyrings())
        assert made.admin_email == FIRST_ADMIN
        assert made.admin_password
        assert made.api_key
        assert (await _sign_in(database, FIRST_ADMIN, made.admin_password)).role == "admin"
        key_file = tmp_path / FIRST_KEY_FILE
        assert made.api_key_file == key_file
        assert key_file.read_text().strip() == made.api_key
        assert stat.S_IMODE(key_file.stat().st_mode) == 0o600
        authenticator = Authenticator(database, keyrings(), bounds=CacheBounds(answer_s=30))
        principal = await authenticator.authenticate(bearer(made.api_key))
        assert principal.role == "admin"
        assert principal.scopes == {"inference", "usage", "manage", "metrics"}
        await authenticator.aclose()
        assert await bootstrap(database, _nothing_given(tmp_path), keyrings()) == Bootstrapped()
        assert await _count(database) == (1, 1)
        for secret in (made.admin_password, made.api_key):
            assert secret not in repr(made)


async def test_where_there_is_a_user_nothing_is_made_up(database_url: str, tmp_path: Path) -> None:
    async with database_at_head(database_url) as database:
        await Accounts(database, Passwords()).create(NewUser(email="b@example.com"))
        assert await bootstrap(database, _nothing_given(tmp_path), keyrings()) == Bootstrapped()
        assert await _count(database) == (1, 0)
        assert not (tmp_path / FIRST_KEY_FILE).exists()


async def test_what_the_settings_bring_is_created_as_it_is_and_never_shown(database_url: str, tmp_path: Path) -> None:
    key = generate_key().secret
    async with database_at_head(database_url) as database:
        for _ in range(2):
            assert await bootstrap(database, _given(tmp_path, key), keyrings()) == Bootstrapped()
        assert await _count(database) == (1, 1)
        user = await _sign_in(database, EMAIL, PASSWORD)
        authenticator = Authenticator(database, keyrings(), bounds=CacheBounds(answer_s=30))
        principal = await authenticator.authenticate(bearer(key))
        assert (principal.user_id, principal.role) == (user.id, "admin")
        await authenticator.aclose()
        assert not (tmp_path / FIRST_KEY_FILE).exists()


async def test_what_exists_is_left_as_it_is(database_url: str, tmp_path: Path) -> None:
    key = generate_key()
    async with database_at_head(database_url) as database:
        await bootstrap(database, _given(tmp_path, key.secret), keyrings())
        await ApiKeys(database, keyrings().peppers).revoke(key.prefix)
        await bootstrap(database, _given(tmp_path, key.secret, password="another long password"), keyrings())
        with pytest.raises(AuthenticationError):
            await _sign_in(database, EMAIL, "another long password")
        async with database.session() as session:
            assert await session.scalar(select(ApiKey.revoked_at)) is not None


async def test_a_key_is_added_to_an_admin_that_exists(database_url: str, tmp_path: Path) -> None:
    async with database_at_head(database_url) as database:
        await bootstrap(database, _given(tmp_path), keyrings())
        assert await _count(database) == (1, 0)
        await bootstrap(database, _given(tmp_path, generate_key().secret), keyrings())
        assert await _count(database) == (1, 1)


async def test_a_prefix_that_another_secret_has_stops_the_start_without_naming_the_secret(
    database_url: str, tmp_path: Path
) -> None:
    key = generate_key()
    impostor = f"tg_{key.prefix}_{'A' * 43}"
    async with database_at_head(database_url) as database:
        await bootstrap(database, _given(tmp_path, key.secret), keyrings())
        with pytest.raises(SettingsError, match="TIDEGATE_BOOTSTRAP__API_KEY") as refused:
            await bootstrap(database, _given(tmp_path, impostor), keyrings())
        assert impostor not in str(refused.value)
        assert await _count(database) == (1, 1)


async def test_a_password_that_was_not_given_is_made_up_and_shown(database_url: str, tmp_path: Path) -> None:
    async with database_at_head(database_url) as database:
        made = await bootstrap(database, _given(tmp_path, password=None), keyrings())
        assert (made.admin_email, made.api_key) == (EMAIL.lower(), None)
        assert made.admin_password
        assert (await _sign_in(database, EMAIL, made.admin_password)).role == "admin"


async def test_production_makes_nothing_up(postgres_url: str, tmp_path: Path) -> None:
    production: dict[str, Any] = {
        "environment": "production",
        "database": DatabaseSettings(url=SecretStr(postgres_url)),
        "auth": AuthSettings(**secret_settings()),
    }
    async with database_at_head(postgres_url) as database:
        nothing = Settings.model_validate({"data_dir": tmp_path, **production})
        assert await bootstrap(database, nothing, keyrings()) == Bootstrapped()
        assert await _count(database) == (0, 0)
        # An admin without a password cannot sign in: nothing may print one that was made up.
        made = await bootstrap(database, _given(tmp_path, password=None, **production), keyrings())
        assert made == Bootstrapped()
        async with database.session() as session:
            assert (await session.scalar(select(User.password_hash))) is None
        assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("given", [True, False])
async def test_any_number_of_bootstraps_at_once_make_one_admin_and_one_key(
    database_url: str, tmp_path: Path, given: bool
) -> None:
    settings = _given(tmp_path, generate_key().secret) if given else _nothing_given(tmp_path)
    async with database_at_head(database_url) as database:
        others = [await Database.open(database_url) for _ in range(3)]
        try:
            made = await asyncio.gather(*(bootstrap(each, settings, keyrings()) for each in (database, *others)))
        finally:
            for other in others:
                await other.aclose()
        assert await _count(database) == (1, 1)
        shown = [each for each in made if each != Bootstrapped()]
        assert len(shown) == (0 if given else 1)
        if shown:
            assert (tmp_path / FIRST_KEY_FILE).read_text().strip() == shown[0].api_key


async def test_on_postgresql_a_bootstrap_waits_for_the_one_before_it(postgres_url: str, tmp_path: Path) -> None:
    waiting = text(
        "SELECT count(*) FROM pg_locks JOIN pg_database ON pg_database.oid = pg_locks.database"
        " WHERE locktype = 'advisory' AND NOT granted AND datname = current_database()"
    )
    async with database_at_head(postgres_url) as database:

        async def is_waiting() -> bool:
            async with database.session() as session:
                return bool(await session.scalar(waiting))

        async with locked(database) as session:
            session.add(User(workspace_id=DEFAULT_WORKSPACE_ID, email=FIRST_ADMIN, role="admin"))
            await session.flush()
            second = asyncio.create_task(bootstrap(database, _nothing_given(tmp_path), keyrings()))
            await eventually(is_waiting, within_s=30)
        assert await second == Bootstrapped()
        assert await _count(database) == (1, 0)


async def test_a_key_file_that_cannot_be_written_leaves_no_key_that_nobody_knows(
    database_url: str, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    async with database_at_head(database_url) as database:
        with pytest.raises(SettingsError, match="TIDEGATE_DATA_DIR"):
            await bootstrap(database, _nothing_given(tmp_path / "file"), keyrings())
        assert await _count(database) == (0, 0)
        assert (await bootstrap(database, _nothing_given(tmp_path), keyrings())).api_key


async def test_a_password_that_is_guessed_first_stops_the_start_only_where_it_would_be_used(
    sqlite_url: str, tmp_path: Path
) -> None:
    async with database_at_head(sqlite_url) as database:
        with pytest.raises(SettingsError) as refusal:
            await bootstrap(database, _given(tmp_path, password="password1234"), keyrings())
        (fault,) = refusal.value.faults
        assert fault.startswith("TIDEGATE_BOOTSTRAP__ADMIN_PASSWORD: ")
        assert "password1234" not in fault
        assert await _count(database) == (0, 0)
        await bootstrap(database, _given(tmp_path), keyrings())
        await bootstrap(database, _given(tmp_path, password="password1234"), keyrings())
        assert await _count(database) == (1, 0)

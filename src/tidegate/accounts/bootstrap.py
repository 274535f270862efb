"""The first admin and the first API key, so that a new gateway can be used at all.

With `TIDEGATE_BOOTSTRAP__…` that admin and that very key are created where they are missing; what exists is never
changed, and a secret that was rotated away stays away, though the settings still name it. Without them, outside
production and where there is no user at all, an admin with a random password and a key are made up, and the key is kept
in `<data dir>/first-key` (0600). A password that was made up ends after some days, as every one that its user did not
choose; the settings' own does not, since scripts log in by it.

All of it is one transaction under a lock, so any number of processes may do it at once: one of them creates, the others
find. The file is written before the commit: a crash between the two leaves a file to be overwritten, never a key that
nobody knows.
"""

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from tidegate.accounts.api_keys.events import note_created
from tidegate.accounts.api_keys.keys import key_row
from tidegate.accounts.models import DEFAULT_WORKSPACE_ID, User
from tidegate.accounts.schemas import NewKey
from tidegate.accounts.service import ends_after
from tidegate.audit.models import AuditEvent
from tidegate.audit.trail import SYSTEM, Event, Subject, note
from tidegate.auth.api_keys import KEY_MARK, GeneratedKey, StoredHash, generate_key, prefix_of, verify_key
from tidegate.auth.keyring import Keyring, Keyrings, write_private_file
from tidegate.auth.models import ApiKey
from tidegate.auth.passwords import Passwords
from tidegate.auth.principal import Scope
from tidegate.errors import ValidationFailed
from tidegate.settings import Settings, SettingsError
from tidegate.storage.database import Database
from tidegate.telemetry.logging import get_logger

log = get_logger(__name__)

FIRST_ADMIN: Final = "admin@localhost.localdomain"
FIRST_KEY_FILE: Final = "first-key"
_SCOPES: Final[tuple[Scope, ...]] = ("inference", "usage", "manage", "metrics")
# Any fixed number that no other program of the same database takes; this one reads "tg_first" in ASCII.
_ADVISORY_LOCK: Final = 0x74675F6669727374


@dataclass(frozen=True, slots=True)
class Bootstrapped:
    """What was generated just now, to be shown once: all None where nothing was. Never what the settings brought."""

    admin_email: str | None = None
    admin_password: str | None = field(default=None, repr=False)
    api_key: str | None = field(default=None, repr=False)
    api_key_file: Path | None = None


async def bootstrap(database: Database, settings: Settings, keyrings: Keyrings) -> Bootstrapped:
    """Creates what is missing of the first admin and key. The schema must be at head.

    Raises `SettingsError` where the key cannot be created as the settings have it, or its file cannot be written.
    """
    given = settings.bootstrap
    if given.admin_email is not None:
        return await _create_configured(database, settings, given.admin_email.lower(), keyrings.peppers)
    if settings.in_production:
        return Bootstrapped()
    return await _create_first(database, settings, keyrings.peppers)


async def _create_configured(database: Database, settings: Settings, email: str, peppers: Keyring) -> Bootstrapped:
    given = settings.bootstrap
    password = generated = None
    async with database.session() as session:
        is_missing = await _user(session, email) is None
    if is_missing:
        # In production nothing may print a password: without one, the account waits for one to be set.
        generated = None if given.admin_password or settings.in_production else _new_password()
        password = given.admin_password.get_secret_value() if given.admin_password else generated
    password_hash = None
    if password:
        password_hash = await _hash_of(Passwords.of(settings), password, email, is_made_up=password is generated)
    async with locked(database) as session:
        admin = await _user(session, email)
        is_new = admin is None
        if admin is None:
            admin = await _add_admin(session, email, password_hash)
            if generated:
                admin.password_ends_at = ends_after(settings.auth.initial_password_days)
        if given.api_key is not None:
            await _ensure_key(session, given.api_key.get_secret_value(), admin, peppers)
    return Bootstrapped(admin_email=email, admin_password=generated) if is_new and generated else Bootstrapped()


async def _create_first(database: Database, settings: Settings, peppers: Keyring) -> Bootstrapped:
    key_file = settings.data_dir / FIRST_KEY_FILE
    async with database.session() as session:
        if await _is_anyone_there(session):
            return Bootstrapped()
    password, key = _new_password(), generate_key()
    # Hashed before the lock is taken.
    password_hash = await Passwords().hash(password)
    async with locked(database) as session:
        if await _is_anyone_there(session):
            return Bootstrapped()
        admin = await _add_admin(session, FIRST_ADMIN, password_hash)
        admin.password_ends_at = ends_after(settings.auth.initial_password_days)
        await _add_key(session, "first key", admin, key, peppers)
        await asyncio.to_thread(_write_key, key_file, key.secret)
    return Bootstrapped(FIRST_ADMIN, password, key.secret, key_file)


@asynccontextmanager
async def locked(database: Database) -> AsyncIterator[AsyncSession]:
    """A transaction that no other bootstrap runs beside. On SQLite every writing transaction is one."""
    async with database.transaction() as session:
        if database.dialect_name == "postgresql":
            await session.execute(select(func.pg_advisory_xact_lock(_ADVISORY_LOCK)))
        yield session


async def _is_anyone_there(session: AsyncSession) -> bool:
    return await session.scalar(select(User.id).limit(1)) is not None


async def _user(session: AsyncSession, email: str) -> User | None:
    user: User | None = await session.scalar(select(User).where(User.email == email))
    return user


async def _add_admin(session: AsyncSession, email: str, password_hash: str | None) -> User:
    admin = User(workspace_id=DEFAULT_WORKSPACE_ID, email=email, role="admin", password_hash=password_hash)
    session.add(admin)
    await session.flush()
    event = Event("user.created", admin.workspace_id, Subject("user", admin.id, email), details={"role": admin.role})
    note(session, SYSTEM, event)
    return admin


async def _add_key(session: AsyncSession, name: str, admin: User, key: GeneratedKey, peppers: Keyring) -> None:
    row = key_row(NewKey(name=name, scopes=_SCOPES), admin, key, peppers)
    session.add(row)
    await session.flush()
    note_created(session, SYSTEM, row, admin)


async def _hash_of(passwords: Passwords, password: str, email: str, *, is_made_up: bool) -> str:
    if is_made_up:
        return await passwords.hash(password)
    try:
        return await passwords.choose(password, email=email)
    except ValidationFailed as refusal:
        fault = refusal.errors[0]["message"]
        raise SettingsError([f"TIDEGATE_BOOTSTRAP__ADMIN_PASSWORD: {fault}"]) from None


async def _ensure_key(session: AsyncSession, key: str, admin: User, peppers: Keyring) -> None:
    prefix = prefix_of(key)
    if prefix is None:
        raise SettingsError(["TIDEGATE_BOOTSTRAP__API_KEY: must be tg_ + 8 of a-z0-9 + _ + 43 of base64url"])
    row = await session.scalar(select(ApiKey).where(ApiKey.prefix == prefix))
    if row is None and await _was_there(session, prefix):
        log.warning(
            "the bootstrap key was rotated: its old secret is not made again. Set TIDEGATE_BOOTSTRAP__API_KEY to the "
            "new one, or remove it",
            key=KEY_MARK + prefix,
        )
    elif row is None:
        await _add_key(session, "bootstrap key", admin, GeneratedKey(prefix, key), peppers)
    elif not verify_key(key, StoredHash(row.secret_hash, row.hash_scheme, row.pepper_kid), peppers):
        fault = (
            f"TIDEGATE_BOOTSTRAP__API_KEY: the database has a key tg_{prefix} that this one does not match: "
            "its secret is another, or TIDEGATE_AUTH__API_KEY_PEPPERS lacks its pepper"
        )
        raise SettingsError([fault])


async def _was_there(session: AsyncSession, prefix: str) -> bool:
    """Whether a key ever had this prefix, by the audit trail."""
    made = (AuditEvent.action.in_(("key.created", "key.rotated")), AuditEvent.subject == KEY_MARK + prefix)
    return await session.scalar(select(AuditEvent.id).where(*made).limit(1)) is not None


def _new_password() -> str:
    return secrets.token_urlsafe(18)


def _write_key(path: Path, key: str) -> None:
    try:
        write_private_file(path, key + "\n", replace=True)
    except OSError as error:
        raise SettingsError([f"TIDEGATE_DATA_DIR: {path} cannot be written: {error.strerror or error}"]) from None

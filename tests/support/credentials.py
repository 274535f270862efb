"""Databases at head with users and keys in them, and headers that present a credential."""

import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

from pwdlib import PasswordHash
from pwdlib.hashers.argon2 import Argon2Hasher
from pydantic import SecretStr

from tests.support.schema import bring_to_head
from tidegate.accounts.models import User
from tidegate.accounts.sign_ins.service import Client, SignIns
from tidegate.auth.authenticator import Authenticator
from tidegate.auth.keyring import Keyring, Keyrings
from tidegate.auth.passwords import Passwords
from tidegate.storage.database import Database

EMAIL = "ada@example.com"
PASSWORD = "correct horse battery"
JWT_SECRET = "jwt-secret-0123456789-abcdefghijklmnop"
PEPPER = "pepper-0123456789-abcdefghijklmnopqrst"

Headers = list[tuple[bytes, bytes]]


@asynccontextmanager
async def database_at_head(url: str) -> AsyncIterator[Database]:
    await bring_to_head(url)
    database = await Database.open(url)
    try:
        yield database
    finally:
        await database.aclose()


def keyrings() -> Keyrings:
    return Keyrings(jwt=Keyring({"1": JWT_SECRET.encode()}), peppers=Keyring({"1": PEPPER.encode()}))


def quick_passwords() -> Passwords:
    """Argon2 at its smallest, for tests that are not about passwords: the real one takes 0.25 s of CPU."""
    return Passwords(PasswordHash((Argon2Hasher(time_cost=1, memory_cost=8, parallelism=1),)))


def secret_settings() -> dict[str, tuple[tuple[str, SecretStr], ...]]:
    """The same keyrings as settings: `AuthSettings(**secret_settings())`."""
    return {"jwt_keys": (("1", SecretStr(JWT_SECRET)),), "api_key_peppers": (("1", SecretStr(PEPPER)),)}


async def access_token(database: Database, authenticator: Authenticator, user_id: uuid.UUID) -> str:
    """An access token of a user, by a sign-in that begins here."""
    async with database.session() as session:
        user = await session.get_one(User, user_id)
    sign_ins = SignIns(database, authenticator.tokens, lifetime=timedelta(days=30))
    return (await sign_ins.begin(user, Client(), "single_sign_on")).access_token


def bearer(credential: str) -> Headers:
    return [(b"host", b"gateway"), (b"authorization", f"Bearer {credential}".encode())]


def x_api_key(credential: str) -> Headers:
    return [(b"x-api-key", credential.encode())]

"""Databases at head with users and keys in them, and headers that present a credential."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from pydantic import SecretStr

from tidegate.auth.keyring import Keyring, Keyrings
from tidegate.storage.database import Database
from tidegate.storage.migrate import migrate

EMAIL = "ada@example.com"
PASSWORD = "correct horse battery"
JWT_SECRET = "jwt-secret-0123456789-abcdefghijklmnop"
PEPPER = "pepper-0123456789-abcdefghijklmnopqrst"

Headers = list[tuple[bytes, bytes]]


@asynccontextmanager
async def database_at_head(url: str) -> AsyncIterator[Database]:
    await migrate(url)
    database = await Database.open(url)
    try:
        yield database
    finally:
        await database.aclose()


def keyrings() -> Keyrings:
    return Keyrings(jwt=Keyring({"1": JWT_SECRET.encode()}), peppers=Keyring({"1": PEPPER.encode()}))


def secret_settings() -> dict[str, tuple[tuple[str, SecretStr], ...]]:
    """The same keyrings as settings: `AuthSettings(**secret_settings())`."""
    return {"jwt_keys": (("1", SecretStr(JWT_SECRET)),), "api_key_peppers": (("1", SecretStr(PEPPER)),)}


def bearer(credential: str) -> Headers:
    return [(b"host", b"gateway"), (b"authorization", f"Bearer {credential}".encode())]


def x_api_key(credential: str) -> Headers:
    return [(b"x-api-key", credential.encode())]

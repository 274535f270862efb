"""The whole application on a real socket within the test, where its hashing is to be counted or its bounds are to be
short: uvicorn with our protocol, set up as the gateway itself sets it up.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
from pwdlib import PasswordHash
from pydantic import SecretStr

from tests.support.credentials import PASSWORD, database_at_head, secret_settings
from tests.support.people import CountingHasher
from tests.support.server import in_process_server
from tests.support.stand_in import ECHO
from tidegate.accounts.dependencies import get_accounts
from tidegate.accounts.models import DEFAULT_WORKSPACE_ID, User
from tidegate.accounts.service import Accounts
from tidegate.accounts.users.dependencies import get_passwords
from tidegate.app import create_app
from tidegate.auth.passwords import Passwords
from tidegate.http.protocol import TidegateHttpProtocol
from tidegate.ledger.entry import utc_now
from tidegate.server.http_server import uvicorn_config
from tidegate.settings import Settings
from tidegate.settings.groups import AuthSettings, DatabaseSettings, HttpSettings
from tidegate.storage.database import Database
from tidegate.storage.dependencies import DatabaseDep

Json = dict[str, Any]


@dataclass
class Served:
    """`ada@example.com` and `bob@example.com` have `PASSWORD`; `sso@example.com` has none, `gone@example.com` is
    disabled. `hasher` counts what was computed for passwords.
    """

    url: str
    hasher: CountingHasher
    _clients: dict[str, httpx2.AsyncClient] = field(default_factory=dict)

    async def post(self, path: str, body: Json, *, source: str = "127.0.0.1", **headers: str) -> httpx2.Response:
        """By a connection from one of loopback's addresses: any of 127/8 may call from this machine."""
        if source not in self._clients:
            # Nothing here speaks TLS, and to load authorities for it takes 20 ms each time.
            transport = httpx2.AsyncHTTPTransport(local_address=source, verify=False, trust_env=False)
            self._clients[source] = httpx2.AsyncClient(transport=transport, base_url=self.url, timeout=60)
        return await self._clients[source].post(path, json=body, headers=headers)

    async def aclose(self) -> None:
        for client in self._clients.values():
            await client.aclose()

    async def log_in(self, email: str, password: str = "wrong", **more: str) -> httpx2.Response:
        return await self.post("/auth/login", {"email": email, "password": password}, **more)


@asynccontextmanager
async def served(
    folder: Path, *, http: HttpSettings | None = None, protocol: type[TidegateHttpProtocol] = TidegateHttpProtocol
) -> AsyncIterator[Served]:
    url = f"sqlite+aiosqlite:///{folder}/tidegate.db"
    hasher = CountingHasher()
    passwords = Passwords(PasswordHash((hasher,)))
    async with database_at_head(url) as database:
        await _people(database, await passwords.hash(PASSWORD))
    settings = Settings(
        environment="test",
        data_dir=folder / "data",
        config_toml=ECHO,
        database=DatabaseSettings(url=SecretStr(url)),
        auth=AuthSettings(**secret_settings()),
        http=http or HttpSettings(),
    )
    app = create_app(settings)
    app.dependency_overrides[get_passwords] = lambda: passwords

    def accounts(database: DatabaseDep) -> Accounts:
        return Accounts(database, passwords)

    app.dependency_overrides[get_accounts] = accounts
    config = uvicorn_config(app, settings)
    config.http = protocol
    async with in_process_server(config) as base_url:
        gateway = Served(base_url, hasher)
        try:
            yield gateway
        finally:
            await gateway.aclose()


async def _people(database: Database, password_hash: str) -> None:
    people = {"ada": password_hash, "bob": password_hash, "sso": None, "gone": password_hash}
    async with database.transaction() as session:
        for name, stored in people.items():
            user = User(workspace_id=DEFAULT_WORKSPACE_ID, email=f"{name}@example.com", role="member")
            user.password_hash = stored
            user.disabled_at = utc_now() if name == "gone" else None
            session.add(user)

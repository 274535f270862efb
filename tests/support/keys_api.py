"""`/api/keys` of a whole app over one database with two workspaces in it, called with real credentials."""

import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import httpx2
from pydantic import SecretStr
from starlette.types import Receive, Scope, Send

from tests.support.credentials import access_token, database_at_head, keyrings, secret_settings
from tests.support.patience import be_patient
from tests.support.stand_in import ECHO
from tidegate.accounts.api_keys.keys import ApiKeys, CreatedKey
from tidegate.accounts.models import DEFAULT_WORKSPACE_ID, User, Workspace
from tidegate.accounts.schemas import NewKey
from tidegate.app import create_app
from tidegate.auth.authenticator import Authenticator
from tidegate.settings import Settings
from tidegate.settings.groups import AuthSettings, DatabaseSettings
from tidegate.storage.changes import Changes
from tidegate.storage.database import Database

Json = dict[str, Any]


@dataclass
class KeysApi:
    """`admin`, `member` and `other` are users of `default`, `stranger` is a member of `research`.

    `told` are the changes of keys and of limits, in order. `peer` is the address that calls come from, None for a Unix
    socket's.
    """

    client: httpx2.AsyncClient
    database: Database
    keys: ApiKeys
    research: uuid.UUID
    users: dict[str, uuid.UUID]
    tokens: dict[str, str]
    told: list[str | None] = field(default_factory=list)
    peer: str | None = "127.0.0.1"

    @classmethod
    @asynccontextmanager
    async def open(cls, url: str, folder: Path, *, models: str = ECHO, **settings_of_test: Any) -> AsyncIterator[Self]:
        async with database_at_head(url) as database:
            research, users = await _people(database)
        settings = Settings(
            environment="test",
            data_dir=folder / "data",
            config_toml=models,
            database=DatabaseSettings(url=SecretStr(url)),
            auth=AuthSettings(**secret_settings()),
            **settings_of_test,
        )
        app = create_app(settings)
        async with app.router.lifespan_context(app) as state:
            assert state is not None
            be_patient(state["authenticator"])

            async def with_state(scope: Scope, receive: Receive, send: Send) -> None:
                peer = None if api.peer is None else (api.peer, 40000)
                await app({**scope, "state": dict(state), "client": peer}, receive, send)

            authenticator: Authenticator = state["authenticator"]
            tokens = {
                name: await access_token(state["database"], authenticator, user_id) for name, user_id in users.items()
            }
            keys = ApiKeys(state["database"], keyrings().peppers)
            transport = httpx2.ASGITransport(with_state)
            async with httpx2.AsyncClient(transport=transport, base_url="http://gateway") as client:
                api = cls(client, state["database"], keys, research, users, tokens)
                changes: Changes = state["changes"]
                for prefix in ("key:", "limits:"):
                    changes.listen(prefix, api.told.append)
                yield api

    async def call(
        self, method: str, path: str = "", *, by: str = "admin", at: str = "/api/keys", **options: Any
    ) -> httpx2.Response:
        """`by` is one of the users, or an API key."""
        headers = {"Authorization": f"Bearer {self.tokens.get(by, by)}"}
        return await self.client.request(method, f"{at}{path}", headers=headers, **options)

    async def make(self, *, by: str = "admin", **body: Any) -> Json:
        answer = await self.call("POST", by=by, json={"name": "app"} | body)
        assert answer.status_code == 201, answer.text
        made: Json = answer.json()
        return made

    async def listed(self, *, by: str = "admin", **query: Any) -> list[Json]:
        answer = await self.call("GET", by=by, params=query)
        assert answer.status_code == 200, answer.text
        found: list[Json] = answer.json()["data"]
        return found

    async def status_of(self, secret: str) -> int:
        """What a key is answered on a route that any key may call."""
        return (await self.call("GET", by=secret, at="/auth/me")).status_code

    async def set_policies(self, *policies: Json) -> None:
        answer = await self.call("PUT", at="/api/limits/key-policies", json={"data": policies})
        assert answer.status_code == 200, answer.text

    async def by_command(self, **new: Any) -> CreatedKey:
        """A key that the command made."""
        return await self.keys.create(NewKey(name="by command", **new))


async def _people(database: Database) -> tuple[uuid.UUID, dict[str, uuid.UUID]]:
    async with database.transaction() as session:
        workspace = Workspace(name="research")
        session.add(workspace)
        await session.flush()
        users = {
            "admin": User(workspace_id=DEFAULT_WORKSPACE_ID, email="admin@example.com", role="admin"),
            "member": User(workspace_id=DEFAULT_WORKSPACE_ID, email="member@example.com", role="member"),
            "other": User(workspace_id=DEFAULT_WORKSPACE_ID, email="other@example.com", role="member"),
            "stranger": User(workspace_id=workspace.id, email="stranger@example.com", role="member"),
        }
        session.add_all(users.values())
    return workspace.id, {name: user.id for name, user in users.items()}

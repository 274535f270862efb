"""The routes of limits over one database with two workspaces in it, called with real credentials."""

import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Self

import httpx2
from fastapi import FastAPI
from starlette.types import ASGIApp, Receive, Scope, Send

from tests.support.credentials import access_token, database_at_head, keyrings
from tidegate.accounts.api_keys.keys import ApiKeys, CreatedKey
from tidegate.accounts.models import User, Workspace
from tidegate.accounts.schemas import NewKey
from tidegate.auth.authenticator import Authenticator
from tidegate.auth.principal_cache import CacheBounds
from tidegate.http.errors import install_error_handlers
from tidegate.http.middleware import RequestEdge
from tidegate.limits.dependencies import get_upstream_names
from tidegate.limits.endpoints import router
from tidegate.storage.database import Database

UPSTREAMS = ("openai", "azure")
Json = dict[str, Any]


@dataclass
class LimitsApi:
    """`admin` and `member` are users of `default`, `stranger` is a member of `research`; values are their tokens."""

    database: Database
    keys: ApiKeys
    client: httpx2.AsyncClient
    research: uuid.UUID
    users: dict[str, uuid.UUID]
    tokens: dict[str, str]
    changed: list[uuid.UUID] = field(default_factory=list)

    @classmethod
    @asynccontextmanager
    async def open(cls, url: str) -> AsyncIterator[Self]:
        async with database_at_head(url) as database:
            authenticator = Authenticator(database, keyrings(), bounds=CacheBounds(answer_s=30))
            research, users = await _people(database)
            changed: list[uuid.UUID] = []
            app = _app(database, authenticator, changed)
            client = httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://gateway")
            tokens = {name: await access_token(database, authenticator, user_id) for name, user_id in users.items()}
            keys = ApiKeys(database, keyrings().peppers)
            try:
                async with client:
                    yield cls(database, keys, client, research, users, tokens, changed)
            finally:
                await authenticator.aclose()

    async def call(self, method: str, path: str = "", *, by: str = "admin", **options: Any) -> httpx2.Response:
        """`by` is one of the users, or an API key."""
        headers = {"Authorization": f"Bearer {self.tokens.get(by, by)}"}
        return await self.client.request(method, f"/api/limits{path}", headers=headers, **options)

    async def create(self, *, by: str = "admin", **body: Any) -> Json:
        """A workspace's 100 USD a month, unless `body` says otherwise."""
        answer = await self.call("POST", by=by, json=A_BUDGET | body)
        assert answer.status_code == 201, answer.text
        created: Json = answer.json()
        return created

    async def listed(self, *, by: str = "admin", **query: Any) -> list[Json]:
        answer = await self.call("GET", by=by, params=query)
        assert answer.status_code == 200, answer.text
        found: list[Json] = answer.json()["data"]
        return found

    async def key(self, **new: Any) -> CreatedKey:
        return await self.keys.create(NewKey(name="app", **new))


A_BUDGET: Json = {"scope": "workspace", "meter": "cost", "window": "month", "amount": "100.00"}


async def _people(database: Database) -> tuple[uuid.UUID, dict[str, uuid.UUID]]:
    async with database.transaction() as session:
        default = (await session.get_one(Workspace, uuid.UUID("00000000-0000-7000-8000-000000000001"))).id
        workspace = Workspace(name="research")
        session.add(workspace)
        await session.flush()
        users = {
            "admin": User(workspace_id=default, email="admin@example.com", role="admin"),
            "member": User(workspace_id=default, email="member@example.com", role="member"),
            "stranger": User(workspace_id=workspace.id, email="stranger@example.com", role="member"),
        }
        session.add_all(users.values())
    return workspace.id, {name: user.id for name, user in users.items()}


def _app(database: Database, authenticator: Authenticator, changes: list[uuid.UUID]) -> ASGIApp:
    app = FastAPI()
    app.include_router(router)
    install_error_handlers(app)
    app.dependency_overrides[get_upstream_names] = lambda: UPSTREAMS

    async def changed(workspace_id: uuid.UUID) -> None:
        changes.append(workspace_id)

    async def with_state(scope: Scope, receive: Receive, send: Send) -> None:
        scope["state"] = {"database": database, "authenticator": authenticator, "limits_changed": changed}
        await app(scope, receive, send)

    return RequestEdge(with_state)

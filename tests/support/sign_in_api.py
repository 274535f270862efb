"""The routes of signing in, of a whole app over one database with two users in it. Several may share the database."""

import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import httpx2
from pydantic import SecretStr
from sqlalchemy import select
from starlette.types import Receive, Scope, Send

from tests.support.credentials import EMAIL, PASSWORD, database_at_head, quick_passwords, secret_settings
from tests.support.patience import be_patient
from tests.support.stand_in import ECHO
from tests.support.waiting import eventually
from tidegate.accounts.dependencies import get_accounts
from tidegate.accounts.models import DEFAULT_WORKSPACE_ID, User
from tidegate.accounts.service import Accounts
from tidegate.app import create_app
from tidegate.audit.models import AuditEvent
from tidegate.settings import Settings
from tidegate.settings.groups import AuthSettings, DatabaseSettings, HttpSettings, RedisSettings
from tidegate.storage.changes import Changes
from tidegate.storage.database import Database

OTHER = "grace@example.com"
Json = dict[str, Any]


@dataclass
class SignInApi:
    """`EMAIL` is an admin and `OTHER` a member, both of `default` and with `PASSWORD`. `told` are users, in order."""

    client: httpx2.AsyncClient
    database: Database
    accounts: Accounts
    users: dict[str, uuid.UUID]
    told: list[str | None]

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        url: str,
        folder: Path,
        *,
        http: HttpSettings | None = None,
        redis: RedisSettings | None = None,
        **auth: Any,
    ) -> AsyncIterator[Self]:
        async with database_at_head(url) as database:
            users = await _people(database)
        settings = Settings(
            environment="test",
            data_dir=folder / "data",
            config_toml=ECHO,
            database=DatabaseSettings(url=SecretStr(url)),
            auth=AuthSettings(**{**secret_settings(), **auth}),
            http=http or HttpSettings(),
            redis=redis or RedisSettings(),
        )
        app = create_app(settings)
        async with app.router.lifespan_context(app) as state:
            assert state is not None
            be_patient(state["authenticator"])

            async def with_state(scope: Scope, receive: Receive, send: Send) -> None:
                await app({**scope, "state": dict(state)}, receive, send)

            accounts = Accounts(state["database"], quick_passwords())
            app.dependency_overrides[get_accounts] = lambda: accounts
            changes: Changes = state["changes"]
            told: list[str | None] = []
            changes.listen("user:", told.append)
            transport = httpx2.ASGITransport(with_state, client=("192.0.2.7", 1234))
            async with httpx2.AsyncClient(transport=transport, base_url="http://gateway") as client:
                yield cls(client, state["database"], accounts, users, told)

    async def post(self, path: str, body: Json | None = None, *, by: str | None = None) -> httpx2.Response:
        return await self.client.post(f"/auth{path}", json=body, headers=_by(by))

    async def get(self, path: str, *, by: str) -> httpx2.Response:
        return await self.client.get(f"/auth{path}", headers=_by(by))

    async def delete(self, path: str, *, by: str) -> httpx2.Response:
        return await self.client.delete(f"/auth{path}", headers=_by(by))

    async def log_in(self, email: str = EMAIL) -> Json:
        """The tokens of a new sign-in."""
        answer = await self.post("/login", {"email": email, "password": PASSWORD})
        assert answer.status_code == 200, answer.text
        tokens: Json = answer.json()
        return tokens

    async def refresh(self, tokens: Json) -> httpx2.Response:
        return await self.post("/refresh", {"refresh_token": tokens["refresh_token"]})

    async def status_of(self, tokens: Json) -> int:
        """What an access token is answered; asked again where the database took too long to say."""

        async def judged() -> int:
            status = (await self.get("/me", by=tokens["access_token"])).status_code
            return 0 if status == httpx2.codes.SERVICE_UNAVAILABLE else status

        return await eventually(judged, within_s=30)

    async def events(self, *actions: str) -> Sequence[AuditEvent]:
        """What the audit trail has, the oldest first."""
        query = select(AuditEvent).where(AuditEvent.action.in_(actions)).order_by(AuditEvent.id)
        async with self.database.session() as session:
            return (await session.scalars(query)).all()


def _by(token: str | None) -> dict[str, str]:
    return {} if token is None else {"Authorization": f"Bearer {token}"}


async def _people(database: Database) -> dict[str, uuid.UUID]:
    password_hash = await quick_passwords().hash(PASSWORD)
    users = {
        EMAIL: User(workspace_id=DEFAULT_WORKSPACE_ID, email=EMAIL, role="admin", password_hash=password_hash),
        OTHER: User(workspace_id=DEFAULT_WORKSPACE_ID, email=OTHER, role="member", password_hash=password_hash),
    }
    async with database.transaction() as session:
        there = {user.email: user for user in await session.scalars(select(User))}
        session.add_all(user for email, user in users.items() if email not in there)
    users |= there
    return {email: uuid.UUID(int=user.id.int) for email, user in users.items()}

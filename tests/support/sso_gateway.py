"""A whole app with single sign-on over one database, and a browser that goes between it and a provider."""

import re
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

import httpx2
from pydantic import SecretStr
from sqlalchemy import select
from starlette.types import Receive, Scope, Send

from tests.support.credentials import database_at_head, secret_settings
from tests.support.sso_provider import CLIENT_ID, CLIENT_SECRET
from tests.support.stand_in import ECHO
from tidegate.accounts.models import DEFAULT_WORKSPACE_ID, Identity, User
from tidegate.app import create_app
from tidegate.audit.models import AuditEvent
from tidegate.settings import Settings
from tidegate.settings.groups import AuthSettings, DatabaseSettings, HttpSettings, SingleSignOnSettings
from tidegate.storage.changes import Changes
from tidegate.storage.database import Database

GATEWAY = "https://gateway.example.com"
CALLBACK = f"{GATEWAY}/auth/sso/callback"
PENDING = "__Host-tidegate_sso"
_REFRESH = re.compile(r'<meta http-equiv="refresh" content="0; url=([^"]*)">')


@dataclass
class SsoGateway:
    """`told` are users of whom workers were told, in order."""

    transport: httpx2.ASGITransport
    database: Database
    told: list[str | None]
    browsers: AsyncExitStack

    @classmethod
    @asynccontextmanager
    async def open(
        cls, url: str, folder: Path, issuer: str | None, *, password_log_in: bool = True, **single_sign_on: Any
    ) -> AsyncIterator[Self]:
        async with database_at_head(url):
            pass
        chosen: dict[str, Any] = {}
        if issuer is not None:
            chosen = {"issuer": issuer, "client_id": CLIENT_ID, "client_secret": SecretStr(CLIENT_SECRET)}
        settings = Settings(
            environment="test",
            data_dir=folder / "data",
            config_toml=ECHO,
            database=DatabaseSettings(url=SecretStr(url)),
            auth=AuthSettings(**secret_settings(), password_log_in=password_log_in),
            http=HttpSettings(public_url=GATEWAY),
            single_sign_on=SingleSignOnSettings(**{**chosen, **single_sign_on}),
        )
        app = create_app(settings)
        async with app.router.lifespan_context(app) as state:
            assert state is not None

            async def with_state(scope: Scope, receive: Receive, send: Send) -> None:
                await app({**scope, "state": dict(state)}, receive, send)

            changes: Changes = state["changes"]
            told: list[str | None] = []
            changes.listen("user:", told.append)
            transport = httpx2.ASGITransport(with_state, client=("192.0.2.7", 1234))
            async with AsyncExitStack() as browsers:
                yield cls(transport, state["database"], told, browsers)

    def browser(self) -> "Browser":
        """A browser with no cookies, closed with the gateway."""
        browser = Browser(self.transport)
        self.browsers.push_async_callback(browser.client.aclose)
        return browser

    async def add_user(self, email: str, role: str = "member", **columns: Any) -> uuid.UUID:
        async with self.database.transaction() as session:
            user = User(workspace_id=DEFAULT_WORKSPACE_ID, email=email, role=role, **columns)
            session.add(user)
        return user.id

    async def users(self) -> dict[str, User]:
        async with self.database.session() as session:
            return {user.email: user for user in await session.scalars(select(User))}

    async def identities(self) -> list[tuple[str, uuid.UUID]]:
        """Each subject, and whose it is."""
        async with self.database.session() as session:
            rows = await session.scalars(select(Identity).order_by(Identity.subject))
            return [(row.subject, row.user_id) for row in rows]

    async def events(self, action: str) -> Sequence[AuditEvent]:
        """What the audit trail has of one action, the oldest first."""
        query = select(AuditEvent).where(AuditEvent.action == action).order_by(AuditEvent.id)
        async with self.database.session() as session:
            return (await session.scalars(query)).all()

    async def reasons(self) -> list[str]:
        """Why log-ins were refused, by the audit trail."""
        return [event.details["reason"] for event in await self.events("account.sign_in_refused")]


class Browser:
    """Cookies of its own. The provider is a real server, wherever it is."""

    def __init__(self, gateway: httpx2.AsyncBaseTransport) -> None:
        mounts = {"all://gateway.example.com": gateway}
        self.client = httpx2.AsyncClient(mounts=mounts, base_url=GATEWAY, trust_env=False, timeout=60)

    async def begin(self, query: str = "") -> str:
        """Where a log-in leads."""
        answer = await self.client.get(f"/auth/sso/login{query}")
        assert answer.status_code == 302, answer.text
        return answer.headers["location"]

    async def answer_of(self, url: str) -> str:
        """Follows redirects up to the one that leads back, and returns that."""
        while not url.startswith(CALLBACK):
            answer = await self.client.get(url)
            assert answer.is_redirect, answer.text
            url = str(httpx2.URL(url).join(answer.headers["location"]))
        return url

    async def log_in(self, query: str = "") -> httpx2.Response:
        return await self.client.get(await self.answer_of(await self.begin(query)))

    async def email(self) -> str | None:
        """Who is signed in here."""
        answer = await self.client.get("/auth/me")
        return answer.json()["email"] if answer.status_code == 200 else None


def leads_to(page: httpx2.Response) -> str:
    """Where a page after a log-in leads on to."""
    assert page.status_code == 200, page.text
    found = _REFRESH.search(page.text)
    assert found is not None, page.text
    return found[1]


def refused(answer: httpx2.Response, status: int, code: str) -> str:
    """The message of an error, which gave no session."""
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code), answer.text
    assert not [line for line in answer.headers.get_list("set-cookie") if "_access" in line or "_refresh" in line]
    message: str = answer.json()["error"]["message"]
    return message


def query_of(url: str) -> dict[str, str]:
    return {name: values[0] for name, values in parse_qs(urlsplit(url).query).items()}

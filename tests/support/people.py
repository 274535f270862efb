"""Users, invitations and what is sent to people, of a whole app over one database with two workspaces in it."""

import asyncio
import re
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Self

import httpx2
from pwdlib import PasswordHash
from pwdlib.hashers.argon2 import Argon2Hasher
from pydantic import SecretStr
from sqlalchemy import event, select
from starlette.types import Receive, Scope, Send

from tests.support.credentials import database_at_head, keyrings, secret_settings
from tests.support.patience import be_patient
from tests.support.stand_in import ECHO
from tidegate.accounts.api_keys.keys import ApiKeys
from tidegate.accounts.dependencies import get_accounts
from tidegate.accounts.models import DEFAULT_WORKSPACE_ID, User, Workspace
from tidegate.accounts.schemas import NewKey
from tidegate.accounts.second_factor.dependencies import get_second_factors
from tidegate.accounts.second_factor.sealing import Sealing
from tidegate.accounts.second_factor.service import SecondFactors
from tidegate.accounts.service import Accounts
from tidegate.accounts.users.dependencies import get_passwords
from tidegate.app import create_app
from tidegate.audit.models import AuditEvent
from tidegate.auth.keyring import Keyrings
from tidegate.auth.passwords import Passwords
from tidegate.errors import MailRefused, Unavailable
from tidegate.ledger.entry import utc_now
from tidegate.mail.links import Links
from tidegate.mail.message import Message
from tidegate.mail.outbox import Outbox
from tidegate.mail.post import Post
from tidegate.settings import Settings
from tidegate.settings.groups import AuthSettings, DatabaseSettings, HttpSettings
from tidegate.storage.changes import Changes, user_topic
from tidegate.storage.database import Database

Json = dict[str, Any]
PASSWORD = "correct horse battery"
BETTER = "quite another horse stable"
URL = "https://gateway.example.com"
_TOKEN = re.compile(r"tgm_[A-Za-z0-9_-]{43}$")


class StoppedClock:
    """The time by which codes of second factors are judged. It stands where a test puts it."""

    def __init__(self) -> None:
        self.now = utc_now()

    def __call__(self) -> datetime:
        return self.now


class CountingHasher(Argon2Hasher):
    """Argon2 at its smallest, counted."""

    def __init__(self) -> None:
        super().__init__(time_cost=1, memory_cost=8, parallelism=1)
        self.computations = 0

    def hash(self, password: str | bytes, *, salt: bytes | None = None) -> str:
        self.computations += 1
        return super().hash(password, salt=salt)

    def verify(self, password: str | bytes, hash: str | bytes) -> bool:  # noqa: A002 - the protocol's name
        self.computations += 1
        return super().verify(password, hash)


class RecordingMailer:
    """Takes every e-mail while `takes` is set. `refuses` is why it never takes any, `fails` why not now."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.refuses: MailRefused | None = None
        self.fails: Unavailable | None = None
        self.takes = asyncio.Event()
        self.takes.set()

    def require_ready(self) -> None:
        if self.refuses is not None:
            raise self.refuses

    async def send(self, message: Message) -> None:
        self.require_ready()
        if self.fails is not None:
            raise self.fails
        await self.takes.wait()
        self.messages.append(message)

    def last(self, kind: str) -> Message:
        return [message for message in self.messages if message.kind == kind][-1]

    def token(self, kind: str) -> str:
        """The token of the last e-mail of a kind."""
        return token_in(self.last(kind))


def token_in(message: Message) -> str:
    assert message.link is not None
    found = _TOKEN.search(message.link)
    assert found is not None, message.link
    return found[0]


@dataclass
class People:
    """`admin`, `member` and `other` are users of `default`, `stranger` of `research`; each has `PASSWORD`.

    `keeper` is a key of `default` with scope `manage`, `warden` one of `research`, `caller` one of `default` without.
    """

    client: httpx2.AsyncClient
    database: Database
    mailer: RecordingMailer
    outbox: Outbox
    hasher: CountingHasher
    research: uuid.UUID
    users: dict[str, uuid.UUID]
    keys: dict[str, str]
    clock: "StoppedClock"
    keyrings: Keyrings
    sealing: Sealing
    tokens: dict[str, str] = field(default_factory=dict)

    @classmethod
    @asynccontextmanager
    async def open(cls, url: str, folder: Path, **auth: Any) -> AsyncIterator[Self]:
        hasher = CountingHasher()
        passwords = Passwords(PasswordHash((hasher,)))
        async with database_at_head(url) as database:
            research, users = await _people(database, await passwords.hash(PASSWORD))
            keys = await _keys(database)
        settings = Settings(
            environment="test",
            data_dir=folder / "data",
            config_toml=ECHO,
            database=DatabaseSettings(url=SecretStr(url)),
            auth=AuthSettings(**{**secret_settings(), **auth}),
            http=HttpSettings(public_url=URL),
        )
        app = create_app(settings)
        mailer, clock = RecordingMailer(), StoppedClock()
        async with app.router.lifespan_context(app) as state, Outbox.running(mailer, pauses_s=(0.0,)) as outbox:
            assert state is not None
            be_patient(state["authenticator"])
            whole = {**state, "post": Post(mailer, outbox, Links(settings))}
            app.dependency_overrides[get_passwords] = lambda: passwords
            app.dependency_overrides[get_accounts] = lambda: Accounts(state["database"], passwords)
            changes: Changes = state["changes"]

            def second_factors() -> SecondFactors:
                async def tell(user_id: uuid.UUID) -> None:
                    await changes.tell(user_topic(user_id))

                post = whole["post"]
                return SecondFactors(state["database"], passwords, people.sealing, post, changed=tell, clock=clock)

            app.dependency_overrides[get_second_factors] = second_factors

            async def with_state(scope: Scope, receive: Receive, send: Send) -> None:
                await app({**scope, "state": dict(whole)}, receive, send)

            transport = httpx2.ASGITransport(with_state, client=("192.0.2.1", 1234))
            async with httpx2.AsyncClient(transport=transport, base_url="http://gateway") as client:
                given = (client, state["database"], mailer, outbox, hasher, research, users, keys, clock)
                people = cls(*given, state["keyrings"], Sealing(state["keyrings"].encryption))
                yield people

    async def call(self, method: str, path: str, *, by: str | None = "admin", **options: Any) -> httpx2.Response:
        """`by` is one of the users or keys, a credential, or nobody (None)."""
        headers = {} if by is None else {"Authorization": f"Bearer {await self._credential(by)}"}
        return await self.client.request(method, path, headers=headers | options.pop("headers", {}), **options)

    async def done(self, method: str, path: str, **options: Any) -> Json:
        answer = await self.call(method, path, **options)
        assert answer.is_success, answer.text
        found: Json = answer.json() if answer.content else {}
        return found

    async def refused(self, status: int, method: str, path: str, **options: Any) -> Json:
        """The error of an answer that has this status."""
        answer = await self.call(method, path, **options)
        assert answer.status_code == status, answer.text
        error: Json = answer.json()["error"]
        return error

    async def log_in(self, email: str, password: str = PASSWORD) -> str | None:
        """An access token, None where this password opens no account."""
        answer = await self.client.post("/auth/login", json={"email": email, "password": password})
        assert answer.status_code in {200, 401}, answer.text
        return answer.json()["access_token"] if answer.status_code == 200 else None

    async def status_of(self, credential: str) -> int:
        return (await self.call("GET", "/auth/me", by=credential)).status_code

    async def sent(self) -> list[Message]:
        """Every e-mail, once all that was put has been sent."""
        await self.outbox.settled()
        return self.mailer.messages

    async def invite(self, email: str, *, by: str = "admin", **form: Any) -> str:
        """Invites somebody, and returns the token."""
        await self.done("POST", "/api/invitations", by=by, json={"email": email} | form)
        return self.mailer.token("invitation")

    async def forget(self, email: str) -> None:
        answer = await self.call("POST", "/auth/password/forgot", by=None, json={"email": email})
        assert (answer.status_code, answer.json()) == (202, {})
        await self.outbox.settled()

    async def trail(self, action: str) -> list[AuditEvent]:
        """The audit trail's events of one action, the oldest first."""
        query = select(AuditEvent).where(AuditEvent.action == action).order_by(AuditEvent.id)
        async with self.database.session() as session:
            return list(await session.scalars(query))

    def statements(self) -> list[str]:
        """A list that every statement of the database is added to from now on."""
        seen: list[str] = []
        engine = self.database.engine.sync_engine
        event.listen(engine, "before_cursor_execute", lambda *given: seen.append(given[2]))
        return seen

    async def _credential(self, by: str) -> str:
        if by in self.keys:
            return self.keys[by]
        if by in self.users and by not in self.tokens:
            token = await self.log_in(f"{by}@example.com")
            assert token is not None
            self.tokens[by] = token
        return self.tokens.get(by, by)


async def _people(database: Database, password_hash: str) -> tuple[uuid.UUID, dict[str, uuid.UUID]]:
    async with database.transaction() as session:
        workspace = Workspace(name="research")
        session.add(workspace)
        await session.flush()
        places = {"admin": DEFAULT_WORKSPACE_ID, "member": DEFAULT_WORKSPACE_ID, "other": DEFAULT_WORKSPACE_ID}
        users = {
            name: User(
                workspace_id=place,
                email=f"{name}@example.com",
                role="admin" if name == "admin" else "member",
                password_hash=password_hash,
            )
            for name, place in (places | {"stranger": workspace.id}).items()
        }
        session.add_all(users.values())
    return workspace.id, {name: user.id for name, user in users.items()}


async def _keys(database: Database) -> dict[str, str]:
    keys = ApiKeys(database, keyrings().peppers)
    return {
        "keeper": (await keys.create(NewKey(name="keeper", scopes=("manage",)))).secret,
        "warden": (await keys.create(NewKey(name="warden", scopes=("manage",), workspace="research"))).secret,
        "caller": (await keys.create(NewKey(name="caller"))).secret,
    }

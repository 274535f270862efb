"""A real gateway under attack: two workspaces with somebody of every kind in each, called over its socket.

Credentials are made beside the gateway, under its own secrets: no test pays for the hashing of passwords. Each call
comes from an address of its own, as a proxy that is trusted says, unless it names one: so no limit by address speaks
where it is not asked.
"""

import itertools
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, Self

import httpx2
from sqlalchemy import select

from tests.support.credentials import PASSWORD, quick_passwords
from tests.support.server import _SECRETS as SECRETS
from tests.support.server import ADMIN_EMAIL, GatewayPlan, GatewayProcess, catalogue
from tests.support.smtp import MailServer
from tests.support.stand_in import ECHO
from tests.support.upstream import ScriptedUpstream
from tidegate.accounts.api_keys.keys import ApiKeys, CreatedKey
from tidegate.accounts.models import DEFAULT_WORKSPACE_ID, User, Workspace
from tidegate.accounts.schemas import NewKey
from tidegate.accounts.sign_ins.service import Client, IssuedTokens, SignIns
from tidegate.auth.keyring import Keyring
from tidegate.auth.tokens import AccessTokens
from tidegate.storage.base import Base
from tidegate.storage.database import Database

Json = dict[str, Any]
JWT_SECRET = SECRETS["TIDEGATE_AUTH__JWT_KEYS"].partition(":")[2].encode()
PEPPER = SECRETS["TIDEGATE_AUTH__API_KEY_PEPPERS"].partition(":")[2].encode()
PUBLIC_URL = "https://gateway.example.com"
# Written at any request, or by a loop of the process: no sign that a request changed something.
_NOT_COMPARED = {"audit_events", "refusals"}
_USED = "last_used_at"


def plan_for(upstream: ScriptedUpstream, mail: MailServer | None = None, **variables: str) -> GatewayPlan:
    """A gateway behind a proxy on loopback, whose e-mails `mail` takes."""
    mailing = {
        "TIDEGATE_MAIL__SMTP_HOST": "127.0.0.1",
        "TIDEGATE_MAIL__SMTP_PORT": str(mail.port if mail is not None else 1),
        "TIDEGATE_MAIL__SMTP_SECURITY": "none",
        "TIDEGATE_MAIL__SENDER": "gateway@example.com",
        "TIDEGATE_HTTP__PUBLIC_URL": PUBLIC_URL,
        "TIDEGATE_HTTP__TRUSTED_PROXIES": "127.0.0.1",
    }
    models = catalogue(upstream.base_url, ["m"], upstream='breaker = "off"') + ECHO
    return GatewayPlan(catalogue=models, variables=mailing | variables)


@dataclass
class Attacked:
    """`admin`, `member` and `other` are users of `default`; `stranger` and `victim`, members, of `research`.

    Keys: `keeper` (scope manage) and `caller` (inference) of `default`, `warden` and `theirs` of `research`; `theirs`
    is the victim's. `credentials` has all of them by these names.
    """

    gateway: GatewayProcess
    client: httpx2.AsyncClient
    database: Database
    sign_ins: SignIns
    research: uuid.UUID
    users: dict[str, User]
    keys: dict[str, CreatedKey] = field(default_factory=dict)
    credentials: dict[str, str] = field(default_factory=dict)
    _calls: "itertools.count[int]" = field(default_factory=itertools.count)

    @classmethod
    @asynccontextmanager
    async def open(cls, folder: Path, plan: GatewayPlan) -> AsyncIterator[Self]:
        async with GatewayProcess(folder, plan) as gateway:
            url = plan.database_url or f"sqlite+aiosqlite:///{gateway.data_dir}/tidegate.db"
            database = await Database.open(url)
            try:
                tokens = AccessTokens(Keyring({"1": JWT_SECRET}), minutes=15)
                sign_ins = SignIns(database, tokens, lifetime=timedelta(days=30))
                research, users = await _people(database)
                async with httpx2.AsyncClient(base_url=gateway.base_url, trust_env=False, timeout=60) as client:
                    attacked = cls(gateway, client, database, sign_ins, research, users)
                    await attacked._make_credentials()
                    yield attacked
            finally:
                await database.aclose()

    async def call(self, method: str, path: str, *, by: str | None = None, **options: Any) -> httpx2.Response:
        """`by` is one of the credentials' names, a credential, or nobody (None)."""
        headers = {"X-Forwarded-For": self.an_address()}
        if by is not None:
            headers["Authorization"] = f"Bearer {self.credentials.get(by, by)}"
        return await self.client.request(method, path, headers=headers | options.pop("headers", {}), **options)

    def an_address(self) -> str:
        """One that nothing came from yet."""
        n = next(self._calls)
        return f"198.{18 + n // 65536}.{n // 256 % 256}.{n % 256}"

    async def begin(self, name: str) -> IssuedTokens:
        """A new sign-in of a user."""
        return await self.sign_ins.begin(self.users[name], Client(), "single_sign_on")

    async def dump(self) -> dict[str, list[str]]:
        """Every row that a request could have changed, by its table."""
        found = {}
        async with self.database.session() as session:
            for table in Base.metadata.sorted_tables:
                if table.name not in _NOT_COMPARED:
                    columns = [column for column in table.columns if column.name != _USED]
                    found[table.name] = sorted(str(row) for row in await session.execute(select(*columns)))
        return found

    async def _make_credentials(self) -> None:
        keys = ApiKeys(self.database, Keyring({"1": PEPPER}))
        new = {
            "keeper": NewKey(name="keeper", scopes=("manage",)),
            "caller": NewKey(name="caller"),
            "warden": NewKey(name="warden", scopes=("manage",), workspace="research"),
            "theirs": NewKey(name="theirs", owner=self.users["victim"].email),
        }
        for name, form in new.items():
            self.keys[name] = await keys.create(form)
            self.credentials[name] = self.keys[name].secret
        for name in self.users:
            self.credentials[name] = (await self.begin(name)).access_token


def with_variables(plan: GatewayPlan, **variables: str) -> GatewayPlan:
    return replace(plan, variables={**plan.variables, **variables})


async def _people(database: Database) -> tuple[uuid.UUID, dict[str, User]]:
    password_hash = await quick_passwords().hash(PASSWORD)
    async with database.transaction() as session:
        workspace = Workspace(name="research")
        session.add(workspace)
        await session.flush()
        admin = await session.scalar(select(User).where(User.email == ADMIN_EMAIL))
        assert admin is not None
        # What the gateway made of it takes a tenth of a second to compare with.
        admin.password_hash = password_hash
        places = {"member": DEFAULT_WORKSPACE_ID, "other": DEFAULT_WORKSPACE_ID}
        places |= {"stranger": workspace.id, "victim": workspace.id}
        users = {
            name: User(workspace_id=place, email=f"{name}@example.com", role="member") for name, place in places.items()
        }
        session.add_all(users.values())
    return workspace.id, {"admin": admin, **users}

"""The whole API behind a real server on loopback, and schemathesis against its own OpenAPI document.

Everything is real but what would only cost time or end the run: passwords are hashed at Argon2's smallest, tries are
not counted (unless a test wants them), and e-mails are taken and forgotten.
"""

import asyncio
import os
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import schemathesis
from pydantic import SecretStr
from schemathesis.auths import AuthContext
from schemathesis.engine import Status, events, from_schema

from tests.support.credentials import access_token, database_at_head, keyrings, quick_passwords, secret_settings
from tests.support.server import in_process_server
from tidegate.accounts.api_keys.keys import ApiKeys
from tidegate.accounts.dependencies import get_accounts, get_tries
from tidegate.accounts.models import DEFAULT_WORKSPACE_ID, User
from tidegate.accounts.schemas import NewKey
from tidegate.accounts.service import Accounts
from tidegate.accounts.tries import Source
from tidegate.accounts.users.dependencies import get_passwords
from tidegate.app import create_app
from tidegate.auth.authenticator import Authenticator
from tidegate.mail.dependencies import get_post
from tidegate.mail.links import Links
from tidegate.mail.message import Message
from tidegate.mail.outbox import Outbox
from tidegate.mail.post import Post
from tidegate.server.http_server import uvicorn_config
from tidegate.settings import Settings
from tidegate.settings.groups import AuthSettings, DatabaseSettings, HttpSettings, LimitsSettings
from tidegate.storage.database import Database

Json = dict[str, Any]
# Whatever model is named, so that the road is gone to its end.
ECHO = '[upstreams.echo]\nprovider = "echo"\n[[models]]\nname = "*"\nattempts = ["echo/*"]\n'
EXAMPLES = int(os.environ.get("TIDEGATE_FUZZ_EXAMPLES", "0"))
"""How many examples an operation gets; 0 is what a test says itself. The larger run: 200."""
PHASES = ("examples", "coverage", "fuzzing", "stateful")
_FEW = ["PUT", "TRACE"]
SEED = int(os.environ.get("TIDEGATE_FUZZ_SEED", "20261122"))


class _Uncounted:
    async def count(self, name: str, source: Source) -> dict[str, str]:
        return {}


class _ForgetfulMailer:
    def require_ready(self) -> None:
        return

    async def send(self, message: Message) -> None:
        return


@dataclass
class FuzzedApi:
    """`credential` gives a fresh one of `admin`, `member` or `keeper`, a key with the scope `manage`."""

    base_url: str
    _database: Database
    _authenticator: Authenticator
    _users: dict[str, uuid.UUID]
    _loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)

    @classmethod
    @asynccontextmanager
    async def open(cls, url: str, folder: Path, *, counts_tries: bool = False) -> AsyncIterator["FuzzedApi"]:
        settings = Settings(
            environment="test",
            data_dir=folder / "data",
            config_toml=ECHO,
            database=DatabaseSettings(url=SecretStr(url)),
            auth=AuthSettings(**secret_settings()),
            http=HttpSettings(public_url="http://gateway.example.com"),
            # Else most of what is tried would be answered by them.
            limits=LimitsSettings(api_per_minute=1_000_000, keys_per_member=1_000_000),
        )
        app = create_app(settings)
        async with database_at_head(url) as database, Outbox.running(_ForgetfulMailer()) as outbox:
            users = await _people(database)
            post = Post(_ForgetfulMailer(), outbox, Links(settings))
            app.dependency_overrides[get_post] = lambda: post
            app.dependency_overrides[get_passwords] = quick_passwords
            app.dependency_overrides[get_accounts] = lambda: Accounts(database, quick_passwords())
            if not counts_tries:
                app.dependency_overrides[get_tries] = _Uncounted
            authenticator = Authenticator(database, keyrings())
            async with in_process_server(uvicorn_config(app, settings)) as base_url:
                yield cls(base_url, database, authenticator, users)

    def credential(self, whose: str) -> str:
        """Waits for the loop, so it is called in another thread."""
        return asyncio.run_coroutine_threadsafe(self._credential(whose), self._loop).result(30)

    async def _credential(self, whose: str) -> str:
        if whose == "keeper":
            keys = ApiKeys(self._database, keyrings().peppers)
            return (await keys.create(NewKey(name="keeper", scopes=("manage", "inference", "usage")))).secret
        return await access_token(self._database, self._authenticator, self._users[whose])


async def _people(database: Database) -> dict[str, uuid.UUID]:
    password = await quick_passwords().hash("correct horse battery")
    users = {
        role: User(workspace_id=DEFAULT_WORKSPACE_ID, email=f"{role}@example.com", role=role, password_hash=password)
        for role in ("admin", "member")
    }
    async with database.transaction() as session:
        session.add_all(users.values())
    return {role: user.id for role, user in users.items()}


@dataclass
class Findings:
    """What a run sent and found. `faults` has each operation, check and status once, with a way to do it again."""

    statuses: Counter[tuple[str, int]] = field(default_factory=Counter)
    checks: Counter[str] = field(default_factory=Counter)
    faults: dict[tuple[str, str, int], str] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)

    @property
    def cases(self) -> int:
        return sum(self.statuses.values())

    def answered(self, operation: str) -> set[int]:
        return {status for label, status in self.statuses if label == operation}

    def told(self) -> str:
        return "\n\n".join([*self.errors, *(f"{key}: {fault}" for key, fault in sorted(self.faults.items()))])


@dataclass(frozen=True)
class Excluded:
    """A check that cannot apply, of these operations or (none named) of all, and why. `statuses` pass it instead."""

    check: str
    why: str
    operations: tuple[str, ...] = ()
    statuses: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Run:
    """`examples` are random ones of each operation; the larger run has its own number, and every phase."""

    whose: str | None
    examples: int
    phases: tuple[str, ...] = PHASES
    excluded: Sequence[Excluded] = ()

    def config(self, base_url: str) -> schemathesis.Config:
        phases = PHASES if EXAMPLES else self.phases
        return schemathesis.Config.from_dict(
            {
                "seed": SEED,
                "base-url": base_url,
                "workers": 1,
                "request-timeout": 30,
                "cache": {"enabled": False},
                "continue-on-failure": True,
                "generation": {
                    "max-examples": EXAMPLES or self.examples,
                    "deterministic": True,
                    "no-shrink": not EXAMPLES,
                    "database": "none",
                    "with-security-parameters": self.whose is None,
                },
                "phases": {
                    **{name: {"enabled": name in phases} for name in PHASES},
                    # Every method costs as much as another; the larger run tries them all.
                    "coverage": {"enabled": "coverage" in phases} | ({} if EXAMPLES else {"unexpected-methods": _FEW}),
                },
                "checks": {"enabled": True} | _checks(self.excluded),
                "operations": [
                    {"include-name": operation, "checks": _checks(self.excluded, operation)}
                    for operation in sorted({name for one in self.excluded for name in one.operations})
                ],
            }
        )


def fuzz(api: FuzzedApi, run: Run) -> Findings:
    """Sends schemathesis' coverage of each field, random and wrong data, and sequences of calls.

    It blocks: in a thread of its own. The credentials go with every request, fresh ones after a 401.
    """
    schema = schemathesis.openapi.from_url(f"{api.base_url}/openapi.json", config=run.config(api.base_url))
    if run.whose is not None:
        schema.auth.auth(refresh_interval=600, retry_on=[401])(_provider(api, run.whose))
    findings = Findings()
    for event in from_schema(schema).execute():
        if isinstance(event, events.ScenarioFinished):
            _note(event.recorder, findings)
        elif isinstance(event, events.NonFatalError | events.FatalError):
            findings.errors.append(str(getattr(event, "value", None) or getattr(event, "exception", event)))
    return findings


def _provider(api: FuzzedApi, whose: str) -> type:
    class Provider:
        def get(self, case: "schemathesis.Case[Any]", context: AuthContext) -> str:
            return api.credential(whose)

        def set(self, case: "schemathesis.Case[Any]", data: str, context: AuthContext) -> None:
            case.headers["Authorization"] = f"Bearer {data}"

    return Provider


def _checks(excluded: Sequence[Excluded], operation: str | None = None) -> Json:
    """The checks' own part of the configuration, for one operation or for all."""
    found: Json = {}
    for one in excluded:
        if (operation in one.operations) if operation else not one.operations:
            found[one.check] = {"expected-statuses": [*one.statuses]} if one.statuses else {"enabled": False}
    return found


def _note(recorder: Any, findings: Findings) -> None:
    for case_id, interaction in recorder.interactions.items():
        response = interaction.response
        if response is None:
            continue
        label = recorder.cases[case_id].value.operation.label
        findings.statuses[label, response.status_code] += 1
        for check in recorder.checks.get(case_id, ()):
            findings.checks[check.name] += 1
            if check.status is Status.FAILURE:
                info = check.failure_info
                key = (label, check.name, response.status_code)
                told = f"{info.failure.title}: {info.failure.message}\n{info.code_sample}\n{response.text[:400]}"
                findings.faults.setdefault(key, told)

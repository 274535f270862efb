"""Signing in and /auth/me over HTTP, and what an outsider may learn from them."""

import logging
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI
from pwdlib import PasswordHash
from pwdlib.hashers.argon2 import Argon2Hasher
from pydantic import SecretStr
from sqlalchemy import select
from starlette.types import ASGIApp, Receive, Scope, Send

from tests.support.credentials import EMAIL, PASSWORD, database_at_head, keyrings
from tidegate.accounts.api_keys.keys import ApiKeys
from tidegate.accounts.dependencies import get_accounts, get_tries
from tidegate.accounts.endpoints import router
from tidegate.accounts.models import DEFAULT_WORKSPACE_ID, User
from tidegate.accounts.schemas import NewKey, NewUser
from tidegate.accounts.service import Accounts
from tidegate.accounts.tries import Tries
from tidegate.admission.desk import Desk
from tidegate.auth.authenticator import Authenticator
from tidegate.auth.passwords import Passwords
from tidegate.auth.principal_cache import CacheBounds
from tidegate.errors import AuthenticationError, Conflict, NotFound
from tidegate.http.context import SCOPE_KEY, RequestContext
from tidegate.http.errors import install_error_handlers
from tidegate.mail.links import Links
from tidegate.mail.mailer import NoMailer
from tidegate.mail.outbox import Outbox
from tidegate.mail.post import Post
from tidegate.settings import Settings
from tidegate.storage.changes import Changes
from tidegate.storage.database import Database


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


class Gateway:
    """The account routes over one database, with a user in it."""

    def __init__(self, database: Database) -> None:
        self.hasher = CountingHasher()
        self.keys = ApiKeys(database, keyrings().peppers)
        self.accounts = Accounts(database, Passwords(PasswordHash((self.hasher,))))
        self.authenticator = Authenticator(database, keyrings(), bounds=CacheBounds(fresh_s=0, answer_s=30))
        self.client = httpx2.AsyncClient(transport=httpx2.ASGITransport(self._app(database)), base_url="http://gateway")

    def _app(self, database: Database) -> ASGIApp:
        app = FastAPI()
        app.include_router(router)
        install_error_handlers(app)
        tries = Tries(Desk("w-1"), keyrings().peppers.current)
        app.dependency_overrides[get_accounts] = lambda: self.accounts
        app.dependency_overrides[get_tries] = lambda: tries

        settings = Settings(environment="test")
        post = Post(NoMailer(), Outbox(NoMailer()), Links(settings))

        async def with_state(scope: Scope, receive: Receive, send: Send) -> None:
            scope["state"] = {
                "database": database,
                "authenticator": self.authenticator,
                "keyrings": keyrings(),
                "post": post,
                "settings": settings,
                "changes": Changes(None, "changes"),
            }
            scope[SCOPE_KEY] = RequestContext.of(scope)
            await app(scope, receive, send)

        return with_state

    async def login(self, **body: object) -> httpx2.Response:
        # One id, so that like answers are alike to the byte.
        headers = {"X-Request-ID": "r-1"}
        return await self.client.post(
            "/auth/login", json={"email": EMAIL, "password": PASSWORD} | body, headers=headers
        )

    async def me(self, credential: str) -> httpx2.Response:
        return await self.client.get("/auth/me", headers={"Authorization": f"Bearer {credential}"})


@asynccontextmanager
async def _gateway_on(url: str) -> AsyncIterator[Gateway]:
    async with database_at_head(url) as database:
        gateway = Gateway(database)
        await gateway.accounts.create(NewUser(email=EMAIL, role="admin", password=SecretStr(PASSWORD)))
        try:
            async with gateway.client:
                yield gateway
        finally:
            await gateway.authenticator.aclose()


@pytest.fixture
async def gateway(database_url: str) -> AsyncIterator[Gateway]:
    async with _gateway_on(database_url) as gateway:
        yield gateway


@pytest.fixture
async def on_sqlite(sqlite_url: str) -> AsyncIterator[Gateway]:
    async with _gateway_on(sqlite_url) as gateway:
        yield gateway


def _error(response: httpx2.Response) -> Mapping[str, Any]:
    error: Mapping[str, Any] = response.json()["error"]
    return error


async def test_a_password_gives_a_token_which_says_who_one_is(gateway: Gateway) -> None:
    answer = await gateway.login()
    assert answer.status_code == 200
    assert answer.headers["cache-control"] == "no-store"
    token = answer.json()
    assert (token["token_type"], token["expires_in"]) == ("bearer", 900)
    assert re.fullmatch(r"tgr_[A-Za-z0-9_-]{43}", token["refresh_token"])
    me = (await gateway.me(token["access_token"])).json()
    assert (me["email"], me["role"], me["workspace"], me["key"]) == (EMAIL, "admin", "default", None)
    assert me["workspace_id"] == str(DEFAULT_WORKSPACE_ID)
    assert me["scopes"] == ["inference", "manage", "metrics", "usage"]
    assert "hash" not in str(me)


async def test_an_address_is_one_in_any_case(gateway: Gateway) -> None:
    assert (await gateway.login(email="ADA@Example.COM")).status_code == 200
    with pytest.raises(Conflict, match="already"):
        await gateway.accounts.create(NewUser(email="Ada@example.com"))


async def test_a_wrong_address_and_a_wrong_password_are_answered_alike_at_the_same_cost(gateway: Gateway) -> None:
    await gateway.accounts.create(NewUser(email="nopassword@example.com"))
    answers, costs = [], []
    for body in ({"password": "wrong"}, {"email": "nobody@example.com"}, {"email": "nopassword@example.com"}):
        before = gateway.hasher.computations
        answers.append(await gateway.login(**body))
        costs.append(gateway.hasher.computations - before)
    assert {answer.status_code for answer in answers} == {401}
    assert len({answer.content for answer in answers}) == 1
    assert {answer.headers["www-authenticate"] for answer in answers} == {"Bearer"}
    assert costs == [1, 1, 1]


async def test_that_an_account_is_disabled_is_told_to_its_owner_alone(gateway: Gateway) -> None:
    await gateway.accounts.disable(EMAIL)
    assert "disabled" in _error(await gateway.login())["message"]
    wrong = await gateway.login(password="wrong")
    assert wrong.status_code == 401
    assert "disabled" not in _error(wrong)["message"]


async def test_a_disabled_user_s_token_ends(gateway: Gateway) -> None:
    token = (await gateway.login()).json()["access_token"]
    assert (await gateway.me(token)).status_code == 200
    await gateway.accounts.disable(EMAIL)
    await gateway.accounts.disable(EMAIL)
    refused = await gateway.me(token)
    assert (refused.status_code, _error(refused)["code"]) == (401, "invalid_token")


async def test_a_key_may_ask_who_it_is(gateway: Gateway) -> None:
    of_user = await gateway.keys.create(NewKey(name="mine", owner=EMAIL))
    me = (await gateway.me(of_user.secret)).json()
    assert (me["email"], me["key"]["prefix"], me["key"]["name"]) == (EMAIL, of_user.prefix, "mine")
    of_account = await gateway.keys.create(NewKey(name="app"))
    me = (await gateway.me(of_account.secret)).json()
    assert (me["id"], me["email"], me["role"], me["scopes"]) == (None, None, None, ["inference"])
    assert of_account.secret not in str(me)


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({}, "missing_credentials"),
        ({"Authorization": "Bearer nonsense"}, "invalid_token"),
        ({"x-api-key": "tg_nonsense"}, "invalid_api_key"),
        ({"x-api-key": "tg_nonsense", "Authorization": "Bearer nonsense"}, "invalid_api_key"),
    ],
)
async def test_no_or_bad_credentials_are_a_401_of_their_own_code(
    on_sqlite: Gateway, headers: dict[str, str], code: str
) -> None:
    refused = await on_sqlite.client.get("/auth/me", headers=headers)
    assert (refused.status_code, _error(refused)["code"]) == (401, code)
    assert refused.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize(
    "body",
    [
        {"email": "no-address"},
        {"email": f"{'a' * 250}@example.com"},
        {"email": 7},
        {"email": None},
        {"password": ""},
        {"password": 12345678},
        {"password": "x" * 1025},
        {"password": ["x"]},
        {"surprise": True},
    ],
)
async def test_what_is_no_login_is_a_422_that_costs_nothing_and_repeats_nothing(
    on_sqlite: Gateway, body: dict[str, Any]
) -> None:
    before = on_sqlite.hasher.computations
    refused = await on_sqlite.login(**body)
    assert (refused.status_code, _error(refused)["code"]) == (422, "validation_error")
    assert _error(refused)["errors"]
    assert on_sqlite.hasher.computations == before
    assert PASSWORD not in refused.text
    assert "x" * 20 not in refused.text


async def test_no_password_and_no_token_is_in_a_log_or_an_error(
    on_sqlite: Gateway, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        token = (await on_sqlite.login()).json()["access_token"]
        created = await on_sqlite.keys.create(NewKey(name="app"))
        texts = [(await on_sqlite.login(password=f"{PASSWORD}!")).text]
        texts += [(await on_sqlite.me(credential[:-2] + "xx")).text for credential in (token, created.secret)]
        texts += [repr(created), repr(on_sqlite.authenticator), repr(keyrings())]
    logged = "\n".join(f"{record.getMessage()} {record.args}" for record in caplog.records if "sql" not in record.name)
    for text in (*texts, logged):
        for secret in (PASSWORD, token[:-2], created.secret[12:-2]):
            assert secret not in text


async def test_a_hash_of_older_parameters_is_replaced_at_a_sign_in(gateway: Gateway, database_url: str) -> None:
    async with database_at_head(database_url) as database:
        stronger = CountingHasher()
        stronger._hasher = Argon2Hasher(time_cost=2, memory_cost=8, parallelism=1)._hasher
        accounts = Accounts(database, Passwords(PasswordHash((stronger,))))
        gateway.accounts = accounts

        async def stored() -> str:
            async with database.session() as session:
                return str(await session.scalar(select(User.password_hash).where(User.email == EMAIL)))

        before = await stored()
        assert (await gateway.login()).status_code == 200
        after = await stored()
        assert (await gateway.login()).status_code == 200
        assert await stored() == after
    assert ",t=1," in before
    assert ",t=2," in after


async def test_users_and_keys_need_what_they_name(gateway: Gateway) -> None:
    with pytest.raises(NotFound, match="no workspace 'research'"):
        await gateway.accounts.create(NewUser(email="b@example.com", workspace="research"))
    with pytest.raises(NotFound, match=r"no user nobody@example\.com"):
        await gateway.keys.create(NewKey(name="k", owner="nobody@example.com"))
    with pytest.raises(NotFound, match="no API key"):
        await gateway.keys.revoke("abcdefgh")
    await gateway.accounts.disable(EMAIL)
    with pytest.raises(Conflict, match="disabled"):
        await gateway.keys.create(NewKey(name="k", owner=EMAIL))
    with pytest.raises(AuthenticationError):
        await gateway.accounts.sign_in(EMAIL, PASSWORD)


async def test_a_revoked_key_is_not_brought_back_by_a_rotation(gateway: Gateway) -> None:
    created = await gateway.keys.create(NewKey(name="app"))
    first = (await gateway.keys.revoke(created.prefix)).revoked_at
    assert (await gateway.keys.revoke(f"tg_{created.prefix}")).revoked_at == first
    with pytest.raises(Conflict, match="revoked and stays so"):
        await gateway.keys.rotate(created.secret)

"""A try of a sensitive route is counted by account and by address, and no such route is without that."""

import itertools
from collections.abc import Iterator

import pytest
from fastapi import FastAPI
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRouter, iter_route_contexts
from pydantic import BaseModel, SecretStr
from starlette.requests import Request
from starlette.responses import Response

from tidegate.accounts.dependencies import LoginBody, Sensitive, SensitiveRoute
from tidegate.accounts.schemas import Login
from tidegate.accounts.tries import SENSITIVE, WINDOW_S, Source, Tries, network_of
from tidegate.admission.desk import Desk
from tidegate.admission.renewal import Renewal
from tidegate.app import create_app
from tidegate.auth.dependencies import UserCaller, get_user_caller
from tidegate.errors import RateLimitExceeded
from tidegate.http.context import SCOPE_KEY, RequestContext
from tidegate.settings import Settings
from tidegate.storage.redis import DEPLOYMENT_TAG

SECRET = b"a secret of the deployment"
MOST = SENSITIVE["login"]


class OneWorker:
    """The tries of one worker without Redis, at a time of its own."""

    def __init__(self) -> None:
        self.desk = Desk("w-1")
        self.tries = Tries(self.desk, SECRET)
        self.now_ms = 1_800_000_000_000
        self.desk.local._clock_ms = lambda: self.now_ms
        self.desk.local._steady_ms = lambda: self.now_ms
        self._addresses = (f"192.0.2.{n}" for n in itertools.count())

    async def count(self, account: str, address: str | None = None) -> dict[str, str]:
        return await self.tries.count("login", Source(account, address or next(self._addresses)))

    async def refused(self, account: str, address: str | None = None) -> RateLimitExceeded:
        with pytest.raises(RateLimitExceeded) as refusal:
            await self.count(account, address)
        return refusal.value

    def counters(self) -> set[str]:
        state = self.desk.local._tags.get(DEPLOYMENT_TAG)
        return set() if state is None else set(state.counters)


async def test_an_account_is_tried_so_often_in_any_window_from_wherever() -> None:
    worker = OneWorker()
    for _ in range(MOST.by_account):
        await worker.count("ada@example.com")
    refusal = await worker.refused("ada@example.com")
    assert refusal.http_code == "rate_limit_exceeded"
    retry_ms = int(refusal.headers["retry-after-ms"])
    assert WINDOW_S * 1000 <= retry_ms <= (WINDOW_S + WINDOW_S // 60) * 1000
    assert refusal.headers["RateLimit-Policy"] == f'"login-account";q={MOST.by_account};w=900'
    assert refusal.headers["RateLimit"] == f'"login-account";r=0;t={refusal.headers["Retry-After"]}'
    worker.now_ms += retry_ms - 1
    await worker.refused("ada@example.com")
    worker.now_ms += 1
    await worker.count("ada@example.com")


async def test_an_address_is_tried_from_so_often_for_whatever_accounts() -> None:
    worker = OneWorker()
    for n in range(MOST.by_address):
        told = await worker.count(f"user-{n}@example.com", "203.0.113.9")
        assert told == {
            "RateLimit-Policy": f'"login-address";q={MOST.by_address};w=900',
            "RateLimit": f'"login-address";r={MOST.by_address - n - 1};t=900',
        }
    refusal = await worker.refused("another@example.com", "203.0.113.9")
    assert refusal.headers["RateLimit-Policy"] == f'"login-address";q={MOST.by_address};w=900'
    await worker.count("another@example.com", "203.0.113.10")


async def test_a_refresh_token_is_tried_so_often_and_says_that_it_is_one() -> None:
    worker, most = OneWorker(), SENSITIVE["refresh"]
    for n in range(most.by_account):
        await worker.tries.count("refresh", Source("tgr_one", f"192.0.2.{n}"))
    with pytest.raises(RateLimitExceeded, match="for one token") as refusal:
        await worker.tries.count("refresh", Source("tgr_one", "192.0.2.200"))
    assert refusal.value.headers["RateLimit-Policy"] == f'"refresh-token";q={most.by_account};w=900'
    await worker.tries.count("refresh", Source("tgr_other", "192.0.2.200"))
    assert not any("tgr_" in name for name in worker.counters())


async def test_what_names_nobody_is_counted_by_its_address_alone() -> None:
    worker, most = OneWorker(), SENSITIVE["logout"]
    for n in range(most.by_address):
        told = await worker.tries.count("logout", Source(f"tgr_{n}", "192.0.2.7"))
        assert told["RateLimit"] == f'"logout-address";r={most.by_address - n - 1};t=900'
    with pytest.raises(RateLimitExceeded, match="for one address"):
        await worker.tries.count("logout", Source("tgr_another", "192.0.2.7"))
    assert {name.partition(":")[0] for name in worker.counters()} == {"logout-address"}
    await worker.tries.count("logout", Source(None, "192.0.2.8"))


async def test_pages_without_their_cookie_are_not_one_account() -> None:
    worker, most = OneWorker(), SENSITIVE["refresh"]
    for n in range(most.by_account + 1):
        await worker.tries.count("refresh", Source(None, f"192.0.2.{n}"))
    assert {name.partition(":")[0] for name in worker.counters()} == {"refresh-address"}


async def test_a_try_that_one_limit_refuses_does_not_count_in_the_other() -> None:
    worker = OneWorker()
    for _ in range(MOST.by_account):
        await worker.count("ada@example.com", "203.0.113.9")
    for _ in range(MOST.by_address):
        await worker.refused("ada@example.com", "203.0.113.9")
    for n in range(MOST.by_address - MOST.by_account):
        await worker.count(f"user-{n}@example.com", "203.0.113.9")
    for _ in range(MOST.by_account):
        await worker.refused("grace@example.com", "203.0.113.9")
    for _ in range(MOST.by_account):
        await worker.count("grace@example.com")


async def test_an_account_is_one_however_it_is_written() -> None:
    worker = OneWorker()
    for n in range(MOST.by_account):
        await worker.count(("ada@example.com", "ADA@Example.com", " ada@example.com ")[n % 3])
    await worker.refused("Ada@example.com")


async def test_an_answer_says_nothing_of_what_others_did_with_an_account() -> None:
    worker = OneWorker()
    first = await worker.count("ada@example.com", "203.0.113.9")
    await worker.count("grace@example.com", "203.0.113.10")
    assert await worker.count("grace@example.com", "203.0.113.11") == first
    known, unknown = OneWorker(), OneWorker()
    for _ in range(MOST.by_account):
        await known.count("ada@example.com")
        await unknown.count("nobody@example.com")
    told = await known.refused("ada@example.com"), await unknown.refused("nobody@example.com")
    assert told[0].message == told[1].message
    assert told[0].headers == told[1].headers


@pytest.mark.parametrize(
    ("one", "same", "other"),
    [
        ("192.0.2.7", "192.0.2.7", "192.0.2.8"),
        ("192.0.2.7", "::ffff:192.0.2.7", "::ffff:192.0.2.8"),
        ("192.0.2.7", "::FFFF:C000:207", "2001:db8::192.0.2.7"),
        ("2001:db8:1:2::1", "2001:db8:1:2:ffff:ffff:ffff:ffff", "2001:db8:1:3::1"),
        ("2001:db8::1", "2001:0DB8:0:0:0:0:0:2", "2001:db8:0:1::1"),
        ("::1", "::2", "1:2::"),
        ("fe80::1%eth0", "fe80::1", "fe80:0:0:1::1"),
        ("unknown", "unknown", "testclient"),
        (None, "", "unknown"),
    ],
)
def test_an_address_is_an_ipv4_address_or_an_ipv6_network(one: str | None, same: str, other: str) -> None:
    assert network_of(one) == network_of(same)
    assert network_of(one) != network_of(other)


async def test_neither_an_e_mail_nor_an_address_is_in_a_counter_s_name() -> None:
    worker = OneWorker()
    await worker.count("ada@example.com", "192.0.2.7")
    assert {name.partition(":")[0] for name in worker.counters()} == {"login-account", "login-address"}
    for name in worker.counters():
        assert len(name.partition(":")[2]) == 64
        assert "ada" not in name
        assert "192" not in name
    elsewhere = OneWorker()
    elsewhere.tries = Tries(elsewhere.desk, b"another secret")
    await elsewhere.count("ada@example.com", "192.0.2.7")
    assert not worker.counters() & elsewhere.counters()


async def test_nothing_is_held_and_what_is_old_is_forgotten_without_another_try() -> None:
    worker = OneWorker()
    for n in range(50):
        await worker.count(f"user-{n}@example.com")
    assert not worker.desk.holdings
    assert len(worker.counters()) == 100
    worker.now_ms += (WINDOW_S + WINDOW_S // 60 + 60) * 1000
    await Renewal(worker.desk).step()
    assert worker.counters() == set()


def _app() -> FastAPI:
    return create_app(Settings(environment="test"))


def _dependants(dependant: Dependant) -> Iterator[Dependant]:
    yield dependant
    for below in dependant.dependencies:
        yield from _dependants(below)


def _unlimited(app: FastAPI) -> list[str]:
    """Routes that anybody may use to try credentials, and that no `SensitiveRoute` stands before."""
    found = []
    for route in iter_route_contexts(app.routes):
        if not (route.path or "").startswith("/auth/") or route.dependant is None:
            continue
        whole = list(_dependants(route.dependant))
        # `GET /auth/me` takes a credential in a header, as every route does.
        takes_something = any(one.body_params or one.query_params or one.path_params for one in whole)
        # Who is signed in has shown a credential in a header, and tries none by an id.
        is_signed_in = any(one.call is get_user_caller for one in whole) and not any(one.body_params for one in whole)
        is_sensitive = takes_something or not {"GET", "HEAD"} >= set(route.methods or ())
        if is_sensitive and not is_signed_in and not any(isinstance(one.call, Sensitive) for one in whole):
            found.append(f"{sorted(route.methods or ())} {route.path}")
    return found


def test_every_route_that_takes_a_password_or_an_e_mail_is_limited() -> None:
    app = _app()
    assert "/auth/login" in {route.path for route in iter_route_contexts(app.routes)}
    assert _unlimited(app) == []


def test_a_route_that_forgot_its_limit_is_found() -> None:
    router = APIRouter(prefix="/auth")

    @router.post("/forgot")
    async def forgot(body: Login) -> None: ...

    @router.post("/raw")
    async def raw(request: Request) -> None: ...

    @router.get("/known")
    async def known(email: str) -> None: ...

    @router.post("/password")
    async def password(caller: UserCaller, body: Login) -> None: ...

    @router.delete("/own/{own_id}")
    async def own(caller: UserCaller, own_id: int) -> None: ...

    @router.post("/limited")
    async def limited(body: LoginBody) -> None: ...

    app = _app()
    app.include_router(router)
    assert _unlimited(app) == [
        "['POST'] /auth/forgot",
        "['POST'] /auth/raw",
        "['GET'] /auth/known",
        "['POST'] /auth/password",
    ]


def test_a_limited_body_is_documented_as_any_other() -> None:
    asked = _app().openapi()["paths"]["/auth/login"]["post"]
    assert asked["requestBody"]["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/Login"}
    assert "parameters" not in asked


async def test_an_account_may_be_named_by_a_secret() -> None:
    class Named(BaseModel):
        email: SecretStr

    worker = OneWorker()
    scope = {"type": "http", "headers": [], SCOPE_KEY: RequestContext("r-1", "POST", "/auth/login", "192.0.2.7")}
    body, route = Named(email=SecretStr("token")), SensitiveRoute("login", Named)
    for _ in range(MOST.by_account):
        assert await route(body=body, request=Request(scope), response=Response(), tries=worker.tries) is body
    await worker.refused("token")

"""Signing in is limited over all workers of the real application, by account and by the true client's address."""

import asyncio
import itertools
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

import httpx2
import pytest
from pwdlib import PasswordHash
from pwdlib.hashers.argon2 import Argon2Hasher
from pydantic import SecretStr
from redis.asyncio import Redis
from starlette.types import ASGIApp, Receive, Scope, Send

from tests.support.credentials import EMAIL, PASSWORD, database_at_head, quick_passwords, secret_settings
from tests.support.door import Door
from tests.support.stand_in import ECHO
from tests.support.waiting import eventually
from tidegate.accounts.dependencies import get_accounts
from tidegate.accounts.schemas import NewUser
from tidegate.accounts.service import Accounts
from tidegate.accounts.tries import SENSITIVE, WINDOW_S
from tidegate.admission.running import Admission
from tidegate.app import create_app
from tidegate.auth.passwords import Passwords
from tidegate.settings import Settings
from tidegate.settings.groups import AuthSettings, DatabaseSettings, HttpSettings, LimitsSettings, RedisSettings
from tidegate.storage.database import Database

MOST = SENSITIVE["login"]
PROXY = "10.9.8.7"
Mode = Literal["local", "deny", "allow"]


class CountingHasher(Argon2Hasher):
    """Argon2 at its smallest, counted."""

    def __init__(self) -> None:
        super().__init__(time_cost=1, memory_cost=8, parallelism=1)
        self.computations = 0

    def verify(self, password: str | bytes, hash: str | bytes) -> bool:  # noqa: A002 - the protocol's name
        self.computations += 1
        return super().verify(password, hash)


@dataclass
class Worker:
    """One process's application, reached from a proxy that it trusts or from anywhere."""

    app: ASGIApp
    admission: Admission
    hasher: CountingHasher

    async def login(
        self, email: str = EMAIL, *, address: str, password: str = "wrong", peer: str = PROXY
    ) -> httpx2.Response:
        transport = httpx2.ASGITransport(self.app, client=(peer, 1234))
        async with httpx2.AsyncClient(transport=transport, base_url="http://gateway") as client:
            body = {"email": email, "password": password}
            return await client.post("/auth/login", json=body, headers={"X-Forwarded-For": address})


class Workers:
    """The workers in turn, each try from an address of its own unless it names one."""

    def __init__(self, workers: list[Worker]) -> None:
        self.all = workers
        self._turns = itertools.cycle(workers)
        self._addresses = (f"198.51.{n // 250}.{n % 250}" for n in itertools.count())

    @property
    def computations(self) -> int:
        return sum(worker.hasher.computations for worker in self.all)

    async def login(self, email: str = EMAIL, *, address: str = "", **more: str) -> httpx2.Response:
        return await next(self._turns).login(email, address=address or next(self._addresses), **more)

    async def statuses(self, n: int, email: str = EMAIL, *, address: str = "", **more: str) -> Counter[int]:
        answers = await asyncio.gather(*(self.login(email, address=address, **more) for _ in range(n)))
        return Counter(answer.status_code for answer in answers)


@asynccontextmanager
async def _a_worker(settings: Settings) -> AsyncIterator[Worker]:
    app = create_app(settings)
    hasher = CountingHasher()

    async with app.router.lifespan_context(app) as state:
        assert state is not None

        async def with_state(scope: Scope, receive: Receive, send: Send) -> None:
            await app({**scope, "state": dict(state)}, receive, send)

        accounts = Accounts(state["database"], Passwords(PasswordHash((hasher,))))
        app.dependency_overrides[get_accounts] = lambda: accounts
        yield Worker(with_state, state["admission"], hasher)


@asynccontextmanager
async def _workers(
    folder: Path, database_url: str, redis: RedisSettings, n: int, mode: Mode = "local"
) -> AsyncIterator[Workers]:
    async with database_at_head(database_url) as database:
        await _a_user(database)
    async with AsyncExitStack() as stack:
        settings = [
            Settings(
                environment="test",
                data_dir=folder / f"worker-{number}",
                config_toml=ECHO,
                database=DatabaseSettings(url=SecretStr(database_url)),
                redis=redis,
                auth=AuthSettings(**secret_settings()),
                http=HttpSettings(trusted_proxies=(PROXY,)),
                limits=LimitsSettings(on_store_failure=mode),
            )
            for number in range(n)
        ]
        yield Workers([await stack.enter_async_context(_a_worker(each)) for each in settings])


async def _a_user(database: Database) -> None:
    accounts = Accounts(database, quick_passwords())
    await accounts.create(NewUser(email=EMAIL, password=SecretStr(PASSWORD)))


@pytest.fixture(params=["two workers on Redis", "one worker in memory"])
async def workers(request: pytest.FixtureRequest, tmp_path: Path, sqlite_url: str) -> AsyncIterator[Workers]:
    if request.param == "one worker in memory":
        redis, n = RedisSettings(), 1
    else:
        redis, n = _redis(request.getfixturevalue("redis_url"), request.getfixturevalue("redis_prefix")), 2
    async with _workers(tmp_path, sqlite_url, redis, n) as workers:
        for worker in workers.all:
            # A busy machine is no reason here to judge alone.
            worker.admission.desk.answer_within_s = 10
        yield workers


def _redis(url: str, prefix: str) -> RedisSettings:
    return RedisSettings(url=SecretStr(url), key_prefix=prefix)


async def test_an_account_is_tried_ten_times_in_all_however_many_try_at_once(workers: Workers) -> None:
    assert await workers.statuses(40) == {401: MOST.by_account, 429: 40 - MOST.by_account}
    assert workers.computations == MOST.by_account
    for worker in workers.all:
        refused = await worker.login(address="192.0.2.200", password=PASSWORD)
        assert refused.status_code == 429
    assert workers.computations == MOST.by_account
    assert (await workers.login("grace@example.com")).status_code == 401


async def test_a_refusal_is_the_envelope_and_says_when_to_come_again(workers: Workers) -> None:
    await workers.statuses(MOST.by_account, "nobody@example.com")
    await workers.statuses(MOST.by_account)
    unknown, known = await workers.login("nobody@example.com"), await workers.login()
    for refused in (unknown, known):
        error = refused.json()["error"]
        assert (error["type"], error["code"]) == ("rate_limit_error", "rate_limit_exceeded")
        assert refused.json()["request_id"] == refused.headers["x-request-id"]
        retry_ms = int(refused.headers["retry-after-ms"])
        assert 0 < retry_ms <= (WINDOW_S + WINDOW_S // 60) * 1000
        assert int(refused.headers["retry-after"]) == -(-retry_ms // 1000)
        assert refused.headers["x-should-retry"] == "true"
        assert refused.headers["ratelimit-policy"] == f'"login-account";q={MOST.by_account};w=900'
        assert refused.headers["ratelimit"].startswith('"login-account";r=0;t=')
        assert EMAIL not in refused.text
    assert {*known.headers} == {*unknown.headers}


async def test_an_address_tries_thirty_times_in_all_and_its_refusals_cost_the_accounts_nothing(
    workers: Workers,
) -> None:
    for n in range(MOST.by_address):
        assert (await workers.login(f"user-{n}@example.com", address="192.0.2.7")).status_code == 401
    before = workers.computations
    assert await workers.statuses(MOST.by_account, address="192.0.2.7", password=PASSWORD) == {429: MOST.by_account}
    refused = await workers.login("user-0@example.com", address="192.0.2.7")
    assert refused.headers["ratelimit-policy"] == f'"login-address";q={MOST.by_address};w=900'
    assert workers.computations == before
    assert await workers.statuses(MOST.by_account, address="192.0.2.8", password=PASSWORD) == {200: MOST.by_account}


async def test_a_success_counts_and_tells_what_remains_to_its_address(workers: Workers) -> None:
    for left in (29, 28):
        answer = await workers.login(address="192.0.2.7", password=PASSWORD)
        assert answer.status_code == 200
        assert answer.headers["ratelimit"] == f'"login-address";r={left};t=900'
        assert answer.headers["cache-control"] == "no-store"
    assert await workers.statuses(MOST.by_account) == {401: MOST.by_account - 2, 429: 2}


async def test_what_is_no_login_is_no_try(workers: Workers) -> None:
    assert await workers.statuses(50, "no-address", address="192.0.2.7") == {422: 50}
    assert (await workers.login(address="192.0.2.7", password=PASSWORD)).status_code == 200


async def test_an_address_is_the_client_s_own_behind_trusted_proxies_alone(workers: Workers) -> None:
    # A client that talks to us without a proxy may write what it likes.
    for n in range(MOST.by_address):
        answer = await workers.login(f"user-{n}@example.com", peer="203.0.113.5")
        assert answer.status_code == 401
    assert (await workers.login("other@example.com", peer="203.0.113.5")).status_code == 429
    # Nor does it help to write it before the proxy does.
    for n in range(MOST.by_address):
        forged = f"198.18.0.{n}, 2001:db8:1:2::{n:x}"
        assert (await workers.login(f"user-{n}@example.com", address=forged)).status_code == 401
    assert (await workers.login("other@example.com", address="2001:db8:1:2:ffff::1")).status_code == 429
    assert (await workers.login("other@example.com", address="2001:db8:1:3::1")).status_code == 401


async def test_redis_holds_neither_e_mail_nor_address_and_nothing_for_ever(
    tmp_path: Path, sqlite_url: str, redis_url: str, redis_prefix: str
) -> None:
    async with _workers(tmp_path, sqlite_url, _redis(redis_url, redis_prefix), 2) as workers:
        before = await _keys(redis_url, redis_prefix)
        await workers.statuses(5, address="192.0.2.7")
        await workers.login(address="2001:db8::1", password=PASSWORD)

        async def the_holds_are_gone() -> bool:
            kept = await _keys(redis_url, redis_prefix)
            return not any(b"login" in content for name, (content, _) in kept.items() if b":h:" in name)

        await eventually(the_holds_are_gone)
        made = {name: kept for name, kept in (await _keys(redis_url, redis_prefix)).items() if name not in before}
    counters = {name: kept for name, kept in made.items() if b":s:login-" in name}
    # One account, two addresses.
    assert Counter(name.partition(b":s:")[2].partition(b":")[0] for name in counters) == {
        b"login-account": 1,
        b"login-address": 2,
    }
    for name, (content, ttl_ms) in made.items():
        for text in (b"ada", b"example", b"192.0.2", b"2001:db8"):
            assert text not in name + content
        assert ttl_ms > 0, name
        assert name not in counters or ttl_ms <= (WINDOW_S + 2 * WINDOW_S // 60) * 1000


async def _keys(url: str, prefix: str) -> dict[bytes, tuple[bytes, int]]:
    """What is kept of the deployment's tag: content as it lies there, and time to live."""
    async with Redis.from_url(url) as redis:
        names = [name async for name in redis.scan_iter(f"{prefix}:{{d}}:*")]
        return {name: (await redis.dump(name) or b"", await redis.pttl(name)) for name in names}


@pytest.fixture
async def door(redis_url: str) -> AsyncIterator[Door]:
    async with Door(urlsplit(redis_url).port or 6379) as door:
        door.release()
        yield door


def _through(door: Door, redis_url: str, redis_prefix: str) -> RedisSettings:
    parts = urlsplit(redis_url)
    host = parts.netloc.rpartition("@")
    return _redis(parts._replace(netloc=f"{host[0]}{host[1]}127.0.0.1:{door.port}").geturl(), redis_prefix)


async def test_without_redis_a_worker_judges_by_its_share_and_together_again_when_it_is_back(
    tmp_path: Path, sqlite_url: str, door: Door, redis_url: str, redis_prefix: str
) -> None:
    async with _workers(tmp_path, sqlite_url, _through(door, redis_url, redis_prefix), 2) as workers:
        # The one that came second knew both at once.
        worker = workers.all[1]
        assert worker.admission.desk.workers == 2
        await door.shut()
        await eventually(lambda: worker.admission.desk.is_away)
        alone = Workers([worker])
        half = MOST.by_account // 2
        assert await alone.statuses(20) == {401: half, 429: 20 - half}
        await door.open()
        await eventually(lambda: not any(each.admission.desk.is_away for each in workers.all), within_s=30)
        assert await workers.statuses(20, "grace@example.com") == {401: 10, 429: 10}


async def test_without_redis_nobody_signs_in_where_the_settings_deny(
    tmp_path: Path, sqlite_url: str, door: Door, redis_url: str, redis_prefix: str
) -> None:
    async with _workers(tmp_path, sqlite_url, _through(door, redis_url, redis_prefix), 1, "deny") as workers:
        assert (await workers.login(password=PASSWORD)).status_code == 200
        await door.shut()
        await eventually(lambda: workers.all[0].admission.desk.is_away)
        before = workers.computations
        refused = await workers.login(password=PASSWORD)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "unavailable")
        assert refused.headers["retry-after"]
        assert workers.computations == before

"""One caller calls `/api`, `/auth` and `/v1/models` so often a minute, over all workers of the real application."""

import asyncio
import itertools
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import httpx2
import pytest
from pydantic import SecretStr
from starlette.types import ASGIApp, Receive, Scope, Send

from tests.support.credentials import access_token, database_at_head, keyrings, secret_settings
from tests.support.door import Door
from tests.support.stand_in import ECHO
from tests.support.waiting import eventually
from tidegate.accounts.api_keys.keys import ApiKeys
from tidegate.accounts.models import DEFAULT_WORKSPACE_ID, User
from tidegate.accounts.schemas import NewKey
from tidegate.admission.running import Admission
from tidegate.app import create_app
from tidegate.settings import Settings
from tidegate.settings.groups import AuthSettings, DatabaseSettings, LimitsSettings, RedisSettings

MOST = 12
Mode = Literal["local", "deny", "allow"]


@dataclass
class Worker:
    app: ASGIApp
    admission: Admission

    async def call(self, method: str, path: str, *, by: str | None, **options: Any) -> httpx2.Response:
        headers = {} if by is None else {"Authorization": f"Bearer {by}"}
        transport = httpx2.ASGITransport(self.app, client=("127.0.0.1", 4000))
        async with httpx2.AsyncClient(transport=transport, base_url="http://gateway") as client:
            return await client.request(method, path, headers=headers, **options)


class Workers:
    """The workers in turn, and the credentials of an admin, a member and a key of no user."""

    def __init__(self, workers: list[Worker], admin: str, member: str, key: str) -> None:
        self.all, self.admin, self.member, self.key = workers, admin, member, key
        self._turns = itertools.cycle(workers)

    async def call(self, method: str, path: str, *, by: str | None, **options: Any) -> httpx2.Response:
        return await next(self._turns).call(method, path, by=by, **options)

    async def statuses(self, n: int, path: str, by: str) -> Counter[int]:
        answers = await asyncio.gather(*(self.call("GET", path, by=by) for _ in range(n)))
        return Counter(answer.status_code for answer in answers)


@asynccontextmanager
async def _workers(
    folder: Path, database_url: str, redis: RedisSettings, n: int, mode: Mode = "local"
) -> AsyncIterator[Workers]:
    people = [
        User(workspace_id=DEFAULT_WORKSPACE_ID, email=f"{role}@example.com", role=role) for role in ("admin", "member")
    ]
    async with database_at_head(database_url) as database:
        async with database.transaction() as session:
            session.add_all(people)
        key = await ApiKeys(database, keyrings().peppers).create(NewKey(name="app"))
    workers: list[Worker] = []
    tokens: list[str] = []
    async with AsyncExitStack() as stack:
        for number in range(n):
            settings = Settings(
                environment="test",
                data_dir=folder / f"worker-{number}",
                config_toml=ECHO,
                database=DatabaseSettings(url=SecretStr(database_url)),
                redis=redis,
                auth=AuthSettings(**secret_settings()),
                limits=LimitsSettings(on_store_failure=mode, api_per_minute=MOST),
            )
            app = create_app(settings)
            state = await stack.enter_async_context(app.router.lifespan_context(app))
            assert state is not None
            if not tokens:
                database, authenticator = state["database"], state["authenticator"]
                tokens = [await access_token(database, authenticator, user.id) for user in people]
            workers.append(Worker(_with_state(app, dict(state)), state["admission"]))
            # A busy machine is no reason here to judge alone.
            state["admission"].desk.answer_within_s = 10
        admin, member = tokens
        yield Workers(workers, admin, member, key.secret)


def _with_state(app: ASGIApp, state: dict[str, Any]) -> ASGIApp:
    async def with_state(scope: Scope, receive: Receive, send: Send) -> None:
        await app({**scope, "state": dict(state)}, receive, send)

    return with_state


@pytest.fixture(params=["two workers on Redis", "one worker in memory"])
async def workers(request: pytest.FixtureRequest, tmp_path: Path, sqlite_url: str) -> AsyncIterator[Workers]:
    redis, n = RedisSettings(), 1
    if request.param == "two workers on Redis":
        url = SecretStr(request.getfixturevalue("redis_url"))
        redis, n = RedisSettings(url=url, key_prefix=request.getfixturevalue("redis_prefix")), 2
    async with _workers(tmp_path, sqlite_url, redis, n) as workers:
        yield workers


async def test_a_caller_calls_so_often_in_all_however_many_call_at_once(workers: Workers) -> None:
    assert await workers.statuses(30, "/auth/me", workers.member) == {200: MOST, 429: 30 - MOST}
    # One rate for all that they call, and each has their own.
    assert await workers.statuses(4, "/api/usage", workers.member) == {429: 4}
    assert await workers.statuses(4, "/api/usage", workers.admin) == {200: 4}
    assert await workers.statuses(MOST, "/v1/models", workers.key) == {200: MOST}
    assert await workers.statuses(4, "/v1/models", workers.key) == {429: 4}


async def test_every_answer_tells_what_remains_and_a_refusal_when_to_come_again(workers: Workers) -> None:
    first, second = [await workers.call("GET", "/auth/me", by=workers.key) for _ in range(2)]
    assert first.headers["ratelimit-policy"] == f'"key-calls";q={MOST};w=60'
    assert first.headers["ratelimit"] == f'"key-calls";r={MOST - 1};t=60'
    assert second.headers["ratelimit"] == f'"key-calls";r={MOST - 2};t=60'
    told = {name: first.headers[f"x-ratelimit-{name}-requests"] for name in ("limit", "remaining", "reset")}
    assert told == {"limit": str(MOST), "remaining": str(MOST - 1), "reset": "1m0s"}
    await workers.statuses(MOST, "/auth/me", workers.key)
    refused = await workers.call("GET", "/v1/models", by=workers.key)
    error = refused.json()["error"]
    assert (refused.status_code, error["type"], error["code"]) == (429, "rate_limit_error", "rate_limit_exceeded")
    assert f"{MOST} a minute for one key" in error["message"]
    retry_ms = int(refused.headers["retry-after-ms"])
    assert 0 < retry_ms <= 61_000
    assert int(refused.headers["retry-after"]) == -(-retry_ms // 1000)
    assert refused.headers["x-should-retry"] == "true"
    assert refused.headers["ratelimit"] == f'"key-calls";r=0;t={refused.headers["retry-after"]}'
    assert refused.headers.get_list("ratelimit-policy") == [f'"key-calls";q={MOST};w=60']


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/api/requests/00000000-0000-0000-0000-000000000000", 404),
        ("GET", "/api/requests?limit=none", 422),
        ("POST", "/api/limits", 403),
        ("GET", "/v1/models/nobody", 404),
    ],
)
async def test_errors_of_a_known_caller_count_and_tell(workers: Workers, method: str, path: str, status: int) -> None:
    for n in range(2):
        answer = await workers.call(method, path, by=workers.member, **({"json": {}} if method == "POST" else {}))
        assert answer.status_code == status
        assert answer.headers["ratelimit"] == f'"user-calls";r={MOST - 1 - n};t=60'


async def test_whoever_is_nobody_is_counted_nowhere_and_told_nothing(workers: Workers) -> None:
    for by in (None, "tg_abcd2345_QhX4c0m8Tn2vKp6wRz9bLd3fJs7gYu1eAi5oVk0xWqE"):
        answer = await workers.call("GET", "/auth/me", by=by)
        assert (answer.status_code, "ratelimit" in answer.headers) == (401, False)
    for path in ("/health/live", "/.well-known/jwks.json"):
        answer = await workers.call("GET", path, by=workers.member)
        assert (answer.status_code, "ratelimit" in answer.headers) == (200, False)
    told = await workers.call("GET", "/auth/me", by=workers.member)
    assert told.headers["ratelimit"] == f'"user-calls";r={MOST - 1};t=60'


async def test_the_road_is_counted_by_the_limits_that_are_rows_alone(workers: Workers) -> None:
    await workers.statuses(MOST, "/v1/models", workers.key)
    body = {"model": "echo", "messages": [{"role": "user", "content": "hi"}]}
    answer = await workers.call("POST", "/v1/chat/completions", by=workers.key, json=body)
    assert (answer.status_code, "ratelimit" in answer.headers) == (200, False)


@pytest.fixture
async def door(redis_url: str) -> AsyncIterator[Door]:
    async with Door(urlsplit(redis_url).port or 6379) as door:
        door.release()
        yield door


@pytest.fixture
def through(door: Door, redis_url: str, redis_prefix: str) -> RedisSettings:
    """Redis behind the door."""
    parts = urlsplit(redis_url)
    host = parts.netloc.rpartition("@")
    url = parts._replace(netloc=f"{host[0]}{host[1]}127.0.0.1:{door.port}").geturl()
    return RedisSettings(url=SecretStr(url), key_prefix=redis_prefix)


@pytest.mark.parametrize(("mode", "most"), [("local", {200: MOST, 429: 8}), ("deny", {503: 20}), ("allow", {200: 20})])
async def test_without_redis_it_is_judged_as_every_limit(
    tmp_path: Path, sqlite_url: str, door: Door, through: RedisSettings, *, mode: Mode, most: dict[int, int]
) -> None:
    async with _workers(tmp_path, sqlite_url, through, 1, mode) as workers:
        assert await workers.statuses(2, "/auth/me", workers.member) == {200: 2}
        await door.shut()
        await eventually(lambda: workers.all[0].admission.desk.is_away)
        # What is known of the whole is told: here nothing is.
        answer = await workers.call("GET", "/auth/me", by=workers.admin)
        assert "ratelimit" not in answer.headers
        assert await workers.statuses(20, "/auth/me", workers.member) == most

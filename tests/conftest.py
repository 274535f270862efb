"""Fixtures that every test may use: the event loop, a real PostgreSQL and Redis of the test's own, an upstream.

Nothing is started before a test asks for it. Where no server can be had a test is skipped with what was tried; in CI
(`CI` set) it errors instead, so that nothing goes untested unseen.
"""

import gc
import os
import secrets
import sys
from collections.abc import AsyncIterator, Generator, Iterator
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

import pytest

from tests.support import services, warm
from tests.support.databases import Databases, lending
from tests.support.services import Service, ServiceUnavailable
from tests.support.stuck import (  # noqa: F401  (hooks: pytest finds them here)
    pytest_configure,
    pytest_exception_interact,
    pytest_pyfunc_call,
    pytest_runtest_protocol,
    pytest_unconfigure,
)
from tests.support.upstream import ScriptedUpstream

# Else, where PYTHONDONTWRITEBYTECODE is set, each worker of each run would rewrite every assertion anew, and each
# process that a test starts would compile what was edited since the last install: 4 s of CPU.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """What is imported and collected stays: to look through it for garbage, now and in the tests, took a third."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session", autouse=True)
def _no_fork_afterwards() -> Iterator[None]:
    yield
    warm.end_forking()


@pytest.fixture(scope="session")
def postgres_service() -> Iterator[Service]:
    """One PostgreSQL for the session (a worker's, under xdist)."""
    with ExitStack() as stack:
        service = _opened(stack, services.postgres_service())
        services.drop_abandoned_databases(service)
        yield service


@pytest.fixture(scope="session")
def redis_service() -> Iterator[Service]:
    """One Redis for the session (a worker's, under xdist)."""
    with ExitStack() as stack:
        yield _opened(stack, services.redis_service())


@pytest.fixture(scope="session")
def postgres_databases(postgres_service: Service) -> Iterator[Databases]:
    """Empty databases to be lent, for fixtures of a module."""
    with lending(postgres_service) as databases:
        yield databases


@pytest.fixture
def postgres_url(postgres_databases: Databases) -> Iterator[str]:
    """An empty database of this test alone: `postgresql+asyncpg://…`."""
    with postgres_databases.lent() as url:
        yield url


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """A SQLite file that does not exist yet: `sqlite+aiosqlite:///…`."""
    return f"sqlite+aiosqlite:///{tmp_path / 'tidegate.db'}"


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest) -> str:
    """Either database, empty: a test that takes this runs once on each."""
    name = "sqlite_url" if request.param == "sqlite" else "postgres_url"
    url: str = request.getfixturevalue(name)
    return url


@pytest.fixture
def redis_url(redis_service: Service) -> str:
    """`redis://…`; other tests use the same server, so keys go under `redis_prefix`."""
    return services.redis_url(redis_service)


@pytest.fixture
def redis_prefix(redis_url: str) -> Iterator[str]:
    """A key prefix of this test alone, fit for `TIDEGATE_REDIS__KEY_PREFIX`. Its keys are deleted afterwards."""
    prefix = f"tgtest-{secrets.token_hex(6)}"
    try:
        yield prefix
    finally:
        services.delete_keys(redis_url, prefix)


@pytest.fixture
async def upstream() -> AsyncIterator[ScriptedUpstream]:
    """A scripted upstream in the test's own loop."""
    async with ScriptedUpstream() as server:
        yield server


def _opened(stack: ExitStack, opening: AbstractContextManager[Service]) -> Service:
    try:
        return stack.enter_context(opening)
    except ServiceUnavailable as reason:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(reason))

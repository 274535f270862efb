"""Behind a real PgBouncer in transaction mode: every transaction may run on another connection of the server."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import asyncpg  # type: ignore[import-untyped]
import orjson
import pytest
from sqlalchemy import select, text, update
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError

from tests.support.caller import Caller
from tests.support.pgbouncer import pgbouncer
from tests.support.server import ADMIN_EMAIL, ADMIN_PASSWORD, GatewayPlan, GatewayProcess
from tests.support.stand_in import ECHO, refusal
from tests.support.waiting import eventually
from tidegate.accounts.models import Workspace
from tidegate.storage.database import Database, create_engine
from tidegate.storage.migrate import migrate, pending
from tidegate.storage.migrations.tables import all_tables

_AT_ONCE = 50
_SERVER_CONNECTIONS = 2


@pytest.fixture
def pooled_url(postgres_url: str) -> Iterator[str]:
    """The test's database behind PgBouncer, which has two connections to it."""
    with pgbouncer(postgres_url, pool_size=_SERVER_CONNECTIONS) as url:
        yield url


async def test_many_at_once_share_two_connections_and_leave_nothing_on_them(pooled_url: str) -> None:
    await migrate(pooled_url)
    assert await pending(pooled_url) == []
    database = await Database.open(pooled_url, pooler="transaction")

    async def work(number: int) -> int | None:
        async with database.transaction() as session:
            await session.execute(update(Workspace).values(name=Workspace.name + "x"))
            assert await session.scalar(select(text(":n")), {"n": str(number)}) == str(number)
            assert await session.scalar(text("SHOW statement_timeout")) == "15s"
        async with database.single_statements() as connection:
            await connection.execute(text("SELECT CAST(:n AS int)"), {"n": number})
        async with database.session() as session:
            pid: int | None = await session.scalar(text("SELECT pg_backend_pid()"))
            return pid

    try:
        pids = await asyncio.gather(*(work(number) for number in range(_AT_ONCE)))
        assert 1 <= len(set(pids)) <= _SERVER_CONNECTIONS
        async with database.session() as session:
            assert await session.scalar(select(Workspace.name)) == "default" + "x" * _AT_ONCE
        assert await _left_on_servers(pooled_url) == {(0, "0")}
    finally:
        await database.aclose()


async def test_what_is_written_by_a_single_statement_stays(pooled_url: str) -> None:
    await migrate(pooled_url)
    database = await Database.open(pooled_url, pooler="transaction")
    try:
        async with database.single_statements() as connection:
            await connection.execute(update(Workspace).values(name="kept"))
        async with database.session() as session:
            assert await session.scalar(select(Workspace.name)) == "kept"
    finally:
        await database.aclose()


async def test_a_statement_is_ended_by_the_server_when_its_time_is_over(pooled_url: str) -> None:
    # The driver's own bound, which would end it at the same time, is off.
    engine = create_engine(make_url(pooled_url), pooler="transaction", command_timeout_s=0.2)
    try:
        async with engine.connect() as connection:
            raw = await connection.get_raw_connection()
            assert raw.driver_connection is not None
            raw.driver_connection._config = raw.driver_connection._config._replace(command_timeout=None)
            with pytest.raises(DBAPIError, match="statement timeout"):
                await connection.execute(text("SELECT pg_sleep(20)"))
    finally:
        await engine.dispose()


async def test_a_start_without_the_setting_is_refused_and_names_it(pooled_url: str, tmp_path: Path) -> None:
    plan = GatewayPlan(catalogue=ECHO, variables={"TIDEGATE_DATABASE__URL": pooled_url})
    assert await refusal(GatewayProcess(tmp_path, plan)) == [
        "TIDEGATE_DATABASE__URL: PgBouncer answers there; set TIDEGATE_DATABASE__POOLER=transaction"
    ]


async def test_a_gateway_serves_behind_it(pooled_url: str, redis_url: str, redis_prefix: str, tmp_path: Path) -> None:
    plan = GatewayPlan(
        catalogue=ECHO,
        workers=2,
        environment="production",
        redis_url=redis_url,
        redis_prefix=redis_prefix,
        variables={"TIDEGATE_DATABASE__URL": pooled_url, "TIDEGATE_DATABASE__POOLER": "transaction"},
    )
    gateway = GatewayProcess(tmp_path, plan)
    applied = orjson.loads((await gateway.command("migrate", "--json")).stdout)["applied"]
    assert len(applied) >= 4
    caller = Caller(gateway.base_url)
    async with gateway:
        replies = await asyncio.gather(*(caller.chat(f"r-{n}", model="echo") for n in range(_AT_ONCE)))
        assert {reply.status for reply in replies} == {200}

        async def all_settled() -> bool:
            return len(await caller.entries()) == _AT_ONCE

        await eventually(all_settled, within_s=20)
        body = {"email": ADMIN_EMAIL, "password": ADMIN_PASSWORD}
        signed_in = await caller.call("POST", "/auth/login", json=body)
        assert signed_in.status == 200
        assert (await gateway.command("keys", "list")).returncode == 0
    (shared,) = [line for line in gateway.lines() if line["event"] == "connections_shared"]
    assert shared["level"] == "info"
    assert shared["database"] == (
        "1 replicas x 2 workers x (5 + 5) x 2 = 40 to the pooler, whose max_client_conn must allow it"
    )
    assert "1 replicas x 2 workers x (16 + 6) x 2 = 88 of" in shared["redis"]
    assert not [line for line in gateway.lines() if line["level"] == "error"]


async def test_the_schema_is_whole_behind_it(pooled_url: str, postgres_url: str) -> None:
    await migrate(pooled_url)
    engine = create_engine(make_url(postgres_url))
    try:
        async with engine.connect() as connection:
            names = await connection.scalars(text("SELECT tablename FROM pg_tables WHERE schemaname = 'public'"))
            assert set(names) == {*all_tables().tables, "alembic_version"}
    finally:
        await engine.dispose()


async def _left_on_servers(url: str) -> set[tuple[int, str]]:
    """Of each server connection: how many prepared statements stand on it, and its setting."""
    plain = make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
    query = "SELECT (SELECT count(*) FROM pg_prepared_statements), current_setting('statement_timeout')"
    clients = [await asyncpg.connect(plain, statement_cache_size=0) for _ in range(_SERVER_CONNECTIONS)]
    try:
        found = set()
        for client in clients:
            # An open transaction holds its connection, so that the next client gets the other one.
            await client.execute("BEGIN")
            found.add(tuple(await client.fetchrow(query)))
        return found
    finally:
        for client in clients:
            await client.close()

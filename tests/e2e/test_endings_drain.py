"""A gateway that is told to stop: what can end within the drain ends rightly, the rest is cut and says so."""

import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from tests.support.behaviours import Completion, silent, stalled
from tests.support.caller import Caller, catalogue_of, content, reply_of
from tests.support.client import RawClient
from tests.support.server import GatewayPlan, GatewayProcess
from tests.support.upstream import ScriptedUpstream
from tests.support.waiting import eventually
from tests.support.wire import FOREVER, Gate
from tidegate.storage.database import Database

DRAIN_S = 2.0


@pytest.fixture(params=["uvicorn", "gunicorn"])
def plan(request: pytest.FixtureRequest, upstream: ScriptedUpstream) -> GatewayPlan:
    plain = {"base_url": upstream.base_url, "count": "deltas"}
    one = {**plain, "max_concurrency": 1, "queue": {"length": 10, "deadline_s": 60}}
    models = {"m": "plain/m", "one": "one/m", "telling": {"attempts": ["plain/m"], "keepalive_after_s": 0.1}}
    more: dict[str, Any] = {}
    if request.param == "gunicorn":
        stores = {"database_url": "postgres_url", "redis_url": "redis_url", "redis_prefix": "redis_prefix"}
        more = {name: request.getfixturevalue(fixture) for name, fixture in stores.items()}
        more |= {"environment": "production", "workers": 1}
    return GatewayPlan(catalogue=catalogue_of({"plain": plain, "one": one}, models), drain_s=DRAIN_S, **more)


@asynccontextmanager
async def clients(gateway: GatewayProcess, *names: str) -> AsyncIterator[list[RawClient]]:
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(RawClient(gateway.base_url)) for _ in names]


async def entries(gateway: GatewayProcess) -> dict[str, tuple[str, int | None, str | None, int]]:
    """By label: outcome, status, error code and output tokens, from the database of a gateway that ended."""
    url = gateway.plan.database_url or f"sqlite+aiosqlite:///{gateway.data_dir / 'tidegate.db'}"
    database = await Database.open(url)
    try:
        async with database.session() as session:
            rows = await session.execute(
                text("SELECT request_id, outcome, status, error_code, output_tokens FROM ledger_entries")
            )
            found = [tuple(row) for row in rows]
    finally:
        await database.aclose()
    assert len({row[0] for row in found}) == len(found)
    return {label: (outcome, status, code, tokens) for label, outcome, status, code, tokens in found}


async def test_a_stop_lets_end_what_can_and_cuts_the_rest(
    tmp_path: Path, upstream: ScriptedUpstream, plan: GatewayPlan
) -> None:
    names = ("ends", "cut", "silent", "whole", "holder", "queued", "telling")
    gate = Gate()
    async with GatewayProcess(tmp_path, plan) as gateway, clients(gateway, *names) as opened:
        caller = Caller(gateway.base_url)
        ends, cut, waiting, whole, holder, queued, telling = opened
        upstream.enqueue(stalled(after=2, at=gate), stalled(after=2), silent(), silent(), stalled(after=1))
        for n, (label, client) in enumerate(zip(names[:4], opened, strict=False)):
            await caller.ask(client, label, stream=label != "whole")
            await upstream.received(n + 1)
        await caller.ask(holder, "holder", model="one")
        await upstream.received(5)
        await caller.ask(queued, "queued", model="one")
        upstream.enqueue(Completion(pauses={0: FOREVER}))
        await caller.ask(telling, "telling", model="telling")
        await telling.head()
        for client in (ends, cut, holder):
            await client.head()
            await content(client)

        gateway.signal(signal.SIGTERM)
        await eventually(lambda: "stop" in gateway.output().lower())
        gate.open()
        assert (await ends.body()).endswith(b"[DONE]\n\n")

        for client in (cut, holder, telling):
            events = [event async for event in client.events() if not event.is_comment]
            assert [event.json["error"]["code"] for event in events if "error" in event.json] == ["draining"]
            assert events[-1].json["error"]["type"] == "overloaded_error"
        for client in (waiting, whole, queued):
            reply = await reply_of(client)
            assert (reply.status, reply.error["code"]) == (503, "draining")
        assert await gateway.ended() == 0
        await gateway.assert_nothing_left()
        await upstream.wait_for(lambda: not upstream.in_flight)

    found = await entries(gateway)
    assert set(found) == set(names)
    assert found["ends"] == ("completed", 200, None, 3)
    assert found["cut"] == ("interrupted", 200, "draining", 2)
    assert found["holder"] == ("interrupted", 200, "draining", 1)
    assert found["telling"] == ("interrupted", 200, "draining", 0)
    for label in ("silent", "whole", "queued"):
        assert found[label] == ("interrupted", 503, "draining", 0)
    assert list((gateway.data_dir / "journal").iterdir()) == []


async def test_while_it_lingers_a_gateway_refuses_new_requests(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    catalogue = catalogue_of({"plain": {"base_url": upstream.base_url}}, {"m": "plain/m"})
    plan = GatewayPlan(catalogue=catalogue, variables={"TIDEGATE_SERVER__LINGER_S": "60"})
    async with GatewayProcess(tmp_path, plan) as gateway, RawClient(gateway.base_url) as running:
        caller = Caller(gateway.base_url)
        upstream.enqueue(stalled(after=1, at=(gate := Gate())))
        await caller.ask(running, "running")
        await running.head()
        gateway.signal(signal.SIGTERM)

        async def is_refused() -> bool:
            reply = await caller.chat("late")
            return reply.status == 503 and reply.error["code"] == "draining"

        await eventually(is_refused)
        gate.open()
        assert (await running.body()).endswith(b"[DONE]\n\n")
        await gateway.kill9()

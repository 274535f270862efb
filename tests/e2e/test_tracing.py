"""Tracing in real processes: forked workers send their spans, and a collector that fails holds nobody."""

import asyncio
import signal
import time
from pathlib import Path

import pytest

from tests.support.behaviours import Completion, stalled
from tests.support.blackhole import BlackHole
from tests.support.caller import CHAT, Caller, catalogue_of, content
from tests.support.client import RawClient
from tests.support.collector import Collector
from tests.support.server import GatewayPlan, GatewayProcess
from tests.support.upstream import ScriptedUpstream
from tests.support.waiting import eventually

REQUEST = f"POST {CHAT}"
MANY = 20


def a_catalogue(upstream: ScriptedUpstream) -> str:
    return catalogue_of({"plain": {"base_url": upstream.base_url, "count": "deltas"}}, {"m": "plain/m"})


async def test_forked_workers_send_every_span_and_those_of_a_drain_that_cuts(
    tmp_path: Path, upstream: ScriptedUpstream, postgres_url: str, redis_url: str, redis_prefix: str
) -> None:
    async with Collector() as collector:
        plan = GatewayPlan(
            catalogue=a_catalogue(upstream),
            environment="production",
            workers=2,
            database_url=postgres_url,
            redis_url=redis_url,
            redis_prefix=redis_prefix,
            drain_s=1.0,
            variables={"TIDEGATE_TRACING__ENDPOINT": collector.endpoint, "TIDEGATE_TRACING__SERVICE_NAME": "gate"},
        )
        async with GatewayProcess(tmp_path, plan) as gateway, RawClient(gateway.base_url) as cut:
            caller = Caller(gateway.base_url)
            replies = await asyncio.gather(*(caller.chat(f"many-{n}") for n in range(MANY)))
            assert all(reply.is_done for reply in replies)
            upstream.enqueue(stalled(after=2))
            await caller.ask(cut, "cut")
            await cut.head()
            await content(cut)
            gateway.signal(signal.SIGTERM)
            assert (await reply_of_rest(cut)) == "draining"
            await gateway.ended()
        # Sent before each worker ended: nothing is waited for.
        spans = {span.attributes["tidegate.request_id"]: span for span in collector.spans if span.name == REQUEST}
        assert {f"many-{n}" for n in range(MANY)} | {"cut"} <= set(spans)
        assert all(len(collector.children(span)) == 1 for span in spans.values())
        (attempt,) = collector.children(spans["cut"])
        assert (spans["cut"].attributes["error.type"], spans["cut"].is_error) == ("draining", True)
        assert (attempt.attributes["tidegate.outcome"], attempt.is_error) == ("interrupted", True)
        ids = [span.span_id for span in collector.spans]
        assert len(ids) == len(set(ids))
        assert {span.resource["service.name"] for span in collector.spans} == {"gate"}
        lines = [line for line in gateway.lines() if line["event"] == "request" and line["path"] == CHAT]
        assert {line["request_id"]: line["trace_id"] for line in lines} == {
            label: span.trace_id for label, span in spans.items()
        }


async def reply_of_rest(client: RawClient) -> str:
    events = [event async for event in client.events()]
    code: str = events[-1].json["error"]["code"]
    return code


@pytest.mark.parametrize("fault", ["refuses", "hangs", "vanishes"])
async def test_a_collector_that_fails_changes_nothing_for_callers_and_little_for_the_end(
    fault: str, tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    async with Collector(hangs=fault == "hangs") as collector, BlackHole() as hole:
        endpoint = f"http://127.0.0.1:{hole.port}" if fault == "vanishes" else collector.endpoint
        if fault == "refuses":
            collector.stop()
        plan = GatewayPlan(catalogue=a_catalogue(upstream), variables={"TIDEGATE_TRACING__ENDPOINT": endpoint})
        async with GatewayProcess(tmp_path, plan) as gateway:
            caller = Caller(gateway.base_url)
            upstream.default = Completion()
            for n in range(5):
                assert (await caller.chat(f"request-{n}")).is_done
            if fault != "hangs":
                await eventually(lambda: told_of(gateway), within_s=20)
            else:
                await eventually(lambda: collector.bodies, within_s=20)
            assert (await caller.chat("after")).is_done
            began = time.monotonic()
            await gateway.stop()
            # 2 s of flush; the rest is a busy machine's.
            assert time.monotonic() - began < 12
        assert len(told_of(gateway)) <= 1
        assert [line["event"] for line in gateway.lines() if line["event"] == "traces_left"] == ["traces_left"]


def told_of(gateway: GatewayProcess) -> list[str]:
    return [line["reason"] for line in gateway.lines() if line["event"] == "traces_not_taken"]

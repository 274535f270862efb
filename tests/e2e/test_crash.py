"""`kill -9` in the middle of streams: after the next start every request has exactly one terminal entry."""

import asyncio
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest

from tests.support.behaviours import stalled
from tests.support.caller import Caller, Json, catalogue_of, checked, content
from tests.support.client import ConnectionEnded, RawClient
from tests.support.server import GatewayPlan, GatewayProcess
from tests.support.upstream import ScriptedUpstream
from tests.support.waiting import eventually

STREAMS = 20
TOKENS = 3


@pytest.fixture
def stores(postgres_url: str, redis_url: str, redis_prefix: str) -> dict[str, str]:
    return {"database_url": postgres_url, "redis_url": redis_url, "redis_prefix": redis_prefix}


def plan_for(upstream: ScriptedUpstream, **more: Any) -> GatewayPlan:
    price = {"input": "1.00", "output": "2.00"}
    plain = {"base_url": upstream.base_url, "count": "deltas"}
    models = {"m": {"attempts": ["plain/m"], "price": price}}
    return GatewayPlan(**{"catalogue": catalogue_of({"plain": plain}, models), **more})


@asynccontextmanager
async def streaming(gateway: GatewayProcess, upstream: ScriptedUpstream) -> AsyncIterator[list[RawClient]]:
    """Twenty streams of which each has sent its tokens, and the journal says so."""
    caller = Caller(gateway.base_url)
    async with AsyncExitStack() as stack:
        upstream.enqueue(*[stalled(after=TOKENS)] * STREAMS)
        clients = [await stack.enter_async_context(RawClient(gateway.base_url)) for _ in range(STREAMS)]
        for n, client in enumerate(clients):
            await caller.ask(client, f"cut-{n}")
        for client in clients:
            await client.head()
            for _ in range(TOKENS):
                await content(client)
        await eventually(lambda: progress(gateway) == STREAMS, within_s=30, poll_s=0.05)
        yield clients


def progress(gateway: GatewayProcess) -> int:
    """How many streams the journals know to be as far as they are."""
    records = [msgspec.json.decode(line) for line in journal_lines(gateway) if line.endswith(b"\n")]
    return sum(record["record"] == "progress" and record["output_tokens"] == TOKENS for record in records)


def journal_lines(gateway: GatewayProcess) -> Iterator[bytes]:
    for path in (gateway.data_dir / "journal").glob("*/*.jsonl"):
        yield from path.read_bytes().splitlines(keepends=True)


def journals(gateway: GatewayProcess) -> set[Path]:
    return set((gateway.data_dir / "journal").iterdir())


async def each_is_cut(clients: list[RawClient]) -> None:
    """No client saw a clean end."""
    for client in clients:
        with pytest.raises(ConnectionEnded):
            async with asyncio.timeout(10):
                await client.body()


async def each_was_interrupted(caller: Caller) -> None:
    """Twenty entries, each terminal, each once, with the tokens that the journal last knew."""
    labels = {f"cut-{n}" for n in range(STREAMS)}

    async def recovered() -> list[Json]:
        found = await caller.entries()
        return found if len(found) >= STREAMS else []

    found = await eventually(recovered, within_s=30, poll_s=0.05)
    assert [entry["request_id"] for entry in found].count("cut-0") == 1
    assert {entry["request_id"] for entry in found} == labels
    assert len(found) == STREAMS
    for entry in map(checked, found):
        assert (entry["outcome"], entry["status"], entry["streamed"]) == ("interrupted", None, True)
        assert (entry["usage_source"], entry["output_tokens"]) == ("estimated", TOKENS)
        assert entry["input_tokens"] > 0
        (attempt,) = entry["attempts"]
        assert (attempt["upstream"], attempt["outcome"]) == ("plain", "interrupted")
        cost = (entry["input_tokens"] + 2 * entry["output_tokens"]) / 1_000_000
        assert float(entry["cost"]) == pytest.approx(cost)


async def test_a_gateway_that_is_killed_settles_its_streams_at_the_next_start(
    tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    gateway = GatewayProcess(tmp_path, plan_for(upstream))
    caller = Caller(gateway.base_url)
    async with gateway:
        async with streaming(gateway, upstream) as clients:
            killed = journals(gateway)
            await gateway.kill9()
            await each_is_cut(clients)
        await upstream.wait_for(lambda: len(upstream.closed_early) == STREAMS)
        await gateway.start()
        await each_was_interrupted(caller)
        await eventually(lambda: not journals(gateway) & killed)
        assert (await caller.chat("after")).is_done
        await caller.entry("after")
        assert len(await caller.entries()) == STREAMS + 1
    await eventually(lambda: not journals(gateway))


async def test_workers_that_are_killed_alone_are_settled_by_those_that_live(
    tmp_path: Path, upstream: ScriptedUpstream, stores: dict[str, str]
) -> None:
    gateway = GatewayProcess(tmp_path, plan_for(upstream, workers=2, environment="production", **stores))
    caller = Caller(gateway.base_url)

    async def exactly_the_cut_are_settled() -> bool:
        settled = sorted(entry["request_id"] for entry in await caller.entries())
        return settled == sorted(request.headers["x-request-id"] for request in upstream.closed_early)

    async with gateway:
        root = gateway.pid
        async with streaming(gateway, upstream) as clients:
            killed = journals(gateway)
            first, second = workers(gateway)
            first.send_signal(signal.SIGKILL)
            await eventually(exactly_the_cut_are_settled, within_s=30, poll_s=0.05)
            await eventually(lambda: len(workers(gateway)) == 2, within_s=30)
            second.send_signal(signal.SIGKILL)
            await each_is_cut(clients)
        await upstream.wait_for(lambda: len(upstream.closed_early) == STREAMS)
        await each_was_interrupted(caller)
        await eventually(lambda: not journals(gateway) & killed)
        assert gateway.pid == root
        assert gateway.exit_code is None
        assert (await caller.chat("after")).is_done
        await caller.entry("after")
        assert len(await caller.entries()) == STREAMS + 1
    await eventually(lambda: not journals(gateway))


def workers(gateway: GatewayProcess) -> list[psutil.Process]:
    return [process for process in gateway.tree() if process.cmdline()[:1] == ["tidegate: worker"]]

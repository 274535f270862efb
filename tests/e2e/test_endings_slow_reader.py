"""A fast upstream and a slow reader: memory stays bounded, and nobody else is slowed."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.caller import Caller, catalogue_of, content
from tests.support.client import RawClient
from tests.support.phases import Flood
from tests.support.server import GatewayPlan, GatewayProcess
from tests.support.upstream import ScriptedUpstream
from tests.support.waiting import eventually

MEGABYTE = 1024 * 1024
STREAM_BYTES = 64 * MEGABYTE


@pytest.fixture
async def gateway(tmp_path: Path, upstream: ScriptedUpstream) -> AsyncIterator[GatewayProcess]:
    plain = {"base_url": upstream.base_url, "count": "deltas"}
    plan = GatewayPlan(catalogue=catalogue_of({"plain": plain}, {"m": "plain/m"}))
    async with GatewayProcess(tmp_path, plan) as started:
        yield started


async def test_64_mb_to_a_slow_reader_stay_at_the_upstream(gateway: GatewayProcess, upstream: ScriptedUpstream) -> None:
    caller = Caller(gateway.base_url)
    (worker,) = [process for process in gateway.tree() if process.cmdline()[:1] == ["tidegate: worker"]]
    # An upstream that names no usage: the tokenizer is loaded, which is 15 MB once.
    upstream.enqueue(Flood(total_bytes=MEGABYTE))
    assert (await caller.chat("warm")).is_done
    assert (await caller.entry("warm"))["usage_source"] == "estimated"
    before = worker.memory_info().rss
    flood = Flood(total_bytes=STREAM_BYTES)
    upstream.enqueue(flood)
    highest = before
    async with RawClient(gateway.base_url, receive_buffer=16 * 1024) as slow:
        await caller.ask(slow, "slow")
        await slow.head()
        await content(slow)
        sent = 0

        async def is_held_up() -> bool:
            nonlocal sent
            before_others, sent = sent, upstream.requests[1].sent_bytes
            # The others' whole requests are the time in which the slow one does not move.
            for n in range(5):
                assert (await caller.chat(f"other-{n}-{sent}")).is_done
            return upstream.requests[1].sent_bytes == sent == before_others

        await eventually(is_held_up)
        assert 0 < sent < STREAM_BYTES / 2
        highest = max(highest, worker.memory_info().rss)
        received = 0
        tail = b""
        while piece := await slow.piece():
            received += len(piece)
            tail = (tail + piece)[-64:]
            highest = max(highest, worker.memory_info().rss)
    assert tail.endswith(b"data: [DONE]\n\n")
    assert received > STREAM_BYTES * 0.9
    assert highest - before < 6 * MEGABYTE, (before, highest)
    entry = await caller.entry("slow")
    assert (entry["outcome"], entry["output_tokens"]) == ("completed", STREAM_BYTES // len(flood.event))

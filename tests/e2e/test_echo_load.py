"""Five hundred streams at once on one worker: each complete and its own, and memory that does not grow."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import datetime
from pathlib import Path

import psutil
import pytest

from tests.support.caller import Caller, Json, catalogue_of, reply_of
from tests.support.client import RawClient
from tests.support.server import GatewayPlan, GatewayProcess
from tests.support.waiting import eventually

STREAMS = 500
WORDS = 40


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[GatewayProcess]:
    echo = {"provider": "echo", "max_concurrency": STREAMS, "queue": {"length": 1, "deadline_s": 1}}
    plan = GatewayPlan(catalogue=catalogue_of({"echo": echo}, {"m": "echo/echo"}))
    async with GatewayProcess(tmp_path, plan) as started:
        yield started


async def test_five_hundred_streams_at_once_are_complete_unmixed_and_leave_no_memory(gateway: GatewayProcess) -> None:
    caller = Caller(gateway.base_url)
    (worker,) = [process for process in gateway.tree() if process.cmdline()[:1] == ["tidegate: worker"]]
    first = await round_of(caller, "first")
    after_first = resident(worker)
    second = await round_of(caller, "second")
    after_second = resident(worker)
    assert after_second <= 1.2 * after_first, (after_first, after_second)
    for entries in (first, second):
        assert len(entries) == STREAMS
        assert {entry["outcome"] for entry in entries} == {"completed"}
        assert {entry["output_tokens"] for entry in entries} == {WORDS}
        # Not one had ended before the last had begun.
        assert max(began(entry) for entry in entries) < min(ended(entry) for entry in entries)


async def round_of(caller: Caller, name: str) -> list[Json]:
    """All at once: every request but its last byte is there before the first may begin."""
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(RawClient(caller.base_url)) for _ in range(STREAMS)]
        asked = [f"{name}-{n}" for n in range(STREAMS)]
        last = [await ask_all_but_one_byte(caller, client, label) for client, label in zip(clients, asked, strict=True)]
        for client, byte in zip(clients, last, strict=True):
            await client.send_raw(byte)
        async with asyncio.timeout(90):
            replies = await asyncio.gather(*map(reply_of, clients))
    for label, reply in zip(asked, replies, strict=True):
        assert reply.is_done, reply.body[-300:]
        assert reply.text == words(label)

    async def settled() -> list[Json]:
        found: list[Json] = []
        after = ""
        while True:
            page = (await caller.call("GET", f"/api/requests?limit=200{after}")).json
            found += [entry for entry in page["data"] if entry["request_id"].startswith(f"{name}-")]
            if page["next"] is None:
                return found if len(found) >= STREAMS else []
            after = f"&after={page['next']}"

    return await eventually(settled, within_s=30, poll_s=0.2)


async def ask_all_but_one_byte(caller: Caller, client: RawClient, label: str) -> bytes:
    """Returns the byte that is held back."""
    message = {"role": "user", "content": words(label)}
    body = json.dumps({"model": "m", "stream": True, "messages": [message]})
    head = [
        "POST /v1/chat/completions HTTP/1.1",
        "host: gateway",
        f"content-length: {len(body)}",
        *(f"{key}: {value}" for key, value in caller.credentials(label).items()),
    ]
    await client.send_raw("\r\n".join([*head, "", body[:-1]]).encode())
    return body[-1:].encode()


def words(label: str) -> str:
    """Words that no other request has."""
    return " ".join(f"{label}.{n}" for n in range(WORDS))


def began(entry: Json) -> datetime:
    return datetime.fromisoformat(entry["started_at"])


def ended(entry: Json) -> datetime:
    return datetime.fromisoformat(entry["ended_at"])


def resident(process: psutil.Process) -> int:
    return process.memory_info().rss

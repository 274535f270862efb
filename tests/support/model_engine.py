"""The local model's side without a model: slots, gate and relay, with a scripted engine behind them.

The engine stands for llama.cpp's server where that is slow to notice: it ends a call when the test lets it.
"""

import asyncio
import contextlib
import json
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Self

from tidegate.admission.model_gate import ModelGate, Told
from tidegate.admission.slots import Lease, SlotAsk
from tidegate.admission.steps import Steps
from tidegate.server.model_door import Door, bind
from tidegate.server.model_relay import EngineLost, Relay
from tidegate.server.model_slots import Claim, ModelSlots

BODY = json.dumps({"messages": [{"role": "user", "content": "Hello"}], "stream": True}).encode()
PROGRESS = b'data: {"choices":[],"prompt_progress":{"total":64,"processed":32}}\n\n'
EVENT = b'data: {"choices":[{"delta":{"content":"\\"prompt_progress\\":"}}]}\n\n'
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"


class Engine:
    """Counts the calls that are there at once. A call answers with `pieces`, waits for `may_end`, and is closed."""

    def __init__(self) -> None:
        self.api_key = "the engine's own key"
        self.heads: list[bytes] = []
        self.bodies: list[bytes] = []
        self.now = 0
        self.most = 0
        self.hang_ups = 0
        self.sent = 0
        self.pieces: list[bytes] = [PROGRESS, EVENT, PROGRESS, b"data: [DONE]\n\n"]
        self.may_end = asyncio.Event()
        self.may_end.set()
        self.port = 0
        self._server: asyncio.Server

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._call, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._server.close()

    async def _call(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.now += 1
        self.most = max(self.most, self.now)
        watch: asyncio.Task[None] | None = None
        try:
            with contextlib.suppress(OSError, EOFError):
                await self._take_request(reader)
                watch = asyncio.create_task(self._watch(reader))
                writer.write(HEAD)
                for piece in self.pieces:
                    writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))
                    await writer.drain()
                    self.sent += len(piece)
                await self.may_end.wait()
                writer.write(b"0\r\n\r\n")
                await writer.drain()
        finally:
            self.now -= 1
            if watch is not None:
                watch.cancel()
            writer.close()

    async def _take_request(self, reader: asyncio.StreamReader) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        self.heads.append(head)
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0] or 0)
        self.bodies.append(await reader.readexactly(length))

    async def _watch(self, reader: asyncio.StreamReader) -> None:
        if not await reader.read(1):
            self.hang_ups += 1


class Model:
    """The model's side: slots, door, relay, and the engine behind them."""

    def __init__(self, slots: ModelSlots, engine: Engine, relay: Relay, losses: list[EngineLost]) -> None:
        self.slots = slots
        self.engine = engine
        self.relay = relay
        self.losses = losses


@asynccontextmanager
async def model(path: Path, *, slots: int = 2, is_open: bool = True, stuck_after_s: float = 60) -> AsyncIterator[Model]:
    counted = ModelSlots(slots)
    losses: list[EngineLost] = []
    async with (
        Engine() as engine,
        Relay(counted, engine, on_loss=losses.append, stuck_after_s=stuck_after_s) as relay,
    ):

        def grant(claim: Claim) -> Told:
            return Told(base_url=relay.base_url, api_key=claim.token, slot=claim.granted.result())

        async with Door(counted, bind(path), grant):
            if is_open:
                counted.open()
            yield Model(counted, engine, relay, losses)


def worker(
    path: Path, *, queue_length: int = 100, queue_deadline_s: float = 60, steps: Steps | None = None
) -> ModelGate:
    return ModelGate(path, upstream="local", queue_length=queue_length, queue_deadline_s=queue_deadline_s, steps=steps)


def hold(
    gate: ModelGate, deadline_s: float | None = None, ask: SlotAsk | None = None
) -> contextlib.AbstractAsyncContextManager[Lease]:
    return gate.hold(ask or SlotAsk(uuid.uuid4()), deadline_s=deadline_s)


@asynccontextmanager
async def call(lease: Lease, *, key: str | None = None, body: bytes = BODY) -> AsyncIterator[asyncio.StreamReader]:
    assert lease.base_url is not None
    port = int(lease.base_url.removesuffix("/v1").rpartition(":")[2])
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nX-Conversation-Id: 1\r\nContent-Type: application/json\r\n"
        f"Authorization: Bearer {key or lease.api_key}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    writer.write(head.encode() + body)
    try:
        yield reader
    finally:
        writer.close()

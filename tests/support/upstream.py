"""A scripted upstream: a real server on loopback that speaks OpenAI's chat wire format, misbehaves as told, and
records what it saw.

It runs in the test's own loop. What a request gets is, in this order: the next of `enqueue`, what `by_model` has for
its model, the named behaviour of that name (`NAMED`), and else `default`. Everything that it saw stands in `requests`
and `connections`. Leaving its context raises whatever a behaviour raised, so that a broken script never passes for a
hang-up.

    async with ScriptedUpstream() as upstream:
        upstream.enqueue(stalled(after=2))
        …
        await upstream.wait_for(lambda: upstream.requests and upstream.requests[0].closed_early, within_s=2)

By hand: `python -m tests.support.upstream --port 9000`; the model's name says what it does (`--list`).
"""

import argparse
import asyncio
import itertools
import json
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from types import MappingProxyType, TracebackType
from typing import Any, Self, TypeVar

from tests.support.behaviours import (
    Answer,
    Behaviour,
    ClosesUnderTheClient,
    Completion,
    Echo,
    RefusesStreamOptions,
    Sse,
    Usage,
    flood,
    html,
    refusal,
    silent,
    stalled,
)
from tests.support.waiting import eventually
from tests.support.wire import FOREVER, Connection, Exchange, HangUp, Received, Wire

T = TypeVar("T")
LOOPBACK = "127.0.0.1"

NAMED: Mapping[str, Behaviour] = MappingProxyType(
    {
        "echo": Echo(),
        "slow": Completion(deltas=("one", " two", " three", " four", " five"), gap_s=0.5),
        "silent": silent(),
        "stalled-first": Completion(pauses={0: FOREVER}),
        "stalled": stalled(after=2),
        "flood": flood(),
        "fin": Completion(ending="fin"),
        "rst": Completion(ending="rst"),
        "half": Completion(ending="half_fin"),
        "error-event": Completion(ending="error_event"),
        "no-done": Completion(ending="no_done"),
        "zero-usage": Completion(usage=Usage(prompt=0, completion=0)),
        "no-usage": Completion(usage=None),
        "null-usage": Completion(null_usage=True),
        "bytewise": Completion(sse=Sse(newline="\r\n", split=1)),
        "no-stream-options": RefusesStreamOptions(),
        "closes": ClosesUnderTheClient(),
        "html": html(200),
        "broken-json": Answer(body=b'{"id": "chatcmpl-'),
        **{f"status-{status}": refusal(status) for status in (400, 401, 403, 404, 409, 413, 422, 429, 500, 502, 503)},
    }
)


class ScriptedUpstream:
    """The server, its script, and its records. `send_buffer` bounds what the kernel holds for each connection."""

    def __init__(self, default: Behaviour | None = None, *, port: int = 0, send_buffer: int | None = None) -> None:
        self.default: Behaviour = default or Completion()
        self.by_model: dict[str, Behaviour] = {}
        self.requests: list[Received] = []
        """The calls of a model, in the order in which they came."""
        self.connections: list[Connection] = []
        self.peak_in_flight = 0
        self._queue: deque[Behaviour] = deque()
        self._port = port
        self._send_buffer = send_buffer
        self._wires: list[Wire] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._errors: list[Exception] = []
        self._server: asyncio.Server | None = None

    # The script

    def enqueue(self, *behaviours: Behaviour) -> None:
        """What the next requests get, one each, in this order."""
        self._queue.extend(behaviours)

    # The records

    @property
    def base_url(self) -> str:
        """As a client of OpenAI's API is configured: `http://127.0.0.1:PORT/v1`."""
        return f"http://{LOOPBACK}:{self._port}/v1"

    @property
    def port(self) -> int:
        return self._port

    @property
    def last(self) -> Received:
        return self.requests[-1]

    @property
    def in_flight(self) -> int:
        """Requests that are being answered now."""
        return sum(request.in_flight for request in self.requests)

    @property
    def closed_early(self) -> list[Received]:
        """Requests whose client closed the connection before the answer was done."""
        return [request for request in self.requests if request.closed_early]

    @property
    def open_connections(self) -> list[Connection]:
        return [connection for connection in self.connections if connection.closed_at is None]

    async def wait_for(self, condition: Callable[[], T], *, within_s: float = 10.0) -> T:
        """`eventually`, and what was seen until then in the message where it never came true."""
        return await eventually(condition, within_s=within_s, what=f"the condition (upstream saw: {self._summary()})")

    async def received(self, count: int = 1, *, within_s: float = 10.0) -> list[Received]:
        """Waits until so many requests have come; returns them all."""
        await self.wait_for(lambda: len(self.requests) >= count, within_s=within_s)
        return self.requests

    def _summary(self) -> str:
        seen = [f"{r.path} events={r.sent_events} done={r.done_at} hung_up={r.hung_up_at}" for r in self.requests]
        return f"{len(self.connections)} connections, {len(self.open_connections)} open, requests {seen}"

    # The server

    async def __aenter__(self) -> Self:
        self._server = await asyncio.get_running_loop().create_server(self._accept, LOOPBACK, self._port, backlog=1024)
        self._port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()
        if self._errors and error is None:
            raise ExceptionGroup("the script failed", self._errors)

    async def stop(self) -> None:
        """Stops listening and resets what is open: from here on a connection is refused."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for wire in self._wires:
            wire.close(reset=True)
        for wire in self._wires:
            await wire.wait_closed()

    def _accept(self) -> Wire:
        record = Connection(number=len(self.connections), opened_at=time.monotonic())
        wire = Wire(record, self._answer, send_buffer=self._send_buffer)
        self.connections.append(record)
        self._wires.append(wire)
        return wire

    def _answer(self, exchange: Exchange) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(self._run(exchange, self._behaviour_for(exchange.received)))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _run(self, exchange: Exchange, behaviour: Behaviour) -> None:
        try:
            await behaviour.answer(exchange)
        except HangUp:
            pass
        except Exception as error:  # noqa: BLE001 - an edge: it is raised again where the test leaves the context
            self._errors.append(error)
            exchange.reset()

    def _behaviour_for(self, received: Received) -> Behaviour:
        if received.method == "GET" and received.path.endswith("/models"):
            listed = [{"id": name, "object": "model", "created": 0, "owned_by": "script"} for name in NAMED]
            return Answer(body=json.dumps({"object": "list", "data": listed}).encode())
        if received.method != "POST":
            return refusal(404, f"There is no {received.method} {received.path}")
        self.requests.append(received)
        self.peak_in_flight = max(self.peak_in_flight, self.in_flight)
        if self._queue:
            return self._queue.popleft()
        model = _model_of(received)
        return self.by_model.get(model) or NAMED.get(model) or self.default


def _model_of(received: Received) -> str:
    try:
        body: Any = received.body
    except ValueError:
        return ""
    return str(body.get("model", "")) if isinstance(body, dict) else ""


async def _serve(port: int) -> None:
    async with ScriptedUpstream(port=port) as upstream:
        sys.stdout.write(f"{upstream.base_url}\n")
        sys.stdout.flush()
        for seen in itertools.count():
            request = (await upstream.received(seen + 1, within_s=86400))[seen]
            sys.stdout.write(f"{request.method} {request.path} {_model_of(request)}\n")
            sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description="An upstream that does what the model's name says.")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--list", action="store_true", help="list the model names that do something of their own")
    options = parser.parse_args()
    if options.list:
        sys.stdout.write("\n".join(NAMED) + "\n")
        return
    try:
        asyncio.run(_serve(options.port))
    except KeyboardInterrupt:
        return


if __name__ == "__main__":
    main()

"""The phases of a request in which its client may hang up, and how each is reached.

The same phases are played against the application in the test's own loop and against the real server. What a `Scene`
knows is what can be seen from outside: what the upstream saw, who knocks at a port that never answers, and the ledger.
"""

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

from tests.support.behaviours import Behaviour, Completion, silent, stalled
from tests.support.blackhole import BlackHole
from tests.support.caller import DONE, Caller, Json, catalogue_of, chunk, content
from tests.support.client import RawClient
from tests.support.upstream import ScriptedUpstream
from tests.support.waiting import eventually
from tests.support.wire import FOREVER, Exchange, Gate, Received

HANG_UP_WITHIN_S = 2.0
_TELLING = {"keepalive_after_s": 0.05}
# A worker of several takes whom it gets: so many tries find each of them.


@dataclass(frozen=True, kw_only=True)
class Flood:
    """Sends as fast as the socket takes it, and leaves the loop a turn after each event: it shares it with all else."""

    total_bytes: int = 64 * 1024 * 1024
    event_bytes: int = 16 * 1024

    @property
    def event(self) -> bytes:
        return chunk("x" * self.event_bytes)

    async def answer(self, exchange: Exchange) -> None:
        await exchange.start(200, [("content-type", "text/event-stream")])
        event = self.event
        for _ in range(self.total_bytes // len(event)):
            await exchange.send(event)
            exchange.received.sent_events += 1
            await asyncio.sleep(0)
        await exchange.send(chunk(finish_reason="stop") + DONE)
        await exchange.finish()


@dataclass(frozen=True, kw_only=True)
class Phase:
    """`calls`: how often the upstream is called. `events`, `comments`: what the client has read by then."""

    name: str
    behaviour: Behaviour | None = None
    model: str = "m"
    streamed: bool = True
    calls: int = 1
    events: int = 0
    comments: int = 0
    is_queued: bool = False
    reads_slowly: bool = False

    @property
    def receive_buffer(self) -> int | None:
        return 4096 if self.reads_slowly else None


PHASES = (
    Phase(name="queued", model="telling", calls=0, comments=1, is_queued=True),
    Phase(name="connecting", model="hole", calls=0),
    Phase(name="before-the-headers", behaviour=silent()),
    Phase(name="before-the-first-token", behaviour=Completion(pauses={0: FOREVER})),
    Phase(name="kept-alive-by-comments", behaviour=Completion(pauses={0: FOREVER}), model="telling", comments=2),
    Phase(name="mid-stream", behaviour=stalled(after=2), events=2),
    Phase(name="mid-stream-slow-reader", behaviour=Flood(), events=1, reads_slowly=True),
    Phase(name="not-streamed", behaviour=silent(), streamed=False),
    Phase(name="not-streamed-in-the-body", behaviour=Completion(pauses={0: FOREVER}), streamed=False),
)
# What only the inside shows: nothing is sent to a client that waits so.
HIDDEN_PHASES = (
    Phase(name="queued-silently", model="m", calls=0, is_queued=True),
    Phase(name="queued-not-streamed", model="m", streamed=False, calls=0, is_queued=True),
)


def phase_catalogue(upstream: ScriptedUpstream, hole: BlackHole) -> str:
    """One slot each, so that one that is not given back is missed by the next request."""
    queue = {"length": 100, "deadline_s": 20}
    one = {"max_concurrency": 1, "queue": queue, "breaker": "off", "count": "deltas"}
    upstreams = {"one": {"base_url": upstream.base_url, **one}, "hole": {"base_url": hole.base_url, **one}}
    telling = {"attempts": ["one/m"], **_TELLING}
    return catalogue_of(upstreams, {"m": "one/m", "telling": telling, "hole": "hole/m"})


@dataclass
class Scene:
    """A gateway of so many workers, its upstream, and a port on which nobody answers."""

    caller: Caller
    upstream: ScriptedUpstream
    hole: BlackHole
    workers: int = 1
    is_waiting: Callable[[], bool] | None = None
    """Whether a request waits in the queue, where that can be seen."""
    _fillers: AsyncExitStack = field(default_factory=AsyncExitStack)
    _gate: Gate = field(default_factory=Gate)
    _filling: list[RawClient] = field(default_factory=list)

    def seen(self, label: str) -> list[Received]:
        """The upstream's calls for this request."""
        return [request for request in self.upstream.requests if request.headers.get("x-request-id") == label]

    def has_let_go(self, label: str) -> bool:
        """Whether no upstream has anything more to do with this request."""
        return all(request.closed_early for request in self.seen(label)) and self.hole.knocking() == 0

    async def reach(self, phase: Phase, client: RawClient, label: str) -> None:
        """Asks, and waits until the request stands in this phase."""
        if phase.is_queued:
            await self._fill(label)
        if phase.behaviour is not None:
            self.upstream.enqueue(phase.behaviour)
        await self.caller.ask(client, label, model=phase.model, stream=phase.streamed)
        if phase.model == "hole":
            await eventually(lambda: self.hole.knocking() == 1)
        if phase.calls:
            await eventually(lambda: self.seen(label))
        if phase.events or phase.comments:
            assert (await client.head()).status == 200
        for _ in range(phase.comments):
            event = await client.event()
            assert event is not None
            assert event.is_comment, event
        for _ in range(phase.events):
            await content(client)
        if phase.reads_slowly:
            await eventually(lambda: self._is_held_up(label))
        if phase.is_queued and not phase.comments:
            assert self.is_waiting is not None
            await eventually(self.is_waiting)

    async def release(self) -> None:
        """Lets those who held the slots finish."""
        self._gate.open()
        for filler in self._filling:
            assert (await filler.body()).endswith(b"[DONE]\n\n")
        await self._fillers.aclose()
        self._filling.clear()
        self._gate = Gate()

    async def _is_held_up(self, label: str) -> bool:
        """Whether the upstream cannot send: all buffers between it and a client that does not read are full."""
        (request,) = self.seen(label)
        sent = request.sent_events
        await asyncio.sleep(0.05)
        return request.sent_events == sent

    async def _fill(self, label: str) -> None:
        """Takes the one slot that there is, over all workers: whoever comes next queues."""
        filler = await self._fillers.enter_async_context(RawClient(self.caller.base_url))
        self.upstream.enqueue(Completion(deltas=("a", "b"), pauses={1: self._gate}))
        await self.caller.ask(filler, f"{label}-filler", model="telling")
        self._filling.append(filler)
        await filler.head()
        await content(filler)


def hung_up(entry: Json, phase: Phase) -> None:
    """What the ledger says of it."""
    assert entry["outcome"] == "client_disconnected"
    assert entry["status"] == 499
    assert entry["error_code"] is None
    assert entry["streamed"] is phase.streamed
    attempts = entry["attempts"]
    assert [attempt["outcome"] for attempt in attempts] == ["client_disconnected"] * (0 if phase.is_queued else 1)
    assert entry["usage_source"] == ("estimated" if phase.calls else "none")
    assert (entry["input_tokens"] > 0) is bool(phase.calls)
    if phase.reads_slowly:
        assert entry["output_tokens"] >= phase.events
    else:
        assert entry["output_tokens"] == phase.events

"""A load that nothing may break: long streams beside short requests, each of them known, none ever tried again.

    async with UnbrokenLoad(Caller(nginx.base_url), streams=200) as load:
        await load.is_full()
        load.rate = await load.bearable_rate() / 2
        ...                      # replace whatever serves
    assert load.faults == []

Each request asks an upstream that echoes for words that no other request has, as many as its label says: `asked` has
what each entry must show. A stream that ended is followed by another; half of the connections are kept, as long as the
answers allow it. A fault says in which `phase` it was.
"""

import asyncio
import itertools
import time
from types import TracebackType
from typing import Self

from tests.support.caller import Caller, Reply, reply_of
from tests.support.client import ConnectionEnded, RawClient
from tests.support.waiting import eventually

_WITHIN_S = 90.0
_SHORT_ASKERS = 16
_RAMP_S = 2.0
_CALIBRATION_S = 1.5
_IDLE_S = 0.05


class UnbrokenLoad:
    """`streams` at any moment, and `rate` short requests a second: none at first, where it is None as many as are
    answered.
    """

    def __init__(self, caller: Caller, *, streams: int, model: str = "slow", short_model: str = "quick") -> None:
        self.rate: float | None = 0.0
        self.phase = "start"
        self.asked: dict[str, int] = {}
        """The number of words of each request, by label."""
        self.faults: list[str] = []
        self.ended = {True: 0, False: 0}
        """Whole streams, and whole short answers."""
        self.running = 0
        """Streams whose head has come."""
        self._caller = caller
        self._streams = streams
        self._models = {True: model, False: short_model}
        self._numbers = itertools.count()
        self._next_turn = 0.0
        self._over = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def is_full(self) -> None:
        await eventually(lambda: self.running >= 0.9 * self._streams, within_s=60, what="every stream runs")

    async def bearable_rate(self) -> float:
        """Short requests a second that are answered just now beside the streams, where each is asked at once."""
        rate, self.rate = self.rate, None
        before, began = self.ended[False], time.monotonic()
        await self.passes(_CALIBRATION_S)
        self.rate = rate
        return (self.ended[False] - before) / (time.monotonic() - began)

    async def goes_on(self, *, streams: int, short: int) -> None:
        """Waits until so many more streams and short requests were answered whole."""
        aim = {True: self.ended[True] + streams, False: self.ended[False] + short}
        await eventually(lambda: all(self.ended[kind] >= aim[kind] for kind in aim), within_s=60, poll_s=0.05)

    async def passes(self, seconds: float) -> None:
        """So much time, less where the load ends."""
        try:
            async with asyncio.timeout(max(0.0, seconds)):
                await self._over.wait()
        except TimeoutError:
            return

    async def __aenter__(self) -> Self:
        for n in range(self._streams):
            began_at = _RAMP_S * n / self._streams
            self._tasks.append(asyncio.create_task(self._repeat(streamed=True, is_kept=n % 2 == 0, after_s=began_at)))
        for n in range(_SHORT_ASKERS):
            self._tasks.append(asyncio.create_task(self._repeat(streamed=False, is_kept=n % 2 == 0, after_s=0)))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """What runs is waited for, unless something failed."""
        self._over.set()
        if error is not None:
            for task in self._tasks:
                task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=error is not None)

    async def _repeat(self, *, streamed: bool, is_kept: bool, after_s: float) -> None:
        await self.passes(after_s)
        while not self._over.is_set():
            asked = 0
            try:
                async with RawClient(self._caller.base_url) as client:
                    while asked == 0 or (is_kept and not self._over.is_set()):
                        if not streamed and not await self._turn():
                            return
                        asked += 1
                        if not await self._ask(client, streamed=streamed):
                            break
            except (OSError, ConnectionEnded, TimeoutError) as error:
                self._fault(f"request {asked} of a {'kept' if is_kept else 'new'} connection: {error!r}")

    async def _turn(self) -> bool:
        """Waits for a short request's moment; False where the load is over. What is late is not made up for."""
        while self.rate == 0 and not self._over.is_set():
            await self.passes(_IDLE_S)
        if self.rate:
            self._next_turn = max(self._next_turn, time.monotonic() - 0.5) + 1 / self.rate
            await self.passes(self._next_turn - time.monotonic())
        return not self._over.is_set()

    async def _ask(self, client: RawClient, *, streamed: bool) -> bool:
        """Whether the connection may be used again."""
        number = next(self._numbers)
        label, words = f"unbroken-{number}", 6 + number % 5
        text = " ".join(f"{number}.{n}" for n in range(words))
        self.asked[label] = words
        told_at = self.phase
        async with asyncio.timeout(_WITHIN_S):
            message = {"role": "user", "content": text}
            await self._caller.ask(client, label, model=self._models[streamed], stream=streamed, messages=[message])
            reply = await self._answer(client) if streamed else await reply_of(client)
        if wrong := _wrong(reply, text, streamed=streamed):
            self._fault(f"{label}, begun in {told_at!r}: {wrong}")
        else:
            self.ended[streamed] += 1
        return reply.head.headers.get("connection", "") != "close"

    async def _answer(self, client: RawClient) -> Reply:
        head = await client.head()
        if head.status != 200:
            return Reply(head, await client.body())
        self.running += 1
        try:
            return Reply(head, b"", tuple([event async for event in client.events()]))
        finally:
            self.running -= 1

    def _fault(self, what: str) -> None:
        self.faults.append(f"in {self.phase!r}: {what}")


def _wrong(reply: Reply, text: str, *, streamed: bool) -> str | None:
    if reply.status != 200:
        return f"{reply.status} {reply.body[:300]!r}"
    if not streamed:
        said = reply.json["choices"][0]["message"]["content"]
        return None if said == text else f"another's answer: {said[:100]!r}"
    if reply.errors:
        return f"an error event: {reply.errors[-1].raw[:300]!r}"
    if not reply.is_done:
        return "the stream ended without [DONE]"
    return None if reply.text == text else f"the text is not whole, or another's: {reply.text[-100:]!r}"

"""Streams and short requests that go on whatever happens to a gateway, and what each of them was answered.

    async with MixedLoad(callers, streams=8, short=4) as load:
        await load.goes_on()
        ...                      # break something
    assert load.not_whole() == []

Each is asked again as soon as it ended, on a connection of its own. A request that does not begin or end counts as
status 0; a stream that lacks its `[DONE]` is not whole.
"""

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from tests.support.caller import Caller
from tests.support.client import ConnectionEnded
from tests.support.waiting import eventually

_PAUSE_S = 0.02


@dataclass(frozen=True, slots=True)
class Asked:
    """One request. `label` is its `X-Request-ID`; `code` the error's, of the envelope or the stream's last event."""

    label: str
    streamed: bool
    at: float
    took_s: float
    status: int
    code: str | None
    is_whole: bool


class MixedLoad:
    """`model` is asked for by streams, `short_model` by the others; None for the same."""

    def __init__(
        self,
        callers: Sequence[Caller],
        *,
        streams: int,
        short: int,
        model: str = "m",
        short_model: str | None = None,
        pause_s: float = _PAUSE_S,
    ) -> None:
        self.asked: list[Asked] = []
        self._callers = callers
        self._pause_s = pause_s
        self._plans = [(True, model)] * streams + [(False, short_model or model)] * short
        self._over = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._numbers = itertools.count()

    async def goes_on(self, count: int = 2, *, within_s: float = 60) -> None:
        """Waits until so many streams and so many short requests, begun after now, were answered."""
        since = time.monotonic()

        def enough() -> bool:
            begun = Counter(one.streamed for one in self.asked if one.at >= since)
            return all(begun[streamed] >= count for streamed in {streamed for streamed, _ in self._plans})

        await eventually(enough, within_s=within_s)

    def since(self, moment: float) -> list[Asked]:
        """What ended after it."""
        return [one for one in self.asked if one.at + one.took_s >= moment]

    def statuses(self, since: float = 0) -> Counter[int]:
        return Counter(one.status for one in self.since(since))

    def not_whole(self, since: float = 0) -> list[Asked]:
        return [one for one in self.since(since) if not one.is_whole]

    @property
    def slowest_s(self) -> float:
        return max(one.took_s for one in self.asked)

    async def __aenter__(self) -> Self:
        for number, (streamed, model) in enumerate(self._plans):
            caller = self._callers[number % len(self._callers)]
            self._tasks.append(asyncio.create_task(self._repeat(caller, model, streamed=streamed)))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        if error is not None:
            for task in self._tasks:
                task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=error is not None)

    async def _repeat(self, caller: Caller, model: str, *, streamed: bool) -> None:
        while not self._over.is_set():
            self.asked.append(await self._ask(caller, model, streamed=streamed))
            try:
                async with asyncio.timeout(self._pause_s):
                    await self._over.wait()
            except TimeoutError:
                continue

    async def _ask(self, caller: Caller, model: str, *, streamed: bool) -> Asked:
        label, at = f"load-{next(self._numbers)}", time.monotonic()
        status, code, is_whole = 0, None, False
        try:
            reply = await caller.chat(label, model=model, stream=streamed)
        except (OSError, ConnectionEnded, TimeoutError) as error:
            code = type(error).__name__
        else:
            status = reply.status
            if status != 200 or reply.errors:
                code = reply.error["code"]
            is_whole = status == 200 and (reply.is_done if streamed else "choices" in reply.json)
        return Asked(label, streamed, at, time.monotonic() - at, status, code, is_whole)

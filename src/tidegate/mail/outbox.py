"""E-mails that nobody waits for: a bounded queue, and one task a process that works it off.

What is put is an errand: it looks up what there is to say, or finds that there is nothing. So a route that must not
tell whether somebody has an account does the same for everyone before it answers: it puts one errand. What cannot be
sent in three tries is logged and dropped, and so is what waits when the process ends; no line holds what was written.

One that has to be tried again waits beside the others, not before them: each is done at its time, the earliest first.
"""

import asyncio
import contextlib
import heapq
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

import anyio

from tidegate.errors import MailRefused
from tidegate.mail.mailer import Mailer
from tidegate.mail.message import Message
from tidegate.telemetry.logging import get_logger

MOST_WAITING: Final = 500
_PAUSES_S: Final = (0.0, 2.0, 10.0)
_FLUSH_WITHIN_S: Final = 2.0

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Errand:
    """What is to be sent: `write` gives it, or None where there is nothing to say. `kind` is what logs call it."""

    kind: str
    write: Callable[[], Awaitable[Message | None]]


@dataclass(slots=True, order=True)
class _Waiting:
    """An errand that waits for its next try, `due_at` by the loop's clock; of two at once the one put in first."""

    due_at: float
    number: int
    errand: Errand = field(compare=False)
    tries: int = field(default=0, compare=False)
    message: Message | None = field(default=None, compare=False, repr=False)


class Outbox:
    """Sends behind callers' backs. `put_in`, `sent` and `dropped` count errands.

    >>> async with Outbox.running(mailer) as outbox:
    ...     outbox.put(Errand("password_reset", write))
    """

    def __init__(self, mailer: Mailer, *, pauses_s: Sequence[float] = _PAUSES_S) -> None:
        self.put_in = 0
        self.sent = 0
        self.dropped = 0
        self._mailer = mailer
        self._pauses_s = pauses_s
        self._waiting: list[_Waiting] = []
        self._has_more = asyncio.Event()
        self._is_settled = asyncio.Event()
        self._is_settled.set()

    @classmethod
    @asynccontextmanager
    async def running(cls, mailer: Mailer, *, pauses_s: Sequence[float] = _PAUSES_S) -> AsyncIterator["Outbox"]:
        """`pauses_s` stand before each try, which are as many. At the end what waits has two seconds to go."""
        outbox = cls(mailer, pauses_s=pauses_s)
        task = asyncio.create_task(outbox._run())
        try:
            yield outbox
        finally:
            with anyio.CancelScope(shield=True):
                with anyio.move_on_after(_FLUSH_WITHIN_S):
                    await outbox.settled()
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
            for waiting in outbox._waiting:
                outbox._drop(waiting.errand, "shutdown")
            outbox._waiting.clear()

    def put(self, errand: Errand) -> None:
        """Takes an errand; where too many wait already it is dropped, as if it could not be sent."""
        self.put_in += 1
        if len(self._waiting) >= MOST_WAITING:
            self._drop(errand, "too many wait")
            return
        self._is_settled.clear()
        self._wait_for_a_try(_Waiting(0.0, self.put_in, errand))

    def say(self, message: Message) -> None:
        """Puts a message that is written already."""

        async def write() -> Message:
            return message

        self.put(Errand(message.kind, write))

    async def settled(self) -> None:
        """Returns once everything that was put has been sent or dropped."""
        await self._is_settled.wait()

    async def _run(self) -> None:
        while True:
            waiting = await self._due()
            # What it is told as where the process ends meanwhile.
            reason: str | None = "shutdown"
            try:
                reason = await self._try(waiting)
            finally:
                if reason:
                    self._drop(waiting.errand, reason)
                if not self._waiting:
                    self._is_settled.set()

    async def _due(self) -> _Waiting:
        """The errand whose time came first, as soon as it has come."""
        while True:
            self._has_more.clear()
            left_s = None
            if self._waiting:
                left_s = self._waiting[0].due_at - asyncio.get_running_loop().time()
                if left_s <= 0:
                    return heapq.heappop(self._waiting)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left_s):
                    await self._has_more.wait()

    def _wait_for_a_try(self, waiting: _Waiting) -> None:
        waiting.due_at = asyncio.get_running_loop().time() + self._pauses_s[waiting.tries]
        heapq.heappush(self._waiting, waiting)
        self._has_more.set()

    async def _try(self, waiting: _Waiting) -> str | None:
        """Does an errand, or has it wait for its next try. Returns why it will not be done, if so."""
        waiting.tries += 1
        try:
            waiting.message = waiting.message or await waiting.errand.write()
            if waiting.message is None:
                return None
            await self._mailer.send(waiting.message)
        except MailRefused as error:
            return error.message
        # The edge of a background task: the database, a mailer, whatever it is, the next errand must go on.
        except Exception as error:  # noqa: BLE001 - drivers raise more than our own tree
            if waiting.tries == len(self._pauses_s):
                return str(getattr(error, "message", type(error).__name__))
            self._wait_for_a_try(waiting)
        else:
            self.sent += 1
        return None

    def _drop(self, errand: Errand, reason: str) -> None:
        self.dropped += 1
        log.warning("an e-mail was not sent", kind=errand.kind, reason=reason)

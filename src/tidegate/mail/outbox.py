"""E-mails that nobody waits for: a bounded queue, and one task a process that works it off.

What is put is an errand: it looks up what there is to say, or finds that there is nothing. So a route that must not
tell whether somebody has an account does the same for everyone before it answers: it puts one errand. What cannot be
sent in three tries is logged and dropped, and so is what waits when the process ends; no line holds what was written.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
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
        self._queue: asyncio.Queue[Errand] = asyncio.Queue(MOST_WAITING)

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
            while not outbox._queue.empty():
                outbox._drop(outbox._queue.get_nowait(), "shutdown")

    def put(self, errand: Errand) -> None:
        """Takes an errand; where too many wait already it is dropped, as if it could not be sent."""
        self.put_in += 1
        try:
            self._queue.put_nowait(errand)
        except asyncio.QueueFull:
            self._drop(errand, "too many wait")

    def say(self, message: Message) -> None:
        """Puts a message that is written already."""

        async def write() -> Message:
            return message

        self.put(Errand(message.kind, write))

    async def settled(self) -> None:
        """Returns once everything that was put has been sent or dropped."""
        await self._queue.join()

    async def _run(self) -> None:
        while True:
            errand = await self._queue.get()
            # What it is told as where the process ends meanwhile.
            reason = "shutdown"
            try:
                reason = await self._done(errand)
            finally:
                if reason:
                    self._drop(errand, reason)
                self._queue.task_done()

    async def _done(self, errand: Errand) -> str:
        """Does an errand in some tries. Returns why it was not done, empty where it was."""
        message: Message | None = None
        reason = ""
        for pause_s in self._pauses_s:
            await asyncio.sleep(pause_s)
            try:
                message = message or await errand.write()
                if message is None:
                    return ""
                await self._mailer.send(message)
            except MailRefused as error:
                return error.message
            # The edge of a background task: the database, a mailer, whatever it is, the next errand must go on.
            except Exception as error:  # noqa: BLE001 - drivers raise more than our own tree
                reason = getattr(error, "message", type(error).__name__)
            else:
                self.sent += 1
                return ""
        return reason

    def _drop(self, errand: Errand, reason: str) -> None:
        self.dropped += 1
        log.warning("an e-mail was not sent", kind=errand.kind, reason=reason)

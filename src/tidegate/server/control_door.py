"""The root's end of the control socket: who is connected, and what is asked of whom.

Nobody there can hurt the root: a line has a longest length, an ask and an answer a time, and there are only so many
connections. What is no line of ours ends its own connection, and nothing else.
"""

import asyncio
import contextlib
import itertools
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Self

from tidegate.server.control import LONGEST_TOLD, SOCKET_NAME, Message, decode, encode
from tidegate.server.refusal import StartRefused
from tidegate.storage.unix_socket import bind_at
from tidegate.telemetry.logging import get_logger

MOST_VISITORS = 32
MOST_WORKERS = 1024
_ASK_WITHIN_S = 5.0
_TAKEN_WITHIN_S = 5.0
_BACKLOG = 256

Verb = Callable[[Message], Awaitable[Message]]


class WorkerGone(Exception):
    """The worker's connection ended: it has left, or it connects anew."""


class AttachedWorker:
    """A worker that serves. Asks of it are answered in their order, but for those that wait for a database."""

    def __init__(self, attach: Message, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.pid = int(attach["pid"])
        self.generation = int(attach["generation"])
        self.serial = int(attach["serial"])
        self._reader = reader
        self._writer = writer
        self._ids = itertools.count(1)
        self._awaited: dict[int, asyncio.Future[Message]] = {}
        self._is_gone = False

    async def ask(self, ask: Message, *, within_s: float) -> Message:
        """Its answer. Raises `WorkerGone`, and `TimeoutError` where it does not answer in time."""
        if self._is_gone:
            raise WorkerGone
        number = next(self._ids)
        answer = self._awaited[number] = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(within_s):
                self._writer.write(encode({**ask, "id": number}))
                await self._writer.drain()
                told: Message = await answer
                return told
        except OSError as error:
            if isinstance(error, TimeoutError):
                raise
            raise WorkerGone from None
        finally:
            del self._awaited[number]

    async def listen(self) -> None:
        """Until the worker is gone, or says what is no answer."""
        try:
            while line := await self._reader.readline():
                answer = decode(line)
                awaited = self._awaited.get(answer.pop("id", 0))
                if awaited is not None and not awaited.done():
                    awaited.set_result(answer)
        finally:
            self._is_gone = True
            for awaited in self._awaited.values():
                if not awaited.done():
                    awaited.set_exception(WorkerGone())


class ControlDoor:
    """Answers at the socket by `verbs`; `on_attach` makes a worker up to date before it counts.

    >>> async with ControlDoor(data_dir, {"report": report}, on_attach) as door:
    ...     for worker in door.workers_of(1): ...
    """

    def __init__(
        self, data_dir: Path, verbs: Mapping[str, Verb], on_attach: Callable[[AttachedWorker], Awaitable[None]]
    ) -> None:
        self._path = data_dir.absolute() / SOCKET_NAME
        self._verbs = verbs
        self._on_attach = on_attach
        self._workers: set[AttachedWorker] = set()
        self._changed = asyncio.Condition()
        self._visits: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._log = get_logger(__name__)

    async def __aenter__(self) -> Self:
        """Raises `StartRefused` where the socket cannot be made."""
        try:
            listener = bind_at(self._path, backlog=_BACKLOG)
        except OSError as error:
            told = f"TIDEGATE_DATA_DIR: the socket {self._path} cannot be made: {error.strerror or error}"
            raise StartRefused(told) from None
        self._server = await asyncio.start_unix_server(self._receive, sock=listener, limit=LONGEST_TOLD)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._server is not None:
            self._server.close()
        with contextlib.suppress(OSError):
            self._path.unlink()
        for visit in self._visits:
            visit.cancel()
        await asyncio.gather(*self._visits, return_exceptions=True)

    def workers_of(self, generation: int) -> list[AttachedWorker]:
        """Those that serve now, by pid."""
        return sorted((worker for worker in self._workers if worker.generation == generation), key=lambda w: w.pid)

    @property
    def workers(self) -> list[AttachedWorker]:
        return sorted(self._workers, key=lambda worker: (worker.generation, worker.pid))

    async def until_attached(self, generation: int, count: int) -> None:
        """Returns once so many workers of a generation serve at the same time."""
        async with self._changed:
            await self._changed.wait_for(lambda: len(self.workers_of(generation)) >= count)

    def _receive(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._visits) - len(self._workers) >= MOST_VISITORS:
            writer.transport.abort()
            return
        visit = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._visits.add(visit)
        visit.add_done_callback(self._visits.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(_ASK_WITHIN_S):
                ask = decode(await reader.readline())
            if ask.get("ask") == "attach":
                await self._attach(AttachedWorker(ask, reader, writer))
                return
            verb = self._verbs.get(str(ask.get("ask")))
            answer = {"faults": ["there is no such ask"]} if verb is None else await verb(ask)
            async with asyncio.timeout(_TAKEN_WITHIN_S):
                writer.write(encode(answer))
                await writer.drain()
                writer.close()
                await writer.wait_closed()
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            # Nobody there any more (a deadline is an `OSError`), or nobody who speaks as ours do.
            return
        except Exception:  # noqa: BLE001 - an edge
            # The edge of a connection: whatever it was must not end the root.
            self._log.exception("an ask at the control socket failed")
        finally:
            # Not `close`: it would wait for whoever does not read.
            writer.transport.abort()

    async def _attach(self, worker: AttachedWorker) -> None:
        if len(self._workers) >= MOST_WORKERS:
            return
        listening = asyncio.create_task(worker.listen())
        try:
            with contextlib.suppress(WorkerGone, TimeoutError):
                await self._on_attach(worker)
            await self._change(worker, is_there=True)
            await listening
        finally:
            self._workers.discard(worker)
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)

    async def _change(self, worker: AttachedWorker, *, is_there: bool) -> None:
        async with self._changed:
            (self._workers.add if is_there else self._workers.discard)(worker)
            self._changed.notify_all()

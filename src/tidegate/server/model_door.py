"""The model's gate as workers see it: a Unix socket, one connection a slot that is wanted or held.

A connection's end, by whatever cause, leaves the queue or gives the slot back. The socket is renamed into place, so an
old model that is still ending has nothing to remove.
"""

import asyncio
import contextlib
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Literal, Self

import msgspec

from tidegate.admission.model_gate import Ask, Told
from tidegate.server.model_slots import Claim, ModelSlots
from tidegate.storage.unix_socket import bind_at

_ASK_WITHIN_S = 5.0
_LONGEST_ASK = 1024
# Who asks for their place and does not read the answers gets no more of them.
_MOST_UNREAD = 4096
# As many as the kernel grants: a burst of workers' requests connects faster than one loop accepts.
_BACKLOG = 4096


def bind(path: Path) -> socket.socket:
    """A listening socket at `path`, in the place of what was there. Raises `OSError`."""
    return bind_at(path, backlog=_BACKLOG)


class Door:
    """Answers at the gate. `grant` says what a claim that was granted is told.

    >>> async with Door(slots, listener, grant): ...
    """

    def __init__(self, slots: ModelSlots, listener: socket.socket, grant: Callable[[Claim], Told]) -> None:
        self._slots = slots
        self._listener = listener
        self._grant = grant
        self._server: asyncio.Server | None = None
        self._visits: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_unix_server(
            self._receive, sock=self._listener, limit=_LONGEST_ASK, backlog=_BACKLOG
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._server is not None:
            self._server.close()
        for visit in self._visits:
            visit.cancel()
        await asyncio.gather(*self._visits, return_exceptions=True)

    def _receive(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        visit = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._visits.add(visit)
        visit.add_done_callback(self._visits.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(_ASK_WITHIN_S):
                ask = msgspec.json.decode(await reader.readline(), type=Ask)
            if ask.ask == "slot":
                await self._serve_claim(ask, reader, writer)
            elif ask.ask == "status":
                is_ready = self._slots.opened.is_set()
                _tell(writer, Told(ready=is_ready, in_use=self._slots.in_use, waiting=self._slots.waiting))
        except (OSError, ValueError, RecursionError):
            # Nobody there any more (a deadline is an `OSError`), or nobody who speaks as a worker does.
            return
        finally:
            writer.close()

    async def _serve_claim(self, ask: Ask, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        claim = self._slots.ask(ask)
        if claim is None:
            _tell(writer, Told(status="busy", retry_ms=self._slots.retry_ms()))
            return

        def tell_place() -> None:
            if not claim.granted.done() and writer.transport.get_write_buffer_size() < _MOST_UNREAD:
                self._tell_standing(writer, self._slots.place(claim))

        gone = asyncio.get_running_loop().create_task(_until_gone(reader, tell_place))
        try:
            if not self._slots.opened.is_set():
                self._tell_standing(writer)
                await _first(gone, self._slots.opened.wait())
            if not claim.granted.done():
                self._tell_standing(writer)
                await asyncio.wait((gone, claim.granted), return_when=asyncio.FIRST_COMPLETED)
            if not gone.done():
                _tell(writer, self._grant(claim))
                await gone
        finally:
            gone.cancel()
            self._slots.leave(claim)

    def _tell_standing(self, writer: asyncio.StreamWriter, place: int = 0) -> None:
        """To one who waits: for what, and at which place where that was asked."""
        status: Literal["waiting", "loading"] = "waiting" if self._slots.opened.is_set() else "loading"
        _tell(writer, Told(status=status, place=place, retry_ms=self._slots.retry_ms()))


def _tell(writer: asyncio.StreamWriter, told: Told) -> None:
    # Never more than a few hundred bytes a connection: there is nothing to wait for.
    writer.write(msgspec.json.encode(told) + b"\n")


async def _until_gone(reader: asyncio.StreamReader, tell_place: Callable[[], None]) -> None:
    """Whatever is said here asks for the place: a worker has nothing else to say."""
    with contextlib.suppress(OSError):
        while await reader.read(_LONGEST_ASK):
            tell_place()


async def _first(task: "asyncio.Task[None]", other: "asyncio._CoroutineLike[object]") -> None:
    """Returns when either is done; `other` does not outlive it."""
    second = asyncio.get_running_loop().create_task(other)
    try:
        await asyncio.wait((task, second), return_when=asyncio.FIRST_COMPLETED)
    finally:
        second.cancel()

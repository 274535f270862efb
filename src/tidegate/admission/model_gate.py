"""The local model's slots as a worker sees them: asked for at the model's own gate, which counts over all workers.

The gate is a Unix socket in the data directory. A worker connects, asks, and waits for its turn. Holding the connection
is holding the slot; closing it gives it back, and the kernel closes it for a worker that dies. Where to call and with
what key comes with the grant: it is in no file, and it is right after every restart of the model.

What goes over the socket is one JSON object a line: an `Ask` from the worker, then `Told` from the gate; while it waits
the worker may ask for its place. Limits of scope `upstream` are judged where every upstream's are, in the gate's store,
before a slot is asked for.
"""

import asyncio
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Literal

import anyio
import msgspec

from tidegate.admission.slots import Lease, SlotAsk, no_slot_in_time, queue_is_full
from tidegate.admission.steps import Steps
from tidegate.admission.store import MOST, UNDO
from tidegate.errors import Unavailable
from tidegate.storage.redis import upstream_tag
from tidegate.storage.unix_socket import short_address

SOCKET_NAME = "model.sock"
_STATUS_WITHIN_S = 1.0
_PLACE_WITHIN_S = 0.5
_BACKLOG_PAUSE_S = 0.01
_LONGEST_LINE = 4096


_Weighed = Annotated[int, msgspec.Meta(ge=1, le=MOST)]


class Ask(msgspec.Struct, frozen=True):
    """A worker's line. `queue_length` is how many may wait, over all workers: with 0 only a slot that is free now.

    `flow` is whose turn it is when several wait, `weight` their share, `size` what the request weighs, in tokens.
    `place` is said by one who waits, and answered by `Told.place`.
    """

    ask: Literal["slot", "status", "place"]
    queue_length: int = MOST
    flow: str = ""
    weight: _Weighed = 1
    size: _Weighed = 1


class Told(msgspec.Struct, frozen=True, omit_defaults=True):
    """A line of the gate: how it stands (`status`), a grant (`base_url`, `api_key`, `slot`), or its own state.

    `place` is one's own in the queue, 1 is next; `retry_ms` when the queue may have been served.
    """

    status: Literal["waiting", "loading", "busy"] | None = None
    base_url: str | None = None
    api_key: str | None = None
    slot: int | None = None
    place: int = 0
    retry_ms: int = 1000
    ready: bool | None = None
    in_use: int = 0
    waiting: int = 0

    def __repr__(self) -> str:
        """Without the key."""
        said = {name: getattr(self, name) for name in self.__struct_fields__ if name != "api_key"}
        return f"Told({', '.join(f'{name}={value!r}' for name, value in said.items())})"


class ModelStatus(msgspec.Struct, frozen=True):
    """The gate's own state, over all workers. `is_ready`: the model has answered once since it was started."""

    is_ready: bool
    in_use: int
    waiting: int


class ModelGate:
    """Implements `Slots` for the local model. `steps` judge the upstream's own limits, which need them.

    >>> gate = ModelGate(data_dir / SOCKET_NAME, upstream="local", queue_length=1000, queue_deadline_s=10)
    >>> async with gate.hold(entry_id, deadline_s=None) as lease: ...
    """

    def __init__(
        self,
        socket_path: Path,
        *,
        upstream: str,
        queue_length: int,
        queue_deadline_s: float,
        steps: Steps | None = None,
    ) -> None:
        self._path = socket_path
        self._upstream = upstream
        self._queue_length = queue_length
        self._queue_deadline_s = queue_deadline_s
        self._steps = steps
        self._in_use = 0
        self._waiting = 0

    def resize(self, *, queue_length: int, queue_deadline_s: float) -> None:
        """The queue from now on. How many slots there are is the model's own to say."""
        self._queue_length = queue_length
        self._queue_deadline_s = queue_deadline_s

    @property
    def in_use(self) -> int:
        return self._in_use

    @property
    def waiting(self) -> int:
        return self._waiting

    @asynccontextmanager
    async def hold(self, ask: SlotAsk, *, deadline_s: float | None) -> AsyncIterator[Lease]:
        async with self._limited(ask):
            began = time.perf_counter()
            try:
                connection = socket.socket(socket.AF_UNIX)
            except OSError as error:
                raise self._unavailable(f"cannot be asked: {error.strerror}") from None
            with connection:
                grant = await self._turn(connection, ask, self._queue_deadline_s if deadline_s is None else deadline_s)
                self._in_use += 1
                try:
                    yield Lease(self._upstream, time.perf_counter() - began, grant.base_url, grant.api_key)
                finally:
                    self._in_use -= 1

    async def status(self) -> ModelStatus | None:
        """The gate's state; None where nothing says it within a second."""
        try:
            connection = socket.socket(socket.AF_UNIX)
        except OSError:
            return None
        with connection, anyio.move_on_after(_STATUS_WITHIN_S):
            try:
                await self._connect(connection, Ask("status"))
                told = await _Talk(connection).next()
            except Unavailable:
                return None
            return ModelStatus(bool(told.ready), told.in_use, told.waiting)
        return None

    @asynccontextmanager
    async def _limited(self, ask: SlotAsk) -> AsyncIterator[None]:
        """Takes what the upstream's own limits ask for, and counts at the end what the attempt came to."""
        if not ask.limits:
            yield
            return
        assert self._steps is not None, "a gate without steps judges no limits"
        tag, entry = upstream_tag(self._upstream), f"{ask.entry_id.hex}.{ask.n}"
        spent = UNDO
        try:
            await self._steps.take(tag, entry, ask.limits, ask.reserve)
            try:
                yield
            finally:
                spent = ask.spent()
        finally:
            self._steps.desk.release(tag, entry, spent)

    async def _turn(self, connection: socket.socket, ask: SlotAsk, deadline_s: float) -> Told:
        """The grant. Raises `Overloaded` or `Unavailable`."""
        size, weight = (max(1, min(n, MOST)) for n in (ask.reserve.tokens, ask.weight))
        wish = Ask("slot", self._queue_length, ask.flow, weight, size)
        told, talk = Told(), _Talk(connection)
        self._waiting += 1
        try:
            with anyio.move_on_after(deadline_s):
                await self._connect(connection, wish)
                ask.place = talk.place
                while told.base_url is None and told.status != "busy":
                    told = await talk.next()
        except Unavailable:
            raise self._unavailable("is not running") from None
        finally:
            ask.place = None
            self._waiting -= 1
        if told.base_url is not None:
            return told
        if told.status == "loading":
            raise self._unavailable("is still being loaded")
        if told.status == "busy":
            raise queue_is_full(self._upstream, self._queue_length, told.retry_ms)
        raise no_slot_in_time(self._upstream, deadline_s, told.retry_ms)

    async def _connect(self, connection: socket.socket, ask: Ask) -> None:
        """Asks the gate. Raises `Unavailable` where nothing listens."""
        connection.setblocking(False)
        while True:
            try:
                with short_address(self._path) as address:
                    connection.connect(address)
                connection.send(msgspec.json.encode(ask) + b"\n")
            except BlockingIOError:
                # So many connect at once that the kernel's backlog is full; there is nothing to wait on but time.
                await anyio.sleep(_BACKLOG_PAUSE_S)
            except OSError as error:
                raise Unavailable(f"the model's gate: {error.strerror}") from None
            else:
                return

    def _unavailable(self, state: str) -> Unavailable:
        return Unavailable(
            f"The local model of the upstream {self._upstream!r} {state}. Try again in a moment.",
            headers={"Retry-After": "1"},
        )


class _Talk:
    """The gate's lines on one connection. A line that is none, and the gate's end, are `Unavailable`.

    Somebody reads them, one after the other, until the grant; meanwhile others may ask for the place.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._buffer = b""
        self._placed = asyncio.Event()
        self._place = 0

    async def place(self) -> int:
        """The place in the queue, 0 where it is not known."""
        self._placed.clear()
        try:
            self._connection.send(msgspec.json.encode(Ask("place")) + b"\n")
            async with asyncio.timeout(_PLACE_WITHIN_S):
                await self._placed.wait()
        except OSError:
            # Also its time-out, and what the kernel does not take at once.
            return 0
        return self._place

    async def next(self) -> Told:
        told = await self._read()
        if told.place:
            self._place = told.place
            self._placed.set()
        return told

    async def _read(self) -> Told:
        while b"\n" not in self._buffer:
            await anyio.wait_readable(self._connection)
            try:
                data = self._connection.recv(_LONGEST_LINE)
            except BlockingIOError:
                continue
            except OSError as error:
                raise Unavailable(f"the model's gate: {error.strerror}") from None
            if not data or len(self._buffer) > _LONGEST_LINE:
                raise Unavailable("the model's gate ended")
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        try:
            return msgspec.json.decode(line, type=Told)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise Unavailable("the model's gate is not understood") from error

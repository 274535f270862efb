"""The way of every call to the model: one port on loopback, between the workers and llama.cpp's server.

What it keeps, each for a measured fault of that server:

- A call passes only with the token of a claim that holds a slot, one at a time. So the server never has more calls than
  it has slots, and the call's end is seen exactly: the server has closed its connection. Only then is the slot free.
- A hang-up reaches the server also while it reads a long prompt. It looks for one only between two of its results, and
  the first result is the first token: until then it works on, up to half a minute for nobody. So it is asked to tell of
  its progress, a result every `n_batch` tokens of the prompt, and these events are taken out of the stream again.
- Nothing of one caller's prompt is kept for another's: the server is told not to use its prefix cache.
- A connection is used for one call. The server closes idle ones just as they are used, 2 of 20 times.
- The server's own key stays in this process, and of a caller's headers only three pass: one of the others
  (`X-Conversation-Id`) would make the server go on without its client.
"""

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, Self

from tidegate.server.model_slots import Claim, ModelSlots

HOST = "127.0.0.1"
# At worst the server notices a hang-up after one batch of a prompt, half a second where the machine is its own.
STUCK_AFTER_S = 60.0
_HEAD_WITHIN_S = 10.0
_LONGEST_HEAD = 64 * 1024
_PIECE = 64 * 1024
_MOST_CALLS_A_CLAIM = 4
_PASSED_HEADERS = frozenset({b"content-type", b"content-length", b"accept"})
# The prefix cache of that server is one for all: whose prompt began alike would show in `cached_tokens` and in time.
_ADDED = b'"return_progress":true,"cache_prompt":false,'
# In a chunk's text a quotation mark is escaped, so what a model or a prompt says never looks like this.
_PROGRESS_MARK = b'"prompt_progress":'
_NOT_A_HOLDER = (
    b"HTTP/1.1 401 Unauthorized\r\nContent-Type: application/json\r\nContent-Length: 97\r\nConnection: close\r\n\r\n"
    b'{"error":{"message":"only a holder of a slot may call","type":"authentication_error","code":401}}'
)


class Engine(Protocol):
    """Where the model's server listens, and its key."""

    @property
    def port(self) -> int: ...

    @property
    def api_key(self) -> str: ...


class EngineLost(Exception):
    """The model's server cannot go on: its process must end, so that it is started anew."""


@dataclass(frozen=True, slots=True)
class _Call:
    """The head of one request: its first line, the token it carries, its headers, the length of its body."""

    line: bytes
    token: str
    headers: dict[bytes, bytes]
    body_length: int

    @classmethod
    def read(cls, head: bytes) -> Self:
        """Raises `ValueError`."""
        line, *rest = head.removesuffix(b"\r\n\r\n").split(b"\r\n")
        headers = {}
        for header in rest:
            name, colon, value = header.partition(b":")
            if not colon:
                raise ValueError("not a header")
            headers[name.strip().lower()] = value.strip()
        token = headers.get(b"authorization", b"").decode("ascii").removeprefix("Bearer ")
        length = headers.get(b"content-length", b"0")
        if not length.isdigit():
            raise ValueError("not a length")
        return cls(line, token, headers, int(length))

    def head_for(self, engine: Engine, body_length: int) -> bytes:
        headers = {name: value for name, value in self.headers.items() if name in _PASSED_HEADERS}
        headers |= {
            b"host": HOST.encode(),
            b"authorization": b"Bearer " + engine.api_key.encode(),
            b"connection": b"close",
        }
        if b"content-length" in headers:
            headers[b"content-length"] = str(body_length).encode()
        return b"\r\n".join([self.line, *(name + b": " + value for name, value in headers.items())]) + b"\r\n\r\n"


class Relay:
    """Passes calls on while it is entered. `on_loss` is called once the engine is lost, with what happened.

    >>> async with Relay(slots, engine, on_loss=end) as relay:
    ...     base_url = relay.base_url
    """

    def __init__(
        self,
        slots: ModelSlots,
        engine: Engine,
        *,
        on_loss: Callable[[EngineLost], None],
        stuck_after_s: float = STUCK_AFTER_S,
    ) -> None:
        self._slots = slots
        self._engine = engine
        self._on_loss = on_loss
        self._stuck_after_s = stuck_after_s
        self._server: asyncio.Server | None = None
        self._calls: set[asyncio.Task[None]] = set()

    @property
    def base_url(self) -> str:
        assert self._server is not None, "the relay is entered"
        return f"http://{HOST}:{self._server.sockets[0].getsockname()[1]}/v1"

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._receive, HOST, 0, limit=_LONGEST_HEAD)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._server is not None:
            self._server.close()
        for call in self._calls:
            call.cancel()
        await asyncio.gather(*self._calls, return_exceptions=True)

    def _receive(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        call = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._calls.add(call)
        call.add_done_callback(self._calls.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(_HEAD_WITHIN_S):
                call = _Call.read(await reader.readuntil(b"\r\n\r\n"))
            claim = self._slots.holder(call.token)
            if claim is None:
                writer.write(_NOT_A_HOLDER)
            else:
                await self._pass_in_turn(call, claim, reader, writer)
        except EngineLost as loss:
            self._on_loss(loss)
        except (OSError, EOFError, ValueError, asyncio.LimitOverrunError):
            # Either side went away, or this is no HTTP. Closing says it: a cut answer lacks its last chunk.
            return
        finally:
            writer.close()

    async def _pass_in_turn(
        self, call: _Call, claim: Claim, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """One call of a claim after the other: a second one begins when the model has ended the first."""
        if claim.calls >= _MOST_CALLS_A_CLAIM:
            return
        claim.calls += 1
        try:
            async with claim.turn:
                if not claim.is_left:
                    await self._pass(call, claim, reader, writer)
        finally:
            claim.calls -= 1

    async def _pass(
        self, call: _Call, claim: Claim, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Returns when the model's server has ended the call, whatever became of the caller."""
        try:
            async with asyncio.timeout(None) as bound:

                def must_end() -> None:
                    bound.reschedule(asyncio.get_running_loop().time() + self._stuck_after_s)

                def hang_up() -> None:
                    writer.transport.abort()
                    must_end()

                with self._slots.at_model(claim, hang_up):
                    await self._exchange(call, reader, writer, must_end)
        except TimeoutError:
            raise EngineLost(f"the model went on for {self._stuck_after_s:g} s after a hang-up") from None

    async def _exchange(
        self,
        call: _Call,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        must_end: Callable[[], None],
    ) -> None:
        try:
            from_engine, to_engine = await asyncio.open_connection(HOST, self._engine.port, limit=_LONGEST_HEAD)
        except ConnectionRefusedError as error:
            # Any other error (no descriptor left, say) is of this call alone.
            raise EngineLost(f"the model's server does not listen any more: {error.strerror}") from None

        async def ask() -> None:
            with contextlib.suppress(OSError):
                await _ask(call, self._engine, reader, to_engine)
            # The caller is gone. The other half stays open: its end says that the server has ended its work.
            must_end()
            with contextlib.suppress(OSError, RuntimeError):
                to_engine.write_eof()

        asking = asyncio.get_running_loop().create_task(ask())
        try:
            await _answer(from_engine, writer)
        finally:
            asking.cancel()
            to_engine.close()


async def _ask(call: _Call, engine: Engine, reader: asyncio.StreamReader, to_engine: asyncio.StreamWriter) -> None:
    """Sends the request, then waits for the caller's end."""
    left = call.body_length
    data = await reader.read(min(left, _PIECE)) if left else b""
    left -= len(data)
    added = _ADDED if data[:1] == b"{" else b""
    to_engine.write(call.head_for(engine, call.body_length + len(added)) + data[:1] + added + data[1:])
    while left:
        await to_engine.drain()
        data = await reader.read(min(left, _PIECE))
        if not data:
            return
        left -= len(data)
        to_engine.write(data)
    await reader.read(1)


class _Outlet:
    """What goes to the caller; for one that is gone, nowhere."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._writer = writer
        self._is_gone = False

    async def send(self, data: bytes) -> None:
        if self._is_gone:
            return
        self._writer.write(data)
        try:
            await self._writer.drain()
        except OSError:
            self._is_gone = True


async def _answer(from_engine: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Passes the answer on, without the events of progress, to the end of the connection."""
    outlet = _Outlet(writer)
    head = await from_engine.readuntil(b"\r\n\r\n")
    await outlet.send(head)
    size = int(b"\r\ntransfer-encoding: chunked\r\n" in head.lower())
    while size:
        line = await from_engine.readuntil(b"\r\n")
        size = int(line.partition(b";")[0], 16)
        chunk = await from_engine.readexactly(size + 2)
        if _PROGRESS_MARK not in chunk:
            await outlet.send(line + chunk)
    while data := await from_engine.read(_PIECE):
        await outlet.send(data)

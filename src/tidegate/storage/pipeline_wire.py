"""One connection to Redis as bytes: commands out in one write a turn of the loop, answers matched to them in order.

A `Wire` lives once: it is dialled (`Address`), used, lost. Whoever keeps a connection for long (`pipeline.py`) makes a
new one then. It keeps these promises:

- An answer belongs to the oldest command without one, cancelled or not. RESP2 has no other way to tell.
- A command goes out at most once. One whose answer was lost may have run: its future ends with `StoreGone`.
- Every future ends: with its answer, or when the connection is lost, which is at the latest when the oldest command
  waited `silent_s` for its answer.
- Memory is bounded, however long the server reads nothing: by commands without an answer and by bytes not yet sent.
"""

import asyncio
import contextlib
import socket
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, Self, cast

import aiohappyeyeballs
import hiredis
from redis.asyncio.connection import RedisSSLContext, SSLConnection, parse_url
from redis.exceptions import RedisError

from tidegate.storage.password_file import PasswordFile
from tidegate.storage.tls import Tls

MOST_UNANSWERED = 10_000
MOST_UNSENT_BYTES = 8 * 1024 * 1024
# An overdue answer may lie in the socket, where this process itself stood still: so much longer to read it.
_GRACE_S = 0.05
_CLOSE_WITHIN_S = 1.0
_NEXT_ADDRESS_AFTER_S = 0.25
# Whoever answers so takes no writes: a replica, a master that became one, a server that still reads its file.
_NOT_SERVING = frozenset({"LOADING", "MASTERDOWN", "READONLY"})
_KEEPALIVE = (("TCP_KEEPIDLE", 15), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3))
_NOTHING = object()

Argument = str | bytes | int
# hiredis' encoder: of an EVALSHA with ten arguments 3 µs, where one in Python takes 6 to 9. Its stub allows one word.
pack = cast("Callable[[tuple[Argument, ...]], bytes]", hiredis.pack_command)


class StoreGone(Exception):
    """There is no connection, it was lost, or it takes no more. A command that was sent before may have run."""


class NodeGone(StoreGone):
    """So it is with the node of a cluster that has this key. Others answer: what falls on them is not concerned."""


class ScriptError(Exception):
    """The server answered a command with an error: a fault of ours or a wrong setup. The command did nothing.

    `code` is the first word: `OOM`, `READONLY`, `NOAUTH`, `WRONGTYPE`, `ERR`, …
    """

    @property
    def code(self) -> str:
        return str(self).partition(" ")[0]


class Taker(Protocol):
    """A future, or what takes an answer in the place of one, where it is read. It neither waits, raises nor sends."""

    def done(self) -> bool:
        """Whether the answer is of no use any longer."""
        ...

    def set_result(self, answer: Any, /) -> None: ...

    def set_exception(self, error: Exception, /) -> None: ...

    def exception(self) -> object:
        """Notes that somebody knows of the failure, as a future's does."""
        ...


class Wire(asyncio.Protocol):
    """One connection. Bulk and simple strings come back as bytes, arrays as lists, nil as None.

    >>> wire = Wire(silent_s=5, on_lost=print)
    >>> await address.dial(lambda: wire)
    >>> await wire.send(pack(("GET", "a")))
    b'1'

    `on_lost` is called once, with the reason, unless `close` was. `on_message` takes what is published: channel and
    payload.
    """

    def __init__(
        self,
        *,
        silent_s: float,
        on_lost: Callable[[str], None],
        on_message: Callable[[bytes, bytes], None] | None = None,
    ) -> None:
        self.is_lost = False
        self._silent_s = silent_s
        self._on_lost = on_lost
        self._on_message = on_message
        self._loop = asyncio.get_running_loop()
        self._reader = hiredis.Reader(replyError=ScriptError, notEnoughData=_NOTHING)
        self._transport: asyncio.Transport | None = None
        self._closed = self._loop.create_future()
        self._unsent: list[bytes] = []
        self._unsent_bytes = 0
        self._is_flush_due = False
        self._is_paused = False
        # The future, when its command was queued, and what to send where the server does not know the script.
        self._unanswered: deque[tuple[Taker, float, Callable[[], bytes] | None]] = deque()
        self._turn_at = 0.0
        self._watch: asyncio.TimerHandle | None = None
        self._is_in_doubt = False

    def send(self, command: bytes, *, instead: Callable[[], bytes] | None = None) -> asyncio.Future[Any]:
        """Queues one packed command; it goes out with all others of this turn. `instead` is sent after a NOSCRIPT.

        The future gets the answer, `ScriptError` or `StoreGone`. Raises `StoreGone` where nothing more is taken.
        """
        future: asyncio.Future[Any] = self._loop.create_future()
        self.hand(command, future, instead)
        return future

    def hand(self, command: bytes, taker: Taker, instead: Callable[[], bytes] | None = None) -> None:
        """`send`, where `taker` gets the answer."""
        if self.is_lost:
            raise StoreGone("the connection is lost")
        if len(self._unanswered) >= MOST_UNANSWERED or self._unsent_bytes >= MOST_UNSENT_BYTES:
            raise StoreGone("too much waits for the server already")
        self._queue(command, taker, instead)

    def lose(self, reason: str) -> None:
        """Ends the connection now, and every future that has no answer. A second time it does nothing."""
        if self._end(reason):
            if self._transport is not None:
                self._transport.abort()
            self._on_lost(reason)

    async def close(self) -> None:
        """What is queued goes out, in a second at most; nobody waits for its answers, whose futures end now."""
        self._flush()
        self._end("the connection is closed")
        if self._transport is None:
            return
        self._transport.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_CLOSE_WITHIN_S):
                await asyncio.shield(self._closed)
        self._transport.abort()

    def _queue(self, command: bytes, future: Taker, instead: Callable[[], bytes] | None) -> None:
        if not self._is_flush_due:
            self._is_flush_due = True
            self._turn_at = self._loop.time()
            self._loop.call_soon(self._flush)
            if self._watch is None:
                self._watch = self._loop.call_later(self._silent_s, self._look)
        self._unsent.append(command)
        self._unsent_bytes += len(command)
        self._unanswered.append((future, self._turn_at, instead))

    def _flush(self) -> None:
        self._is_flush_due = False
        if self._is_paused or self._transport is None or not self._unsent:
            return
        commands = self._unsent
        self._unsent = []
        self._unsent_bytes = 0
        self._transport.write(commands[0] if len(commands) == 1 else b"".join(commands))

    def _look(self) -> None:
        """The one timer: set while a command waits for its answer, it looks at the oldest."""
        self._watch = None
        if not self._unanswered:
            self._is_in_doubt = False
            return
        left_s = self._silent_s - (self._loop.time() - self._unanswered[0][1])
        if left_s > 0:
            self._is_in_doubt = False
        elif self._is_in_doubt:
            self.lose(f"no answer for {self._silent_s:g} s")
            return
        else:
            self._is_in_doubt = True
        self._watch = self._loop.call_later(max(left_s, _GRACE_S), self._look)

    def _end(self, reason: str) -> bool:
        """False where it had ended before."""
        if self.is_lost:
            return False
        self.is_lost = True
        self._unsent.clear()
        if self._watch is not None:
            self._watch.cancel()
        for future, _, _ in self._unanswered:
            if not future.done():
                future.set_exception(StoreGone(reason))
                # Its owner logs the loss: where nobody awaits this future, nothing is left to say.
                future.exception()
        self._unanswered.clear()
        return True

    # What asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Not an instance under uvloop.
        self._transport = cast("asyncio.Transport", transport)
        if self.is_lost:
            self._transport.abort()
        self._flush()

    def data_received(self, data: bytes) -> None:
        if self.is_lost:
            return
        try:
            self._reader.feed(data)
            reason = self._answer()
        except hiredis.HiredisError:
            reason = "it answers what is not RESP"
        if reason is not None:
            self.lose(reason)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._closed.done():
            self._closed.set_result(None)
        self.lose("it closed the connection" if exc is None else (getattr(exc, "strerror", None) or type(exc).__name__))

    def pause_writing(self) -> None:
        self._is_paused = True

    def resume_writing(self) -> None:
        self._is_paused = False
        self._flush()

    def _answer(self) -> str | None:
        """Gives every answer that has come whole to its future. Returns why this server is of no use, if so."""
        gets = self._reader.gets
        unanswered = self._unanswered
        useless = None
        while (answer := gets()) is not _NOTHING:
            if self._on_message is not None and type(answer) is list and answer[:1] == [b"message"]:
                self._on_message(answer[1], answer[2])
                if self.is_lost:
                    break
                continue
            if not unanswered:
                return f"it answers what nobody asked: {answer.code if isinstance(answer, ScriptError) else '…'}"
            future, _, instead = unanswered.popleft()
            if isinstance(answer, ScriptError):
                if answer.code in _NOT_SERVING:
                    useless = f"it answers {answer.code}"
                self._refuse(future, answer, instead)
            elif not future.done():
                future.set_result(answer)
        return useless

    def _refuse(self, future: Taker, error: ScriptError, instead: Callable[[], bytes] | None) -> None:
        if future.done():
            return
        if instead is not None and error.code == "NOSCRIPT":
            # A script that the server does not know did not run, so this is no second time.
            self._queue(instead(), future, None)
        else:
            future.set_exception(error)


@dataclass(frozen=True)
class Address:
    """Where a server is and as whom to speak to it; what redis-py reads from a URL. Its text shows no secret."""

    host: str
    port: int
    path: str | None
    db: int
    username: str | None = field(repr=False)
    password: str | None = field(repr=False)
    tls: Tls | None = field(repr=False)
    # In place of the password, and read for each connection.
    password_file: PasswordFile | None = field(default=None, repr=False)

    @classmethod
    def of(cls, url: str, password_file: PasswordFile | None = None) -> Self:
        """Raises `ValueError`, without the URL or a part of it: any may be of the password."""
        try:
            options = cast("dict[str, Any]", parse_url(url))
            tls = None
            if options.get("connection_class") is SSLConnection:
                tls = _tls({name[4:]: value for name, value in options.items() if name.startswith("ssl_")})
            return cls(
                host=options.get("host", "localhost"),
                port=int(options.get("port", 6379)),
                path=options.get("path"),
                db=int(options.get("db", 0)),
                username=options.get("username"),
                password=options.get("password"),
                tls=tls,
                password_file=password_file,
            )
        except (ValueError, TypeError, RedisError):
            raise ValueError("the URL of Redis cannot be read") from None

    async def dial(self, protocol: Callable[[], asyncio.Protocol]) -> None:
        """Connects by name, to whichever address answers first. Raises `OSError`. Cancelled, it leaves no socket."""
        loop = asyncio.get_running_loop()
        if self.path is not None:
            await loop.create_unix_connection(protocol, self.path)
            return
        tls = None if self.tls is None else await self.tls.current()
        addresses = await loop.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)
        sock = await aiohappyeyeballs.start_connection(addresses, happy_eyeballs_delay=_NEXT_ADDRESS_AFTER_S, loop=loop)
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for name, value in _KEEPALIVE:
                if hasattr(socket, name):
                    sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
            await loop.create_connection(protocol, sock=sock, ssl=tls, server_hostname=self.host if tls else None)
        except BaseException:
            sock.close()
            raise

    async def current_password(self) -> str | None:
        """Raises `OSError` where the file of the password cannot be used."""
        return self.password if self.password_file is None else await self.password_file.read()

    async def greeting(self, client_name: str) -> list[tuple[Argument, ...]]:
        """The first commands of a connection. PING is answered with an error by a server that cannot serve yet.

        Raises `OSError` where the file of the password cannot be used.
        """
        password = await self.current_password()
        commands: list[tuple[Argument, ...]] = []
        if self.username:
            commands.append(("AUTH", self.username, password or ""))
        elif password:
            commands.append(("AUTH", password))
        if self.db:
            commands.append(("SELECT", self.db))
        return [*commands, ("CLIENT", "SETNAME", client_name), ("PING",)]


def _tls(named: dict[str, Any]) -> Tls:
    """The context that redis-py would make of what a URL says."""
    # Without a passphrase OpenSSL would ask for it at the terminal.
    named = {"cert_reqs": "required", "check_hostname": True, "password": "", **named}
    # What it cannot read is told now.
    RedisSSLContext(**named)
    files = [Path(named[name]) for name in ("ca_certs", "certfile", "keyfile") if named.get(name)]
    return Tls(lambda: RedisSSLContext(**named).get(), files)


Dial = Callable[[Callable[[], asyncio.Protocol]], Awaitable[None]]


async def ask_all(wire: Wire, commands: list[tuple[Argument, ...]]) -> list[Any]:
    """Every answer, in order, of commands that go out in one write. Raises `StoreGone`, also where one was refused."""
    answers = await asyncio.gather(*(wire.send(pack(command)) for command in commands), return_exceptions=True)
    for command, answer in zip(commands, answers, strict=True):
        if isinstance(answer, ScriptError):
            # Its message may repeat the command, a password in it: the code alone is told.
            raise StoreGone(f"it refuses {command[0]!s}: {answer.code}")
        if isinstance(answer, BaseException):
            raise answer
    return answers

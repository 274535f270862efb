"""The one connection over which a worker's gate talks to Redis, and the one on which it listens.

`PipelinedRedis` pipelines by itself: what is asked in one turn of the loop goes out in one write. Both connections are
kept: opened at the start, and again after a loss, with pauses of 50 ms to 1 s, until their block ends. No command is
ever sent again, because steps of money must not be done twice: a loss ends every future with `StoreGone`, and the
caller's degraded mode answers. A server that loads, follows a master or refuses us is not connected. Deadlines of
single calls are the caller's; the connection is given up when the oldest command waited `silent_s` for its answer.
"""

import asyncio
import hashlib
import random
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Self

import anyio

from tidegate.storage.pipeline_wire import (
    Address,
    Argument,
    Dial,
    NodeGone,
    ScriptError,
    StoreGone,
    Taker,
    Wire,
    ask_all,
    pack,
)
from tidegate.telemetry.logging import get_logger

__all__ = ["NodeGone", "PipelinedRedis", "ScriptError", "StoreGone", "Subscription", "Taker"]

CONNECT_TIMEOUT_S = 1.0
SILENT_S = 5.0
_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 1.0
# On one server all tags are.
_TAG = "d"

log = get_logger(__name__)


class _KeptConnection:
    """A connection that is opened, and again after each loss, as long as `_kept` runs."""

    def __init__(
        self,
        url: str | Address,
        *,
        client_name: str,
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
        silent_s: float = SILENT_S,
        dial: Dial | None = None,
    ) -> None:
        self._address = url if isinstance(url, Address) else Address.of(url)
        self._client_name = client_name
        self._connect_timeout_s = connect_timeout_s
        self._silent_s = silent_s
        self._dial: Dial = dial or self._address.dial
        self._wire: Wire | None = None
        self._lost = asyncio.Event()
        # Told since it last stood: an outage has a line for each reason, not for each attempt.
        self._told: set[str] = set()

    @property
    def is_connected(self) -> bool:
        return self._wire is not None

    @asynccontextmanager
    async def _kept(self) -> AsyncIterator[None]:
        await self._attempt()
        keeping = asyncio.create_task(self._keep(), name=f"redis connection {self._client_name}")
        try:
            yield
        finally:
            keeping.cancel()
            with anyio.CancelScope(shield=True):
                await asyncio.wait([keeping])
                wire, self._wire = self._wire, None
                if wire is not None:
                    await wire.close()

    async def _keep(self) -> None:
        pause_s = _FIRST_PAUSE_S
        loop = asyncio.get_running_loop()
        while True:
            if self._wire is not None:
                since = loop.time()
                await self._lost.wait()
                # A server that takes each connection and drops it is not asked more often than one that is away.
                if loop.time() - since > _LONGEST_PAUSE_S:
                    pause_s = _FIRST_PAUSE_S
            await asyncio.sleep(pause_s * random.uniform(0.5, 1))  # noqa: S311 - spreads workers, guards nothing
            pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)
            await self._attempt()

    async def _attempt(self) -> None:
        """Connects once, within `connect_timeout_s`. Why it could not is logged."""
        wire = Wire(
            silent_s=self._silent_s, on_lost=lambda reason: self._on_wire_lost(wire, reason), on_message=self._heard
        )
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                await self._dial(lambda: wire)
                await self._greet(wire)
        except TimeoutError as error:
            self._tell(error.strerror or f"no connection within {self._connect_timeout_s:g} s")
        except (OSError, StoreGone) as error:
            self._tell(getattr(error, "strerror", None) or str(error) or type(error).__name__)
        except Exception:
            # An edge: whatever it is, the attempts go on.
            log.exception("redis_attempt_failed", client=self._client_name)
        else:
            if wire.is_lost:
                self._tell("it closed the connection")
            else:
                self._wire = wire
                self._lost.clear()
                self._told.clear()
                self._stand(wire)
        finally:
            if wire is not self._wire:
                wire.lose("the attempt ended")

    def _on_wire_lost(self, wire: Wire, reason: str) -> None:
        if wire is not self._wire:
            return
        self._wire = None
        self._lost.set()
        self._told.add(reason)
        log.warning("redis_lost", client=self._client_name, reason=reason)
        self._after_loss()

    def _tell(self, reason: str) -> None:
        if reason not in self._told:
            self._told.add(reason)
            log.warning("redis_unreachable", client=self._client_name, reason=reason)

    def _call(self, listener: Callable[..., None], *args: object) -> None:
        try:
            listener(*args)
        except Exception:
            # An edge: one listener's fault must not take the connection from the others.
            log.exception("redis_listener_failed", client=self._client_name)

    # What a kind of connection adds

    _heard: Callable[[bytes, bytes], None] | None = None

    async def _greet(self, wire: Wire) -> None:
        """Says who we are and learns who it is. Raises `StoreGone` where this server will not do."""
        raise NotImplementedError

    def _stand(self, wire: Wire) -> None:
        """The connection stands."""
        raise NotImplementedError

    def _after_loss(self) -> None:
        """It was lost, and everything says so."""


@dataclass(frozen=True)
class _Script:
    """`opening` is how a call with one key and three arguments begins, as RESP has it."""

    source: str
    sha: str
    opening: bytes

    @classmethod
    def of(cls, source: str) -> Self:
        # SHA-1 is how Redis names a script.
        sha = hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()
        return cls(source, sha, f"*7\r\n$7\r\nEVALSHA\r\n$40\r\n{sha}\r\n$1\r\n1\r\n".encode())


@dataclass(frozen=True)
class _Server:
    run_id: str
    uptime_s: int


class PipelinedRedis(_KeptConnection):
    """One process's pipelined connection. `run_id` is the server's own, None while not connected.

    >>> async with PipelinedRedis.running(url, client_name="tidegate", scripts={"take": TAKE}) as redis:
    ...     async with asyncio.timeout(0.2):
    ...         allowed = await redis.script("take", ["tidegate:{w:1}:rpm"], [1, 60])

    `run_id` changes when the server was restarted or replaced; `server_uptime_s` is how long it had run when we
    connected. Listeners in `on_connected` are called each time a connection stands, with `run_id` known and every
    script loaded; one that is added to a running connection looks at `is_connected` itself. Those in `on_lost` are
    called after each loss, when every future has ended, and not at the block's end.

    Bulk and simple strings come back as bytes, integers as int, arrays as lists, nil as None; an error inside an array
    (of EXEC) is a `ScriptError` in the list.
    """

    def __init__(
        self,
        url: str | Address,
        *,
        client_name: str,
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
        silent_s: float = SILENT_S,
        dial: Dial | None = None,
    ) -> None:
        """Raises `ValueError` where the URL cannot be read. `dial` stands in for the network in tests."""
        super().__init__(
            url, client_name=client_name, connect_timeout_s=connect_timeout_s, silent_s=silent_s, dial=dial
        )
        self.on_connected: list[Callable[[], None]] = []
        self.on_lost: list[Callable[[], None]] = []
        self._scripts: dict[str, _Script] = {}
        self._server = _Server("", 0)
        # The run id as the last argument of a script, as RESP has it.
        self._run_argument = b""

    @property
    def run_id(self) -> str | None:
        return None if self._wire is None else self._server.run_id

    @property
    def layout(self) -> str:
        """What tells whose the slots are; empty, as there is one server."""
        return ""

    @property
    def server_uptime_s(self) -> int | None:
        return None if self._wire is None else self._server.uptime_s

    @classmethod
    @asynccontextmanager
    async def running(
        cls,
        url: str | Address,
        *,
        client_name: str,
        scripts: Mapping[str, str],
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
        silent_s: float = SILENT_S,
        dial: Dial | None = None,
    ) -> AsyncIterator[Self]:
        """Tries to connect for at most `connect_timeout_s`, then goes on trying behind; Redis away is no error here."""
        redis = cls(url, client_name=client_name, connect_timeout_s=connect_timeout_s, silent_s=silent_s, dial=dial)
        redis._load(scripts)
        async with redis._kept():
            yield redis

    def _load(self, scripts: Mapping[str, str]) -> None:
        """Says which scripts there are; they are loaded with each connection."""
        self._scripts = {name: _Script.of(source) for name, source in scripts.items()}

    def send(self, *args: Argument) -> asyncio.Future[Any]:
        """Queues a command at once. The future gets the answer, `ScriptError` or `StoreGone`.

        Raises `StoreGone` where there is no connection or too much waits already. A future may be cancelled: the
        command has gone out all the same, and its answer is dropped.
        """
        if self._wire is None:
            raise StoreGone("Redis is not connected")
        return self._wire.send(pack(args))

    def hand(self, taker: Taker, *args: Argument) -> None:
        """`send`, where `taker` gets the answer when it is read."""
        if self._wire is None:
            raise StoreGone("Redis is not connected")
        self._wire.hand(pack(args), taker)

    async def ask_each(self, *args: Argument) -> list[Any]:
        """What every server answers that is connected, which is this one, after all that was sent before."""
        return [await self.send(*args)]

    def runs(self) -> dict[str, str]:
        """The `run_id` of each server that is connected, by a hash tag that falls on it."""
        return {} if self._wire is None else {_TAG: self._server.run_id}

    def script(self, name: str, keys: Sequence[str], args: Sequence[Argument]) -> asyncio.Future[Any]:
        """Runs a script of `running`, as `send` does.

        Where the server forgot it (SCRIPT FLUSH) its source is sent once, after the commands that were sent since.
        """
        if self._wire is None:
            raise StoreGone("Redis is not connected")
        script = self._scripts[name]
        command = ("EVALSHA", script.sha, len(keys), *keys, *args)
        return self._wire.send(pack(command), instead=lambda: pack(("EVAL", script.source, *command[2:])))

    def hand_script(self, taker: Taker, name: str, key: str, op: str, payload: bytes) -> None:
        """`script` with one key and three arguments, where `taker` gets the answer when it is read.

        The third argument is the server's `run_id`.
        """
        if self._wire is None:
            raise StoreGone("Redis is not connected")
        script, key_bytes = self._scripts[name], key.encode()
        # A third of what `pack` costs.
        command = b"%b$%d\r\n%b\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n%b" % (
            script.opening, len(key_bytes), key_bytes, len(op), op.encode(), len(payload), payload, self._run_argument
        )  # fmt: skip
        self._wire.hand(command, taker, lambda: pack(("EVAL", script.source, 1, key, op, payload, self._server.run_id)))

    async def _greet(self, wire: Wire) -> None:
        greeting = await self._address.greeting(self._client_name)
        loads: list[tuple[Argument, ...]] = [("SCRIPT", "LOAD", script.source) for script in self._scripts.values()]
        answers = await ask_all(wire, [*greeting, ("INFO", "server"), ("INFO", "replication"), *loads])
        about = _fields(answers[len(greeting)]) | _fields(answers[len(greeting) + 1])
        if about.get("role", "master") != "master":
            raise StoreGone("it follows a master, and takes no writes")
        if not about.get("run_id"):
            raise StoreGone("it names no run_id")
        self._server = _Server(about["run_id"], int(about.get("uptime_in_seconds", 0)))
        self._run_argument = b"$%d\r\n%b\r\n" % (len(self._server.run_id), self._server.run_id.encode())

    def _stand(self, _: Wire) -> None:
        log.info("redis_connected", client=self._client_name, run_id=self.run_id)
        for listener in list(self.on_connected):
            self._call(listener)

    def _after_loss(self) -> None:
        for listener in list(self.on_lost):
            self._call(listener)


class Subscription(_KeptConnection):
    """A connection of its own that hears what is published on its channels.

    >>> async with Subscription.running(
    ...     url, client_name="tidegate", channels=["tidegate:freed"], on_message=wake, on_gap=look_again
    ... ):
    ...     ...

    `on_message(channel, payload)` is called for each message, `on_gap()` each time the subscription stands (again):
    what was published before, nobody heard.
    """

    _channels: dict[bytes, str]
    _on_message: Callable[[str, bytes], None]
    _on_gap: Callable[[], None]

    @classmethod
    @asynccontextmanager
    async def running(
        cls,
        url: str | Address,
        client_name: str,
        channels: Sequence[str],
        on_message: Callable[[str, bytes], None],
        on_gap: Callable[[], None],
        *,
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
        silent_s: float = SILENT_S,
        dial: Dial | None = None,
    ) -> AsyncIterator[Self]:
        """Tries to subscribe for at most `connect_timeout_s`, then goes on trying behind, as `PipelinedRedis` does."""
        heard = cls(url, client_name=client_name, connect_timeout_s=connect_timeout_s, silent_s=silent_s, dial=dial)
        heard._channels = {channel.encode(): channel for channel in channels}
        heard._on_message = on_message
        heard._on_gap = on_gap
        async with heard._kept():
            yield heard

    async def _greet(self, wire: Wire) -> None:
        greeting = await self._address.greeting(self._client_name)
        # One channel a command: SUBSCRIBE is answered once for each channel.
        await ask_all(wire, [*greeting, *(("SUBSCRIBE", channel) for channel in self._channels)])

    def _stand(self, wire: Wire) -> None:
        log.info("redis_subscribed", client=self._client_name)
        self._ping(wire)
        self._call(self._on_gap)

    def _ping(self, wire: Wire) -> None:
        """A peer that is gone says nothing, as a quiet channel does: a command waits for an answer now and then."""
        if wire is self._wire:
            wire.send(pack(("PING",)))
            asyncio.get_running_loop().call_later(self._silent_s, self._ping, wire)

    def _heard(self, channel: bytes, payload: bytes) -> None:
        self._call(self._on_message, self._channels[channel], payload)


def _fields(info: bytes) -> dict[str, str]:
    """What INFO says, a line each: `name:value`."""
    return dict(line.split(":", 1) for line in info.decode("utf-8", "replace").splitlines() if ":" in line)

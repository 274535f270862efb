"""A scripted Redis in memory: dialled without a socket, it keeps each write as it came and answers as it is told."""

import asyncio
import hashlib
from collections.abc import Callable
from typing import Any, Self, cast

import hiredis

Words = list[bytes]
# Bytes to send, None to stay silent.
Answering = Callable[[Words], bytes | None]


class MemoryTransport(asyncio.Transport):
    """The client's end. While `is_full` the transport keeps what is written, as where the server reads nothing."""

    def __init__(self, server: "ScriptedRedis", protocol: asyncio.Protocol) -> None:
        super().__init__()
        self.server = server
        self.protocol = protocol
        self.is_full = False
        self.is_ended = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.server.writes.append(bytes(data))
        if self.is_full:
            self.protocol.pause_writing()
        asyncio.get_running_loop().call_soon(self.server.read, self, bytes(data))

    def abort(self) -> None:
        self.end(None)

    def close(self) -> None:
        self.end(None)

    def end(self, error: Exception | None) -> None:
        if not self.is_ended:
            self.is_ended = True
            asyncio.get_running_loop().call_soon(self.protocol.connection_lost, error)


class ScriptedRedis:
    """Answers a greeting as a real one does; what else it answers is `answering`'s.

    >>> server = ScriptedRedis(lambda words: b"+OK\\r\\n")
    >>> async with PipelinedRedis.running("redis://x", client_name="t", scripts={}, dial=server.dial) as redis: ...
    """

    def __init__(self, answering: Answering = lambda words: b"+OK\r\n") -> None:
        self.answering = answering
        self.run_id = "a" * 40
        self.role = "master"
        # How many of the next attempts fail.
        self.refusals = 0
        self.dialled = 0
        self.writes: list[bytes] = []
        self.commands: list[Words] = []
        self.transports: list[MemoryTransport] = []
        self.scripts: dict[bytes, bytes] = {}

    async def dial(self, protocol: Callable[[], asyncio.Protocol]) -> None:
        self.dialled += 1
        if self.refusals:
            self.refusals -= 1
            raise ConnectionRefusedError(111, "Connection refused")
        wire = protocol()
        transport = MemoryTransport(self, wire)
        self.transports.append(transport)
        wire.connection_made(transport)

    @property
    def wire(self) -> asyncio.Protocol:
        """The client's newest connection."""
        return self.transports[-1].protocol

    def read(self, transport: MemoryTransport, data: bytes) -> None:
        if transport.is_ended:
            return
        answers = []
        for words in parsed(data):
            self.commands.append(words)
            answers.append(self.greeted(words) or self.answering(words))
        if given := b"".join(answer for answer in answers if answer):
            self.say(given, transport)

    def say(self, answers: bytes, transport: MemoryTransport | None = None) -> None:
        """Sends these bytes to the client."""
        transport = transport or self.transports[-1]
        if not transport.is_ended:
            transport.protocol.data_received(answers)

    def greeted(self, words: Words) -> bytes | None:
        match words:
            case [b"CLIENT", *_] | [b"AUTH", *_] | [b"SELECT", *_]:
                return b"+OK\r\n"
            case [b"PING"]:
                return self.answering(words) if self.answering(words) != b"+OK\r\n" else b"+PONG\r\n"
            case [b"INFO", b"server"]:
                return bulk(f"# Server\r\nrun_id:{self.run_id}\r\nuptime_in_seconds:7\r\n")
            case [b"INFO", b"replication"]:
                return bulk(f"# Replication\r\nrole:{self.role}\r\n")
            case [b"SCRIPT", b"LOAD", source]:
                sha = hashlib.sha1(source, usedforsecurity=False).hexdigest().encode()
                self.scripts[sha] = source
                return bulk(sha.decode())
        return None

    def forget_scripts(self) -> Self:
        self.scripts.clear()
        return self


def parsed(data: bytes) -> list[Words]:
    """The commands in one write, which holds whole ones only."""
    reader = hiredis.Reader(notEnoughData=None)
    reader.feed(data)
    commands: list[Words] = []
    while (words := cast("Any", reader.gets())) is not None:
        commands.append(words)
    assert b"".join(hiredis.pack_command(tuple(words)) for words in commands) == data, "half a command"  # type: ignore[arg-type]
    return commands


def bulk(text: str) -> bytes:
    return f"${len(text.encode())}\r\n{text}\r\n".encode()

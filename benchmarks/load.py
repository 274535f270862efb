"""The load, in a process of its own: `python -m benchmarks.load` takes commands and gives results, a JSON line each.

Every command is bounded in count and in time. `{"do": NAME, …}` calls the method of that name of `Load`; what it
returns is the result. A fault comes back as `{"error": …}`.
"""

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import uvloop
from tests.support.sockets import towards

from benchmarks.client import Answer, Connection, Target

_SEEN_WITHIN_S = 10.0
_QUEUED_S = 0.05
_SMALL_BUFFER = 16 * 1024
_OPEN_AT_ONCE = 32
_MOST_REQUESTS = 200_000


class Watch:
    """What the upstream says of marked requests."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._times: dict[tuple[str, int], float] = {}
        self._news = asyncio.Event()
        self._writer = writer
        self._reading = asyncio.create_task(self._read(reader))

    @classmethod
    async def open(cls, host: str, port: int) -> "Watch":
        reader, writer = await asyncio.open_connection(host, port)
        writer.write(b"GET /_/events HTTP/1.1\r\nhost: upstream\r\n\r\n")
        await reader.readuntil(b"\r\n\r\n")
        return cls(reader, writer)

    async def seen(self, what: str, mark: int) -> float | None:
        """When it was, None where it was not within the bound."""
        try:
            async with asyncio.timeout(_SEEN_WITHIN_S):
                while (what, mark) not in self._times:
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            return None
        return self._times.pop((what, mark))

    async def _read(self, reader: asyncio.StreamReader) -> None:
        while line := await reader.readline():
            what, mark, at = line.split()
            self._times[what.decode(), int(mark)] = float(at)
            self._news.set()


class Load:
    """What may be asked for. Each method's keywords are its command's members."""

    def __init__(self) -> None:
        self._idle: dict[Target, list[Connection]] = {}
        self._held: dict[int, Connection] = {}
        self._watch: Watch | None = None
        self._mark = 0

    async def watch(self, host: str, port: int) -> None:
        self._watch = await Watch.open(host, port)

    async def requests(
        self, target: Target, model: str, connections: int, *, seconds: float = 0.0, count: int = _MOST_REQUESTS
    ) -> dict[str, Any]:
        """Requests that are not streamed, in a closed loop, for so long or so many; their times."""
        return await self._closed_loop(target, target.request(model, stream=False), connections, seconds, count)

    async def streams(self, target: Target, model: str, connections: int, count: int) -> dict[str, Any]:
        """So many whole streams, so many at once."""
        return await self._closed_loop(target, target.request(model, stream=True), connections, 0.0, count)

    async def _closed_loop(
        self, target: Target, request: bytes, connections: int, seconds: float, count: int
    ) -> dict[str, Any]:
        answers: list[Answer] = []
        left = count
        deadline = time.monotonic() + seconds if seconds else None

        async def one_after_another() -> None:
            nonlocal left
            async with self._connection(target) as connection:
                while left > 0 and (deadline is None or time.monotonic() < deadline):
                    left -= 1
                    answers.append(await connection.ask(request))

        began = time.monotonic()
        await asyncio.gather(*(one_after_another() for _ in range(connections)))
        return {
            "seconds": time.monotonic() - began,
            "count": len(answers),
            "reads": sum(answer.reads for answer in answers),
            "chunks": sum(answer.chunks for answer in answers),
            "first_ms": [answer.first_s * 1000 for answer in answers],
            "whole_ms": [answer.whole_s * 1000 for answer in answers],
        }

    async def hold(self, target: Target, count: int) -> dict[str, Any]:
        """Opens so many streams, waits for the first token of each, and keeps them open."""
        free = asyncio.Semaphore(_OPEN_AT_ONCE)

        async def one() -> None:
            async with free:
                mark = self._next_mark()
                connection = await Connection.open(target)
                self._held[mark] = connection
                await connection.ask(target.request("hold", stream=True, content=f"mark-{mark}"), until_first=True)

        await asyncio.gather(*(one() for _ in range(count)))
        return {"open": sum(connection.is_open for connection in self._held.values())}

    async def release(self) -> dict[str, Any]:
        """Hangs up every stream that is held, all at once; milliseconds until the upstream saw the last one closed."""
        held, self._held = self._held, {}
        hung_up_at = time.monotonic()
        for connection in held.values():
            connection.transport.abort()
        closed = [await self._watching.seen("closed", mark) for mark in held]
        times = [at for at in closed if at is not None]
        return {"ms": (max(times) - hung_up_at) * 1000 if times else None, "unseen": len(closed) - len(times)}

    async def hang_ups(self, target: Target, phase: str, count: int, *, port: int = 0) -> dict[str, Any]:
        """Milliseconds from the client's hang-up to what the phase is about, for each of so many; null: never seen."""
        phases: dict[str, Callable[[Target, int], Awaitable[float | None]]] = {
            "mid-stream": self._hang_up_mid_stream,
            "slow reader": self._hang_up_slow_reader,
            "before the first byte": self._hang_up_silent_stream,
            "not streamed": self._hang_up_not_streamed,
            "connecting": lambda target, _: self._hang_up_connecting(target, port),
        }
        times = [await phases[phase](target, self._next_mark()) for _ in range(count)]
        return {"ms": [None if seconds is None else seconds * 1000 for seconds in times]}

    async def hang_ups_queued(self, target: Target, count: int, prefix: str) -> dict[str, Any]:
        """Hangs up so many requests that wait for the one slot of `narrow-hold`; the wall clock's time of each."""
        async with self._connection(target) as holder:
            holder.send(target.request("narrow-hold", stream=True))
            await asyncio.sleep(_QUEUED_S)
            times = []
            for n in range(count):
                connection = await Connection.open(target)
                connection.send(target.request("narrow-hold", stream=True, label=f"{prefix}-{n}"))
                await asyncio.sleep(_QUEUED_S)
                connection.hang_up()
                times.append(time.time())
            holder.transport.abort()
        return {"at": times}

    async def _hang_up_mid_stream(self, target: Target, mark: int) -> float | None:
        connection = await Connection.open(target)
        await connection.ask(target.request("hold", stream=True, content=f"mark-{mark}"), until_first=True)
        return await self._closed_after(connection, mark)

    async def _hang_up_slow_reader(self, target: Target, mark: int) -> float | None:
        connection = await Connection.open(target, receive_buffer=_SMALL_BUFFER)
        await connection.ask(target.request("flood", stream=True, content=f"mark-{mark}"), until_first=True)
        connection.transport.pause_reading()
        if await self._watching.seen("stalled", mark) is None:
            connection.transport.abort()
            return None
        return await self._closed_after(connection, mark)

    async def _hang_up_silent_stream(self, target: Target, mark: int) -> float | None:
        return await self._hang_up_silent(target, mark, stream=True)

    async def _hang_up_not_streamed(self, target: Target, mark: int) -> float | None:
        return await self._hang_up_silent(target, mark, stream=False)

    async def _hang_up_silent(self, target: Target, mark: int, *, stream: bool) -> float | None:
        connection = await Connection.open(target)
        connection.send(target.request("silent", stream=stream, content=f"mark-{mark}"))
        if await self._watching.seen("request", mark) is None:
            connection.transport.abort()
            return None
        return await self._closed_after(connection, mark)

    async def _hang_up_connecting(self, target: Target, port: int) -> float | None:
        before = len(towards(port, "connecting"))
        connection = await Connection.open(target)
        connection.send(target.request("hole", stream=True))
        if not await _becomes(lambda: len(towards(port, "connecting")) > before):
            connection.transport.abort()
            return None
        hung_up_at = connection.hang_up()
        if not await _becomes(lambda: len(towards(port, "connecting")) <= before):
            return None
        return time.monotonic() - hung_up_at

    async def _closed_after(self, connection: Connection, mark: int) -> float | None:
        hung_up_at = connection.hang_up()
        closed_at = await self._watching.seen("closed", mark)
        return None if closed_at is None else closed_at - hung_up_at

    @property
    def _watching(self) -> Watch:
        assert self._watch is not None, "the command `watch` comes first"
        return self._watch

    def _next_mark(self) -> int:
        self._mark += 1
        return self._mark

    @asynccontextmanager
    async def _connection(self, target: Target) -> AsyncIterator[Connection]:
        idle = self._idle.setdefault(target, [])
        while idle and not idle[-1].is_open:
            idle.pop()
        connection = idle.pop() if idle else await Connection.open(target)
        yield connection
        if connection.is_open:
            idle.append(connection)


async def _becomes(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + _SEEN_WITHIN_S
    while not condition():
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(0.0005)
    return True


async def _run() -> None:
    load = Load()
    while line := await asyncio.to_thread(sys.stdin.readline):
        command: dict[str, Any] = json.loads(line)
        method = getattr(load, command.pop("do"))
        if "target" in command:
            host, port, headers = command["target"]
            command["target"] = Target(host, port, tuple((name, value) for name, value in headers))
        try:
            result = await method(**command)
        except Exception as error:  # noqa: BLE001 - an edge: the fault is the command's result
            result = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    uvloop.run(_run())

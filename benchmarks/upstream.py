"""The benchmark's upstream: OpenAI's chat wire format as cheaply as Python writes it, in a process of its own.

The model's name says what it does: `small` answers at once and whole, `stream-N-G` sends N chunks of one token, one
every G milliseconds (so that each arrives as a read of its own), `hold` sends one chunk and stays, `silent` never
answers, `flood` sends chunks as fast as the socket takes them until it is closed.

A message that holds `mark-N` is watched: whoever reads `GET /_/events` gets a line `request N TIME` when it came,
`stalled N TIME` when its flood found every buffer full, and `closed N TIME` when its connection closed, in
`time.monotonic()`, which all processes of a machine share.
"""

import asyncio
import re
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import cast

import uvloop

LOOPBACK = "127.0.0.1"
_MODEL = re.compile(rb'"model":\s*"([^"]+)"')
_STREAM = re.compile(rb'"stream":\s*true')
_USAGE = re.compile(rb'"include_usage":\s*true')
_MARK = re.compile(rb"mark-(\d+)")
_LENGTH = re.compile(rb"\r\ncontent-length:\s*(\d+)", re.IGNORECASE)

_FRAME = b'{"id":"chatcmpl-bench","object":"chat.completion.chunk","created":1700000000,"model":"bench",'
_TOKEN = b"data: " + _FRAME + b'"choices":[{"index":0,"delta":{"content":" token"},"finish_reason":null}]}\n\n'
_STOP = b"data: " + _FRAME + b'"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
_COUNTS = b'"usage":{"prompt_tokens":9,"completion_tokens":%d,"total_tokens":%d}'
_DONE = b"data: [DONE]\n\n"
_STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
_WHOLE = (
    b'{"id":"chatcmpl-bench","object":"chat.completion","created":1700000000,"model":"bench","choices":[{"index":0,'
    b'"message":{"role":"assistant","content":"Hello there, how can I help?"},"finish_reason":"stop"}],'
    b'"usage":{"prompt_tokens":9,"completion_tokens":8,"total_tokens":17}}'
)
_FLOOD = 64
_STALLED_S = 0.05


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


_TOKEN_CHUNK = _chunk(_TOKEN)
_WHOLE_ANSWER = (
    b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(_WHOLE) + _WHOLE
)


class Board:
    """Who watches, and what they are told."""

    def __init__(self) -> None:
        self._watchers: set[asyncio.Transport] = set()

    def watch(self, transport: asyncio.Transport) -> None:
        self._watchers.add(transport)

    def leave(self, transport: asyncio.Transport) -> None:
        self._watchers.discard(transport)

    def tell(self, what: str, mark: int) -> None:
        line = f"{what} {mark} {time.monotonic()}\n".encode()
        for watcher in self._watchers:
            watcher.write(line)


class UpstreamProtocol(asyncio.Protocol):
    def __init__(self, board: Board, loop: asyncio.AbstractEventLoop) -> None:
        self._board = board
        self._loop = loop
        self._transport: asyncio.Transport
        self._received = b""
        self._mark: int | None = None
        self._left = 0
        self._gap_s = 0.0
        self._ending = b""
        self._timer: asyncio.TimerHandle | None = None
        self._floods = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Not an instance under uvloop.
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._mark is not None:
            self._board.tell("closed", self._mark)
        if self._timer is not None:
            self._timer.cancel()
        self._floods = False
        self._board.leave(self._transport)

    def eof_received(self) -> bool:
        # close() would first send what a slow reader has not taken.
        self._transport.abort()
        return False

    def data_received(self, data: bytes) -> None:
        self._received += data
        end = self._received.find(b"\r\n\r\n")
        if end < 0:
            return
        length = _LENGTH.search(self._received, 0, end)
        whole = end + 4 + (int(length[1]) if length else 0)
        if len(self._received) < whole:
            return
        head, body, self._received = self._received[:end], self._received[end + 4 : whole], self._received[whole:]
        if head.startswith(b"GET"):
            self._transport.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\nconnection: close\r\n\r\n")
            self._board.watch(self._transport)
        else:
            self._answer(body)

    def _answer(self, body: bytes) -> None:
        mark = _MARK.search(body)
        self._mark = int(mark[1]) if mark else None
        if self._mark is not None:
            self._board.tell("request", self._mark)
        named = _MODEL.search(body)
        model = named[1].decode() if named else ""
        if model == "silent":
            return
        if not _STREAM.search(body):
            self._transport.write(_WHOLE_ANSWER)
        elif model == "hold":
            self._transport.write(_STREAM_HEAD + _TOKEN_CHUNK)
        elif model == "flood":
            self._transport.write(_STREAM_HEAD)
            self._floods = True
            self._flood()
        else:
            self._stream(model, with_usage=bool(_USAGE.search(body)))

    def _stream(self, model: str, *, with_usage: bool) -> None:
        _, count, gap = model.split("-")
        self._left, self._gap_s = int(count) - 1, int(gap) / 1000
        usage = b""
        if with_usage:
            counts = _COUNTS % (int(count), 9 + int(count))
            usage = _chunk(b"data: " + _FRAME + b'"choices":[],' + counts + b"}\n\n")
        self._ending = _chunk(_STOP) + usage + _chunk(_DONE) + b"0\r\n\r\n"
        self._transport.write(_STREAM_HEAD + _TOKEN_CHUNK)
        self._timer = self._loop.call_later(self._gap_s, self._next)

    def _next(self) -> None:
        if self._left > 0:
            self._left -= 1
            self._transport.write(_TOKEN_CHUNK)
            self._timer = self._loop.call_later(self._gap_s, self._next)
        else:
            self._transport.write(self._ending)

    def _flood(self) -> None:
        if self._floods:
            self._transport.write(_TOKEN_CHUNK * _FLOOD)
            self._loop.call_soon(self._flood)

    def pause_writing(self) -> None:
        self._floods = False
        self._timer = self._loop.call_later(_STALLED_S, self._stalled)

    def resume_writing(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._floods = True
        self._flood()

    def _stalled(self) -> None:
        if self._mark is not None:
            self._board.tell("stalled", self._mark)


async def serve(ready: Callable[[int], None]) -> None:
    """Serves until standard input closes; `ready` gets the port."""
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    board = Board()
    server = await loop.create_server(lambda: UpstreamProtocol(board, loop), LOOPBACK, 0, backlog=4096)
    watcher = threading.Thread(target=_tell_end_of_input, args=(loop, ended), daemon=True)
    watcher.start()
    listener: socket.socket = server.sockets[0]
    ready(listener.getsockname()[1])
    await ended.wait()


def _tell_end_of_input(loop: asyncio.AbstractEventLoop, ended: asyncio.Event) -> None:
    while sys.stdin.buffer.read(4096):
        pass
    loop.call_soon_threadsafe(ended.set)


def _print_port(port: int) -> None:
    print(port, flush=True)


if __name__ == "__main__":
    uvloop.run(serve(_print_port))

"""Lines on their way out of the process: written in batches, bounded, never by stalling the loop.

The invariants: a line is written whole and is not mixed with those of another process on the same pipe; memory is
bounded, and what is dropped is counted and said; while a loop runs, a reader that does not read (a full pipe) costs
lines, never a request.

Why not a thread: this needs none. `poll` says that a pipe takes `PIPE_BUF` bytes without blocking, and such a write is
atomic (POSIX, write()). A longer line waits until the pipe is empty and then goes out at once.
"""

import asyncio
import contextvars
import fcntl
import os
import select
import stat
import struct
import termios
import threading
import time
import weakref
from collections import deque

import orjson

BATCH_INTERVAL_S = 0.05
BOUND_BYTES = 4 * 1024 * 1024
# Containers' runtimes split longer lines themselves; half a pipe's default capacity is far above it.
LONGEST_LINE = 16 * 1024
_ATOMIC_BYTES = select.PIPE_BUF
_FILE_BATCH_BYTES = 64 * 1024
# A batch that has grown to this goes out before its time: memory that is used again is cheaper than fresh memory.
_FULL_BYTES = 32 * 1024
# Where no loop runs nobody is held up; a reader that is gone must still not hold the exit for ever.
_PATIENCE_S = 2.0


class LineWriter:
    r"""Writes lines to a file descriptor. One a process; a forked child starts with an empty one.

    Inside a running loop `write` puts the line into the next batch, at most 50 ms away, and `flush` writes at once what
    does not block. Elsewhere both write before they return.

    >>> LineWriter(1).write(b'{"event": "started"}\n')
    """

    def __init__(self, fd: int, *, interval_s: float = BATCH_INTERVAL_S, bound_bytes: int = BOUND_BYTES) -> None:
        self._fd = fd
        self._interval_s = interval_s
        self._bound_bytes = bound_bytes
        self._is_pipe = _is_pipe(fd)
        self._poll = select.poll()
        self._poll.register(fd, select.POLLOUT)
        self._lines: deque[bytes] = deque()
        self._rest = b""
        self._size = 0
        self._dropped = 0
        self._is_stuck = False
        self._timer: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._lock = threading.Lock()
        self._drainer: int | None = None
        _empty_in_children(self)

    @property
    def pending_bytes(self) -> int:
        return self._size

    @property
    def dropped(self) -> int:
        """Lines that were dropped since the last notice of it."""
        return self._dropped

    def write(self, line: bytes) -> None:
        """Takes one line, its newline included. Drops it where the bound is reached."""
        if self._size > self._bound_bytes:
            self._dropped += 1
            return
        self._lines.append(line)
        self._size += len(line)
        if self._timer is None or self._loop is None or self._loop.is_closed():
            self._arm()
        elif self._size > _FULL_BYTES and not self._is_stuck:
            self._is_stuck = not self._drain(0)

    def flush(self) -> None:
        """Writes what is pending: in a loop, what does not block, the rest later; elsewhere all of it, within 2 s."""
        if _in_loop():
            if not self._drain(0) and self._timer is None:
                self._arm()
        else:
            self._timer = None
            self._drain(_PATIENCE_S)

    def forget(self) -> None:
        """Starts anew, as a forked child does: what is pending is its parent's to write."""
        self._lines = deque()
        self._rest, self._size, self._dropped = b"", 0, 0
        self._is_stuck = False
        self._timer = self._loop = self._drainer = None
        self._lock = threading.Lock()

    def _arm(self) -> None:
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            self._drain(_PATIENCE_S)
            return
        self._loop = loop
        # An empty context: the timer is nobody's request.
        self._timer = loop.call_later(self._interval_s, self._tick, context=contextvars.Context())

    def _tick(self) -> None:
        self._timer = None
        self._is_stuck = not self._drain(0)
        if self._is_stuck:
            self._arm()

    def _drain(self, patience_s: float) -> bool:
        """Writes until nothing is left, or until it would block for longer than this. Returns whether all is out."""
        me = threading.get_ident()
        # A signal's handler may log while this thread is in here: its line goes out with the rest.
        if self._drainer == me or not self._lock.acquire(timeout=patience_s):
            return False
        self._drainer = me
        batch = b""
        try:
            deadline = time.monotonic() + patience_s
            while self._rest or self._lines or self._dropped:
                batch = self._rest or self._next_batch()
                if not self._has_room(len(batch), deadline):
                    self._rest = batch
                    return False
                written = os.write(self._fd, batch)
                self._rest = batch[written:]
                self._size -= written
        except BlockingIOError:
            # Somebody made our descriptor non-blocking: the rest stays for the next round.
            self._rest = batch
            return False
        except OSError:
            # Nobody will ever read this: a closed pipe is no reason to fail a request.
            self._lines.clear()
            self._rest, self._size, self._dropped = b"", 0, 0
        finally:
            self._drainer = None
            self._lock.release()
        if not self._lines:
            # Threads that wrote at once may have miscounted.
            self._size = 0
        return True

    def _next_batch(self) -> bytes:
        bound = _ATOMIC_BYTES if self._is_pipe else _FILE_BATCH_BYTES
        if not self._lines:
            notice = self._notice()
            self._size += len(notice)
            return notice
        batch = [self._lines.popleft()]
        size = len(batch[0])
        while self._lines and size + len(self._lines[0]) <= bound:
            line = self._lines.popleft()
            batch.append(line)
            size += len(line)
        return b"".join(batch)

    def _notice(self) -> bytes:
        count, self._dropped = self._dropped, 0
        seconds = time.time()
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{int(seconds % 1 * 1000):03d}Z"
        fields = {"ts": stamp, "level": "warning", "event": "log lines were dropped: nobody read them in time"}
        return orjson.dumps(fields | {"logger": __name__, "pid": os.getpid(), "dropped": count}) + b"\n"

    def _has_room(self, size: int, deadline: float) -> bool:
        """Whether a write of this size goes out at once; waits for it until the deadline."""
        while True:
            remaining_s = max(0.0, deadline - time.monotonic())
            if not self._poll.poll(remaining_s * 1000):
                return False
            if size <= _ATOMIC_BYTES or not self._is_pipe or _unread_bytes(self._fd) == 0:
                return True
            if remaining_s == 0:
                return False
            time.sleep(0.001)


def _empty_in_children(writer: LineWriter) -> None:
    reference = weakref.ref(writer)

    def forget() -> None:
        if (writer := reference()) is not None:
            writer.forget()

    os.register_at_fork(after_in_child=forget)


def _is_pipe(fd: int) -> bool:
    try:
        mode = os.fstat(fd).st_mode
    except OSError:
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)


def _unread_bytes(fd: int) -> int:
    """How much of a pipe is not read yet; 0 where the system does not tell."""
    try:
        (unread,) = struct.unpack("i", fcntl.ioctl(fd, termios.FIONREAD, b"\0\0\0\0"))
    except OSError:
        return 0
    return int(unread)


def _in_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True

"""One process's numbers in a file of its own: others read it while it grows, and it outlives its process.

A series is a record, its key and its cells (doubles), in a shared mapping: counting is an addition in memory, and what
was counted a moment before SIGKILL is in the file. Invariants: a record never moves and never crosses a chunk, and it
is seen by others only once it is whole. The file is locked for as long as its process writes to it, so that whoever
asks for the lock knows who is dead, whatever became of its pid. Space is taken before it is mapped: a full disk costs
a log line, never a SIGBUS.

Why not prometheus-client's own files: `docs/decisions/0014-metric-files.md`.
"""

import fcntl
import math
import mmap
import os
import secrets
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from tidegate.telemetry.logging import get_logger

SUFFIX = ".cells"
# A multiple of every platform's page, as a mapping must begin at one.
CHUNK_BYTES = 64 * 1024
MOST_CHUNKS = 128
# The first character of a key: what becomes of its cells when several processes have it.
COUNTER, SUM_GAUGE, GREATEST_GAUGE = b"c+^"

_HEADER = struct.Struct("<II")
_CELL_BYTES = 8

log = get_logger(__name__)

Sums = dict[tuple[bytes, int], list[float]]
"""Cells by the key and how many they are: another release may have other buckets under the same key."""


class CellFile:
    """What one process counts, written by one thread of it.

    >>> file = CellFile.create(data_dir / "metrics")
    >>> cells, at = file.cells(b'c["requests"]', 1)
    >>> cells[at] += 1

    `is_full`: no space was left for some series. They are counted, and nobody reads it.
    """

    def __init__(self, descriptor: int | None, path: Path) -> None:
        self.path = path
        self.is_full = descriptor is None
        self._descriptor = descriptor
        self._mapped = 0
        self._chunk = memoryview(b"")
        self._used = 0

    @classmethod
    def create(cls, directory: Path) -> Self:
        """A new file. Never raises: without a place to write, what is counted stays in this process."""
        name = f"{os.getpid()}-{secrets.token_hex(8)}"
        fresh, path = directory / f"{name}.new", directory / f"{name}{SUFFIX}"
        descriptor = None
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            # Locked before it has its name: under that it is never seen without an owner.
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            fresh.rename(path)
        except OSError as error:
            log.warning("metrics_not_shared", directory=str(directory), reason=error.strerror)
            if descriptor is not None:
                os.close(descriptor)
            descriptor = None
        return cls(descriptor, path)

    def cells(self, key: bytes, count: int) -> "tuple[memoryview[float], int]":
        """A new series: a view of doubles, all 0, and the index of its first. Asked once a key."""
        padded = key + b" " * (-len(key) % _CELL_BYTES)
        size = _HEADER.size + len(padded) + count * _CELL_BYTES
        if size > CHUNK_BYTES:
            raise ValueError(f"a series of {size} bytes: its labels are too long")
        if self._used + size > len(self._chunk):
            self._chunk, self._used = memoryview(self._next_chunk()), 0
        start = self._used
        body = start + _HEADER.size
        self._chunk[body : body + len(padded)] = padded
        # Last, and in one store: a reader takes a header of zeros for the end.
        self._chunk.cast("Q")[start // _CELL_BYTES] = int.from_bytes(_HEADER.pack(len(key), count), "little")
        self._used += size
        return self._chunk.cast("d"), (body + len(padded)) // _CELL_BYTES

    def close(self) -> None:
        """This process writes no more. The file stays, for the root to fold."""
        if self._descriptor is not None:
            # A mapping holds the descriptor's duplicate, and with it the lock.
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)
            os.close(self._descriptor)
            self._descriptor = None

    def _next_chunk(self) -> mmap.mmap:
        if self._descriptor is not None and not self.is_full:
            start = self._mapped * CHUNK_BYTES
            try:
                _allocate(self._descriptor, start)
                chunk = mmap.mmap(self._descriptor, CHUNK_BYTES, offset=start)
            except OSError as error:
                log.warning("metrics_not_shared", file=str(self.path), reason=error.strerror)
            else:
                self._mapped += 1
                return chunk
        self.is_full = True
        return mmap.mmap(-1, CHUNK_BYTES)


def _allocate(descriptor: int, start: int) -> None:
    """Makes a chunk's blocks. Raises `OSError` where the disk has none, or the file enough."""
    if start >= MOST_CHUNKS * CHUNK_BYTES:
        raise OSError(0, "too many series")
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, start, CHUNK_BYTES)
        return
    written = os.pwrite(descriptor, bytes(CHUNK_BYTES), start)
    if written != CHUNK_BYTES:
        raise OSError(0, "no space left")


def records(text: bytes, chunk_bytes: int) -> Iterator[tuple[bytes, tuple[float, ...]]]:
    """The records of what was read of a file: their keys and cells. What is no record ends its chunk."""
    for start in range(0, len(text), chunk_bytes):
        at, end = start, min(start + chunk_bytes, len(text))
        while at + _HEADER.size <= end:
            length, count = _HEADER.unpack_from(text, at)
            body = at + _HEADER.size
            at = body + length + -length % _CELL_BYTES + count * _CELL_BYTES
            if length == 0 or at > end:
                break
            yield text[body : body + length], struct.unpack_from(f"<{count}d", text, at - count * _CELL_BYTES)


def packed(sums: Sums) -> bytes:
    """Records one behind the other, as `records` reads them in a single chunk."""
    parts = []
    for (key, count), cells in sums.items():
        parts += [
            _HEADER.pack(len(key), count),
            key,
            b" " * (-len(key) % _CELL_BYTES),
            struct.pack(f"<{count}d", *cells),
        ]
    return b"".join(parts)


def add_up(sums: Sums, text: bytes, *, chunk_bytes: int = CHUNK_BYTES, is_alive: bool = True) -> None:
    """Adds a process's records to `sums`: of a dead one its counters alone. A cell that is no number says nothing."""
    for key, cells in records(text, chunk_bytes):
        kind = key[0]
        if kind != COUNTER and (not is_alive or math.isnan(cells[0])):
            continue
        known = sums.get((key, len(cells)))
        if known is None:
            sums[key, len(cells)] = list(cells)
        elif kind == GREATEST_GAUGE:
            known[:] = map(max, known, cells)
        else:
            known[:] = [one + other for one, other in zip(known, cells, strict=True)]

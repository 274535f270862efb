"""The journal: what this process accepted and how it ended, on its own disk before anything else knows.

A journal is a directory of one writer, which holds the lock on its `lock` file while it lives; the kernel lets go of
it when the writer dies, however it dies. Whoever then gets the lock settles what was left open (`recovery.py`). Records
are lines of JSON in numbered segments, written by one `write` each: they are in the kernel when the call returns, so
they survive the process. A segment goes once the database has all that it says and nothing is open that it or an
earlier one opened: what is said of an open entry may stand in any segment from its own on.

One way: road → journal → `drain.py` → database. The journal is the queue; memory holds no entries that wait.
"""

import errno
import fcntl
import itertools
import os
import shutil
import time
import uuid
from collections import Counter
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

import msgspec

from tidegate.errors import Unavailable
from tidegate.ledger.entry import Attempt, Entry, OpenEntry, Outcome, Usage
from tidegate.ledger.prices import Price
from tidegate.telemetry.logging import get_logger

SEGMENT_BYTES = 8 * 1024 * 1024

log = get_logger(__name__)


class Opened(msgspec.Struct, tag="opened", tag_field="record"):
    """A request was reserved. Written before any upstream is called."""

    entry: OpenEntry


class AttemptBegun(msgspec.Struct, tag="attempt", tag_field="record", omit_defaults=True):
    """An upstream is being called for it. Written before the call. `ended` are the attempts before this one."""

    entry_id: uuid.UUID
    n: int
    upstream: str
    model: str
    price: Price | None
    input_tokens: int
    started_at: datetime
    ended: list[Attempt] = []


class Progress(msgspec.Struct, tag="progress", tag_field="record"):
    """What was received so far; written every few seconds of a stream, so that a death loses no more."""

    entry_id: uuid.UUID
    output_tokens: int


class Settled(msgspec.Struct, tag="settled", tag_field="record"):
    """The one terminal entry."""

    entry: Entry


Record = Opened | AttemptBegun | Progress | Settled

encoder = msgspec.json.Encoder(decimal_format="string")
_CLOSED = -1
_decoder: msgspec.json.Decoder[Record] = msgspec.json.Decoder(Opened | AttemptBegun | Progress | Settled)


class Journal:
    """One writer's journal. Not for threads: the loop's task writes; `read` may run in a thread.

    >>> journal = Journal.create(settings.data_dir / "journal")
    >>> journal.open(entry); ...; journal.settle(terminal)
    """

    def __init__(self, directory: Path, lock_fd: int, *, segment_bytes: int = SEGMENT_BYTES) -> None:
        self.directory = directory
        self._lock_fd = lock_fd
        self._segment_bytes = segment_bytes
        self._segment = 0
        self._size = 0
        self._opened_in: dict[uuid.UUID, int] = {}
        self._open_by_segment: Counter[int] = Counter()
        self._unwritten: list[Entry] = []
        # Entries that became terminal, and when the first of them did since somebody looked.
        self.settled = 0
        self.settled_first_at: datetime | None = None
        self._kept: list[int] = []
        self._fd = self._next_segment()

    @classmethod
    def create(cls, root: Path, *, segment_bytes: int = SEGMENT_BYTES) -> "Journal":
        """A new journal below `root`, locked before anyone can see it. Raises `OSError`."""
        root.mkdir(parents=True, exist_ok=True)
        name = f"{time.time_ns():020d}-{os.getpid()}"
        hidden = root / f".{name}"
        hidden.mkdir()
        lock_fd = os.open(hidden / "lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        directory = hidden.rename(root / name)
        return cls(directory, lock_fd, segment_bytes=segment_bytes)

    @property
    def open_entries(self) -> int:
        return len(self._opened_in)

    @property
    def position(self) -> tuple[int, int]:
        """The segment that is written and its size: what a reader has to reach."""
        return self._segment, self._size

    def open(self, entry: OpenEntry) -> None:
        """Writes an open record. Raises `Unavailable` where the disk does not take it: then nothing was accepted."""
        try:
            self._write(Opened(entry))
        except OSError as error:
            raise _unwritable(error, "The request was not begun.") from error
        self._opened_in[entry.entry_id] = self._segment
        self._open_by_segment[self._segment] += 1

    def begin_attempt(self, record: AttemptBegun) -> None:
        """Writes that an upstream is about to be called. Raises `Unavailable` as `open` does."""
        try:
            self._write(record)
        except OSError as error:
            raise _unwritable(error, "No upstream was called.") from error

    def progress(self, record: Progress) -> None:
        """Writes how far a stream is. A disk that does not take it loses nothing but precision after a crash."""
        try:
            self._write(record)
        except OSError:
            return

    def settle(self, entry: Entry) -> None:
        """Writes the terminal entry; kept for the drain where the disk does not take it. Never raises."""
        try:
            self._write(Settled(entry))
        except OSError:
            self._unwritten.append(entry)
            if self._fd == _CLOSED:
                # Nobody drains it any more; its open record is what the next process will find.
                log.error("entry_settled_after_close", entry_id=str(entry.entry_id), outcome=entry.outcome)  # noqa: TRY400 - nothing failed here
        segment = self._opened_in.pop(entry.entry_id, None)
        if segment is not None:
            self._open_by_segment[segment] -= 1
            self.settled += 1
            if self.settled_first_at is None:
                self.settled_first_at = entry.ended_at

    def take_unwritten(self) -> list[Entry]:
        """Terminal entries that the disk did not take. At most one a request that was open when it filled up."""
        taken, self._unwritten = self._unwritten, []
        return taken

    @property
    def has_unwritten(self) -> bool:
        return bool(self._unwritten)

    def removable(self, *, before: int) -> list[int]:
        """Segments before this one of which nothing is needed any more, none behind one that is still needed."""
        return list(itertools.takewhile(lambda segment: segment < before and self._is_finished(segment), self._kept))

    def remove(self, segment: int) -> None:
        self._open_by_segment.pop(segment, None)
        self._kept.remove(segment)
        segment_path(self.directory, segment).unlink(missing_ok=True)

    def close(self, *, drained: bool) -> None:
        """Lets go of the lock and takes nothing more; the directory goes too where nothing in it is needed any more."""
        os.close(self._fd)
        self._fd = _CLOSED
        if drained and not self._opened_in and not self._unwritten:
            shutil.rmtree(self.directory, ignore_errors=True)
        os.close(self._lock_fd)

    def _is_finished(self, segment: int) -> bool:
        return segment < self._segment and not self._open_by_segment[segment]

    def _write(self, record: Record) -> None:
        if self._fd == _CLOSED:
            # Its number may be another file's by now.
            raise OSError(errno.EBADF, "it is closed")
        line = encoder.encode(record) + b"\n"
        if self._size + len(line) > self._segment_bytes and self._size:
            following = self._next_segment()
            os.close(self._fd)
            self._fd = following
        written = os.write(self._fd, line)
        if written != len(line):
            # A full disk takes a part of a line: it must not stand before the next one.
            os.ftruncate(self._fd, self._size)
            raise OSError(errno.ENOSPC, "No space left on device")
        self._size += len(line)

    def _next_segment(self) -> int:
        fd = os.open(
            segment_path(self.directory, self._segment + 1),
            os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC,
            0o600,
        )
        self._segment += 1
        self._kept.append(self._segment)
        self._size = 0
        return fd


def _unwritable(error: OSError, what_it_means: str) -> Unavailable:
    told = f"The journal cannot be written: {error.strerror}. {what_it_means}"
    return Unavailable(told, headers={"Retry-After": "1"})


def attempt_row(
    begun: AttemptBegun,
    *,
    outcome: Outcome,
    usage: Usage,
    ended_at: datetime,
    status: int | None = None,
    upstream_request_id: str | None = None,
) -> Attempt:
    """The row of an attempt that began so and ended so. Its cost is its tokens' at its own price."""
    tokens = usage.tokens
    return Attempt(
        n=begun.n,
        upstream=begun.upstream,
        model=begun.model,
        upstream_request_id=upstream_request_id,
        outcome=outcome,
        status=status,
        input_tokens=tokens.input,
        cached_input_tokens=tokens.cached_input,
        cache_write_tokens=tokens.cache_write,
        cache_write_1h_tokens=tokens.cache_write_1h,
        output_tokens=tokens.output,
        reasoning_tokens=tokens.reasoning,
        usage_source=usage.source,
        cost=begun.price.cost(tokens) if begun.price else None,
        price_version=begun.price.version if begun.price else None,
        started_at=begun.started_at,
        ended_at=ended_at,
    )


def segment_path(directory: Path, segment: int) -> Path:
    return directory / f"{segment:08d}.jsonl"


class Reading(NamedTuple):
    """Records of a segment, the offset behind them, and the offsets of lines among them that are no record."""

    records: list[Record]
    offset: int
    unreadable: list[int]


def read_records(path: Path, offset: int, most_bytes: int) -> Reading:
    """Whole records of a segment from `offset` on. An unfinished last line is left, one that is no record passed by.

    A bad block of the disk may spoil a line; what stands behind it must be read all the same.
    """
    try:
        with path.open("rb") as file:
            file.seek(offset)
            data = file.read(most_bytes)
    except FileNotFoundError:
        return Reading([], offset, [])
    end = data.rfind(b"\n") + 1
    if not end and len(data) == most_bytes:
        return read_records(path, offset, 2 * most_bytes)
    reading = Reading([], offset + end, [])
    begins = offset
    for line in data[:end].split(b"\n")[:-1]:
        try:
            reading.records.append(_decoder.decode(line))
        except (ValueError, RecursionError):
            reading.unreadable.append(begins)
        begins += len(line) + 1
    return reading

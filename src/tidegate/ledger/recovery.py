"""What a dead writer left: its journal is locked by nobody, so whoever gets the lock settles what it left open.

An entry that was open becomes `interrupted`: status null, since nobody knows what its client was sent. Its tokens are
those of the last progress record; where an upstream had been called they are `estimated`, else `none`.

A journal may be as large as hours without a database made it. It is read twice, a piece at a time: for what is still
open, which is all that is kept, then for what was settled, inserted as it is read.
"""

import asyncio
import fcntl
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from tidegate.ledger.drain import EntryStore
from tidegate.ledger.entry import Ending, Entry, OpenEntry, Tokens, Usage, close_entry
from tidegate.ledger.journal import AttemptBegun, Opened, Progress, Reading, Settled, attempt_row, read_records
from tidegate.telemetry.logging import get_logger

_INSERT_AT_ONCE = 500
_READ_BYTES = 1024 * 1024
# A journal is hidden for a moment, between its making and its lock. What is hidden for longer belongs to nobody.
_HIDDEN = re.compile(r"\.\d{20}-\d+")
_HIDDEN_FOR_S = 60.0

log = get_logger(__name__)


async def recover(root: Path, store: EntryStore, now: datetime) -> int:
    """Settles every dead journal below `root` and removes it. Returns how many entries were left open in all.

    Safe when many run it at once. Raises what the store raises; then the journal is left for the next one.
    """
    interrupted = 0
    for directory in sorted(_journals(root)):
        with _locked(directory) as is_ours:
            if not is_ours:
                continue
            left_open = await asyncio.to_thread(_left_open, directory, now)
            await _insert_settled(directory, store)
            await _insert(store, left_open)
            # A thread's: the kernel takes a millisecond for 8 MiB.
            await asyncio.to_thread(shutil.rmtree, directory, ignore_errors=True)
            interrupted += len(left_open)
    await asyncio.to_thread(_remove_abandoned, root)
    return interrupted


def _journals(root: Path) -> list[Path]:
    """Journals in sight; one that is just being made is hidden until it is locked."""
    return [path for path in root.iterdir() if not path.name.startswith(".")] if root.is_dir() else []


def _left_open(directory: Path, now: datetime) -> list[Entry]:
    """The entries that it left open, made terminal."""
    opened: dict[uuid.UUID, OpenEntry] = {}
    last_attempt: dict[uuid.UUID, AttemptBegun] = {}
    progress: dict[uuid.UUID, int] = {}
    for path in _segments(directory):
        for reading in _readings(path):
            for offset in reading.unreadable:
                log.error("journal_line_unreadable", file=str(path), offset=offset)
            for record in reading.records:
                match record:
                    case Opened(entry):
                        opened[entry.entry_id] = entry
                    case AttemptBegun() if record.entry_id in opened:
                        last_attempt[record.entry_id] = record
                    case Progress() if record.entry_id in opened:
                        progress[record.entry_id] = record.output_tokens
                    case Settled(entry=terminal):
                        for kept in (opened, last_attempt, progress):
                            kept.pop(terminal.entry_id, None)
    return [
        _interrupted(entry, last_attempt.get(entry_id), progress.get(entry_id, 0), now)
        for entry_id, entry in opened.items()
    ]


async def _insert_settled(directory: Path, store: EntryStore) -> None:
    for path in await asyncio.to_thread(_segments, directory):
        readings = _readings(path)
        while (reading := await asyncio.to_thread(next, readings, None)) is not None:
            await _insert(store, [record.entry for record in reading.records if isinstance(record, Settled)])


async def _insert(store: EntryStore, entries: Sequence[Entry]) -> None:
    for start in range(0, len(entries), _INSERT_AT_ONCE):
        await store.insert(entries[start : start + _INSERT_AT_ONCE])


def _interrupted(opened: OpenEntry, last: AttemptBegun | None, output_tokens: int, now: datetime) -> Entry:
    attempts = []
    # The clock may have been set back since.
    ended_at = max(now, opened.started_at, last.started_at if last else now)
    if last is not None:
        tokens = Tokens(input=last.input_tokens, output=output_tokens)
        attempts = [
            *last.ended,
            attempt_row(last, outcome="interrupted", usage=Usage(tokens, "estimated"), ended_at=ended_at),
        ]
    ending = Ending(
        outcome="interrupted",
        status=None,
        error_code="internal_error",
        upstream=last.upstream if last else None,
        ended_at=ended_at,
    )
    return close_entry(opened, attempts, ending)


def _segments(directory: Path) -> list[Path]:
    return sorted(directory.glob("*.jsonl"))


def _readings(path: Path) -> Iterator[Reading]:
    """A segment in pieces. The last line of a writer that was killed may be torn: it is left out."""
    offset = 0
    while (reading := read_records(path, offset, _READ_BYTES)).offset != offset:
        yield reading
        offset = reading.offset


def _remove_abandoned(root: Path) -> None:
    """Removes what a writer left that died between making its journal and showing it: nothing was written there."""
    for directory in root.glob(".*-*") if root.is_dir() else ():
        if not _HIDDEN.fullmatch(directory.name):
            continue
        try:
            is_old = time.time() - directory.stat().st_mtime > _HIDDEN_FOR_S
        except FileNotFoundError:
            continue
        if is_old:
            with _locked(directory) as is_ours:
                if is_ours or not (directory / "lock").exists():
                    shutil.rmtree(directory, ignore_errors=True)


@contextmanager
def _locked(directory: Path) -> Iterator[bool]:
    """Whether the journal's lock is ours: its writer is dead and nobody else has settled it meanwhile."""
    try:
        fd = os.open(directory / "lock", os.O_RDWR | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        yield False
        return
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        yield False
        return
    try:
        # Another may have settled and removed it between our open and our lock.
        yield (directory / "lock").exists()
    finally:
        os.close(fd)

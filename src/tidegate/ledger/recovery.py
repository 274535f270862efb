"""What a dead writer left: its journal is locked by nobody, so whoever gets the lock settles what it left open.

An entry that was open becomes `interrupted`: status null, since nobody knows what its client was sent. Its tokens are
those of the last progress record; where an upstream had been called they are `estimated`, else `none`.
"""

import asyncio
import fcntl
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import msgspec
import structlog

from tidegate.ledger.drain import EntryStore
from tidegate.ledger.entry import Ending, Entry, OpenEntry, Tokens, Usage, close_entry
from tidegate.ledger.journal import AttemptBegun, Opened, Progress, Record, Settled, attempt_row, decoder

_INSERT_AT_ONCE = 500

log = structlog.stdlib.get_logger(__name__)


async def recover(root: Path, store: EntryStore, now: datetime) -> int:
    """Settles every dead journal below `root` and removes it. Returns how many entries were left open in all.

    Safe when many run it at once. Raises what the store raises; then the journal is left for the next one.
    """
    interrupted = 0
    for directory in sorted(_journals(root)):
        with _locked(directory) as is_ours:
            if not is_ours:
                continue
            settled, left_open = await asyncio.to_thread(read_dead_journal, directory, now)
            entries = settled + left_open
            for start in range(0, len(entries), _INSERT_AT_ONCE):
                await store.insert(entries[start : start + _INSERT_AT_ONCE])
            shutil.rmtree(directory, ignore_errors=True)
            interrupted += len(left_open)
    return interrupted


def _journals(root: Path) -> list[Path]:
    """Journals in sight; one that is just being made is hidden until it is locked."""
    return [path for path in root.iterdir() if not path.name.startswith(".")] if root.is_dir() else []


def read_dead_journal(directory: Path, now: datetime) -> tuple[list[Entry], list[Entry]]:
    """Its terminal entries, and those that it left open, made terminal."""
    opened: dict[uuid.UUID, OpenEntry] = {}
    attempts: dict[uuid.UUID, list[AttemptBegun]] = {}
    progress: dict[uuid.UUID, int] = {}
    settled: dict[uuid.UUID, Entry] = {}
    for record in _records(directory):
        match record:
            case Opened(entry):
                opened[entry.entry_id] = entry
            case AttemptBegun():
                attempts.setdefault(record.entry_id, []).append(record)
            case Progress():
                progress[record.entry_id] = record.output_tokens
            case Settled(entry=terminal):
                settled[terminal.entry_id] = terminal
    left_open = [
        _interrupted(entry, attempts.get(entry_id, []), progress.get(entry_id, 0), now)
        for entry_id, entry in opened.items()
        if entry_id not in settled
    ]
    return list(settled.values()), left_open


def _interrupted(opened: OpenEntry, begun: list[AttemptBegun], output_tokens: int, now: datetime) -> Entry:
    attempts = []
    if begun:
        last = begun[-1]
        tokens = Tokens(input=last.input_tokens, output=output_tokens)
        attempts = [
            *last.ended,
            attempt_row(last, outcome="interrupted", usage=Usage(tokens, "estimated"), ended_at=now),
        ]
    ending = Ending(
        outcome="interrupted",
        status=None,
        error_code="internal_error",
        upstream=begun[-1].upstream if begun else None,
        ended_at=now,
    )
    return close_entry(opened, attempts, ending)


def _records(directory: Path) -> Iterator[Record]:
    """Every record that was written whole. The last line of a writer that was killed may be torn: it is left out."""
    for path in sorted(directory.glob("*.jsonl")):
        for line in path.read_bytes().splitlines(keepends=True):
            if not line.endswith(b"\n"):
                continue
            try:
                yield decoder.decode(line)
            except msgspec.DecodeError:
                log.exception("journal_line_unreadable", file=str(path))


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

"""The numbers of all processes of a server, living and dead, as one.

Files of dead processes are folded into one accumulator and removed, or they would grow without end; their counters stay
in every sum. The accumulator names the files whose numbers it holds, and it is replaced in one step before they are
removed: whatever is killed at whatever instruction, a number is counted once. Readers hold the directory's lock in
common, the one who folds alone.
"""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import orjson

from tidegate.telemetry.metrics.cells import SUFFIX, Sums, add_up, packed

DIRECTORY = "metrics"
_ACCUMULATOR = "folded"
_LOCK = "lock"
_READ_WITHIN_S = 2.0
_LOOK_S = 0.002


class Busy(Exception):
    """The directory's lock was not to be had in time."""


@dataclass(slots=True)
class _Folded:
    """The accumulator. `holds` are names of files that are in `sums` and may still be there."""

    holds: frozenset[str] = frozenset()
    sums: Sums = field(default_factory=dict)

    @classmethod
    def read(cls, directory: Path) -> "_Folded":
        try:
            text = (directory / _ACCUMULATOR).read_bytes()
        except FileNotFoundError:
            return cls()
        head, _, body = text.partition(b"\n")
        folded = cls(frozenset(orjson.loads(head)))
        if body:
            add_up(folded.sums, body, chunk_bytes=len(body))
        return folded

    def write(self, directory: Path) -> None:
        fresh = directory / f"{_ACCUMULATOR}.new"
        fresh.write_bytes(orjson.dumps(sorted(self.holds)) + b"\n" + packed(self.sums))
        fresh.rename(directory / _ACCUMULATOR)


def start_empty(directory: Path) -> None:
    """Makes the directory and forgets what an earlier server counted: counters begin at 0 with a root.

    Raises `OSError`.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    # First: a reader of an earlier server's that still runs must not count a file twice.
    (directory / _ACCUMULATOR).unlink(missing_ok=True)
    for path in directory.iterdir():
        if path.suffix in (SUFFIX, ".new"):
            path.unlink(missing_ok=True)


def read_sums(directory: Path) -> Sums:
    """Every series, over all processes. Raises `Busy`, `OSError` where the directory cannot be read, or
    `ValueError` where the accumulator is broken.
    """
    with _held(directory, fcntl.LOCK_SH, within_s=_READ_WITHIN_S):
        folded = _Folded.read(directory)
        for path in _files(directory):
            if path.name in folded.holds:
                continue
            try:
                with path.open("rb") as file:
                    is_alive = not _is_dead(file.fileno(), fcntl.LOCK_SH)
                    add_up(folded.sums, file.read(), is_alive=is_alive)
            except FileNotFoundError:
                continue
    return folded.sums


def fold(directory: Path) -> int:
    """Folds the files of dead processes. Returns how many; 0 also where the directory is being read.

    Raises `OSError`: nothing is lost, the next call does what was left.
    """
    try:
        with _held(directory, fcntl.LOCK_EX, within_s=0):
            return _fold(directory)
    except Busy:
        return 0


def _fold(directory: Path) -> int:
    folded = _Folded.read(directory)
    for name in folded.holds:
        # Left by a fold that was killed between its two steps.
        (directory / name).unlink(missing_ok=True)
    dead: list[Path] = []
    for path in _files(directory):
        with path.open("rb") as file:
            if _is_dead(file.fileno(), fcntl.LOCK_EX):
                add_up(folded.sums, file.read(), is_alive=False)
                dead.append(path)
    if not dead:
        return 0
    _Folded(frozenset(path.name for path in dead), folded.sums).write(directory)
    for path in dead:
        path.unlink()
    return len(dead)


def _files(directory: Path) -> list[Path]:
    return sorted(path for path in directory.iterdir() if path.suffix == SUFFIX)


def _is_dead(descriptor: int, lock: int) -> bool:
    """Whether nobody writes to this file any more: then its lock is free. It is let go with the descriptor."""
    try:
        fcntl.flock(descriptor, lock | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def _held(directory: Path, lock: int, *, within_s: float) -> Iterator[None]:
    descriptor = os.open(directory / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        deadline = time.monotonic() + within_s
        while True:
            try:
                fcntl.flock(descriptor, lock | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise Busy(f"{directory} is locked by another process") from None
                time.sleep(_LOOK_S)
        yield
    finally:
        os.close(descriptor)

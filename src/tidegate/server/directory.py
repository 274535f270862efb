"""The data directory, as the root holds it: made with mode 0700, written to as a trial, one root at a time.

Two roots in one directory would share the sockets of the local model. The lock is the root's and leaves with it, also
after `kill -9`; the file keeps the pid of a root that did not end by itself.
"""

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tidegate.server.refusal import StartRefused

_LOCK = "root.lock"


@contextmanager
def hold(directory: Path) -> Iterator[bool]:
    """Holds the directory; yields whether its last root was killed, so that children of it may still be ending.

    Raises `StartRefused` where it cannot be made or written, or another root holds it.
    """
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
        lock = os.open(directory / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StartRefused(
            f"TIDEGATE_DATA_DIR: {directory} cannot be written ({error.strerror}); make it writable or name"
            " another: tidegate serve --data-dir DIR"
        ) from None
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(lock, 32).decode("ascii", "replace").strip()
            raise StartRefused(
                f"TIDEGATE_DATA_DIR: {directory} is held by another tidegate serve (pid {holder or 'unknown'});"
                " stop it, or name another directory: tidegate serve --data-dir DIR"
            ) from None
        was_killed = bool(os.read(lock, 32).strip())
        os.pwrite(lock, f"{os.getpid():<16}\n".encode(), 0)
        try:
            yield was_killed
        finally:
            os.ftruncate(lock, 0)
    finally:
        os.close(lock)

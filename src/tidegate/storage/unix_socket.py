"""Unix sockets in the data directory, however long its path is.

A socket is bound under a name of its own and renamed into place: it replaces what a dead process left, and it is never
there without its mode 0600.
"""

import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# What `sun_path` holds beside its closing NUL: 108 bytes on Linux, 104 on macOS.
LONGEST_ADDRESS = 107 if sys.platform == "linux" else 103


@contextmanager
def short_address(path: Path) -> Iterator[str]:
    """An address of the Unix socket at `path` that the kernel takes: through an open directory where the path is long.

    Raises `OSError` where there is none, with a `strerror` that says so.
    """
    if len(os.fsencode(path)) <= LONGEST_ADDRESS:
        yield str(path)
        return
    if sys.platform != "linux":
        raise OSError(0, f"the path is longer than the {LONGEST_ADDRESS} bytes of a socket's address")
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)


def bind_at(path: Path, *, backlog: int) -> socket.socket:
    """A listening socket at `path`, in the place of what was there. Raises `OSError`."""
    listener = socket.socket(socket.AF_UNIX)
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        temporary.unlink(missing_ok=True)
        with short_address(temporary) as address:
            listener.bind(address)
        temporary.chmod(0o600)
        listener.listen(backlog)
        temporary.replace(path)
    except BaseException:
        listener.close()
        raise
    return listener

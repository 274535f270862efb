"""How a child learns that its parent is gone, whatever ended it.

A child's standard input is the reading end of a pipe whose writing end only the parent holds: its end is the parent's.
Nothing is ever written to it. Standard input that is no pipe (a terminal, /dev/null) tells nothing and is not watched.
"""

import asyncio
import os
import select
import signal
import stat
import threading
from collections.abc import Callable

STANDARD_INPUT = 0


def is_lifeline(descriptor: int = STANDARD_INPUT) -> bool:
    try:
        mode = os.fstat(descriptor).st_mode
    except OSError:
        return False
    return stat.S_ISFIFO(mode)


def has_ended(descriptor: int = STANDARD_INPUT) -> bool:
    """Whether the parent is gone. Never waits."""
    if not is_lifeline(descriptor):
        return False
    poll = select.poll()
    poll.register(descriptor, select.POLLIN | select.POLLHUP)
    return bool(poll.poll(0)) and _is_closed(descriptor)


def watch(on_end: Callable[[], None], descriptor: int = STANDARD_INPUT) -> None:
    """Calls `on_end` once in the running event loop when the parent is gone."""
    if not is_lifeline(descriptor):
        return
    loop = asyncio.get_running_loop()

    def look() -> None:
        if _is_closed(descriptor):
            loop.remove_reader(descriptor)
            on_end()

    loop.add_reader(descriptor, look)


def watch_in_thread(on_end: Callable[[], None], descriptor: int = STANDARD_INPUT) -> None:
    """The same for a process that runs no event loop: `on_end` is called in a thread of its own."""

    def wait() -> None:
        while not _is_closed(descriptor):
            pass
        on_end()

    if is_lifeline(descriptor):
        threading.Thread(target=wait, name="lifeline", daemon=True).start()


def terminate_self() -> None:
    """Ends this process as a SIGTERM from its parent would."""
    os.kill(os.getpid(), signal.SIGTERM)


def _is_closed(descriptor: int) -> bool:
    """Reads on; waits where nothing can be read yet."""
    return not os.read(descriptor, 1024)

"""The threads of the SQLite driver. One whose file could not be opened ends by itself, and tells its loop so."""

import threading

from tests.support.waiting import eventually


async def no_sqlite_threads() -> None:
    """Waits until none runs: a loop that is closed before would make the last word of one an error."""
    await eventually(lambda: not [t for t in threading.enumerate() if "_connection_worker_thread" in t.name])

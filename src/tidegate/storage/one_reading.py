"""Reading files beside the loop, by one thread at most, of its own: a volume may hang, and the threads that all share
are few. The journal needs those. Nor does the end of the process wait for this one.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import Future
from threading import Thread
from typing import Generic, TypeVar

T = TypeVar("T")


class OneReading(Generic[T]):
    """Whoever asks while a reading is under way waits for that one; whoever leaves ends it for nobody.

    >>> reading = OneReading(path.read_text)
    >>> await reading.within(2.0)
    """

    def __init__(self, read: Callable[[], T]) -> None:
        self._read = read
        self._under_way: Future[T] | None = None

    async def within(self, seconds: float) -> T:
        """Raises `TimeoutError` after so long, and what `read` raises."""
        under_way = self._under_way
        if under_way is None or under_way.done():
            under_way = Future()
            # From here on nobody can cancel it.
            under_way.set_running_or_notify_cancel()
            Thread(target=self._fill, args=(under_way,), name="reading a file", daemon=True).start()
            self._under_way = under_way
        async with asyncio.timeout(seconds):
            return await asyncio.wrap_future(under_way)

    def _fill(self, under_way: "Future[T]") -> None:
        try:
            under_way.set_result(self._read())
        except Exception as failure:  # noqa: BLE001 - whatever it is, it is for who asked
            under_way.set_exception(failure)

"""Reading files beside the loop, by one thread at most: a volume may hang, and threads are few, which others need."""

import asyncio
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class OneReading(Generic[T]):
    """Whoever asks while a reading is under way waits for that one; whoever leaves ends it for nobody.

    >>> reading = OneReading(path.read_text)
    >>> await reading.within(2.0)
    """

    def __init__(self, read: Callable[[], T]) -> None:
        self._read = read
        self._under_way: asyncio.Task[T] | None = None

    async def within(self, seconds: float) -> T:
        """Raises `TimeoutError` after so long, and what `read` raises."""
        if self._under_way is None or self._under_way.done():
            self._under_way = asyncio.create_task(asyncio.to_thread(self._read))
            # Where nobody waits any more its failure is nobody's.
            self._under_way.add_done_callback(lambda done: done.cancelled() or done.exception())
        async with asyncio.timeout(seconds):
            return await asyncio.shield(self._under_way)

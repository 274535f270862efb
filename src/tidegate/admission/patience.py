"""A deadline that counts only the time in which the loop ran.

A worker that was busy for longer than a store's deadline has not asked a slow store: its answer lies in the socket,
unread. So the time is counted in parts, each of which takes a turn of the loop, in which what came is read.
"""

import asyncio
from types import TracebackType
from typing import Self

_PARTS = 5


class Patience:
    """Raises `TimeoutError` in its block after `within_s`, as `asyncio.timeout` does. It is entered once.

    >>> with Patience(0.05):
    ...     reply = await store.take(tag, worker, asked)
    """

    __slots__ = ("_cancelling", "_is_over", "_left", "_part_s", "_task", "_timer")

    def __init__(self, within_s: float) -> None:
        self._part_s = within_s / _PARTS
        self._left = _PARTS
        self._is_over = False

    def __enter__(self) -> Self:
        task = asyncio.current_task()
        assert task is not None, "a deadline is a task's"
        self._task = task
        self._cancelling = task.cancelling()
        self._timer = asyncio.get_running_loop().call_later(self._part_s, self._part_passed)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._timer.cancel()
        if not self._is_over:
            return
        is_ours = self._task.uncancel() <= self._cancelling
        if is_ours and kind is not None and issubclass(kind, asyncio.CancelledError):
            raise TimeoutError from error

    def _part_passed(self) -> None:
        self._left -= 1
        if self._left:
            self._timer = asyncio.get_running_loop().call_later(self._part_s, self._part_passed)
        else:
            self._is_over = True
            self._task.cancel()

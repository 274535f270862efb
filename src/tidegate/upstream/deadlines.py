"""The deadlines of one attempt: each phase has its own, and its own error.

One cancel scope, one timer. Setting the next phase's deadline costs an assignment: the timer is moved only where it
would be late, and looks again when it fires. Time that is spent on a slow reader is nobody's deadline but `total_s`.
"""

import asyncio
from types import TracebackType
from typing import Literal, Self

import anyio

from tidegate.errors import RequestTimeout, UpstreamTimeout

Phase = Literal["headers", "first_token", "idle", "total"]


class Deadlines:
    """Bounds the body of a `with` block. Where it cuts it short, it leaves by `UpstreamTimeout` with the phase.

    `total_s` may be less than the upstream's own, where the caller set a deadline (`is_callers`): that is nobody's
    fault, and leaves by `RequestTimeout`.

    >>> with Deadlines("openai", total_s=600) as deadlines:
    ...     deadlines.expect("headers", 60)
    """

    def __init__(self, upstream: str, *, total_s: float, is_callers: bool = False) -> None:
        self._upstream = upstream
        self._total_s = total_s
        self._is_callers = is_callers
        self._loop = asyncio.get_running_loop()
        self._total_at = self._loop.time() + total_s
        self._phase: Phase = "total"
        self._seconds = total_s
        self._due = self._total_at
        self._scope = anyio.CancelScope()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._missed: tuple[Phase, float] | None = None

    def expect(self, phase: Phase, seconds: float) -> None:
        """From now, `phase` has so many seconds."""
        due = self._loop.time() + seconds
        if due < self._total_at:
            self._phase, self._seconds, self._due = phase, seconds, due
        else:
            self.relax()
            due = self._total_at
        if due < self._timer_at:
            self._arm(due)

    def relax(self) -> None:
        """From now, only the total bounds."""
        self._phase, self._seconds, self._due = "total", self._total_s, self._total_at

    def end(self) -> None:
        """From now, nothing is waited for."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def __enter__(self) -> Self:
        self._scope.__enter__()
        self._arm(self._due)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        self.end()
        swallowed = self._scope.__exit__(kind, error, trace)
        # Only what it cut short was too late: work that was done when the timer fired, as in closing, is done.
        if self._missed is not None and self._scope.cancelled_caught:
            phase, seconds = self._missed
            if phase == "total" and self._is_callers:
                raise RequestTimeout("The deadline that X-Tidegate-Deadline-Ms set has passed.") from None
            raise UpstreamTimeout(phase, seconds, upstream=self._upstream) from None
        return swallowed

    def _arm(self, at: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = at
        self._timer = self._loop.call_at(at, self._look)

    def _look(self) -> None:
        if self._loop.time() < self._due:
            self._arm(self._due)
            return
        self._timer = None
        self._missed = (self._phase, self._seconds)
        self._scope.cancel()

"""A breaker for each upstream: after failures in a row of time it is passed by for a while.

It only orders: where every attempt of a plan is behind an open breaker, they are tried all the same, since a refusal
without a try would be ours alone. It is open for `open_s`; a success closes it sooner.
"""

import time
from collections import deque
from collections.abc import Callable

from tidegate.routing.catalogue import BreakerSettings


class Breaker:
    """Counts failures of one upstream in this process. None as settings: it is off and never opens."""

    def __init__(self, settings: BreakerSettings | None, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings = settings
        self._clock = clock
        self._failures: deque[float] = deque(maxlen=settings.failures if settings else 1)
        self._open_until = 0.0

    @property
    def is_open(self) -> bool:
        return self._clock() < self._open_until

    def failed(self) -> None:
        """The upstream failed before its first content."""
        if self._settings is None:
            return
        now = self._clock()
        self._failures.append(now)
        if len(self._failures) == self._settings.failures and now - self._failures[0] <= self._settings.window_s:
            self._open_until = now + self._settings.open_s

    def succeeded(self) -> None:
        if self._failures:
            self._failures.clear()
            self._open_until = 0.0

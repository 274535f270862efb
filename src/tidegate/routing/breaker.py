"""A breaker for each upstream: after failures in a row of time it is passed by for a while.

It only orders: where every attempt of a plan is behind an open breaker, they are tried all the same, since a refusal
without a try would be ours alone. It is open for `open_s`; a success closes it sooner.
"""

import time
from collections import deque
from collections.abc import Callable
from typing import Literal

from tidegate.routing.catalogue import BreakerSettings


class Breaker:
    """Counts failures of one upstream in this process. None as settings: it is off and never opens."""

    def __init__(self, settings: BreakerSettings | None, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings = settings
        self._clock = clock
        self._failures: deque[float] = deque(maxlen=settings.failures if settings else 1)
        self._open_until = 0.0
        self._changed_at: float | None = None

    @property
    def is_open(self) -> bool:
        return self._clock() < self._open_until

    @property
    def state(self) -> Literal["closed", "open", "off"]:
        if self._settings is None:
            return "off"
        return "open" if self.is_open else "closed"

    @property
    def in_state_for_s(self) -> float | None:
        """For how long it is in this state; None where it was never in another."""
        if self._changed_at is None:
            return None
        # It closes by itself when its time is over.
        closed_at = self._open_until if self._changed_at <= self._open_until <= self._clock() else self._changed_at
        return self._clock() - closed_at

    def failed(self) -> None:
        """The upstream failed, before its first content or after it."""
        if self._settings is None:
            return
        now = self._clock()
        self._failures.append(now)
        if len(self._failures) == self._settings.failures and now - self._failures[0] <= self._settings.window_s:
            if now >= self._open_until:
                self._changed_at = now
            self._open_until = now + self._settings.open_s

    def succeeded(self) -> None:
        if self._failures:
            self._failures.clear()
            now = self._clock()
            if self._open_until:
                self._changed_at = min(now, self._open_until)
            self._open_until = 0.0

"""Asking Redis for what may be missing: a short bound, a breaker behind it, and never an error.

A Redis that is slow or gone costs one caller the bound, and is then passed by for `retry_s`: the others pay nothing.
The first who asks after that tries again. Each change of state is one line of the log.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

from redis.exceptions import RedisError

from tidegate.telemetry.logging import get_logger

WITHIN_S: Final = 0.05
RETRY_S: Final = 1.0
_LOST: Final = (RedisError, OSError, TimeoutError)

log = get_logger(__name__)


class BoundedRedis:
    """One user's way to Redis. `purpose` stands in the log; the clock is monotonic, in seconds.

    >>> bounded = BoundedRedis("cached answers")
    >>> value = await bounded.ask(lambda: redis.get(name))
    """

    def __init__(
        self,
        purpose: str,
        *,
        within_s: float = WITHIN_S,
        retry_s: float = RETRY_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._purpose = purpose
        self._within_s = within_s
        self._retry_s = retry_s
        self._clock = clock
        self._answers = True
        self._retry_at = 0.0

    async def ask(self, asking: Callable[[], Awaitable[Any]]) -> Any:
        """What Redis answers within the bound; None where it does not, or is passed by. Raises nothing of Redis'."""
        now = self._clock()
        if now < self._retry_at:
            return None
        if not self._answers:
            # This caller tries; until it knows, the others pass Redis by.
            self._retry_at = now + self._within_s + self._retry_s
        try:
            async with asyncio.timeout(self._within_s):
                answer = await asking()
        except _LOST as error:
            self._retry_at = self._clock() + self._retry_s
            if self._answers:
                self._answers = False
                log.warning("redis_passed_by", purpose=self._purpose, error=type(error).__name__)
            return None
        if not self._answers:
            self._answers = True
            self._retry_at = 0.0
            log.warning("redis_answers_again", purpose=self._purpose)
        return answer

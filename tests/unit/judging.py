"""Judges of credentials that do as they are told, and a cache of what they said on a clock that a test moves."""

import asyncio
import uuid
from collections.abc import Callable

from tidegate.auth.principal import Principal
from tidegate.auth.principal_cache import CacheBounds, PrincipalCache

A, B = b"a" * 32, b"b" * 32
LONG_S = 30.0


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


class Heard:
    """Vouches for what was read since `unbroken_since`, up to `confirmed_at`."""

    def __init__(self) -> None:
        self.unbroken_since = 0.0
        self.confirmed_at = 0.0

    def vouched_until(self, read_at: float) -> float:
        return max(read_at, self.confirmed_at) if read_at >= self.unbroken_since else read_at


class Judge:
    """A judge that says what it is told to, and may be held up."""

    def __init__(self) -> None:
        self.key_id = uuid.uuid4()
        self.user_id = uuid.uuid4()
        self.calls = 0
        self.ended = 0
        self.workspace_id = uuid.uuid4()
        self.error: Exception | None = None
        self.gate = asyncio.Event()
        self.gate.set()

    async def __call__(self) -> Principal:
        self.calls += 1
        try:
            await self.gate.wait()
        finally:
            self.ended += 1
        if self.error is not None:
            raise self.error
        return Principal(workspace_id=self.workspace_id, key_id=self.key_id, user_id=self.user_id)


def a_cache(
    clock: Callable[[], float], bounds: CacheBounds | None = None, heard: Heard | None = None
) -> PrincipalCache:
    """Its judges may be held up: a busy machine's clock gives none of them up."""
    return PrincipalCache(bounds or CacheBounds(answer_s=LONG_S), clock, heard)

"""Waiting for a condition, with a bound. The tests' only way to wait: none sleeps and hopes.

A bound is generous, because a busy machine is no failure; it is there so that a broken program fails instead of
hanging.
"""

import asyncio
import inspect
import time
from collections.abc import Callable, Coroutine
from typing import TypeVar, overload

T = TypeVar("T")
POLL_S = 0.005


class NeverHappened(AssertionError):
    """The condition did not become true within its bound."""


@overload
async def eventually(
    condition: Callable[[], Coroutine[object, object, T]],
    *,
    within_s: float = ...,
    what: str = ...,
    poll_s: float = ...,
) -> T: ...


@overload
async def eventually(
    condition: Callable[[], T], *, within_s: float = ..., what: str = ..., poll_s: float = ...
) -> T: ...


async def eventually(
    condition: Callable[[], object], *, within_s: float = 10.0, what: str = "", poll_s: float = POLL_S
) -> object:
    """Returns the first truthy value of `condition`, which may be a plain function or a coroutine function.

    Raises `NeverHappened` once `within_s` have passed; it is asked one last time after that.

    >>> await eventually(lambda: upstream.requests, within_s=2)
    """
    deadline = time.monotonic() + within_s
    while True:
        late = time.monotonic() >= deadline
        value = condition()
        outcome = await value if inspect.isawaitable(value) else value
        if outcome:
            return outcome
        if late:
            raise NeverHappened(f"{what or _name_of(condition)} was not so within {within_s:g} s; last: {outcome!r}")
        await asyncio.sleep(poll_s)


def eventually_sync(condition: Callable[[], T], *, within_s: float = 10.0, what: str = "", poll_s: float = POLL_S) -> T:
    """`eventually` for what has no event loop: fixtures and programs."""
    deadline = time.monotonic() + within_s
    while True:
        late = time.monotonic() >= deadline
        outcome = condition()
        if outcome:
            return outcome
        if late:
            raise NeverHappened(f"{what or _name_of(condition)} was not so within {within_s:g} s; last: {outcome!r}")
        time.sleep(poll_s)


def _name_of(condition: Callable[[], object]) -> str:
    try:
        return inspect.getsource(condition).strip()
    except (OSError, TypeError):
        return getattr(condition, "__name__", "the condition")

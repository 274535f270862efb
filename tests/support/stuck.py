"""What ends a test that nothing else ends, so that a run always comes to its end, and names it.

A coroutine is cancelled within its loop: its fixtures are taken down, and the run goes on. pytest-timeout, which is a
little later, raises out of the loop and leaves the coroutine in anyio's one task, behind which every later fixture
would wait for ever. That is for tests that are no coroutines. Where the main thread does not run Python, or the
clean-up does not end, neither does anything: so the interpreter itself watches, without its lock, prints the stacks of
all threads and ends the process.
"""

import asyncio
import faulthandler
import functools
import inspect
import os
from collections.abc import Callable, Coroutine, Generator
from typing import Any

import pytest

# Before pytest-timeout's, and how long a test may clean up after that.
_BEFORE_S, _MORE_S = 15, 150
Test = Callable[..., Coroutine[Any, Any, None]]
_stderr = pytest.StashKey[int]()


def pytest_configure(config: pytest.Config) -> None:
    # A copy: while a test runs, pytest keeps for itself what is written to 2.
    config.stash[_stderr] = os.dup(2)


def pytest_unconfigure(config: pytest.Config) -> None:
    faulthandler.cancel_dump_traceback_later()
    os.close(config.stash[_stderr])


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    _watch(item)
    return (yield)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, object, object]:
    if inspect.iscoroutinefunction(pyfuncitem.obj):
        pyfuncitem.obj = _ending(pyfuncitem.obj, _bound_s(pyfuncitem) - _BEFORE_S)
    return (yield)


# pytest's own plugin stops the watch here, before the clean-up of a test that failed.
@pytest.hookimpl(trylast=True)
def pytest_exception_interact(node: pytest.Item | pytest.Collector) -> None:
    if isinstance(node, pytest.Item):
        _watch(node)


def _watch(item: pytest.Item) -> None:
    # Not ended with the test: between two of them, and after the last, a run can stand still as well.
    faulthandler.dump_traceback_later(_bound_s(item) + _MORE_S, exit=True, file=item.config.stash[_stderr])


def _bound_s(item: pytest.Item) -> float:
    """As pytest-timeout finds it: the test's own, else the command's, else the project's."""
    marker = item.get_closest_marker("timeout")
    return float(marker.args[0] if marker else item.config.getoption("timeout") or item.config.getini("timeout"))


def _ending(test: Test, within_s: float) -> Test:
    @functools.wraps(test)
    async def bounded(*args: Any, **kwargs: Any) -> None:
        async with asyncio.timeout(within_s):
            await test(*args, **kwargs)

    return bounded

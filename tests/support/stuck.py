"""What ends a test that nothing else ends, with the stacks of all threads, so that a run always comes to its end.

pytest-timeout raises in the main thread and once: where that thread does not run Python, or the clean-up afterwards
waits for ever, the run would stand until somebody kills it, and name nothing. So the interpreter itself watches,
without its lock. Under xdist the worker that ended is replaced, and its test reported as the one that crashed it.
"""

import faulthandler
import os
from collections.abc import Generator

import pytest

# The test's own bound is pytest-timeout's; this long it may clean up after that.
_MORE_S = 150
_stderr = pytest.StashKey[int]()


@pytest.hookimpl(trylast=True)
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


# pytest's own plugin stops the watch here, before the clean-up of a test that failed.
@pytest.hookimpl(trylast=True)
def pytest_exception_interact(node: pytest.Item | pytest.Collector) -> None:
    if isinstance(node, pytest.Item):
        _watch(node)


def _watch(item: pytest.Item) -> None:
    # Not ended with the test: between two of them, and after the last, a run can stand still as well.
    marker = item.get_closest_marker("timeout")
    bound_s = float(marker.args[0] if marker else item.config.getini("timeout"))
    faulthandler.dump_traceback_later(bound_s + _MORE_S, exit=True, file=item.config.stash[_stderr])

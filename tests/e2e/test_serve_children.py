"""The root's hold on a child: its session, its lifeline, and its end with all that it started."""

import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest

from tests.support.waiting import eventually
from tidegate.server.children import Child, describe_exit

# Says on a file that it runs, then waits.
_WAITING = "import pathlib, sys, time; pathlib.Path(sys.argv[1]).touch(); time.sleep(3600)"
_STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + _WAITING
_UNTIL_ALONE = "import pathlib, sys; pathlib.Path(sys.argv[1]).touch(); sys.stdin.read()"
# Starts a stubborn child of its own, and ends.
_ABANDONING = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {_STUBBORN!r}, sys.argv[1]])"


@asynccontextmanager
async def child(program: str, flag: Path) -> AsyncIterator[Child]:
    started = await Child.start([sys.executable, "-c", program, str(flag)])
    try:
        await eventually(flag.exists, within_s=30)
        yield started
    finally:
        started.kill()
        await started.wait()


async def test_a_child_leads_a_session_of_its_own(tmp_path: Path) -> None:
    async with child(_WAITING, tmp_path / "runs") as running:
        assert os.getsid(running.pid) == os.getpgid(running.pid) == running.pid
        assert await running.stop(30)
        running.release()


async def test_a_child_that_does_not_end_in_time_is_killed(tmp_path: Path) -> None:
    async with child(_STUBBORN, tmp_path / "runs") as running:
        assert not await running.stop(0.3)
        assert await running.wait() == -signal.SIGKILL
        running.release()


async def test_what_a_child_left_behind_is_ended_with_it(tmp_path: Path) -> None:
    async with child(_ABANDONING, tmp_path / "runs") as running:
        await running.wait()
        (orphan,) = [process for process in psutil.process_iter(["cmdline"]) if str(tmp_path) in _words(process)]
        assert not await running.stop(0.3)
        await eventually(lambda: not orphan.is_running() or orphan.status() == psutil.STATUS_ZOMBIE)
        running.release()


def _words(process: psutil.Process) -> str:
    return " ".join(process.info["cmdline"] or [])


async def test_the_lifeline_ends_when_the_root_lets_go(tmp_path: Path) -> None:
    async with child(_UNTIL_ALONE, tmp_path / "runs") as running:
        running.release()
        assert await running.wait() == 0


@pytest.mark.parametrize(
    ("code", "words"), [(0, "exit code 0"), (78, "exit code 78"), (-9, "SIGKILL"), (-200, "signal 200")]
)
def test_an_exit_is_told_in_words(code: int, words: str) -> None:
    assert describe_exit(code) == words

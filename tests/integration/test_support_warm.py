"""A program that starts warm is started as a cold one is: alone, with what it was given, and its end is told."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.waiting import eventually_sync
from tests.support.warm import ROOT, Warm, warm_start

_SAMPLE = "tests.support.warm_sample"
_ENVIRONMENT = {"WARM_ONE": "1", "PATH": os.defpath, "PYTHONPATH": str(ROOT)}


def _cold(folder: Path, how: str) -> tuple[int, dict[str, Any], str]:
    command = [sys.executable, "-m", _SAMPLE, how]
    done = subprocess.run(
        command,
        cwd=folder,
        env=_ENVIRONMENT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        start_new_session=True,
        check=False,
    )
    return done.returncode, json.loads(done.stdout), done.stderr


def _started(folder: Path, how: str) -> Warm:
    with (folder / "out").open("ab") as out, (folder / "err").open("ab") as err:
        return warm_start(_SAMPLE, [how], cwd=folder, env=_ENVIRONMENT, stdout=out, stderr=err)


@pytest.mark.parametrize(("how", "code"), [("rightly", 0), ("badly", 1), ("raising", 1)])
def test_a_warm_program_is_and_ends_as_a_cold_one(tmp_path: Path, how: str, code: int) -> None:
    cold_code, cold, cold_errors = _cold(tmp_path, how)
    running = _started(tmp_path, how)
    assert running.wait(30) == running.poll() == cold_code == code
    assert json.loads((tmp_path / "out").read_text()) == cold
    assert cold["descriptors"] == [0, 1, 2]
    errors = (tmp_path / "err").read_text()
    assert errors.splitlines()[-1:] == cold_errors.splitlines()[-1:]
    running.send_signal(signal.SIGKILL)


def test_a_signal_that_ended_it_is_told(tmp_path: Path) -> None:
    running = _started(tmp_path, "never")
    assert running.poll() is None
    eventually_sync((tmp_path / "out").read_text, within_s=30)
    running.send_signal(signal.SIGTERM)
    assert running.wait(30) == -signal.SIGTERM


def test_whoever_waits_too_short_is_told(tmp_path: Path) -> None:
    running = _started(tmp_path, "never")
    with pytest.raises(TimeoutError):
        running.wait(0.05)
    running.send_signal(signal.SIGKILL)
    assert running.wait(30) == -signal.SIGKILL

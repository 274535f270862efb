"""Kills a fold at every line that it runs, one after the other, and asserts that no number is lost or doubled.

Run as `python -m tests.unit.fold_killer DIRECTORY`, a process that has no threads: each fold is a fork of it, which
sends itself SIGKILL. Prints how many lines there were.
"""

import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any

from tidegate.telemetry.metrics import cells, folding
from tidegate.telemetry.metrics.cells import SUFFIX, CellFile
from tidegate.telemetry.metrics.folding import fold, read_sums, start_empty

KEY = b'c["count"]'
_FILES = (folding.__file__, cells.__file__)


def main(root: Path) -> None:
    n = 1
    while was_killed(root / str(n), at_line=n):
        n += 1
    print(n - 1)  # noqa: T201 - what it is run for


def was_killed(directory: Path, *, at_line: int) -> bool:
    """Whether the fold was; False where it ended before that line."""
    start_empty(directory)
    for amount in (1, 2, 4):
        worker = counted(directory, amount)
        worker.close()
        if amount == 1:
            fold(directory)
    living = counted(directory, 8)
    pid = os.fork()
    if pid == 0:
        sys.settrace(killer(at_line))
        fold(directory)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code in (0, -signal.SIGKILL), f"line {at_line}: {code}"
    assert total(directory) == 15, f"line {at_line}: {total(directory)} after the kill"
    living.close()
    for _ in range(2):
        fold(directory)
        assert total(directory) == 15, f"line {at_line}: {total(directory)} after the next fold"
    assert [path for path in directory.iterdir() if path.suffix == SUFFIX] == [], f"line {at_line}"
    return code != 0


def counted(directory: Path, amount: int) -> CellFile:
    file = CellFile.create(directory)
    view, at = file.cells(KEY, 1)
    view[at] += amount
    return file


def total(directory: Path) -> float:
    return read_sums(directory)[KEY, 1][0]


def killer(at_line: int) -> Any:
    ran = 0

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal ran
        if frame.f_code.co_filename not in _FILES:
            return None
        ran += event == "line"
        if ran == at_line:
            os.kill(os.getpid(), signal.SIGKILL)
        return trace

    return trace


if __name__ == "__main__":
    main(Path(sys.argv[1]))

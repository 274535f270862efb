"""What stands in for the local model: a process that notes its start and then waits.

`python -m tests.support.serve_model DATA_DIR` is it. It imports little, since tests start many.
"""

import os
import signal
import sys
import time
from pathlib import Path
from typing import NoReturn

from setproctitle import setproctitle

from tidegate.server.lifeline import terminate_self, watch_in_thread

# An end takes its time, so that who does not wait for it is found out.
SETTLING_S = 0.3


def note(path: Path, line: str) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(line + "\n")


def _model(directory: Path) -> int:
    """Notes each start, then waits; where a file says so, ends at once with its code."""
    setproctitle("tidegate: model")
    note(directory / "model-starts", str(os.getpid()))
    code = directory / "model-code"
    if code.exists():
        sys.stderr.write("the model's wheels are missing\n")
        return int(code.read_text())
    if (directory / "model-notes-its-end").exists():
        signal.signal(signal.SIGTERM, lambda _number, _frame: _note_end(directory))
    watch_in_thread(terminate_self)
    while True:
        time.sleep(3600)


def _note_end(directory: Path) -> NoReturn:
    time.sleep(SETTLING_S)
    note(directory / "ends", "model ended")
    sys.exit(0)


if __name__ == "__main__":
    sys.exit(_model(Path(sys.argv[1])))

"""Runs one server for as long as its starter lives: `python -m tests.support.keeper USER PROGRAM ARGUMENT…`.

The starter holds the other end of the keeper's standard input. When that closes, however the starter ended (`kill -9`
included), the keeper ends the server, so that a killed test run leaves none behind. USER is whom the server runs as,
`-` for whoever started the keeper.
"""

import signal
import subprocess
import sys
import threading
from collections.abc import Sequence

GRACE_S = 5.0


def keep(user: str | None, command: Sequence[str]) -> int:
    """Runs `command` until it ends or standard input closes; SIGINT then, and SIGKILL after `GRACE_S`."""
    identity = {"user": user, "extra_groups": ()} if user else {}
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, **identity) as server:  # type: ignore[call-overload]
        threading.Thread(target=_end_with_standard_input, args=(server,), daemon=True).start()
        status: int = server.wait()
        return status


def _end_with_standard_input(server: subprocess.Popen[bytes]) -> None:
    while sys.stdin.buffer.read(4096):
        pass
    # To PostgreSQL SIGINT is the fast shutdown; SIGTERM would wait for its clients.
    server.send_signal(signal.SIGINT)
    try:
        server.wait(GRACE_S)
    except subprocess.TimeoutExpired:
        server.kill()


if __name__ == "__main__":
    sys.exit(keep(None if sys.argv[1] == "-" else sys.argv[1], sys.argv[2:]))

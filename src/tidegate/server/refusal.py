"""A start that is refused: each fault on a line of standard error, no traceback, exit code 1.

A child that refuses has said why when it ends with `EXIT_REFUSED`: its parent adds nothing, and a restart would not
help. In production each line is a JSON object.
"""

import os
import sys
from collections.abc import Iterable
from datetime import UTC, datetime

import orjson

from tidegate.telemetry.redaction import redact

EXIT_REFUSED = os.EX_CONFIG


class StartRefused(Exception):
    """The server cannot start. `faults` holds one line each, saying what to do; empty where it was said already."""

    def __init__(self, *faults: str) -> None:
        super().__init__("\n".join(faults))
        self.faults = faults


def print_faults(faults: Iterable[str], *, as_json: bool) -> None:
    for fault in faults:
        line = redact("; ".join(fault.splitlines()))
        sys.stderr.write((_as_json(line) if as_json else line) + "\n")
    sys.stderr.flush()


def _as_json(line: str) -> str:
    now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    fields = {"ts": now, "level": "error", "event": line, "logger": "tidegate.server", "pid": os.getpid()}
    return orjson.dumps(fields).decode()

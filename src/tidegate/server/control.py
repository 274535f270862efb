"""The control socket: `<data dir>/control.sock`, by which a root, its workers and the commands speak.

One JSON object a line, both ways. Whoever connects sends one ask. To `attach` there is no answer: from then on the line
is a worker's, and it is the root that asks (`{"id", "ask", …}`), one line after the other. Every other ask has one
answer, after which the root closes. An answer holds `done`, or `faults` as people read them.

| ask | of | |
|---|---|---|
| `reload` | a command | `by` is the system user's name |
| `report` | a command | the root, and every worker |
| `facts` | a command | the same, and what is so in every worker; `request_id` finds its entries |
| `catalogue` | a worker that starts | `generation`; the source in force and its `serial`, null where it has none |
| `attach` | a worker that serves | `pid`, `generation`, the `serial` that it serves by |
| `reload` | the root, of a worker | `source`, `serial` |
| `report` | the root, of a worker | |
| `facts` | the root, of a worker | `request_id`, or null |
| `record` | the root, of a worker | one event for the audit trail |
"""

import socket
import time
from pathlib import Path
from typing import Any

import orjson

from tidegate.storage.unix_socket import short_address

SOCKET_NAME = "control.sock"
# What a command or a worker may send to the root in one line, and what the root may send: a catalogue, or all reports.
LONGEST_TOLD = 256 * 1024
LONGEST_LINE = 16 * 1024 * 1024
# A catalogue's text in UTF-8. As JSON it may be twice as long.
LONGEST_CATALOGUE = 4 * 1024 * 1024

_PAUSE_S = 0.1

Message = dict[str, Any]


class NoRoot(Exception):
    """No server runs in this data directory, or its root does not answer. The text says what to do."""


def encode(message: Message) -> bytes:
    return orjson.dumps(message, default=str) + b"\n"


def decode(line: bytes) -> Message:
    """Raises `ValueError` for what is no line with an object, a line that broke off included."""
    message = orjson.loads(line) if line.endswith(b"\n") else None
    if not isinstance(message, dict):
        raise ValueError("not a line with a JSON object")  # noqa: TRY004 - of what was sent, not of a type in here
    return message


def ask_root(data_dir: Path, ask: Message, *, within_s: float) -> Message:
    """What the root of the server in this directory answers. Blocks. Raises `NoRoot`.

    >>> ask_root(settings.data_dir, {"ask": "report"}, within_s=10)["done"]["workers"]
    """
    path = data_dir.absolute() / SOCKET_NAME
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        try:
            line = _answer_to(path, encode(ask), max(0.1, deadline - time.monotonic()))
        except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError):
            raise NoRoot(
                f"No server runs in {data_dir}: start it (tidegate serve), or name its data directory (--data-dir)."
            ) from None
        except (ConnectionError, TimeoutError, BlockingIOError):
            line = b""
        except OSError as error:
            told = f"{path} cannot be used ({error.strerror or error}): run this as the user who runs the server."
            raise NoRoot(told) from None
        try:
            return decode(line)
        except ValueError:
            # So many ask at once that it took no more.
            time.sleep(_PAUSE_S)
    raise NoRoot(f"The server in {data_dir} did not answer within {within_s:g} s: look at its log.")


def _answer_to(path: Path, line: bytes, within_s: float) -> bytes:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(within_s)
        with short_address(path) as address:
            connection.connect(address)
        connection.sendall(line)
        with connection.makefile("rb") as lines:
            return lines.readline(LONGEST_LINE)

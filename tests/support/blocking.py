"""Under a test's gateway: calls that block the loop, and a loop that computes for too long, are written down.

Nothing is refused, so that no `except` of the gateway's can hide it and it runs as it would: what was found stands in
`blocked.jsonl` of the gateway's folder, and `GatewayProcess` fails the test with it. What may block is listed here,
each with its reason and its cost as measured; a call counts as one of those by any function of its stack.

    app = Guarded(create_app(settings, pool), Findings(Path("blocked.jsonl")))
"""

import contextlib
import os
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import orjson
from blockbuster import BlockBuster
from blockbuster.blockbuster import BlockBusterFunction
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tidegate.telemetry.loop_lag import INTERVAL_S, LoopLag

FILE = "blocked.jsonl"
# No request should ever wait this long for another's computing.
MOST_COMPUTING_S = 0.5
_DEEPEST_STACK = 80
_MOST_FINDINGS = 20
# What blocks too, and blockbuster does not know.
_MORE = (
    *("os.open", "os.fsync", "os.fdatasync", "os.waitpid", "fcntl.flock", "fcntl.lockf"),
    *("socket.getaddrinfo", "socket.gethostbyname", "subprocess.Popen.__init__"),
)


class Allowed(NamedTuple):
    """A function in which the loop's thread may block: the end of its file's path, its name, and why."""

    file: str
    function: str
    reason: str


ALLOWED = (
    Allowed("tidegate/telemetry/lines.py", "_drain", "asks first whether the pipe takes the batch: 5 µs a write"),
    Allowed("tidegate/ledger/journal.py", "_write", "nothing is accepted before the kernel has it: 5 µs a record"),
    Allowed("tidegate/ledger/journal.py", "_next_segment", "a file is made every 8 MiB of records: 30 µs"),
    Allowed("tidegate/ledger/journal.py", "remove", "a file of 8 MiB is unlinked every 8 MiB of records: 0.6 ms"),
    Allowed("tidegate/ledger/recovery.py", "_journals", "every 5 s a directory with an entry a worker: 0.1 ms"),
    Allowed("tidegate/ledger/recovery.py", "_locked", "every 5 s a worker's lock is tried, never waited for: 50 µs"),
    Allowed("tidegate/lifespan/sight.py", "_now", "every second, of /proc, which is memory: 0.3 ms"),
    Allowed("tidegate/dashboard/files.py", "_template", "once a page and process, then cached: 1.5 ms"),
    Allowed("tidegate/dashboard/files.py", "_assets", "once a process, then cached: 6 ms"),
    Allowed("fastapi/routing.py", "_extract_endpoint_context", "once an endpoint and process: 0.5 ms, the first 10 ms"),
    Allowed("pydantic/networks.py", "import_email_validator", "once a process, for the first e-mail address: 5 ms"),
    Allowed("asyncpg/connect_utils.py", "_parse_connect_arguments", "a connection looks for ~/.pgpass: 0.3 ms"),
)
_ALLOWED = [(allowed.file, (allowed.function,)) for allowed in ALLOWED]


class Findings:
    """What was found in one process, each once, as lines of a file that several processes may share."""

    def __init__(self, path: Path) -> None:
        self._path = path.resolve()
        self._seen: set[str] = set()

    def add(self, what: str, stack: str) -> None:
        if stack in self._seen or len(self._seen) >= _MOST_FINDINGS:
            return
        self._seen.add(stack)
        self._write({"pid": os.getpid(), "found": what, "stack": stack})

    def note_lag(self, worst_s: float) -> None:
        self._write({"pid": os.getpid(), "worst_lag_s": round(worst_s, 3)})

    def _write(self, line: dict[str, object]) -> None:
        descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(descriptor, orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE))
        finally:
            os.close(descriptor)


class Guarded:
    """An app that is watched from the end of its lifespan's start to the beginning of its end."""

    def __init__(self, app: ASGIApp, findings: Findings) -> None:
        self._app = app
        self._findings = findings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            await self._app(scope, receive, send)
            return
        with contextlib.ExitStack() as watching:

            async def receive_and_end() -> Message:
                message = await receive()
                if message["type"] == "lifespan.shutdown":
                    watching.close()
                return message

            async def send_and_begin(message: Message) -> None:
                await send(message)
                if message["type"] == "lifespan.startup.complete":
                    watching.enter_context(watched(self._findings))

            await self._app(scope, receive_and_end, send_and_begin)


@contextlib.contextmanager
def watched(findings: Findings) -> Iterator[None]:
    """Watches the running loop's thread."""
    ident = threading.get_ident()

    stacks = ["no stack was taken"]

    def judge(name: str, function: BlockBusterFunction) -> Callable[..., bool]:
        excused = function.can_block_predicate
        allowed = [*_ALLOWED, *function.can_block_functions]

        def may_block(*args: Any, **kwargs: Any) -> bool:
            if threading.get_ident() == ident and not excused(*args, **kwargs):
                # Of who called: this function and blockbuster's are in between.
                frame = sys._getframe(2)
                if not _is_allowed(frame, allowed):
                    stack = "".join(traceback.format_stack(frame)[-_DEEPEST_STACK:])
                    findings.add(f"{name} blocks the loop", stack.rstrip())
            return True

        return may_block

    with LoopLag().watching(stall_s=MOST_COMPUTING_S, told=lambda stall: stacks.append(stall.stack)) as lag:
        detector = _detector(judge)
        detector.activate()
        try:
            yield
        finally:
            detector.deactivate()
            # By CPU time: a machine that is busy elsewhere makes a loop late, and makes nobody compute longer.
            if lag.worst_cpu_s >= MOST_COMPUTING_S + INTERVAL_S:
                findings.add(f"the loop computed for {lag.worst_cpu_s:.1f} s", stacks[-1])
            findings.note_lag(lag.worst_ever_s)


def told(path: Path) -> list[str]:
    """What stands in a file of findings, for a person."""
    return [f"{line['found']} (process {line['pid']}):\n{line['stack']}" for line in _lines(path) if "found" in line]


def worst_lag_s(path: Path) -> float:
    """The worst lag of all processes that wrote into it, 0 where none ended by itself."""
    return max((line["worst_lag_s"] for line in _lines(path) if "worst_lag_s" in line), default=0.0)


def _lines(path: Path) -> list[dict[str, Any]]:
    return [orjson.loads(line) for line in path.read_bytes().splitlines()] if path.exists() else []


def _detector(judge: Callable[[str, BlockBusterFunction], Callable[..., bool]]) -> BlockBuster:
    detector = BlockBuster()
    for name in _MORE:
        detector.functions[name] = BlockBusterFunction(None, name)
    for name, function in detector.functions.items():
        # What blockbuster knows not to block is no finding either; the rest is judged here, and always goes through.
        function.can_block_predicate = judge(name, function)
    return detector


def _is_allowed(frame: FrameType | None, allowed: Sequence[tuple[str, Iterable[str]]]) -> bool:
    while frame is not None:
        code = frame.f_code
        if any(code.co_filename.endswith(file) and code.co_name in functions for file, functions in allowed):
            return True
        frame = frame.f_back
    return False

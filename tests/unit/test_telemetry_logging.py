"""Every line of a process is one JSON object with the same keys, and none holds a secret."""

import asyncio
import logging
import os
import pty
import re
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

import tidegate
from tidegate.telemetry.lines import LineWriter
from tidegate.telemetry.logging import (
    LineHandler,
    bound_entry_id,
    bound_request_id,
    get_logger,
    iso_now,
    line_handler,
    render,
)

CONFIGURE = """
import logging, sys, threading, warnings
from tidegate.settings import Settings
from tidegate.telemetry.logging import configure_logging, get_logger
configure_logging(Settings(environment={environment!r}, log_level="info"), process="worker")
"""
SECRET = "S3cretS3cretS3cret"


def run(program: str, *, environment: str = "production") -> tuple[list[dict[str, Any]], str]:
    """The lines that a program of its own wrote to stdout, and its stderr."""
    done = subprocess.run(
        [sys.executable, "-c", CONFIGURE.format(environment=environment) + program],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    return [orjson.loads(line) for line in done.stdout.splitlines()], done.stderr


def test_every_kind_of_line_is_one_object_with_the_same_first_keys() -> None:
    lines, stderr = run("""
logging.getLogger("some.library").warning("disk %d %% full", 91, extra={"disk": "sda"})
get_logger("tidegate.journal").info("adopted", entries=3)
logging.getLogger("uvicorn.error").info("Started", extra={"color_message": "x"})
logging.getLogger("gunicorn.error").error("Worker died")
warnings.warn("old API")
logging.getLogger("httpx2").info("HTTP Request: POST …")
logging.getLogger("some.library").debug("not at this level")
get_logger("tidegate.journal").debug("nor this")
""")
    assert stderr == ""
    assert [list(line)[:6] for line in lines] == [["ts", "level", "event", "logger", "process", "pid"]] * 5
    assert [(line["level"], line["logger"], line["event"]) for line in lines[:4]] == [
        ("warning", "some.library", "disk 91 % full"),
        ("info", "tidegate.journal", "adopted"),
        ("info", "uvicorn.error", "Started"),
        ("error", "gunicorn.error", "Worker died"),
    ]
    assert lines[0]["disk"] == "sda"
    assert lines[1]["entries"] == 3
    assert "color_message" not in lines[2]
    assert "old API" in lines[4]["event"]
    assert {line["process"] for line in lines} == {"worker"}


def test_last_words_of_a_program_and_a_thread_are_lines_too() -> None:
    lines, stderr = run("""
thread = threading.Thread(target=lambda: 1 / 0, name="t")
thread.start(); thread.join()
class Unraisable:
    def __del__(self): raise LookupError("in a finalizer")
u = Unraisable(); del u
def fail(password): raise ValueError("no way: postgresql://a:S3cretS3cretS3cret@h/x")
fail("local-secret-value")
""")
    assert stderr == ""
    assert [line["exception"].splitlines()[-1] for line in lines] == [
        "ZeroDivisionError: division by zero",
        "LookupError: in a finalizer",
        "ValueError: no way: postgresql://a:[redacted]@h/x",
    ]
    assert lines[-1]["level"] == "critical"
    assert SECRET not in str(lines)


def test_gunicorns_own_logger_writes_the_same_lines_once() -> None:
    lines, stderr = run("""
from gunicorn.config import Config
from tidegate.telemetry.gunicorn_logger import GunicornLogger
cfg = Config(); cfg.set("accesslog", "-"); cfg.set("loglevel", "debug")
logger = GunicornLogger(cfg)
logger.setup(cfg)
logger.info("Listening at: %s", "http://127.0.0.1:8000")
logger.debug("not at this level")
logger.exception("failed")
logger.reopen_files(); logger.close_on_exec()
uvicorn = logging.getLogger("uvicorn.error")
uvicorn.handlers, uvicorn.propagate = logger.error_log.handlers, False
uvicorn.info("in a worker")
configure_logging(Settings(environment="production"), process="arbiter")
uvicorn.info("configured again")
""")
    assert stderr == ""
    assert [line["event"] for line in lines] == [
        "Listening at: http://127.0.0.1:8000",
        "failed",
        "in a worker",
        "configured again",
    ]
    assert [line["process"] for line in lines] == ["worker"] * 3 + ["arbiter"]


GREET = "get_logger('t').info('hello', password='hunter2')"


def at_terminal(environment: str, greet: str = GREET, **variables: str) -> str:
    """What a program writes whose stdout is a terminal."""
    leader, follower = pty.openpty()
    program = CONFIGURE.format(environment=environment) + greet
    environ = {name: value for name, value in os.environ.items() if name != "NO_COLOR"} | variables
    with subprocess.Popen([sys.executable, "-c", program], stdout=follower, env=environ) as running:
        os.close(follower)
        text = b""
        try:
            while piece := os.read(leader, 4096):
                text += piece
        except OSError:
            pass  # Linux says so where the other end is closed
        assert running.wait(60) == 0
    os.close(leader)
    return text.decode()


def test_terminal_in_development_is_readable_and_keeps_secrets_too() -> None:
    text = at_terminal("development")
    assert "hello" in text
    assert not text.startswith("{")
    assert "hunter2" not in text


REQUEST = """
from tidegate.http.access import AccessLog
from tidegate.http.context import RequestContext
from tidegate.telemetry.logging import line_handler
context = RequestContext("r-1", "GET", "/v1/models")
context.status = 200
AccessLog(line_handler()).write(context)
"""


def test_terminal_in_development_has_colours() -> None:
    # An empty NO_COLOR is none.
    greeting, _, request = at_terminal("development", GREET + REQUEST, NO_COLOR="").partition("\n")
    assert "\x1b[" in greeting
    assert "\x1b[32m200\x1b[0m" in request


def test_terminal_in_development_has_one_readable_line_a_request_without_colours_where_none_are_wanted() -> None:
    text = at_terminal("development", GREET + REQUEST, NO_COLOR="1")
    assert "\x1b[" not in text
    assert re.search(r"Z GET    /v1/models {19}200 +\d+ m?s  r-1\r?\n", text)


@pytest.mark.parametrize("environment", ["production", "test"])
def test_terminal_elsewhere_has_json(environment: str) -> None:
    lines = at_terminal(environment, GREET + REQUEST).splitlines()
    assert [orjson.loads(line)["event"] for line in lines] == ["hello", "request"]


@pytest.fixture
def take() -> Iterator[Callable[[], list[dict[str, Any]]]]:
    """Sends this test's loggers `t` and below through a handler of ours; returns what comes out."""
    read_end, write_end = os.pipe()
    logger = logging.getLogger("t")
    handler = LineHandler(LineWriter(write_end), "worker")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False

    def taken() -> list[dict[str, Any]]:
        handler.flush()
        os.set_blocking(read_end, False)
        return [orjson.loads(line) for line in os.read(read_end, 1 << 20).splitlines()]

    yield taken
    logger.removeHandler(handler)
    logger.propagate = True
    os.close(read_end)
    os.close(write_end)


async def test_line_of_a_request_bears_its_id(take: Callable[[], list[dict[str, Any]]]) -> None:
    log = get_logger("t")
    token = bound_request_id.set("r-1")
    log.info("inside")
    logging.getLogger("t.library").warning("inside too")
    bound_request_id.reset(token)
    log.info("outside")
    assert [line.get("request_id") for line in take()] == ["r-1", "r-1", None]


async def test_line_of_a_request_in_the_ledger_bears_its_entrys_id_in_tasks_of_it_too(
    take: Callable[[], list[dict[str, Any]]],
) -> None:
    log = get_logger("t")
    entry_id = uuid.UUID(int=7)
    # Tests of one worker share a context.
    bound_entry_id.set(None)

    async def request() -> None:
        bound_request_id.set("r-1")
        log.info("before")
        bound_entry_id.set(entry_id)
        log.info("at work")

        async def started_by_it() -> None:
            log.info("in a task of it")

        await asyncio.create_task(started_by_it())
        await asyncio.to_thread(log.info, "in a thread of it")

    await asyncio.create_task(request())
    log.info("elsewhere")
    assert [(line.get("request_id"), line.get("entry_id")) for line in take()] == [
        ("r-1", None),
        *[("r-1", str(entry_id))] * 3,
        (None, None),
    ]


@pytest.mark.parametrize("sign", ["\x7f", "\x80", "\x85", "\x9b", "\x9f", "\u2028", "\u2029"])
def test_what_a_terminal_or_a_viewer_obeys_is_escaped(sign: str) -> None:
    line = render({"event": f"é{sign}→", "big": 1 << 80, f"name{sign}": 1})
    assert sign not in line
    assert "é" in line
    assert orjson.loads(line)["event"] == f"é{sign}→"


def test_line_of_nothing_but_such_signs_is_bounded() -> None:
    assert len(render({"event": "\x9b" * 100_000}).encode()) <= 16 * 1024


def test_every_module_logs_by_this_one() -> None:
    """Left to itself structlog prints, with what a caller sent, in no form and past every rule."""
    source = Path(tidegate.__file__).parent
    found = [path for path in source.rglob("*.py") if "structlog" in path.read_text("utf-8")]
    assert found == [source / "telemetry" / "logging.py"]


def test_exception_is_told_without_locals_and_without_secrets(take: Callable[[], list[dict[str, Any]]]) -> None:
    def fail(password: str) -> None:
        token = f"local-{len(password)}"
        raise ValueError(f"{{'password': '{SECRET}', 'at': {token!r}}}")

    try:
        # In two parts: the source's own line is in the traceback.
        fail("a-local-" + "secret-value")
    except ValueError:
        get_logger("t").exception("went wrong", url=f"redis://:{SECRET}@h")
    (line,) = take()
    assert (line["level"], line["event"]) == ("error", "went wrong")
    assert line["exception"].startswith("Traceback")
    assert "in fail" in line["exception"]
    assert SECRET not in str(line)
    assert "a-local-secret-value" not in str(line)


def test_chained_errors_and_groups_are_told_whole(take: Callable[[], list[dict[str, Any]]]) -> None:
    cause = KeyError("first")
    error = ExceptionGroup("several", [ValueError("second")])
    error.__cause__ = cause
    get_logger("t").error("went wrong", exc_info=error)
    (line,) = take()
    assert all(text in line["exception"] for text in ("KeyError: 'first'", "ValueError: second", "direct cause"))


def test_own_fields_cannot_pose_as_ours(take: Callable[[], list[dict[str, Any]]]) -> None:
    logging.getLogger("t").info("x", extra={"ts": "never", "level": "none", "pid": -1, "process_name": "y"})
    (line,) = take()
    assert line["ts"] != "never"
    assert (line["level"], line["pid"]) == ("info", os.getpid())


def test_line_break_in_a_message_stays_one_line(take: Callable[[], list[dict[str, Any]]]) -> None:
    get_logger("t").info("a\nb\u2028c", note='"\\')
    assert [(line["event"], line["note"]) for line in take()] == [("a\nb\u2028c", '"\\')]


def test_what_cannot_be_rendered_is_still_a_line(take: Callable[[], list[dict[str, Any]]]) -> None:
    record = logging.makeLogRecord({"name": "t", "msg": "%d", "args": ("no number",), "levelno": logging.INFO})
    next(each for each in logging.getLogger("t").handlers if isinstance(each, LineHandler)).handle(record)
    get_logger("t").info("odd", big=1 << 80, lone="\ud800", none=None, nan=float("nan"), thing=object())
    refused, odd = take()
    assert refused["event"] == "a log line could not be rendered"
    assert odd["event"] == "odd"
    assert odd["big"] == str(1 << 80)


def test_line_is_bounded_and_keeps_the_end_of_an_exception() -> None:
    text = render({"event": "x", "exception": "begin" + "\n" * 50_000 + "end", "note": "short"})
    assert len(text.encode()) <= 16 * 1024
    fields = orjson.loads(text)
    assert fields["exception"].startswith("begin")
    assert fields["exception"].endswith("end")
    assert (fields["event"], fields["note"]) == ("x", "short")


@pytest.mark.parametrize(
    "fields",
    [
        {"event": "x", "list": list(range(100_000))},
        {f"field{n}": "y" * 100 for n in range(1000)},
        {"event": "\x00" * 100_000},
        {f"f{n}": ["z" * 5000] for n in range(50)},
    ],
)
def test_any_line_is_bounded(fields: dict[str, Any]) -> None:
    text = render(fields)
    assert len(text.encode()) <= 16 * 1024
    assert orjson.loads(text)


def test_time_is_utc_to_the_millisecond() -> None:
    assert iso_now(1_700_000_000.9996) == "2023-11-14T22:13:20.999Z"


def test_nothing_is_configured_by_an_import() -> None:
    assert line_handler() is None

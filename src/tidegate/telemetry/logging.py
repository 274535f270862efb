"""Logs: one JSON object a line on stdout, from every process and every library, with no secret in it.

Every process calls `configure_logging` once, first of all. From then on the root logger has one place to write to, and
uvicorn's and gunicorn's loggers have none of their own. A person at a terminal in development gets readable lines
instead. The keys, in this order: `ts` (UTC), `level`, `event`, `logger`, `process`, `pid`, `request_id` where a request
is at work, `entry_id` once it has its place in the ledger, `trace_id` where it is traced, then the line's own fields,
then `exception`.

Rendering happens in the caller's context, so a line knows its request, also in a task that the request started. Locals
are never shown. Control characters and line separators leave this process escaped, whatever shows the line later.
"""

import logging
import os
import re
import sys
import threading
import time
import traceback
from contextvars import ContextVar
from typing import Any, Literal
from uuid import UUID

import orjson
import structlog
from structlog.stdlib import BoundLogger, ProcessorFormatter
from structlog.typing import EventDict, WrappedLogger

from tidegate.settings import Settings, wants_colours
from tidegate.telemetry.lines import LONGEST_LINE, LineWriter
from tidegate.telemetry.redaction import redact, redact_fields

Process = Literal["root", "prepare", "model", "worker", "arbiter", "cli"]

bound_request_id: ContextVar[str | None] = ContextVar("tidegate_request_id", default=None)
bound_entry_id: ContextVar[UUID | None] = ContextVar("tidegate_entry_id", default=None)
bound_trace_id: ContextVar[str | None] = ContextVar("tidegate_trace_id", default=None)

# Their lines at `info` are one a call of an upstream, at `debug` they hold headers.
_TALKATIVE = ("httpx2", "httpcore2", "hpack", "asyncio", "aiosqlite")
_SERVERS = ("uvicorn", "uvicorn.error", "uvicorn.asgi", "gunicorn", "gunicorn.error")
# Requests have a line of ours. uvicorn builds its own where this logger has any handler, also an inherited one.
_REQUEST_LOGGERS = ("uvicorn.access", "gunicorn.access")
_STDOUT = 1
_CUT = " […] "
_SHORTEST_CUT = 1024
_OF_SEVERAL_LINES = ("exception", "stack")
# An API key that nobody has.
_TRIED = "tg_00000000_" + 43 * "0"
# What JSON lets stand and a viewer may obey: DEL and the C1 controls (ECMA-48), and the separators that end a line for
# JavaScript and many viewers. In UTF-8, where none of these bytes is a part of another character.
_OBEYED = re.compile(rb"\x7f|\xc2[\x80-\x9f]|\xe2\x80[\xa8\xa9]")


class LineHandler(logging.Handler):
    """The root logger's one handler: it renders a record in the context that logged it and writes it at once."""

    def __init__(self, writer: LineWriter, process: str, *, console: bool = False) -> None:
        super().__init__()
        self.writer = writer
        self.process = process
        self.console = console
        self.colours = console and wants_colours()
        self.setFormatter(_formatter(process, console=console, colours=self.colours))

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record)
        except Exception as error:  # noqa: BLE001 - a line that cannot be rendered is reported, never raised
            fields = {"ts": iso_now(record.created), "level": "error", "event": "a log line could not be rendered"}
            fields |= {"logger": record.name, "error": type(error).__name__, "template": str(record.msg)[:200]}
            line = redact(escaped(orjson.dumps(fields, default=repr)).decode())
        self.writer.write(line.encode("utf-8", "backslashreplace") + b"\n")
        self.writer.flush()

    def flush(self) -> None:
        self.writer.flush()


def configure_logging(settings: Settings, *, process: Process) -> None:
    """Sends every line of this process to stdout in the one form. May be called again, as a forked worker does."""
    console = settings.environment == "development" and os.isatty(_STDOUT)
    level = settings.log_level.upper()
    root = logging.getLogger()
    for handler in list(root.handlers):
        root.removeHandler(handler)
        handler.close()
    root.addHandler(LineHandler(LineWriter(_STDOUT), process, console=console))
    root.setLevel(level)
    for name in _SERVERS:
        logger = logging.getLogger(name)
        logger.handlers = []
        logger.propagate = True
        logger.setLevel(logging.NOTSET)
    for name in _REQUEST_LOGGERS:
        logger = logging.getLogger(name)
        logger.handlers = []
        logger.propagate = False
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.captureWarnings(capture=True)
    if not console:
        _log_what_nobody_caught()


def get_logger(name: str) -> BoundLogger:
    """The logger of a feature.

    >>> log = get_logger(__name__)
    >>> log.info("journal adopted", entries=3)

    Nothing happens until the first line, and where lines go is decided by `configure_logging` alone.
    """
    logger: BoundLogger = structlog.wrap_logger(
        logging.getLogger(name),
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.stdlib.PositionalArgumentsFormatter(),
            ProcessorFormatter.wrap_for_formatter,
        ],
        wrapper_class=BoundLogger,
        cache_logger_on_first_use=True,
    )
    return logger


def line_handler() -> LineHandler | None:
    """The root logger's handler, None where `configure_logging` never ran (tests, an embedding program)."""
    return next((handler for handler in logging.getLogger().handlers if isinstance(handler, LineHandler)), None)


def form_of_lines() -> dict[str, Any]:
    """How this process writes its lines now: tried on a line that nobody is sent, with a secret in it."""
    handlers = logging.getLogger().handlers
    own = line_handler()
    servers = [name for name in (*_SERVERS, *_REQUEST_LOGGERS) if logging.getLogger(name).handlers]
    told = {"handlers": len(handlers), "loggers_with_their_own": servers}
    if own is None:
        return told | {"form": "none", "redacts": False, "process": None}
    record = logging.makeLogRecord({"name": "uvicorn.error", "levelname": "INFO", "msg": f"a line with {_TRIED}"})
    line = own.format(record)
    try:
        form = "json" if {"ts", "level", "event"} <= orjson.loads(line).keys() else "other"
    except ValueError:
        form = "console" if own.console else "other"
    return told | {"form": form, "redacts": _TRIED not in line, "process": own.process}


def iso_now(seconds: float | None = None) -> str:
    """A time as lines carry it: ISO 8601, UTC, milliseconds.

    >>> iso_now(0.25)
    '1970-01-01T00:00:00.250Z'
    """
    seconds = time.time() if seconds is None else seconds
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{int(seconds % 1 * 1000):03d}Z"


def render(fields: dict[str, Any]) -> str:
    """One line of JSON, at most 16 KiB: where it is longer, its longest text loses its middle."""
    line = _dumps(fields)
    while len(line) > LONGEST_LINE:
        texts = {name: len(value) for name, value in fields.items() if isinstance(value, str)}
        longest = max(texts, key=texts.__getitem__, default="")
        if texts.get(longest, 0) > _SHORTEST_CUT:
            fields = fields | {longest: _shortened(fields[longest], texts[longest] // 2)}
        elif len(fields) > len(texts):
            fields = {name: _shortened(str(value), _SHORTEST_CUT) for name, value in fields.items()}
        else:
            # Hundreds of short fields: the first ones say what this is.
            fields = dict(list(fields.items())[: len(fields) // 2])
        line = _dumps(fields)
    return line.decode()


def escaped(line: bytes) -> bytes:
    """A line of JSON in which no character is left that a terminal or a viewer obeys (CWE-117, CWE-150)."""
    # The number of DEL: a search for a byte costs a tenth of one for a text of it.
    if line.isascii() and 0x7F not in line:
        return line
    return _OBEYED.sub(lambda found: b"\\u%04x" % ord(found[0].decode()), line)


def visible(text: str, *, keeps_lines: bool = False) -> str:
    """A text as a terminal may be shown it: what a caller wrote moves no cursor and begins no line (CWE-150)."""
    if text.isprintable():
        return text
    kept = "\n\t" if keeps_lines else ""
    return "".join(
        sign if sign.isprintable() or sign in kept else sign.encode("unicode_escape").decode() for sign in text
    )


def _formatter(process: str, *, console: bool, colours: bool) -> ProcessorFormatter:
    def ordered(_: WrappedLogger, level: str, event_dict: EventDict) -> EventDict:
        return _ordered(event_dict, level, process)

    def redacted(_: WrappedLogger, __: str, event_dict: EventDict) -> EventDict:
        return redact_fields(dict(event_dict))

    def rendered(_: WrappedLogger, __: str, event_dict: EventDict) -> str:
        return render(dict(event_dict))

    def shown(_: WrappedLogger, __: str, event_dict: EventDict) -> EventDict:
        return {
            name: visible(value, keeps_lines=name in _OF_SEVERAL_LINES) if isinstance(value, str) else value
            for name, value in event_dict.items()
        }

    last: list[Any] = [rendered]
    if console:
        # Without an `exc_info` of its own to show, this renderer never prints locals.
        renderer = structlog.dev.ConsoleRenderer(
            timestamp_key="ts",
            sort_keys=False,
            colors=colours,
            exception_formatter=structlog.dev.plain_traceback,
        )
        last = [shown, renderer]
    return ProcessorFormatter(processors=[ordered, redacted, *last])


def _ordered(event_dict: EventDict, level: str, process: str) -> EventDict:
    record: logging.LogRecord = event_dict.pop("_record")
    from_structlog = event_dict.pop("_from_structlog")
    fields: dict[str, Any] = {
        "ts": iso_now(record.created),
        "level": "error" if level == "exception" else record.levelname.lower(),
        "event": event_dict.pop("event", ""),
        "logger": record.name,
        "process": process,
        "pid": record.process,
    }
    request_id = bound_request_id.get()
    if request_id is not None:
        fields["request_id"] = request_id
    entry_id = bound_entry_id.get()
    if entry_id is not None:
        fields["entry_id"] = str(entry_id)
    trace_id = bound_trace_id.get()
    if trace_id is not None:
        fields["trace_id"] = trace_id
    exc_info = event_dict.pop("exc_info", None)
    stack = event_dict.pop("stack_info", None)
    own = dict(event_dict) if from_structlog else _extras(record)
    fields |= {name: value for name, value in own.items() if name not in fields}
    text = _exception_text(exc_info)
    if text:
        fields["exception"] = text
    if stack:
        fields["stack"] = str(stack)
    return fields


def _extras(record: logging.LogRecord) -> dict[str, Any]:
    """What a library gave by `extra=`. uvicorn's `color_message` is the message again."""
    return {
        name: value
        for name, value in record.__dict__.items()
        if name not in _RECORD_ATTRIBUTES and name != "color_message"
    }


_RECORD_ATTRIBUTES = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}


def _exception_text(exc_info: object) -> str | None:
    if exc_info is True:
        exc_info = sys.exc_info()
    if isinstance(exc_info, tuple):
        exc_info = exc_info[1]
    if not isinstance(exc_info, BaseException):
        return None
    return "".join(traceback.format_exception(exc_info)).rstrip()


def _dumps(fields: dict[str, Any]) -> bytes:
    try:
        line = orjson.dumps(fields)
    except (TypeError, ValueError):
        # Integers past 64 bits and lone surrogates.
        plain = {name: str(value).encode("utf-8", "backslashreplace").decode() for name, value in fields.items()}
        line = orjson.dumps(plain)
    return escaped(line)


def _shortened(text: str, length: int) -> str:
    """An exception's end says most, so two thirds of what is kept are the end."""
    if len(text) <= length:
        return text
    kept = max(0, length - len(_CUT))
    return text[: kept // 3] + _CUT + text[len(text) - (kept - kept // 3) :]


def _log_what_nobody_caught() -> None:
    """Python's own last words are lines too: what ends a program, a thread, or a finalizer."""
    log = logging.getLogger("tidegate.uncaught")

    def of_program(kind: type[BaseException], error: BaseException, trace: Any) -> None:
        if issubclass(kind, KeyboardInterrupt):
            return
        log.critical("the program ended with an error", exc_info=(kind, error, trace))

    def of_thread(args: threading.ExceptHookArgs) -> None:
        if args.exc_value is not None:
            log.error("a thread ended with an error", exc_info=args.exc_value)

    def of_finalizer(args: "sys.UnraisableHookArgs") -> None:
        log.error(args.err_msg or "an error could not be raised", exc_info=args.exc_value)

    sys.excepthook = of_program
    threading.excepthook = of_thread
    sys.unraisablehook = of_finalizer

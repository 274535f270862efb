"""The access line: one a request, written at its true end, with what the ledger's entry says of it.

It does not go through the logging library: rendered by hand and written in batches it costs 4 µs where a record costs
20. At a terminal a person gets one readable line; where logs were never configured it is an ordinary record.

Of healthy requests a share may be written. Which ones depends on the request id alone, so that every gateway which a
request passes writes it or leaves it out; what failed, was cut or took long is always written.
"""

import logging
import os
import time
import zlib
from typing import Any

import orjson

from tidegate.http.context import RequestContext
from tidegate.settings.logs import LogsSettings
from tidegate.telemetry.logging import LineHandler, escaped, get_logger, iso_now, visible
from tidegate.telemetry.redaction import may_hold_secret, redact_fields

LOGGER = "tidegate.access"
_LONGEST_PATH = 1024
_PROBES = "/health"
_MILLISECONDS = tuple(f"{n:03d}Z" for n in range(1000))
_FIRST_ERROR = 400
_FIRST_SERVER_ERROR = 500
_GREEN, _YELLOW, _RED, _DIM, _PLAIN = "\x1b[32m", "\x1b[33m", "\x1b[31m", "\x1b[2m", "\x1b[0m"


class AccessLog:
    """Writes the access lines of one process.

    `handler` is the root logger's, where `configure_logging` ran.

    >>> AccessLog(line_handler(), settings.logs).write(context)
    """

    def __init__(self, handler: LineHandler | None, logs: LogsSettings | None = None) -> None:
        logs = logs or LogsSettings()
        self._is_wanted = logging.getLogger(LOGGER).isEnabledFor(logging.INFO)
        # Probes come every second and say nothing of callers: their lines are for who looks closely.
        self._wants_probes = logging.getLogger(LOGGER).isEnabledFor(logging.DEBUG)
        self._log = get_logger(LOGGER)
        self._console = handler if handler is not None and handler.console else None
        self._writer = handler.writer if handler is not None and not handler.console else None
        self._process = handler.process if handler is not None else ""
        self._pid = os.getpid()
        self._second, self._stamp = -1, ""
        self._sample = logs.access_sample
        self._samples = logs.access_sample < 1
        self._written_below = round(logs.access_sample * 2**32)
        self._slow_s = logs.slow_s

    def write(self, context: RequestContext) -> None:
        if not self._is_wanted or (context.path.startswith(_PROBES) and not self._wants_probes):
            return
        duration_s = time.perf_counter() - context.started
        is_sampled = self._samples and self._is_healthy(context, duration_s)
        if is_sampled and zlib.crc32(context.request_id.encode()) >= self._written_below:
            return
        if self._writer is None:
            self._show(_told(context, duration_s, {}))
            return
        start = {
            "ts": self._now(),
            "level": "info",
            "event": "request",
            "logger": LOGGER,
            "process": self._process,
            "pid": self._pid,
        }
        line = _told(context, duration_s, start)
        if is_sampled:
            line["sample"] = self._sample
        try:
            text = orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE)
        except (TypeError, ValueError):
            # A lone surrogate in a path.
            plain = {name: repr(value) for name, value in line.items()}
            text = orjson.dumps(plain, option=orjson.OPT_APPEND_NEWLINE)
        self._writer.write(escaped(text))

    def _show(self, line: dict[str, Any]) -> None:
        if self._console is None:
            self._log.info("request", **line)
        else:
            self._console.writer.write(_readable(line, self._now(), coloured=self._console.colours))

    def _is_healthy(self, context: RequestContext, duration_s: float) -> bool:
        status, entry = context.status, context.entry
        return (
            status is not None
            and status < _FIRST_ERROR
            and context.complete
            and (entry is None or entry.outcome == "completed")
            and duration_s <= self._slow_s
        )

    def _now(self) -> str:
        second, millisecond = divmod(time.time_ns() // 1_000_000, 1000)
        if second != self._second:
            self._second, self._stamp = second, iso_now(second)[:-4]
        return self._stamp + _MILLISECONDS[millisecond]


def _told(context: RequestContext, duration_s: float, fields: dict[str, Any]) -> dict[str, Any]:
    entry = context.entry
    path = context.path if len(context.path) <= _LONGEST_PATH else context.path[:_LONGEST_PATH]
    fields["request_id"] = context.request_id
    fields["method"] = context.method
    fields["path"] = path
    fields["status"] = context.status
    fields["duration_ms"] = int(duration_s * 1_000_000) / 1000
    fields["bytes"] = context.bytes_sent
    fields["client"] = context.client_address
    if context.trace is not None:
        fields["trace_id"] = context.trace.id
    if context.error_code is not None:
        fields["error_code"] = context.error_code
    if context.key_prefix is not None:
        fields["key"] = context.key_prefix
    if context.user_id is not None:
        fields["user"] = context.user_id
    if context.workspace_id is not None:
        fields["workspace"] = context.workspace_id
    if entry is not None:
        fields["entry_id"] = entry.entry_id
        fields["model"] = entry.model
        fields["upstream"] = entry.upstream
        fields["outcome"] = entry.outcome
        fields["attempts"] = len(entry.attempts)
        fields["input_tokens"] = entry.input_tokens
        fields["output_tokens"] = entry.output_tokens
        fields["cost"] = None if entry.cost is None else str(entry.cost)
        fields["ttft_ms"] = entry.ttft_ms
        fields["queue_ms"] = entry.queue_ms
        if entry.error_code is not None:
            fields["error_code"] = entry.error_code
    # What a caller chose, and the code, which may be an upstream's own; nothing else in the line can hold a secret.
    chosen = f"{context.request_id} {path} {fields.get('error_code')}"
    if entry is not None:
        chosen = f"{chosen} {entry.model}"
    return redact_fields(fields) if may_hold_secret(chosen) else fields


def _readable(line: dict[str, Any], stamp: str, *, coloured: bool) -> bytes:
    """The line for a person: what is asked first stands first, and columns stand below each other.

    `POST   /v1/chat/completions       200    1.2 s  ttft 80 ms  12→34 tokens  gpt via openai`
    """
    status: int | None = line["status"]
    colour = _RED if status is None or status >= _FIRST_SERVER_ERROR else _YELLOW
    if status is not None and status < _FIRST_ERROR and line.get("outcome", "completed") == "completed":
        colour = _GREEN
    shown_status = f"{colour}{status or '---'}{_PLAIN}" if coloured else str(status or "---")
    parts = [
        f"{visible(line['method']):<6} {visible(line['path']):<28} {shown_status} {_duration(line['duration_ms']):>8}"
    ]
    if "entry_id" in line:
        if line["ttft_ms"] is not None:
            parts.append(f"ttft {_duration(line['ttft_ms'])}")
        parts.append(f"{line['input_tokens']}→{line['output_tokens']} tokens")
        parts.append(f"{line['model']} via {line['upstream']}" if line["upstream"] else str(line["model"]))
        if line["outcome"] != "completed":
            parts.append(line["outcome"])
    if "error_code" in line:
        parts.append(line["error_code"])
    # The first part has colours of ours, and is visible already.
    text = "  ".join([parts[0], *map(visible, parts[1:])])
    dim, plain = (_DIM, _PLAIN) if coloured else ("", "")
    return f"{dim}{stamp}{plain} {text}  {dim}{line['request_id']}{plain}\n".encode("utf-8", "backslashreplace")


def _duration(milliseconds: float) -> str:
    """Milliseconds for a person.

    >>> _duration(80), _duration(1234)
    ('80 ms', '1.2 s')
    """
    return f"{milliseconds / 1000:.1f} s" if milliseconds >= 1000 else f"{milliseconds:.0f} ms"

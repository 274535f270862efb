"""The access line: one a request, written at its true end, with what the ledger's entry says of it.

It does not go through the logging library: rendered by hand and written in batches it costs 4 µs where a record costs
20. At a terminal, and where logs were never configured, it is an ordinary record.
"""

import logging
import os
import time
from typing import Any

import orjson

from tidegate.http.context import RequestContext
from tidegate.telemetry.logging import LineHandler, get_logger, iso_now
from tidegate.telemetry.redaction import may_hold_secret, redact_fields

LOGGER = "tidegate.access"
_LONGEST_PATH = 1024
_PROBES = "/health"
_MILLISECONDS = tuple(f"{n:03d}Z" for n in range(1000))


class AccessLog:
    """Writes the access lines of one process.

    `handler` is the root logger's, where `configure_logging` ran.

    >>> AccessLog(line_handler()).write(context)
    """

    def __init__(self, handler: LineHandler | None) -> None:
        self._is_wanted = logging.getLogger(LOGGER).isEnabledFor(logging.INFO)
        # Probes come every second and say nothing of callers: their lines are for who looks closely.
        self._wants_probes = logging.getLogger(LOGGER).isEnabledFor(logging.DEBUG)
        self._log = get_logger(LOGGER)
        self._writer = handler.writer if handler is not None and not handler.console else None
        self._process = handler.process if handler is not None else ""
        self._pid = os.getpid()
        self._second, self._stamp = -1, ""

    def write(self, context: RequestContext) -> None:
        if not self._is_wanted or (context.path.startswith(_PROBES) and not self._wants_probes):
            return
        if self._writer is None:
            self._log.info("request", **_told(context, {}))
            return
        start = {
            "ts": self._now(),
            "level": "info",
            "event": "request",
            "logger": LOGGER,
            "process": self._process,
            "pid": self._pid,
        }
        line = _told(context, start)
        try:
            text = orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE)
        except (TypeError, ValueError):
            # A lone surrogate in a path.
            plain = {name: repr(value) for name, value in line.items()}
            text = orjson.dumps(plain, option=orjson.OPT_APPEND_NEWLINE)
        self._writer.write(text)

    def _now(self) -> str:
        second, millisecond = divmod(time.time_ns() // 1_000_000, 1000)
        if second != self._second:
            self._second, self._stamp = second, iso_now(second)[:-4]
        return self._stamp + _MILLISECONDS[millisecond]


def _told(context: RequestContext, fields: dict[str, Any]) -> dict[str, Any]:
    entry = context.entry
    path = context.path if len(context.path) <= _LONGEST_PATH else context.path[:_LONGEST_PATH]
    fields["request_id"] = context.request_id
    fields["method"] = context.method
    fields["path"] = path
    fields["status"] = context.status
    fields["duration_ms"] = int((time.perf_counter() - context.started) * 1_000_000) / 1000
    fields["bytes"] = context.bytes_sent
    fields["client"] = context.client_address
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
    # What a caller chose; nothing else in the line can hold a secret.
    chosen = f"{context.request_id} {path} {entry.model}" if entry is not None else f"{context.request_id} {path}"
    return redact_fields(fields) if may_hold_secret(chosen) else fields

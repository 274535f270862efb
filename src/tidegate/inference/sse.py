"""Server-sent events as bytes: cut into whole events, never changed.

The frame is of the HTML standard's section 9.2.6: an event ends at an empty line, and a line at LF, CRLF or CR. Only
whole events leave; what is left when a stream ends is a truncated event, and is dropped. Where the stream is cut into
pieces changes nothing: behind a line that ended in LF, a CR waits for the LF that may belong to it; behind one that
ended in CR it waits for nothing, and such an LF goes to the front of the next event, where it is an empty line.
"""

import re

from tidegate.errors import UpstreamError

COMMENT = b": keep-alive\n\n"
DONE = b"data: [DONE]\n\n"
MAX_EVENT_BYTES = 16 * 1024 * 1024

_EMPTY_LINE = re.compile(rb"\r\r|\n(?:\r\n|\n|\r(?!\n|\Z))")


def queued_comment(place: int) -> bytes:
    """What an open stream is told while it waits for a slot; 1 is next."""
    return b": queued, position %d\n\n" % place


class EventSplitter:
    r"""Cuts a stream of bytes at the ends of its events. Holds at most one unfinished event of `MAX_EVENT_BYTES`.

    >>> EventSplitter("a").feed(b"data: 1\n\ndata: 2")
    [b'data: 1\n\n']
    """

    def __init__(self, upstream: str) -> None:
        self._upstream = upstream
        self._pending = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """The events that these bytes complete, each with its empty line; joined they are what came."""
        if self._pending:
            # Only what is new is searched, and the seam: a large event in small pieces costs its size, not its square.
            is_ended = _EMPTY_LINE.search(self._pending[-2:] + data) is not None
            self._pending += data
            if not is_ended:
                self._check(len(self._pending))
                return []
            data = bytes(self._pending)
            self._pending.clear()
        if b"\r" in data or len(data) > MAX_EVENT_BYTES:
            return self._feed_any(data)
        if 0 <= data.find(b"\n\n") == len(data) - 2:
            return [data]
        parts = data.split(b"\n\n")
        self._pending += parts.pop()
        return [part + b"\n\n" for part in parts]

    def _feed_any(self, data: bytes) -> list[bytes]:
        events = []
        start = 0
        for end in _EMPTY_LINE.finditer(data):
            self._check(end.end() - start)
            events.append(data[start : end.end()])
            start = end.end()
        self._check(len(data) - start)
        self._pending += data[start:]
        return events

    def _check(self, event_bytes: int) -> None:
        if event_bytes > MAX_EVENT_BYTES:
            raise UpstreamError(
                f"The upstream {self._upstream!r} sent an event of more than {MAX_EVENT_BYTES} bytes.",
                upstream=self._upstream,
            )


def event_data(event: bytes) -> bytes:
    """The data of an event: its `data` lines without their names, joined by LF. Empty for a comment."""
    lines = []
    for line in event.splitlines():
        if line.startswith(b"data:"):
            value = line[5:]
            lines.append(value[1:] if value.startswith(b" ") else value)
        elif line == b"data":
            lines.append(b"")
    return b"\n".join(lines)


def data_event(data: bytes) -> bytes:
    """One event that carries `data`, which holds no line end."""
    return b"data: " + data + b"\n\n"

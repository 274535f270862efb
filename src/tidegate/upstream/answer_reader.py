"""An upstream's answers as HTTP/1.1 writes them (RFC 9112), from bytes to a head and pieces of a body. No I/O.

llhttp parses, strictly: whatever may be read in two ways is refused, so that nobody smuggles an answer into another.
What a connection brings is told in its order, however it was split on the way: a fault comes behind the pieces that
came before it. Of what follows an answer's end only that it was there is kept: then the connection is not used again.
"""

import httptools
import httpx2

# Of an answer's head with all informational answers before it; of what stands between two pieces of a body, as well.
LONGEST_HEAD = 64 * 1024
MOST_HEADERS = 256

_NO_ANSWER = "the connection was closed without an answer"
_INCOMPLETE = "the connection was closed before the answer was complete"


class AnswerReader:
    r"""The answers of one connection, one after the other: `begin`, `feed` until `has_head`, then `take` the pieces.

    >>> reader = AnswerReader()
    >>> reader.begin("POST")
    >>> reader.feed(b"HTTP/1.1 200 OK\\r\\nContent-Length: 2\\r\\n\\r\\nhi")
    >>> reader.status, reader.take(), reader.is_complete
    (200, b'hi', True)
    """

    def __init__(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []
        self.has_begun = False
        self.has_head = False
        self.is_complete = False
        # Whether the connection may carry a next request once this answer is complete.
        self.keeps_alive = False
        self._is_head_alone = False
        self._ends_with_connection = False
        self._pieces: list[bytes] = []
        self._barren = 0
        self._reason: str | None = None
        self._fault: httpx2.RemoteProtocolError | None = None

    def begin(self, method: str) -> None:
        """The next answer is to a request of this method. The one before must be complete and have kept alive."""
        self.headers = []
        self.has_begun = self.has_head = self.is_complete = self.keeps_alive = False
        self._is_head_alone = method == "HEAD"
        self._ends_with_connection = False
        self._barren = 0
        self._pieces.clear()

    def feed(self, data: bytes | memoryview) -> None:
        """Reads what came. A fault is not raised but kept for `take` or `check`."""
        self.has_begun = True
        if self._fault is not None:
            return
        try:
            if not self.has_head:
                data = self._feed_head(data)
            if data:
                self._feed_body(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._fail(self._reason or str(error))

    @property
    def is_settled(self) -> bool:
        """Whether its head is known, or that there will be none."""
        return self.has_head or self._fault is not None

    def end(self) -> None:
        """The connection was closed by the upstream. For a body without any framing, that is its end."""
        self.keeps_alive = False
        if self.is_complete or self._fault is not None:
            return
        if self.has_head and self._ends_with_connection:
            self.is_complete = True
        else:
            self._fail(_INCOMPLETE if self.has_begun else _NO_ANSWER)

    def take(self) -> bytes:
        """What of the body has come and was not taken; may be none. Raises `RemoteProtocolError` behind the last."""
        pieces = self._pieces
        if not pieces:
            self.check()
            return b""
        data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        pieces.clear()
        return data

    def check(self) -> None:
        """Raises the fault that came, if any."""
        if self._fault is not None:
            raise self._fault

    def _feed_head(self, data: bytes | memoryview) -> bytes | memoryview:
        """Gives what is left behind the head. Feeds no more than a head may have, so that its bound is exact."""
        room = LONGEST_HEAD - self._barren
        part = data if len(data) <= room else data[:room]
        self._barren += len(part)
        self._parser.feed_data(part)
        if self.has_head:
            self._barren = 0
        elif self._barren >= LONGEST_HEAD:
            self._fail(f"the answer's head is longer than {LONGEST_HEAD} bytes")
            return b""
        return data[len(part) :]

    def _feed_body(self, data: bytes | memoryview) -> None:
        pieces = len(self._pieces)
        self._parser.feed_data(data)
        if len(self._pieces) > pieces or self.is_complete:
            self._barren = 0
            return
        self._barren += len(data)
        if self._barren > LONGEST_HEAD:
            self._fail(f"the answer has more than {LONGEST_HEAD} bytes between two pieces of its body")

    def _is_framed(self) -> bool:
        """Whether the head says where its body ends."""
        is_framed = False
        for name, value in self.headers:
            lowered = name.lower()
            if lowered == b"content-length":
                is_framed = True
            elif lowered == b"transfer-encoding":
                if is_framed or value.lower() != b"chunked":
                    self._refuse("the answer has a transfer coding other than chunked")
                is_framed = True
        return is_framed

    def _fail(self, reason: str) -> None:
        self.keeps_alive = False
        if not self.is_complete and self._fault is None:
            self._fault = httpx2.RemoteProtocolError(reason)

    def _refuse(self, reason: str) -> None:
        """Stops the parser, from one of its calls."""
        self._reason = reason
        raise ValueError(reason)

    # What the parser calls

    def on_message_begin(self) -> None:
        if self.is_complete:
            # Bytes that nobody asked for.
            self.keeps_alive = False
        elif not self.has_head:
            self.headers = []

    def on_header(self, name: bytes, value: bytes) -> None:
        # Trailers tell nothing that anybody here asks.
        if not self.has_head:
            self.headers.append((name, value.rstrip(b" \t")))

    def on_headers_complete(self) -> None:
        if self.is_complete:
            return
        status = self._parser.get_status_code()
        if self._parser.get_http_version() not in ("1.1", "1.0"):
            self._refuse("the answer is of another version of HTTP than 1.1 and 1.0")
        if status < 100 or status == 101:
            self._refuse(f"the answer has the status {status}, which was not asked for")
        if len(self.headers) > MOST_HEADERS:
            self._refuse(f"the answer has more than {MOST_HEADERS} headers")
        is_framed = self._is_framed()
        if status < 200:
            return
        self.status = status
        self.has_head = True
        if self._is_head_alone:
            # The parser knows no requests, and would wait for the body that these headers tell of.
            self.is_complete = True
        else:
            self._ends_with_connection = not is_framed

    def on_body(self, data: bytes) -> None:
        if not self.is_complete:
            self._pieces.append(data)

    def on_message_complete(self) -> None:
        if self.has_head and not self.is_complete:
            self.is_complete = True
            self.keeps_alive = self._parser.should_keep_alive()

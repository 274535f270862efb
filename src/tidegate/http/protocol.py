"""The connection, under ASGI: what uvicorn answers by itself gets the envelope, and a hang-up reaches whom it concerns.

A request that cannot be parsed is a 400, a head over 64 KiB a 431; uvicorn would answer the first in plain text and
read the second for ever. uvicorn tells a hang-up to the newest request of a connection; where requests are pipelined
the one at work is an older one, so it is told here.

While the worker retires (`retire`) each request on a connection that is kept is served, and told to be the last. One
that is idle is closed after a while, unless bytes of a next request have come.

Behind a request at work uvicorn stops reading, and a connection that is not read does not show its end. Here it is
read on, and a client that pipelines more than 16 requests or 1 MiB of their bodies is cut off.

What a client begins it must go on with: a head is 30 s long at most, a body may pause for 30 s and comes in 60 s and a
second for each further KiB, and who connects speaks within 75 s. uvicorn's own timer begins with the first answer and
ends with the next byte. One timer a connection looks at this, at most every 30 s; a request only notes when it began.

What was written waits for its client to read it: for 120 s and a second for each KiB that does not fit into the socket.
So long an answer is held up in its middle at one stretch, and a connection that is being closed stays open; asyncio
would wait for ever.

A client that asks for another protocol (`Upgrade: h2c`, as Java's does of itself) is served in HTTP/1.1, its body and
what follows included: llhttp takes all that comes behind such a head for that other protocol, and uvicorn would lose it
or read the rest of it as the next request. So the head is read again without its `Upgrade` (RFC 9110, 7.8).
"""

import fcntl
import sys
import termios
from asyncio import TimerHandle, Transport
from typing import cast

import httptools
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from tidegate.errors import HeadersTooLarge, InvalidRequest, RequestTimeout, TidegateError, envelope
from tidegate.http.context import HUNG_UP_KEY, new_request_id
from tidegate.http.framing import fault_of_head
from tidegate.http.security_headers import security_headers
from tidegate.http.tls_transport import TlsTransport
from tidegate.telemetry.logging import get_logger

log = get_logger(__name__)

MAX_HEAD_BYTES = 64 * 1024
LINGER_S = 2.0
HEAD_WITHIN_S = 30.0
BODY_IDLE_S = 30.0
BODY_GRACE_S = 60.0
SLOWEST_BODY_BYTES_S = 1024
SILENT_FOR_S = 75.0
READ_WITHIN_S = 120.0
SLOWEST_READ_BYTES_S = 1024
LOOK_EVERY_S = 30.0
# A FIN behind what nobody reads is told by no loop that speaks TLS.
LOOK_FOR_END_EVERY_S = 0.25
MOST_PIPELINED = 16
MOST_PIPELINED_BYTES = 1024 * 1024


class TidegateHttpProtocol(HttpToolsProtocol):
    """uvicorn's protocol on httptools: `uvicorn.Config(app, http=TidegateHttpProtocol, ws="none")`.

    A subclass may have other bounds.
    """

    head_within_s = HEAD_WITHIN_S
    body_idle_s = BODY_IDLE_S
    body_grace_s = BODY_GRACE_S
    silent_for_s = SILENT_FOR_S
    read_within_s = READ_WITHIN_S
    slowest_read_bytes_s: float = SLOWEST_READ_BYTES_S
    look_every_s = LOOK_EVERY_S

    _at_work: RequestResponseCycle | None = None
    _is_refused = False
    _is_in_head = False
    # uvicorn's `more_body` stays true for a body that ended after its answer.
    _is_in_body = False
    # What is told in place of "not valid HTTP/1.1": the parser hands back only that a callback raised.
    _fault: TidegateError | None = None
    # While it is being read: the piece that came, and the head that asked for another protocol, without that.
    _piece = b""
    _plain_head = b""
    # Of the head that is being read: what earlier calls brought, and an upper bound of what this one brings.
    _head_bytes = 0
    _new_bytes = 0
    # By the loop's clock: when the last bytes came, and when the last request began, or else the connection.
    _heard_at = 0.0
    _began_at = 0.0
    # Of the body that is being read: by when it is to be here if nothing more of it comes.
    _body_due_at = 0.0
    # Of what was written, once this is closing or more may not be written.
    _read_by: float | None = None
    # By TLS: what the client had taken when that was said, and the next look for its end.
    _taken_before = 0
    _look_for_end: TimerHandle | None = None
    _look: TimerHandle | None = None
    # Of a worker that retires: since when nothing is asked here, and the request that was made this connection's last.
    _is_retiring = False
    _idle_since: float | None = None
    _last: RequestResponseCycle | None = None

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]  # as uvicorn's own
        super().connection_made(transport)
        if self.scheme == "https":
            self.transport = TlsTransport(transport, self.loop)
        self._heard_at = self._began_at = self.loop.time()
        self._look = self.loop.call_later(min(self.silent_for_s, self.look_every_s), self._look_at_silence)

    def data_received(self, data: bytes) -> None:
        if self._is_refused:
            return
        self._new_bytes = len(data)
        self._heard_at = self.loop.time()
        self._piece = data
        super().data_received(data)
        self._piece = b""
        if self.pipeline and not self._is_refused:
            self._read_on()
        if self._is_in_head and not self._is_refused:
            self._head_bytes += self._new_bytes
            if self._head_bytes > MAX_HEAD_BYTES:
                self._refuse(_too_large())

    def on_message_begin(self) -> None:
        self._is_in_head = True
        self._head_bytes = 0
        self._began_at = self._heard_at
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._is_in_head = False
        if self._head_bytes + self._new_bytes > MAX_HEAD_BYTES:
            size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
            if size > MAX_HEAD_BYTES:
                self._fault = _too_large()
        method, version = self.parser.get_method(), self.parser.get_http_version()
        self._fault = self._fault or fault_of_head(method, self.url, version, self.headers)
        if self._fault is not None:
            # The parser hands it back to `data_received`, which refuses the request.
            raise self._fault
        if self.parser.should_upgrade():
            kept = [name + b": " + value for name, value in self.headers if name != b"upgrade"]
            self._plain_head = b"\r\n".join([b"%s %s HTTP/%s" % (method, self.url, version.encode()), *kept, b"", b""])
            return
        super().on_headers_complete()
        self._is_in_body = True
        self._body_due_at = self._heard_at + self.body_grace_s
        if self._is_retiring:
            self._make_last()
        if len(self.pipeline) > MOST_PIPELINED:
            self._cut_off()
            # The parser stops at it.
            raise InvalidRequest("Too many requests wait on this connection.")

    def on_body(self, body: bytes) -> None:
        self._body_due_at += len(body) / SLOWEST_BODY_BYTES_S
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self._plain_head:
            return
        self._is_in_body = False
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 - uvicorn's words are not ours
        if self._is_refused:
            return
        self._refuse(self._fault or InvalidRequest("The request is not valid HTTP/1.1."))

    def _unsupported_upgrade_warning(self) -> None:
        """Called by uvicorn where the parser has stopped at an upgrade: goes on with the plain head and the rest."""
        stopped = sys.exception()
        assert isinstance(stopped, httptools.HttpParserUpgrade)
        rest = self._piece[stopped.args[0] :]
        head, self._plain_head = self._plain_head, b""
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self._piece = head + rest
        super().data_received(self._piece)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._look is not None:
            self._look.cancel()
            self._look = None
        self._forget_end()
        self._tell_hang_up()
        super().connection_lost(exc)
        if isinstance(self.transport, TlsTransport):
            self.transport.forget()

    def eof_received(self) -> None:
        """The client says no more, so the transport closes: what is written from now on reaches nobody.

        But it is lost only once the client has read what was written before, and that may be never.
        """
        self._tell_hang_up()
        self.flow.resume_writing()

    def _tell_hang_up(self) -> None:
        at_work = self._at_work
        if at_work is not None and not at_work.response_complete:
            cast("dict[str, object]", at_work.scope)[HUNG_UP_KEY] = True
            at_work.disconnected = True
            at_work.message_event.set()

    def retire(self, idle_s: float) -> None:
        """Called again and again while others take this worker's place.

        An answer that has not begun tells `Connection: close`. Where one began before, the client believes that the
        connection is kept: its next request is served, if it comes within `idle_s`.
        """
        now = self.loop.time()
        at_work = self._at_work
        if not self._is_retiring:
            self._is_retiring = True
            if at_work is not None and not self.cycle.response_started:
                self._make_last()
        if self.transport.is_closing():
            return
        is_at_work = at_work is not None and not at_work.response_complete
        if is_at_work or self.pipeline or self._is_in_head or self._is_in_body:
            self._idle_since = None
        elif self._idle_since is None or self._heard_at > self._idle_since:
            self._idle_since = now
        elif now - self._idle_since >= idle_s and not self._has_unread():
            self.transport.close()

    def _make_last(self) -> None:
        """The newest request is the last of this connection, and its answer says so; none before it does."""
        before = self._last
        if before is not None and not before.response_started:
            before.keep_alive = True
        self._last = self.cycle if self.cycle.keep_alive else None
        self.cycle.keep_alive = False

    def _has_unread(self) -> bool:
        """Whether bytes have come that the loop has not read yet."""
        unread = fcntl.ioctl(self.transport.get_extra_info("socket").fileno(), termios.FIONREAD, bytes(4))
        return any(unread)

    def pause_writing(self) -> None:
        """Called by the transport where too much of what was written is unread."""
        super().pause_writing()
        if isinstance(self.transport, TlsTransport):
            self._look_for_end = self.loop.call_later(LOOK_FOR_END_EVERY_S, self._see_end)

    def _see_end(self) -> None:
        self._look_for_end = None
        if not self._ends_with_client():
            self._look_for_end = self.loop.call_later(LOOK_FOR_END_EVERY_S, self._see_end)

    def _ends_with_client(self) -> bool:
        """By TLS, where the client has sent its FIN and the loop waits until it reads before it tells."""
        transport = self.transport
        if not isinstance(transport, TlsTransport) or not transport.has_client_ended():
            return False
        self.eof_received()
        transport.close()
        return True

    def _forget_end(self) -> None:
        if self._look_for_end is not None:
            self._look_for_end.cancel()
            self._look_for_end = None

    def resume_writing(self) -> None:
        """Called by the transport where enough of what was written has been read."""
        self._forget_end()
        if not self._is_ending():
            self._read_by = None
        super().resume_writing()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._at_work = cycle
        super()._start_asgi_task(cycle, app)

    def _read_on(self) -> None:
        """Reads what is pipelined, and the hang-up behind it, whatever uvicorn or the size of a body paused."""
        if sum(len(cycle.body) for cycle, _ in self.pipeline) > MOST_PIPELINED_BYTES:
            self._cut_off()
        else:
            self.flow.resume_reading()

    def _cut_off(self) -> None:
        # Not `close`: it would wait until this client has read what was written to it.
        self._is_refused = True
        self.transport.abort()

    def _look_at_silence(self) -> None:
        """Ends a connection whose client has stopped in the middle, said nothing, or does not read; looks again."""
        if not self.transport.is_closing():
            # Not only where writing is paused: one large piece pauses none.
            self._ends_with_client()
        now = self.loop.time()
        is_unread = self._is_ending() or self.flow.write_paused
        deadline = self._unread_until(now) if is_unread else self._silent_until(now)
        wait_s = deadline - now if deadline > now else self.look_every_s
        self._look = self.loop.call_later(min(wait_s, self.look_every_s), self._look_at_silence)
        if deadline > now:
            return
        if is_unread:
            self.transport.abort()
        elif self._is_in_head:
            self._refuse(RequestTimeout(f"The request's headers did not come within {self.head_within_s:g} s."))
        elif self._is_in_body and not self.cycle.response_complete:
            self._refuse(
                RequestTimeout(
                    f"The request's body stopped coming for {self.body_idle_s:g} s, or came slower than "
                    f"{SLOWEST_BODY_BYTES_S} bytes a second."
                )
            )
        else:
            self.transport.close()

    def _is_ending(self) -> bool:
        return self._is_refused or self.transport.is_closing()

    def _unread_until(self, now: float) -> float:
        """Until when this client may leave unread what was written to it, by the loop's clock."""
        # How much waits is not known by TLS; there the time grows with what the client takes.
        tls = self.transport if isinstance(self.transport, TlsTransport) else None
        taken = 0 if tls is None else tls.taken_bytes()
        if self._read_by is None:
            unread = self.transport.get_write_buffer_size() if tls is None else 0
            self._read_by = now + self.read_within_s + unread / self.slowest_read_bytes_s
            self._taken_before = taken
        return self._read_by + max(taken - self._taken_before, 0) / self.slowest_read_bytes_s

    def _silent_until(self, now: float) -> float:
        """Until when this client may be silent, by the loop's clock; infinity where it is not its turn."""
        at_work = self._at_work
        is_at_work = at_work is not None and not at_work.response_complete
        if self._is_in_head:
            return float("inf") if is_at_work else self._began_at + self.head_within_s
        if self._is_in_body:
            if self.flow.read_paused:
                # It is we who do not read.
                self._heard_at = now
                self._body_due_at = max(self._body_due_at, now + self.body_idle_s)
            is_behind = is_at_work and at_work is not self.cycle
            waits_for_100 = self.cycle.waiting_for_100_continue and not self.cycle.response_complete
            silent_until = min(self._heard_at + self.body_idle_s, self._body_due_at)
            return float("inf") if is_behind or waits_for_100 else silent_until
        if is_at_work or self.timeout_keep_alive_task is not None:
            return float("inf")
        # It has not spoken yet, or what it said (empty lines) ended uvicorn's timer and began no request.
        return self._began_at + self.silent_for_s

    def _refuse(self, error: TidegateError) -> None:
        """Answers what never became a request, or stopped being one, and closes.

        Behind another request that is still at work it only closes: an answer now would be taken for that one's.
        Closed with bytes unread, a socket is reset, and the reset may overtake the answer: so what the client still
        sends is thrown away for a while.
        """
        self._is_refused = True
        at_work = self._at_work
        if at_work is not None and not at_work.response_complete:
            if at_work is not self.cycle or not at_work.more_body or at_work.response_started:
                self.transport.close()
                return
            # Its body broke off: to the application the client is gone.
            at_work.disconnected = True
            at_work.message_event.set()
        request_id = new_request_id()
        body = envelope(error, request_id)
        head = [STATUS_LINE[error.http_status]]
        added = security_headers({"scheme": self.scheme}, ())
        head += [name + b": " + value + b"\r\n" for name, value in (*self.server_state.default_headers, *added)]
        head.append(
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\nx-request-id: {request_id}\r\n"
            "connection: close\r\n\r\n".encode()
        )
        self.transport.write(b"".join(head) + body)
        client = self.client[0] if self.client else None
        log.info("what came was refused", request_id=request_id, status=error.http_status, client=client)
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.loop.call_later(LINGER_S, self.transport.close)


def _too_large() -> HeadersTooLarge:
    return HeadersTooLarge(f"The request's line and headers are larger than {MAX_HEAD_BYTES} bytes.")

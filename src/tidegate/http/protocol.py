"""The connection, under ASGI: what uvicorn answers by itself gets the envelope, and a hang-up reaches whom it concerns.

A request that cannot be parsed is a 400, a head over 64 KiB a 431; uvicorn would answer the first in plain text and
read the second for ever. uvicorn tells a hang-up to the newest request of a connection; where requests are pipelined
the one at work is an older one, so it is told here.
"""

from typing import cast

from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from tidegate.errors import HeadersTooLarge, InvalidRequest, TidegateError, envelope
from tidegate.http.context import HUNG_UP_KEY, new_request_id
from tidegate.telemetry.logging import get_logger

log = get_logger(__name__)

MAX_HEAD_BYTES = 64 * 1024
LINGER_S = 2.0


class TidegateHttpProtocol(HttpToolsProtocol):
    """uvicorn's protocol on httptools: `uvicorn.Config(app, http=TidegateHttpProtocol, ws="none")`."""

    _at_work: RequestResponseCycle | None = None
    _is_refused = False
    _is_in_head = False
    _head_is_too_large = False
    # Of the head that is being read: what earlier calls brought, and an upper bound of what this one brings.
    _head_bytes = 0
    _new_bytes = 0

    def data_received(self, data: bytes) -> None:
        if self._is_refused:
            return
        self._new_bytes = len(data)
        super().data_received(data)
        if self._is_in_head and not self._is_refused:
            self._head_bytes += self._new_bytes
            if self._head_bytes > MAX_HEAD_BYTES:
                self._refuse(_too_large())

    def on_message_begin(self) -> None:
        self._is_in_head = True
        self._head_bytes = 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._is_in_head = False
        if self._head_bytes + self._new_bytes > MAX_HEAD_BYTES:
            size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
            if size > MAX_HEAD_BYTES:
                self._head_is_too_large = True
                # The parser hands it back to `data_received`, which refuses the request.
                raise _too_large()
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 - uvicorn's words are not ours
        self._refuse(_too_large() if self._head_is_too_large else InvalidRequest("The request is not valid HTTP/1.1."))

    def connection_lost(self, exc: Exception | None) -> None:
        at_work = self._at_work
        if at_work is not None and not at_work.response_complete:
            cast("dict[str, object]", at_work.scope)[HUNG_UP_KEY] = True
            at_work.disconnected = True
            at_work.message_event.set()
        super().connection_lost(exc)

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._at_work = cycle
        super()._start_asgi_task(cycle, app)

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
        head += [name + b": " + value + b"\r\n" for name, value in self.server_state.default_headers]
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

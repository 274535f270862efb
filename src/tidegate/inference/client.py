"""The client's side of one request: what it is sent, and whether it is still there.

One scope bounds the work for a client: when the client hangs up, in whatever phase, the scope is cancelled and left by
`ClientGone`. Nothing is sent while there is nothing to say; after `keepalive_after_s` of silence a streaming response
opens with a comment and goes on with one after each such silence.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

import anyio
from starlette.types import Message, Receive, Send

from tidegate.admission.slots import SlotAsk
from tidegate.errors import TidegateError, envelope
from tidegate.inference.sse import COMMENT, data_event, queued_comment
from tidegate.telemetry.logging import get_logger

log = get_logger(__name__)

_FAIL_WITHIN_S = 5.0
_STREAM_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),
]


class ClientGone(Exception):
    """The client hung up. Nobody is left to be told."""


class Client:
    """One client. `has_content` says that content was sent: from then on no other upstream is tried.

    `headers` go out with the response; they may be added to until it opens.
    """

    def __init__(self, receive: Receive, send: Send, *, request_id: str) -> None:
        self.request_id = request_id
        self.headers: list[tuple[bytes, bytes]] = []
        self.status: int | None = None
        self.is_gone = False
        self.has_content = False
        # The slot that it waits for in an upstream's queue: a stream that is open is told its place there.
        self.waits_for: SlotAsk | None = None
        self._receive = receive
        self._send = send
        self._loop = asyncio.get_running_loop()
        self._last_sent_at = self._loop.time()
        self._is_sending = False
        self._is_stream = False
        self._is_ended = False
        self._keepalive_after_s = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._comment: asyncio.Task[None] | None = None

    @property
    def is_open(self) -> bool:
        """Whether the response began: its status is sent and cannot change."""
        return self.status is not None

    @property
    def is_complete(self) -> bool:
        """Whether the response was sent to its end: whatever happens then, it was complete."""
        return self._is_ended

    @contextmanager
    def watched(self, *, keepalive_after_s: float | None) -> Iterator[None]:
        """Work that is for this client. Left by `ClientGone` where it hung up meanwhile."""
        with anyio.CancelScope() as scope:
            listener = self._loop.create_task(self._listen(scope))
            if keepalive_after_s is not None:
                self._keepalive_after_s = keepalive_after_s
                self._timer = self._loop.call_later(keepalive_after_s, self._look_for_silence)
            try:
                yield
            finally:
                listener.cancel()
                if self._timer is not None:
                    self._timer.cancel()
                if self._comment is not None:
                    self._comment.cancel()
        if scope.cancelled_caught:
            raise ClientGone

    async def send_events(self, data: bytes) -> None:
        """Sends whole events, opening the response where it is not open. Waits while the client reads slowly."""
        await self._ready_to_send()
        await self._write({"type": "http.response.body", "body": data, "more_body": True})

    async def end_events(self, data: bytes = b"") -> None:
        """Sends the last events and ends the response."""
        await self._ready_to_send()
        await self._write({"type": "http.response.body", "body": data, "more_body": False})
        self._is_ended = True

    async def send_answer(self, status: int, body: bytes) -> None:
        """Sends a whole answer that is not streamed."""
        self.status = status
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            *self.headers,
        ]
        await self._write({"type": "http.response.start", "status": status, "headers": headers})
        await self._write({"type": "http.response.body", "body": body, "more_body": False})
        self._is_ended = True

    async def fail_stream(self, error: TidegateError) -> None:
        """Tells an open stream of its error by one event, and ends it without `[DONE]`; anything else, nothing."""
        if self._is_ended or not self._is_stream:
            return
        with anyio.CancelScope(shield=True), anyio.move_on_after(_FAIL_WITHIN_S):
            await self.end_events(data_event(envelope(error, self.request_id)))

    async def _ready_to_send(self) -> None:
        if self._comment is not None and not self._comment.done():
            # `wait`, because a comment that was cancelled must not cancel what comes after it.
            await asyncio.wait([self._comment])
        if self.status is None:
            await self._open_stream()

    async def _open_stream(self) -> None:
        headers = [*_STREAM_HEADERS, *self.headers]
        await self._write({"type": "http.response.start", "status": 200, "headers": headers})
        self.status = 200
        self._is_stream = True

    async def _write(self, message: Message) -> None:
        self._is_sending = True
        try:
            await self._send(message)
        finally:
            self._is_sending = False
            self._last_sent_at = self._loop.time()

    async def _listen(self, scope: anyio.CancelScope) -> None:
        try:
            while (await self._receive())["type"] != "http.disconnect":
                pass
        except Exception:
            # An edge: a `receive` that raises, whatever it raises, has no client behind it either.
            log.exception("receive_failed")
        # A response that ended reads as a disconnect too: there is nothing left that a hang-up could end.
        if not self._is_ended:
            self.is_gone = True
            scope.cancel()

    def _look_for_silence(self) -> None:
        silent_s = self._loop.time() - self._last_sent_at
        wait_s = self._keepalive_after_s - silent_s
        if wait_s <= 0:
            wait_s = self._keepalive_after_s
            # A client that does not read needs no comment: what it has not read keeps the connection alive.
            if not (self._is_sending or self._is_ended) and (self._comment is None or self._comment.done()):
                self._comment = self._loop.create_task(self._send_comment())
        self._timer = self._loop.call_later(wait_s, self._look_for_silence)

    async def _send_comment(self) -> None:
        if self.status is None:
            await self._open_stream()
        place = 0
        if self.waits_for is not None and self.waits_for.place is not None:
            place = await self.waits_for.place()
        comment = queued_comment(place) if place else COMMENT
        await self._write({"type": "http.response.body", "body": comment, "more_body": True})

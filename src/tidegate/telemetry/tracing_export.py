"""Sending spans to a collector, from a thread of its own, so that nobody waits for it.

Invariants: what waits is bounded, and what is dropped is counted; a collector that is down, slow or hangs costs spans,
never a request; failure is logged when it begins and when it ends; the end waits for 2 s at most. The thread is started
by the lifespan, in the process that serves: a fork of it has none.
"""

import asyncio
import contextlib
import importlib
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import anyio
import httpx2

from tidegate import __version__
from tidegate.settings.tracing import TracingSettings
from tidegate.telemetry.logging import get_logger
from tidegate.telemetry.tracing import Span, Tracer
from tidegate.tls import client_context

# About 2 KB each.
MOST_WAITING = 4096
BATCH = 256
INTERVAL_S = 1.0
FLUSH_WITHIN_S = 2.0
_CONNECT_S, _ANSWER_S = 2.0, 5.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 30.0
_MOST_OF_AN_ANSWER = 64 * 1024
# OTLP/HTTP: "Retryable Response Codes".
_TRY_AGAIN = frozenset({429, 502, 503, 504})

log = get_logger(__name__)


class NotTaken(Exception):
    """The collector did not take a batch. `try_again` where it may take the same one later."""

    def __init__(self, reason: str, *, try_again: bool) -> None:
        super().__init__(reason)
        self.try_again = try_again


class Exporter:
    """Takes spans on the event loop's thread, and sends them from its own.

    >>> exporter = Exporter(encode, "http://127.0.0.1:4318/v1/traces", [])
    >>> exporter.start()
    >>> exporter.take(span)
    >>> await exporter.aclose()
    """

    def __init__(
        self,
        encode: Callable[[list[Span]], bytes],
        url: str,
        headers: list[tuple[str, str]],
        *,
        interval_s: float = INTERVAL_S,
    ) -> None:
        self.sent = 0
        self._encode = encode
        self._url = url
        self._headers = [*headers, ("content-type", "application/x-protobuf"), ("user-agent", "tidegate")]
        self._interval_s = interval_s
        self._waiting: deque[Span] = deque()
        self._batch: list[Span] = []
        # One is counted by each thread.
        self._overflowed = self._refused = 0
        self._is_failing = False
        self._wake, self._leaving = threading.Event(), threading.Event()
        self._ends_at: float | None = None
        self._loop = asyncio.get_running_loop()
        self._ended = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="tidegate-traces", daemon=True)

    @property
    def dropped(self) -> int:
        """Spans that nobody will see: too many waited, or the collector refused them."""
        return self._overflowed + self._refused

    def start(self) -> None:
        self._thread.start()

    def take(self, span: Span) -> None:
        if len(self._waiting) >= MOST_WAITING:
            self._overflowed += 1
            return
        self._waiting.append(span)
        if len(self._waiting) == BATCH:
            self._wake.set()

    async def aclose(self) -> None:
        """Sends what waits, for 2 s at most; then it is left behind, and its thread ends with the process."""
        self._ends_at = time.monotonic() + FLUSH_WITHIN_S
        self._leaving.set()
        self._wake.set()
        with anyio.CancelScope(shield=True), anyio.move_on_after(FLUSH_WITHIN_S):
            await self._ended.wait()
        left = len(self._waiting) + len(self._batch)
        if left:
            log.warning("traces_left", spans=left, reason="the collector did not take them in time")

    def _run(self) -> None:
        try:
            with httpx2.Client(verify=client_context(), trust_env=False, follow_redirects=False) as client:
                pause_s = 0.0
                while not self._leaving.is_set():
                    # In a pause nothing wakes it but the end.
                    if pause_s:
                        self._leaving.wait(pause_s)
                    else:
                        self._wake.wait(self._interval_s)
                    self._wake.clear()
                    is_taken = self._send_waiting(client)
                    pause_s = 0.0 if is_taken else min(2 * pause_s or _FIRST_PAUSE_S, _LONGEST_PAUSE_S)
                # What came while the last was sent.
                self._send_waiting(client)
        finally:
            self._on_loop(self._ended.set)

    def _send_waiting(self, client: httpx2.Client) -> bool:
        """Sends until nothing waits, or the collector takes no more. Returns whether it took what it was sent."""
        while self._batch or self._waiting:
            while self._waiting and len(self._batch) < BATCH:
                self._batch.append(self._waiting.popleft())
            try:
                self._send(client, self._batch)
            except NotTaken as failure:
                if not failure.try_again:
                    self._refused += len(self._batch)
                    self._batch.clear()
                self._note_failure(str(failure))
                return False
            self.sent += len(self._batch)
            self._batch.clear()
            self._note_success()
        return True

    def _send(self, client: httpx2.Client, batch: list[Span]) -> None:
        answer_s = _ANSWER_S
        if self._ends_at is not None:
            answer_s = min(answer_s, self._ends_at - time.monotonic())
            if answer_s <= 0:
                raise NotTaken("the time is over", try_again=True)
        ends_at = time.monotonic() + answer_s
        timeout = httpx2.Timeout(answer_s, connect=min(_CONNECT_S, answer_s))
        try:
            body = self._encode(batch)
            with client.stream("POST", self._url, content=body, headers=self._headers, timeout=timeout) as answer:
                size = 0
                for piece in answer.iter_raw():
                    size += len(piece)
                    if size > _MOST_OF_AN_ANSWER or time.monotonic() > ends_at:
                        break
                status = answer.status_code
        except httpx2.TransportError as error:
            # Not what a header is said to hold.
            told = "" if isinstance(error, httpx2.LocalProtocolError) else f": {error}"
            raise NotTaken(f"{type(error).__name__}{told}".rstrip(": "), try_again=True) from None
        except Exception as error:
            # The edge of a thread: a span that cannot be sent takes its batch along, and no more.
            raise NotTaken(f"{type(error).__name__}: {error}", try_again=False) from error
        if not 200 <= status < 300:
            raise NotTaken(f"it answered {status}", try_again=status in _TRY_AGAIN)

    def _note_failure(self, reason: str) -> None:
        if not self._is_failing:
            self._is_failing = True
            self._on_loop(lambda: log.warning("traces_not_taken", collector=self._url, reason=reason))

    def _note_success(self) -> None:
        if self._is_failing:
            self._is_failing = False
            dropped = self.dropped
            self._on_loop(lambda: log.info("traces_taken_again", collector=self._url, dropped=dropped))

    def _on_loop(self, call: Callable[[], object]) -> None:
        # Left behind, it may be later than its loop.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(call)


@dataclass(frozen=True, slots=True)
class Tracing:
    """What traces the requests of a process, and where their spans go."""

    tracer: Tracer
    exporter: Exporter


@asynccontextmanager
async def open_tracing(settings: TracingSettings) -> AsyncIterator[Tracing | None]:
    """None, and nothing imported, where no collector is named."""
    if settings.url is None:
        yield None
        return
    # It takes 0.2 s, and reads files.
    wire = await asyncio.to_thread(importlib.import_module, "tidegate.telemetry.tracing_wire")
    exporter = Exporter(wire.span_encoder(settings.service_name, __version__), settings.url, settings.header_pairs)
    exporter.start()
    try:
        yield Tracing(Tracer(exporter.take, sample=settings.sample), exporter)
    finally:
        await exporter.aclose()

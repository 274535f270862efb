"""What the road asks of a vendor's adapter, and what it gets back.

An adapter sends one request of one attempt and gives back an `Answer`, opened: its status is known, its body comes as
it comes. An answer is closed by the context that opened it, in every case.
"""

from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

from tidegate.admission.slots import Lease
from tidegate.routing.catalogue import PlannedAttempt
from tidegate.upstream.deadlines import Deadlines
from tidegate.upstream.echoed_key import key_of

# To the upstream, by the contract; `forward_headers` of the configuration adds to it. Never credentials or cookies.
FORWARDED_HEADERS = frozenset({b"anthropic-version", b"anthropic-beta", b"openai-beta", b"traceparent"})


@dataclass(slots=True)
class UpstreamRequest:
    """One request to one upstream: the path below its base URL, the body, and the headers that go with it.

    The adapter sets `was_sent` when the upstream begins to be told: a connection that never stood told it nothing.
    """

    attempt: PlannedAttempt
    lease: Lease
    path: str
    body: bytes
    streamed: bool
    asks_usage: bool
    headers: list[tuple[bytes, bytes]]
    deadlines: Deadlines
    was_sent: bool = False

    @property
    def key(self) -> str | None:
        """The key that it carries: the slot's own, else the upstream's."""
        return self.lease.api_key or key_of(self.attempt.upstream)


class Answer(Protocol):
    """An upstream's answer. Iterating gives the body's bytes as they come."""

    @property
    def status(self) -> int: ...

    @property
    def is_event_stream(self) -> bool: ...

    @property
    def request_id(self) -> str | None: ...

    @property
    def passed_headers(self) -> Mapping[str, str]:
        """The upstream's request id and rate limits, under the names in which a caller sees them."""
        ...

    def __aiter__(self) -> AsyncIterator[bytes]: ...


class Provider(Protocol):
    @property
    def streams_only(self) -> bool:
        """Whether it is always asked to stream: a caller that did not ask gets the collected answer."""
        ...

    def check(self, body: bytes) -> None:
        """Raises `InvalidRequest` for what this provider would ignore or misread."""
        ...

    def open(self, request: UpstreamRequest) -> AbstractAsyncContextManager[Answer]:
        """Sends the request; the answer is open within the context and closed by it. Raises `UpstreamError`."""
        ...

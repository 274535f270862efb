"""One request on the road: who asks, for what, on whose behalf, and what the road learns on its way."""

import re
import time
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field

from tidegate.auth.principal import Principal
from tidegate.errors import InvalidRequest
from tidegate.http.context import RequestContext
from tidegate.inference.caching import Caching
from tidegate.inference.client import Client
from tidegate.inference.serving import Serving
from tidegate.inference.wire import ChatCall
from tidegate.ledger.entry import Attribution, new_entry_id
from tidegate.telemetry.metrics.series import Tally
from tidegate.upstream.provider import FORWARDED_HEADERS

_MOST_TAGS = 16
_LONGEST_LABEL = 256
_TAG = re.compile(r"[^=,\x00-\x1f]{1,64}=[^,\x00-\x1f]{0,256}")
_LONGEST_DEADLINE_MS = 24 * 3600 * 1000


@dataclass(slots=True)
class Progress:
    """What the entry tells of the way: who answered, how long it waited, what the cache said and saved.

    Seconds from the request's arrival. `cache` is `hit` or `miss`, None where no cache was asked. `gaps` are the times
    between the pieces of a stream.
    """

    upstream: str | None = None
    finish_reason: str | None = None
    queue_s: float | None = None
    ttft_s: float | None = None
    cache: str | None = None
    gaps: Tally | None = None
    units: dict[str, int] = field(default_factory=dict)


@dataclass(slots=True)
class Exchange:
    """One valid request of one caller. `deadline_at` is of `time.perf_counter`, None where the caller set none.

    `serving` is taken at the plan: what this request is served by, to its end.
    """

    call: ChatCall
    principal: Principal
    context: RequestContext
    client: Client
    attribution: Attribution
    headers: "RoadHeaders"
    deadline_at: float | None
    entry_id: uuid.UUID = field(default_factory=new_entry_id)
    progress: Progress = field(default_factory=Progress)
    caching: Caching | None = None
    serving: Serving = field(init=False)

    def remaining_s(self) -> float | None:
        """Seconds until the caller's deadline, never under 0; None where there is none."""
        return None if self.deadline_at is None else max(0.0, self.deadline_at - time.perf_counter())

    def elapsed_s(self) -> float:
        return time.perf_counter() - self.context.started


@dataclass(frozen=True, slots=True)
class RoadHeaders:
    """The request's headers as far as the road reads them, by their lower-case names."""

    values: dict[bytes, bytes]

    @classmethod
    def of(cls, headers: Iterable[tuple[bytes, bytes]]) -> "RoadHeaders":
        return cls(dict(headers))

    def deadline_at(self, started: float) -> float | None:
        """When the caller's `X-Tidegate-Deadline-Ms` ends. Raises `InvalidRequest`."""
        written = self.values.get(b"x-tidegate-deadline-ms")
        if written is None:
            return None
        if not written.isdigit() or len(written) > 12 or not 0 < int(written) <= _LONGEST_DEADLINE_MS:
            raise InvalidRequest(
                f"X-Tidegate-Deadline-Ms must be a whole number of milliseconds from 1 to {_LONGEST_DEADLINE_MS}.",
                param="X-Tidegate-Deadline-Ms",
            )
        return started + int(written) / 1000

    def attribution(self, call: ChatCall, end_user_headers: tuple[str, ...]) -> Attribution:
        """Whom the request is for: our headers, else the configured ones, else the body. Raises `InvalidRequest`."""
        end_user = self._label(b"x-tidegate-end-user")
        for name in end_user_headers:
            end_user = end_user or self._label(name.lower().encode())
        return Attribution(
            end_user=end_user or call.end_user, session_id=self._label(b"x-tidegate-session"), tags=self._tags()
        )

    def forwarded(self, request_id: str, forward_headers: tuple[str, ...] = ()) -> list[tuple[bytes, bytes]]:
        """What goes on to an upstream: the allow-list and the configuration's own."""
        passed = [(name, value) for name, value in self.values.items() if name in FORWARDED_HEADERS]
        for name in forward_headers:
            value = self.values.get(name.encode())
            if value is not None and name.encode() not in FORWARDED_HEADERS:
                passed.append((name.encode(), value))
        passed.append((b"x-request-id", request_id.encode()))
        return passed

    def _label(self, name: bytes) -> str | None:
        value = self.values.get(name)
        if not value:
            return None
        if len(value) > _LONGEST_LABEL:
            raise InvalidRequest(f"{name.decode()} is longer than {_LONGEST_LABEL} characters.", param=name.decode())
        return value.decode("latin-1")

    def _tags(self) -> dict[str, str]:
        written = self.values.get(b"x-tidegate-tags")
        if not written:
            return {}
        pairs = [pair.strip() for pair in written.decode("latin-1").split(",") if pair.strip()]
        if len(pairs) > _MOST_TAGS or not all(_TAG.fullmatch(pair) for pair in pairs):
            raise InvalidRequest(
                "X-Tidegate-Tags must be at most 16 pairs k=v, separated by commas, of 64 and 256 characters.",
                param="X-Tidegate-Tags",
            )
        return {key.strip(): value.strip() for key, _, value in (pair.partition("=") for pair in pairs)}

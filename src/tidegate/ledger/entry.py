"""What the ledger says of a request: the open record, its attempts, and the one terminal entry.

These are the records of the journal and the rows of the database; `contract.md` fixes their names. An entry is made by
`Reservation.settle` and by nothing else, so its sums are its attempts' sums.
"""

import os
import time
import uuid
from datetime import UTC, datetime
from decimal import Decimal
from typing import Literal

import msgspec

SCHEMA = 1

Outcome = Literal["completed", "client_disconnected", "upstream_failed", "timed_out", "rejected", "interrupted"]
UsageSource = Literal["provider", "counted", "estimated", "none"]
# From the strongest to the weakest: an entry's source is the weakest of its parts'. `none` says that nothing reached
# an upstream, so beside an attempt that did it weakens nothing.
_STRENGTH: dict[str, int] = {"none": 0, "provider": 1, "counted": 2, "estimated": 3}


class Tokens(msgspec.Struct, frozen=True, kw_only=True):
    """Token counts in disjoint classes that sum: `input` excludes both caches, `output` excludes reasoning."""

    input: int = 0
    cached_input: int = 0
    cache_write: int = 0
    cache_write_1h: int = 0
    output: int = 0
    reasoning: int = 0

    @property
    def total(self) -> int:
        """All classes together."""
        return self.input + self.cached_input + self.cache_write + self.cache_write_1h + self.output + self.reasoning

    def __add__(self, other: "Tokens") -> "Tokens":
        return Tokens(
            input=self.input + other.input,
            cached_input=self.cached_input + other.cached_input,
            cache_write=self.cache_write + other.cache_write,
            cache_write_1h=self.cache_write_1h + other.cache_write_1h,
            output=self.output + other.output,
            reasoning=self.reasoning + other.reasoning,
        )


class Usage(msgspec.Struct, frozen=True):
    """Tokens and where their count comes from. A usage of zero is a usage: never treat it as missing."""

    tokens: Tokens
    source: UsageSource


NO_USAGE = Usage(Tokens(), "none")


class Attempt(msgspec.Struct, kw_only=True):
    """One call of one upstream, a row of its own. `cost` is USD, null where the model is unpriced. Times are UTC."""

    n: int
    upstream: str
    model: str
    upstream_request_id: str | None = None
    outcome: Outcome
    status: int | None = None
    input_tokens: int = 0
    cached_input_tokens: int = 0
    cache_write_tokens: int = 0
    cache_write_1h_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0
    usage_source: UsageSource = "none"
    cost: Decimal | None = None
    price_version: str | None = None
    started_at: datetime
    ended_at: datetime


class Attribution(msgspec.Struct, frozen=True, kw_only=True):
    """Whom a request is for, as its caller says. It counts for limits only where the key trusts its caller."""

    end_user: str | None = None
    session_id: str | None = None
    tags: dict[str, str] = msgspec.field(default_factory=dict)


class OpenEntry(msgspec.Struct, frozen=True, kw_only=True):
    """What is known when a request is reserved: the journal's open record, and the first half of its terminal entry."""

    entry_id: uuid.UUID
    workspace_id: uuid.UUID
    key_id: uuid.UUID | None
    user_id: uuid.UUID | None
    request_id: str
    end_user: str | None
    session_id: str | None
    tags: dict[str, str]
    protocol: str
    model: str
    streamed: bool
    reserved_cost: Decimal | None
    client_address: str | None
    user_agent: str | None
    started_at: datetime


class Entry(msgspec.Struct, kw_only=True):
    """A terminal ledger entry, whole: the contract's fields, with its attempts.

    `cache` is `hit` or `miss`, None where no cache was asked. A hit has no attempts, costs 0, and says in `units` what
    it saved: tokens, and `saved_cost` in nano-USD where that is known.
    """

    entry_id: uuid.UUID
    schema: int = SCHEMA
    workspace_id: uuid.UUID
    key_id: uuid.UUID | None
    user_id: uuid.UUID | None
    request_id: str
    end_user: str | None
    session_id: str | None
    tags: dict[str, str]
    protocol: str
    model: str
    upstream: str | None
    streamed: bool
    outcome: Outcome
    status: int | None
    error_code: str | None
    finish_reason: str | None
    cache: str | None
    input_tokens: int
    cached_input_tokens: int
    cache_write_tokens: int
    cache_write_1h_tokens: int
    output_tokens: int
    reasoning_tokens: int
    units: dict[str, int]
    usage_source: UsageSource
    reserved_cost: Decimal | None
    cost: Decimal | None
    price_version: str | None
    client_address: str | None
    user_agent: str | None
    queue_ms: int | None
    ttft_ms: int | None
    duration_ms: int
    started_at: datetime
    ended_at: datetime
    attempts: list[Attempt]

    @property
    def total_tokens(self) -> int:
        """All classes together."""
        return (
            self.input_tokens
            + self.cached_input_tokens
            + self.cache_write_tokens
            + self.cache_write_1h_tokens
            + self.output_tokens
            + self.reasoning_tokens
        )


class Ending(msgspec.Struct, kw_only=True):
    """How a request ended: what `close_entry` needs beside the open record and the attempts."""

    outcome: Outcome
    status: int | None
    error_code: str | None = None
    finish_reason: str | None = None
    upstream: str | None = None
    queue_ms: int | None = None
    ttft_ms: int | None = None
    cache: str | None = None
    units: dict[str, int] = msgspec.field(default_factory=dict)
    ended_at: datetime


def close_entry(opened: OpenEntry, attempts: list[Attempt], ending: Ending) -> Entry:
    """The terminal entry of an open one. Sums are the attempts' sums; the cost is null where any part is unpriced."""
    costs = [attempt.cost for attempt in attempts]
    if ending.cache == "hit":
        # Nothing was called, and that is what it cost.
        costs = [Decimal(0)]
    versions = [attempt.price_version for attempt in attempts if attempt.price_version]
    sources = [attempt.usage_source for attempt in attempts]
    return Entry(
        entry_id=opened.entry_id,
        workspace_id=opened.workspace_id,
        key_id=opened.key_id,
        user_id=opened.user_id,
        request_id=opened.request_id,
        end_user=opened.end_user,
        session_id=opened.session_id,
        tags=opened.tags,
        protocol=opened.protocol,
        model=opened.model,
        upstream=ending.upstream,
        streamed=opened.streamed,
        outcome=ending.outcome,
        status=ending.status,
        error_code=ending.error_code,
        finish_reason=ending.finish_reason,
        cache=ending.cache,
        input_tokens=sum(attempt.input_tokens for attempt in attempts),
        cached_input_tokens=sum(attempt.cached_input_tokens for attempt in attempts),
        cache_write_tokens=sum(attempt.cache_write_tokens for attempt in attempts),
        cache_write_1h_tokens=sum(attempt.cache_write_1h_tokens for attempt in attempts),
        output_tokens=sum(attempt.output_tokens for attempt in attempts),
        reasoning_tokens=sum(attempt.reasoning_tokens for attempt in attempts),
        units=ending.units,
        usage_source=max(sources, key=_STRENGTH.__getitem__, default="none"),
        reserved_cost=opened.reserved_cost,
        cost=None if None in costs or not costs else sum((c for c in costs if c is not None), Decimal(0)),
        price_version=versions[-1] if versions else None,
        client_address=opened.client_address,
        user_agent=opened.user_agent,
        queue_ms=ending.queue_ms,
        ttft_ms=ending.ttft_ms,
        duration_ms=max(0, round((ending.ended_at - opened.started_at).total_seconds() * 1000)),
        started_at=opened.started_at,
        ended_at=ending.ended_at,
        attempts=attempts,
    )


def new_entry_id() -> uuid.UUID:
    """A UUIDv7 (RFC 9562, 5.7 and 6.2 method 3): Unix milliseconds, their 4096th parts, then random bits.

    Never taken from a header. Ids of one process are in the order of their making, to a quarter of a microsecond.
    """
    milliseconds, nanoseconds = divmod(time.time_ns(), 1_000_000)
    fraction = nanoseconds * 4096 // 1_000_000
    random = int.from_bytes(os.urandom(8), "big") & ((1 << 62) - 1)
    return uuid.UUID(int=(milliseconds << 80) | (0x7 << 76) | (fraction << 64) | (0x2 << 62) | random)


def utc_now() -> datetime:
    return datetime.now(UTC)

"""The ledger as routes show it: the contract's field names, money as decimal strings, times in UTC with `Z`."""

import uuid
from datetime import UTC, datetime
from decimal import Decimal
from typing import Annotated

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, PlainSerializer

from tidegate.ledger.entry import Outcome, UsageSource


def plain_decimal(amount: Decimal) -> str:
    """Exact, without an exponent and without trailing zeros: `0.0018`, `10`, `0`."""
    return format(amount.normalize(), "f")


UsdString = Annotated[Decimal, PlainSerializer(plain_decimal, return_type=str)]
# PostgreSQL's text holds no NUL, so no row has one.
SearchText = Annotated[str, Field(min_length=1, max_length=1024, pattern=r"^[^\x00]*$")]
Moment = Annotated[AwareDatetime, Field(ge=datetime(1970, 1, 2, tzinfo=UTC), le=datetime(9999, 1, 1, tzinfo=UTC))]


class RequestQuery(BaseModel):
    """Which entries to list. `since` is included, `until` is not; `after` is the last answer's `next`."""

    model_config = ConfigDict(extra="forbid")

    request_id: SearchText | None = None
    key_id: uuid.UUID | None = None
    user_id: uuid.UUID | None = None
    model: SearchText | None = None
    upstream: SearchText | None = None
    outcome: Outcome | None = None
    end_user: SearchText | None = None
    session_id: SearchText | None = None
    since: Moment | None = None
    until: Moment | None = None
    limit: Annotated[int, Field(ge=1, le=200)] = 50
    after: uuid.UUID | None = None


class RequestAttempt(BaseModel):
    """One call of one upstream."""

    n: int
    upstream: str
    model: str
    upstream_request_id: str | None
    outcome: Outcome
    status: int | None
    input_tokens: int
    cached_input_tokens: int
    cache_write_tokens: int
    cache_write_1h_tokens: int
    output_tokens: int
    reasoning_tokens: int
    usage_source: UsageSource
    cost: UsdString | None
    price_version: str | None
    started_at: datetime
    ended_at: datetime


class RequestEntry(BaseModel):
    """A terminal ledger entry, whole."""

    entry_id: uuid.UUID
    # Pydantic has a method of that name.
    schema_: int = Field(alias="schema")
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
    reserved_cost: UsdString | None
    cost: UsdString | None
    price_version: str | None
    client_address: str | None
    user_agent: str | None
    queue_ms: int | None
    ttft_ms: int | None
    duration_ms: int
    started_at: datetime
    ended_at: datetime
    attempts: list[RequestAttempt]


class RequestPage(BaseModel):
    """Entries, newest first. `next` asks for the page after this one; null on the last."""

    data: list[RequestEntry]
    next: uuid.UUID | None

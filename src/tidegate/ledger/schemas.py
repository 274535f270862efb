"""The ledger as routes show it: the contract's field names, money as decimal strings, times in UTC with `Z`."""

import uuid
from datetime import UTC, datetime
from decimal import Decimal
from typing import Annotated

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, PlainSerializer

from tidegate.ledger.entry import Outcome, UsageSource, utc_now
from tidegate.ledger.reports import By, since_moment


def plain_decimal(amount: Decimal) -> str:
    """Exact, without an exponent and without trailing zeros: `0.0018`, `10`, `0`."""
    return format(amount.normalize(), "f")


UsdString = Annotated[Decimal, PlainSerializer(plain_decimal, return_type=str)]
# PostgreSQL's text holds no NUL, so no row has one.
SearchText = Annotated[str, Field(min_length=1, max_length=1024, pattern=r"^[^\x00]*$")]
Moment = Annotated[AwareDatetime, Field(ge=datetime(1970, 1, 2, tzinfo=UTC), le=datetime(9999, 1, 1, tzinfo=UTC))]


def _since(text: str) -> str:
    since_moment(text, utc_now())
    return text


Since = Annotated[str, Field(min_length=1, max_length=64, examples=["7d", "2026-11-01"]), AfterValidator(_since)]


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


class UsageQuery(BaseModel):
    """Which totals. `since` is a length of time such as `7d`, a date, or a moment with its zone.

    `workspace_id` narrows what an admin sees; anyone else sees their own workspace.
    """

    model_config = ConfigDict(extra="forbid")

    by: By = "model"
    since: Since = "7d"
    workspace_id: uuid.UUID | None = None


class UsageRow(BaseModel):
    """One group. `value` is what its entries have in common (null: they have none), `name` and `prefix` tell whose.

    `cost` is null where all that was used is unpriced; `unpriced_requests` are missing from it.
    """

    model_config = ConfigDict(from_attributes=True)

    value: str | None
    name: str | None
    prefix: str | None
    requests: int
    outcomes: dict[Outcome, int]
    input_tokens: int
    cached_input_tokens: int
    cache_write_tokens: int
    cache_write_1h_tokens: int
    output_tokens: int
    reasoning_tokens: int
    cost: UsdString | None
    unpriced_requests: int


class UsageReport(BaseModel):
    """Totals since a moment, the group with the most requests first, of days the newest.

    `workspace_id` is null for all workspaces. `truncated`: there are more groups than the thousand that are shown.
    """

    model_config = ConfigDict(from_attributes=True)

    by: By
    since: datetime
    workspace_id: uuid.UUID | None
    data: list[UsageRow]
    truncated: bool

"""Totals of the ledger: requests, outcomes, tokens and cost, by what a caller wants to tell apart.

The database adds up, in one statement. A group by tag is one `key=value`, so an entry with three tags is in three
groups, and the groups sum to more than there was; an entry without is in the group of null. Days are UTC.

A cost is the sum of what is priced. It is null where all that was used is unpriced; `unpriced_requests` says how many
requests are missing from it. A request that reached no upstream used nothing, and so misses nothing.
"""

import re
import uuid
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any, Final, Literal, get_args

import msgspec
from sqlalchemy import ColumnElement, FromClause, RowMapping, Text, cast, func, select, true
from sqlalchemy.ext.asyncio import AsyncSession

from tidegate.accounts.models import User, Workspace
from tidegate.auth.models import ApiKey
from tidegate.ledger.entry import Outcome
from tidegate.ledger.models import LedgerEntry

By = Literal["model", "key", "user", "workspace", "tag", "end_user", "day"]

# The groups with the most requests, the newest days.
MOST_ROWS: Final = 1000
TOKEN_CLASSES: Final = (
    "input_tokens",
    "cached_input_tokens",
    "cache_write_tokens",
    "cache_write_1h_tokens",
    "output_tokens",
    "reasoning_tokens",
)
_OUTCOMES: Final[tuple[Outcome, ...]] = get_args(Outcome)
_AGO: Final = re.compile(r"([1-9][0-9]{0,5})([mhdw])")
_UNITS: Final = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_LONGEST: Final = timedelta(days=36_500)
_EARLIEST: Final = datetime(1970, 1, 2, tzinfo=UTC)
_LATEST: Final = datetime(9999, 1, 1, tzinfo=UTC)
_ENTRIES: Final = LedgerEntry.__table__


class UsageRow(msgspec.Struct, frozen=True, kw_only=True):
    """One group. `value` is what it has in common, null where an entry has none; ids as text, tags as `key=value`.

    `name` is a key's or a workspace's name, or a user's address, where it still exists; `prefix` is a key's.
    """

    value: str | None
    name: str | None = None
    prefix: str | None = None
    requests: int
    outcomes: dict[Outcome, int]
    input_tokens: int
    cached_input_tokens: int
    cache_write_tokens: int
    cache_write_1h_tokens: int
    output_tokens: int
    reasoning_tokens: int
    cost: Decimal | None
    unpriced_requests: int


class UsageTotals(msgspec.Struct, frozen=True, kw_only=True):
    """A report. `workspace_id` is null for all workspaces; `truncated` says that there are more groups than rows."""

    by: By
    since: datetime
    workspace_id: uuid.UUID | None
    data: list[UsageRow]
    truncated: bool


def since_moment(text: str, now: datetime) -> datetime:
    """The moment that `7d` (`90m`, `12h`, `4w`), a date (its UTC midnight) or a moment with its zone means.

    Raises `ValueError`, with what to write in place of it.
    """
    if matched := _AGO.fullmatch(text):
        ago = timedelta(**{_UNITS[matched[2]]: int(matched[1])})
        return max(now - ago, _EARLIEST) if ago <= _LONGEST else _EARLIEST
    moment = _parsed(text)
    if moment is None or not _EARLIEST <= moment <= _LATEST:
        raise ValueError(
            f"{text[:40]!r} is no length of time such as 7d, no date such as 2026-11-01, and no moment with a zone"
        )
    return moment


def _parsed(text: str) -> datetime | None:
    try:
        if len(text) == len("2026-11-01"):
            return datetime.combine(date.fromisoformat(text), time(), UTC)
        moment = datetime.fromisoformat(text)
        return None if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, OverflowError):
        return None


async def usage_totals(
    session: AsyncSession, by: By, since: datetime, workspace_id: uuid.UUID | None = None
) -> UsageTotals:
    """The totals of entries that began at or after `since`, of one workspace or (None) of all.

    The groups with the most requests come first, of days the newest.
    """
    group, source = _grouping(by, session.get_bind().dialect.name)
    conditions = [LedgerEntry.started_at >= since]
    if workspace_id is not None:
        conditions.append(LedgerEntry.workspace_id == workspace_id)
    value = group.label("value")
    requests = func.count().label("requests")
    order = [value.desc()] if by == "day" else [requests.desc(), value]
    statement = (
        select(value, requests, *_sums())
        .select_from(source)
        .where(*conditions)
        .group_by(group)
        .order_by(*order)
        .limit(MOST_ROWS + 1)
    )
    rows = (await session.execute(statement)).mappings().all()
    shown = rows[:MOST_ROWS]
    names = await _names(session, by, [row["value"] for row in shown if row["value"] is not None])
    data = [_row(row, names.get(row["value"], {})) for row in shown]
    return UsageTotals(by=by, since=since, workspace_id=workspace_id, data=data, truncated=len(rows) > len(shown))


def _grouping(by: By, dialect: str) -> tuple[ColumnElement[Any], FromClause]:
    """What is grouped by, and where it is selected from."""
    columns: dict[By, ColumnElement[Any]] = {
        "model": _ENTRIES.c.model,
        "key": _ENTRIES.c.key_id,
        "user": _ENTRIES.c.user_id,
        "workspace": _ENTRIES.c.workspace_id,
        "end_user": _ENTRIES.c.end_user,
    }
    if by in columns:
        return columns[by], _ENTRIES
    on_postgresql = dialect == "postgresql"
    if by == "day":
        if on_postgresql:
            return func.to_char(func.timezone("UTC", _ENTRIES.c.started_at), "YYYY-MM-DD", type_=Text()), _ENTRIES
        return func.substr(_ENTRIES.c.started_at, 1, 10, type_=Text()), _ENTRIES
    each = func.jsonb_each_text if on_postgresql else func.json_each
    pair = each(_ENTRIES.c.tags).table_valued("key", "value", name="tag")
    return cast(pair.c.key, Text) + "=" + cast(pair.c.value, Text), _ENTRIES.outerjoin(pair, true())


def _sums() -> list[ColumnElement[Any]]:
    is_unpriced = LedgerEntry.cost.is_(None) & (LedgerEntry.usage_source != "none")
    return [
        *(func.count().filter(LedgerEntry.outcome == outcome).label(f"outcome_{outcome}") for outcome in _OUTCOMES),
        *(func.sum(_ENTRIES.c[name]).label(name) for name in TOKEN_CLASSES),
        func.sum(LedgerEntry.cost).label("cost"),
        func.count().filter(is_unpriced).label("unpriced_requests"),
    ]


async def _names(session: AsyncSession, by: By, ids: Sequence[Any]) -> Mapping[Any, Mapping[str, str]]:
    if not ids:
        return {}
    match by:
        case "key":
            keys = await session.execute(select(ApiKey.id, ApiKey.name, ApiKey.prefix).where(ApiKey.id.in_(ids)))
            return {key_id: {"name": name, "prefix": prefix} for key_id, name, prefix in keys}
        case "user":
            users = await session.execute(select(User.id, User.email).where(User.id.in_(ids)))
            return {user_id: {"name": email} for user_id, email in users}
        case "workspace":
            workspaces = await session.execute(select(Workspace.id, Workspace.name).where(Workspace.id.in_(ids)))
            return {workspace_id: {"name": name} for workspace_id, name in workspaces}
    return {}


def _row(row: RowMapping, names: Mapping[str, str]) -> UsageRow:
    value, cost, unpriced = row["value"], row["cost"], row["unpriced_requests"]
    counted = {outcome: row[f"outcome_{outcome}"] for outcome in _OUTCOMES}
    return UsageRow(
        value=None if value is None else str(value),
        name=names.get("name"),
        prefix=names.get("prefix"),
        requests=row["requests"],
        outcomes={outcome: count for outcome, count in counted.items() if count},
        # PostgreSQL's sums of 64 bits are decimals.
        input_tokens=int(row["input_tokens"]),
        cached_input_tokens=int(row["cached_input_tokens"]),
        cache_write_tokens=int(row["cache_write_tokens"]),
        cache_write_1h_tokens=int(row["cache_write_1h_tokens"]),
        output_tokens=int(row["output_tokens"]),
        reasoning_tokens=int(row["reasoning_tokens"]),
        cost=Decimal(0) if cost is None and not unpriced else cost,
        unpriced_requests=unpriced,
    )

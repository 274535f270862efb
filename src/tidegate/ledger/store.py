"""Writes the ledger's rows. Nothing else inserts into these tables, and nothing updates an entry.

An entry and its attempts arrive together or not at all, and the first to arrive under an entry id stays: a batch whose
arrival is in doubt is sent again whole. A value that no column can hold does not stop the entries around it.

On PostgreSQL a batch is one statement with one parameter, the entries as JSON: 26 µs of this process's CPU an entry
in batches of 50, where a row of parameters for each took 72.
"""

import uuid
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any, Protocol, TypeVar

import msgspec
from sqlalchemy import JSON, ColumnElement, Text, bindparam, cast, column, func, insert, select, true
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DBAPIError, IntegrityError, StatementError
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.sql.expression import Insert, TableValuedAlias

from tidegate.ledger.entry import Attempt, Entry
from tidegate.ledger.models import NO_KEY_ID, LedgerAttempt, LedgerEntry, Refusal
from tidegate.storage.database import Database

# Entries of one transaction: about 1 MB.
BATCH = 1000
# What stands for a number that is too large for its column. Nobody spends this; an upstream may claim it.
LARGEST_COUNT = 10**15
LARGEST_USD = Decimal(10**6)

Row = TypeVar("Row", Entry, Attempt)


@dataclass(frozen=True, slots=True)
class RefusalCount:
    """How often a key (None: a caller without one) was refused with a code in the minute of `minute`."""

    workspace_id: uuid.UUID
    key_id: uuid.UUID | None
    code: str
    minute: datetime
    count: int = 1


class LedgerStore:
    """The ledger's tables, for writing.

    >>> await LedgerStore(database).insert([entry])
    """

    def __init__(self, database: Database) -> None:
        on_postgresql = database.dialect_name == "postgresql"
        self._database = database
        self._rows: _Rows = _JsonRows(database) if on_postgresql else _ParameterRows(database)
        self._add = _addition(postgresql.insert(Refusal) if on_postgresql else sqlite.insert(Refusal))

    async def insert(self, entries: Sequence[Entry]) -> None:
        """Writes entries with their attempts; one whose id is there already stays as it was.

        More than `BATCH` entries are several transactions. Text that is not storable has U+FFFD or `?` in its place, a
        number past its column `LARGEST_COUNT` or `LARGEST_USD`. Raises `Unavailable` where the database is down.
        """
        for start in range(0, len(entries), BATCH):
            batch: dict[uuid.UUID, Entry] = {}
            for entry in entries[start : start + BATCH]:
                batch.setdefault(entry.entry_id, entry)
            try:
                await self._rows.insert(list(batch.values()))
            except (StatementError, OverflowError, UnicodeError) as error:
                if not _is_about_values(error):
                    raise
                await self._rows.insert([_fitted(entry) for entry in batch.values()])

    async def add_refusals(self, refusals: Iterable[RefusalCount]) -> None:
        """Adds to the counts, by key, code and minute. Not idempotent: what is sent twice counts twice."""
        counts: Counter[tuple[uuid.UUID, uuid.UUID, str, datetime]] = Counter()
        for refusal in refusals:
            minute = refusal.minute.replace(second=0, microsecond=0)
            counts[refusal.workspace_id, refusal.key_id or NO_KEY_ID, refusal.code, minute] += refusal.count
        if not counts:
            return
        # Sorted, so that two processes never wait for each other's rows.
        rows = [
            {"workspace_id": workspace_id, "key_id": key_id, "code": code, "minute": minute, "count": count}
            for (workspace_id, key_id, code, minute), count in sorted(counts.items())
        ]
        async with self._database.transaction() as session:
            await (await session.connection()).execute(self._add, rows)


class _Rows(Protocol):
    async def insert(self, entries: Sequence[Entry]) -> None: ...


class _JsonRows:
    """The whole batch as one parameter of one statement: PostgreSQL."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._encode = msgspec.json.Encoder().encode
        self._statement = _json_statement()

    async def insert(self, entries: Sequence[Entry]) -> None:
        async with self._database.single_statements() as connection:
            await connection.execute(self._statement, {"entries": self._encode(entries).decode()})


class _ParameterRows:
    """A row of parameters for each entry and each attempt: SQLite, where the transaction holds the write lock."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def insert(self, entries: Sequence[Entry]) -> None:
        try:
            async with self._database.transaction() as session:
                await _insert_rows(await session.connection(), entries)
        except IntegrityError:
            # Some are there already. It is rare, and to ask first would cost every batch a query.
            async with self._database.transaction() as session:
                ids = [entry.entry_id for entry in entries]
                connection = await session.connection()
                stored = await connection.scalars(select(LedgerEntry.entry_id).where(LedgerEntry.entry_id.in_(ids)))
                present = set(stored)
                await _insert_rows(connection, [entry for entry in entries if entry.entry_id not in present])


async def _insert_rows(connection: AsyncConnection, entries: Sequence[Entry]) -> None:
    rows = [msgspec.structs.asdict(entry) for entry in entries]
    attempts = [
        {"entry_id": row["entry_id"], "workspace_id": row["workspace_id"], **msgspec.structs.asdict(attempt)}
        for row in rows
        for attempt in row.pop("attempts")
    ]
    if rows:
        await connection.execute(insert(LedgerEntry), rows)
    if attempts:
        await connection.execute(insert(LedgerAttempt), attempts)


def _json_statement() -> Insert:
    """Inserts an array of entries, and the attempts of those that were new."""
    entry_columns = list(LedgerEntry.__table__.c)
    attempt_columns = [c for c in LedgerAttempt.__table__.c if c.name not in ("entry_id", "workspace_id")]
    document = cast(bindparam("entries", type_=Text()), JSON)
    sent = select(_recordset(document, "entry", [*entry_columns, column("attempts", JSON)])).cte("sent")
    entry_names = [c.name for c in entry_columns]
    written = (
        postgresql.insert(LedgerEntry)
        # In one order, so that two that send the same entries never wait for each other's rows.
        .from_select(entry_names, select(*(sent.c[name] for name in entry_names)).order_by(sent.c.entry_id))
        .on_conflict_do_nothing()
        .returning(LedgerEntry.entry_id)
        .cte("written")
    )
    attempts = _recordset(sent.c.attempts, "attempt", attempt_columns)
    return postgresql.insert(LedgerAttempt).from_select(
        ["entry_id", "workspace_id", *(c.name for c in attempt_columns)],
        select(sent.c.entry_id, sent.c.workspace_id, *attempts.c)
        .join_from(sent, written, sent.c.entry_id == written.c.entry_id)
        .join(attempts, true()),
    )


def _recordset(document: ColumnElement[Any], name: str, columns: Sequence[ColumnElement[Any]]) -> TableValuedAlias:
    typed = [column(str(c.name), c.type) for c in columns]
    return func.json_to_recordset(document).table_valued(*typed, name=name).render_derived(name=name, with_types=True)


def _addition(refusals: postgresql.Insert | sqlite.Insert) -> Insert:
    return refusals.on_conflict_do_update(
        index_elements=[Refusal.workspace_id, Refusal.key_id, Refusal.code, Refusal.minute],
        set_={"count": Refusal.count + refusals.excluded["count"]},
    )


def _is_about_values(error: Exception) -> bool:
    if isinstance(error, DBAPIError):
        # PostgreSQL's class of data exceptions. SQLite has none: there the driver cannot convert a value.
        return (getattr(error.orig, "sqlstate", None) or "").startswith("22")
    return True


def _fitted(row: Row) -> Row:
    """The same with every value such that its column holds it."""
    values = msgspec.structs.asdict(row)
    return msgspec.structs.replace(row, **{name: _fit(value) for name, value in values.items()})


def _fit(value: object) -> object:
    match value:
        case str():
            return value.replace("\0", "\N{REPLACEMENT CHARACTER}").encode("utf-8", "replace").decode()
        case bool():
            return value
        case int():
            return max(-LARGEST_COUNT, min(LARGEST_COUNT, value))
        case Decimal():
            return max(-LARGEST_USD, min(LARGEST_USD, value))
        case dict():
            return {_fit(key): _fit(held) for key, held in value.items()}
        case list():
            return [_fitted(attempt) for attempt in value]
        case _:
            return value

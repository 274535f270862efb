"""Column types that hold the same value on SQLite and on PostgreSQL.

Times are timezone-aware and UTC. Money is exact: its sums are exact too, on both databases. Counts have 64 bits.
JSON is compared and stored in one form.
"""

from datetime import UTC, datetime
from decimal import ROUND_HALF_UP, Decimal
from typing import Any

from sqlalchemy import JSON, BigInteger, DateTime, Dialect, Integer, Numeric, Text, TypeDecorator
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.types import TypeEngine

USD_PLACES = 12
_USD_QUANTUM = Decimal(1).scaleb(-USD_PLACES)

Count = BigInteger().with_variant(Integer(), "sqlite")
JsonDocument = JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")


class UtcDateTime(TypeDecorator[datetime]):
    """A moment, timezone-aware and in UTC in Python on every database. A time without a zone is refused."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        del dialect
        if value is None or value.tzinfo is UTC:
            return value
        if value.tzinfo is None:
            raise ValueError("a time without a zone cannot be stored; use datetime.now(UTC)")
        return value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        del dialect
        if value is None or value.tzinfo is UTC:
            return value
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Usd(TypeDecorator[Decimal]):
    """US dollars, exact to 12 decimal places; what is finer is rounded, halves away from zero.

    NUMERIC(24,12) on PostgreSQL. On SQLite, which would sum decimals as floats, an INTEGER of 10^-12 dollars: it holds
    amounts and sums below 9.2 million dollars and raises `OverflowError` past that. `func.sum` of such a column is a
    `Decimal`. Compare, add and sum columns of this type; a product of two would be scaled twice on SQLite.

    >>> await session.scalar(select(func.sum(LedgerEntry.cost)))
    Decimal('12.000000000001')
    """

    impl = Numeric(24, USD_PLACES)
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        if dialect.name == "sqlite":
            return dialect.type_descriptor(Integer())
        return dialect.type_descriptor(Numeric(24, USD_PLACES))

    def process_bind_param(self, value: Decimal | None, dialect: Dialect) -> Decimal | int | None:
        if value is None:
            return None
        exact = value.quantize(_USD_QUANTUM, ROUND_HALF_UP)
        return int(exact.scaleb(USD_PLACES)) if dialect.name == "sqlite" else exact

    def process_result_value(self, value: Any | None, dialect: Dialect) -> Decimal | None:
        if value is None or dialect.name != "sqlite":
            return value
        return Decimal(value).scaleb(-USD_PLACES)


class LowerCaseText(TypeDecorator[str]):
    """Text stored, and looked for, in lower case: an e-mail address."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        del dialect
        return None if value is None else value.lower()

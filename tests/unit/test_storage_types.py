"""Columns hold the same value on SQLite and on PostgreSQL."""

from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Column, Dialect, Integer, MetaData, Table, create_engine, func, insert, select
from sqlalchemy.engine import make_url
from sqlalchemy.types import TypeEngine

from tidegate.storage.types import LowerCaseText, Usd, UtcDateTime

POSTGRESQL, SQLITE = (make_url(url).get_dialect()() for url in ("postgresql+asyncpg://", "sqlite+aiosqlite://"))
each_dialect = pytest.mark.parametrize("dialect", [POSTGRESQL, SQLITE], ids=lambda dialect: dialect.name)
amounts = st.decimals(min_value=-9_000_000, max_value=9_000_000, places=12, allow_nan=False)


def stored(kind: TypeEngine[Any], value: object, dialect: Dialect) -> object:
    bind = kind.dialect_impl(dialect).bind_processor(dialect)
    return bind(value) if bind else value


@each_dialect
@given(amount=amounts)
def test_an_amount_comes_back_exactly(dialect: Dialect, amount: Decimal) -> None:
    kind = Usd()
    result = kind.process_result_value(kind.process_bind_param(amount, dialect), dialect)
    assert result == amount


@each_dialect
def test_an_amount_finer_than_its_column_is_rounded_alike_everywhere(dialect: Dialect) -> None:
    kind = Usd()
    rounded = [
        kind.process_result_value(kind.process_bind_param(Decimal(amount), dialect), dialect)
        for amount in ("0.0000000000005", "0.0000000000015", "-0.0000000000005", "0.0000000000004")
    ]
    assert rounded == [Decimal("1E-12"), Decimal("2E-12"), Decimal("-1E-12"), Decimal(0)]


def test_an_amount_is_an_integer_on_sqlite() -> None:
    assert stored(Usd(), Decimal("1.5"), SQLITE) == 1_500_000_000_000


@given(column=st.lists(amounts, min_size=1, max_size=20))
def test_a_sum_on_sqlite_is_exact_and_stays_a_decimal(column: list[Decimal]) -> None:
    column = [amount / 1000 for amount in column]
    exact = [amount.quantize(Decimal("1E-12")) for amount in column]
    table = Table("spend", MetaData(), Column("id", Integer, primary_key=True), Column("cost", Usd))
    engine = create_engine("sqlite://")
    try:
        with engine.begin() as connection:
            table.create(connection)
            connection.execute(insert(table), [{"cost": amount} for amount in exact])
            total = connection.scalar(select(func.sum(table.c.cost)))
    finally:
        engine.dispose()
    assert isinstance(total, Decimal)
    assert total == sum(exact, Decimal(0))


@each_dialect
def test_a_time_of_another_zone_is_stored_as_utc(dialect: Dialect) -> None:
    kind = UtcDateTime()
    moment = datetime(2026, 11, 22, 1, 30, tzinfo=timezone(timedelta(hours=2)))
    kept = kind.process_bind_param(moment, dialect)
    assert kept == moment
    assert kept is not None
    assert kept.tzinfo is UTC


@each_dialect
def test_a_time_without_a_zone_is_refused(dialect: Dialect) -> None:
    with pytest.raises(ValueError, match="without a zone"):
        UtcDateTime().process_bind_param(datetime(2026, 11, 22), dialect)  # noqa: DTZ001 - what is refused


def test_a_time_read_from_sqlite_is_utc() -> None:
    naive = datetime(2026, 11, 22, 1, 30)  # noqa: DTZ001 - as the driver gives it
    assert UtcDateTime().process_result_value(naive, SQLITE) == naive.replace(tzinfo=UTC)


@each_dialect
def test_an_address_is_stored_and_looked_for_in_lower_case(dialect: Dialect) -> None:
    assert stored(LowerCaseText(), "Ada@Example.COM", dialect) == "ada@example.com"


@each_dialect
@pytest.mark.parametrize("kind", [Usd(), UtcDateTime(), LowerCaseText()], ids=lambda kind: type(kind).__name__)
def test_null_stays_null(dialect: Dialect, kind: Usd | UtcDateTime | LowerCaseText) -> None:
    assert kind.process_bind_param(None, dialect) is None
    assert not isinstance(kind, Usd | UtcDateTime) or kind.process_result_value(None, dialect) is None

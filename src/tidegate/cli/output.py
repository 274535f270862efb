"""What commands print: tables for people, JSON for programs, times in UTC."""

from collections.abc import Sequence
from datetime import UTC, datetime

import click
import orjson


def print_json(value: object) -> None:
    """One JSON document on standard output. UUIDs and times are strings, times in RFC 3339."""
    # asyncpg's UUIDs are a subclass, which orjson leaves to `default`.
    click.echo(orjson.dumps(value, default=str, option=orjson.OPT_INDENT_2 | orjson.OPT_UTC_Z).decode())


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns as wide as their widest value, so that a line can be cut by its spaces."""
    widths = [max(len(row[n]) for row in [columns, *rows]) for n in range(len(columns))]
    for row in [columns, *rows]:
        click.echo("  ".join(value.ljust(width) for value, width in zip(row, widths, strict=True)).rstrip())


def moment(at: datetime | None) -> str:
    """To the minute, such as `2026-11-22 10:41Z`; `-` for none."""
    return "-" if at is None else f"{at.astimezone(UTC):%Y-%m-%d %H:%MZ}"

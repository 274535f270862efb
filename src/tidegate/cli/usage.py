"""`tidegate usage`: totals from the ledger, of every workspace, read from the database as it is now."""

import asyncio
from typing import Final, get_args

import click

from tidegate.cli.database import open_database
from tidegate.cli.output import print_json, print_table
from tidegate.ledger.entry import utc_now
from tidegate.ledger.reports import By, UsageTotals, since_moment, usage_totals
from tidegate.ledger.schemas import UsageReport, UsageRow, plain_decimal
from tidegate.settings import Settings, load_settings

_COLUMNS: Final = ("REQUESTS", "COMPLETED", "INPUT", "CACHED", "OUTPUT", "REASONING", "COST (USD)", "UNPRICED")


@click.command("usage")
@click.option("--by", type=click.Choice(get_args(By)), default="model", show_default=True, help="What to tell apart.")
@click.option("--since", default="7d", show_default=True, help="A length of time such as 7d, or a date.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def usage(by: By, since: str, as_json: bool) -> None:
    """Add up requests, tokens and cost of every workspace, from the ledger.

    INPUT is without CACHED (read from and written to a cache), OUTPUT without REASONING. UNPRICED requests are missing
    from the cost.
    """
    try:
        since_moment(since, utc_now())
    except ValueError as error:
        raise click.UsageError(f"--since: {error}.") from None
    report = UsageReport.model_validate(asyncio.run(_totals(load_settings(), by, since)))
    if as_json:
        print_json(report.model_dump(mode="json"))
    elif not report.data:
        click.echo(f"Nothing was requested since {report.since:%Y-%m-%d %H:%MZ}.")
    else:
        print_table((by.upper().replace("_", " "), *_COLUMNS), [_line(row) for row in report.data])
        if report.truncated:
            click.echo(f"There are more; these are the {len(report.data)} with the most requests.", err=True)


async def _totals(settings: Settings, by: By, since: str) -> UsageTotals:
    async with open_database(settings) as database, database.session() as session:
        return await usage_totals(session, by, since_moment(since, utc_now()))


def _line(row: UsageRow) -> list[str]:
    name = row.name if row.prefix is None else f"{row.name} (tg_{row.prefix})"
    cached = row.cached_input_tokens + row.cache_write_tokens + row.cache_write_1h_tokens
    counts = (row.requests, row.outcomes.get("completed", 0), row.input_tokens, cached)
    cost = "-" if row.cost is None else plain_decimal(row.cost)
    return [
        name or row.value or "-",
        *map(str, (*counts, row.output_tokens, row.reasoning_tokens)),
        cost,
        str(row.unpriced_requests),
    ]

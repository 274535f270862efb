"""`tidegate migrate`: the step before a deployment. It needs the database's URL and no other setting."""

import asyncio
from pathlib import Path

import click
from pydantic import ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict
from sqlalchemy.engine import make_url

from tidegate.cli.output import print_json
from tidegate.settings import PREFIX, SettingsError, load_settings
from tidegate.settings.groups import DatabaseSettings
from tidegate.storage.database_login import database_login
from tidegate.storage.migrate import draft, migrate, newer_revision, pending


@click.command("migrate")
@click.option("--check", is_flag=True, help="Change nothing; exit 1 where the database is behind.")
@click.option("--draft", "message", help="Write the next revision's draft from the models.", hidden=True)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def migrate_command(context: click.Context, check: bool, message: str | None, as_json: bool) -> None:
    """Bring the database's schema to head, under a lock: it may be run twice at once."""
    url, chosen = database_location()
    login = database_login(chosen)
    if message is not None:
        # Only this imports every model, for whoever changes one.
        from tidegate.storage.migrations.tables import all_tables  # noqa: PLC0415 - start-up time

        click.echo(str(asyncio.run(draft(url, all_tables(), message))))
        return
    if check:
        missing = asyncio.run(pending(url, login=login))
        newer = None if missing else asyncio.run(newer_revision(url, login=login))
        _print({"applied": [], "pending": missing}, newer, as_json=as_json)
        context.exit(1 if missing else 0)
    _make_directory(url)
    applied = asyncio.run(migrate(url, login=login))
    newer = None if applied else asyncio.run(newer_revision(url, login=login))
    _print({"applied": applied, "pending": []}, newer, as_json=as_json)


class _DatabaseAlone(BaseSettings):
    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_nested_delimiter="__", env_ignore_empty=True, extra="ignore", hide_input_in_errors=True
    )

    database: DatabaseSettings = DatabaseSettings()


def database_location() -> tuple[str, DatabaseSettings]:
    """Where the database is, and how it is spoken to, whatever else is missing or wrong in the settings.

    Raises `SettingsError`.
    """
    try:
        settings = load_settings()
    except SettingsError as error:
        of_database = [fault for fault in error.faults if fault.startswith(f"{PREFIX}DATABASE__")]
        try:
            alone = _DatabaseAlone()
        except ValidationError:
            raise SettingsError(of_database) from None
        if alone.database.url is None:
            raise SettingsError(of_database or error.faults) from None
        return alone.database.url.get_secret_value(), alone.database
    return settings.database_url, settings.database


def _print(result: dict[str, list[str]], newer: str | None, *, as_json: bool) -> None:
    if as_json:
        print_json(result if newer is None else {**result, "newer": newer})
    elif newer is not None:
        click.echo(f"The database is at revision {newer}, a newer version's: it was left alone.")
    elif result["pending"]:
        click.echo(f"The database is behind by {', '.join(result['pending'])}: run `tidegate migrate`.")
    elif result["applied"]:
        click.echo(f"Applied {', '.join(result['applied'])}: the database is at head.")
    else:
        click.echo("The database is at head.")


def _make_directory(url: str) -> None:
    location = make_url(url)
    if location.get_backend_name() == "sqlite" and location.database:
        Path(location.database).parent.mkdir(mode=0o700, parents=True, exist_ok=True)

"""`tidegate config`: what the gateway would run with, checked and shown with secrets masked."""

from pathlib import Path
from typing import Any

import click
from pydantic import SecretStr

from tidegate.cli.export import env_value, exported_catalogue, exported_settings
from tidegate.cli.output import print_json
from tidegate.cli.reference import ENV_EXAMPLE, SETTINGS_PAGE, env_example, settings_page
from tidegate.routing.configuration import load_catalogue, parse_table, read_catalogue
from tidegate.server.conditions import every_fault, require_conditions
from tidegate.server.refusal import StartRefused
from tidegate.settings import Settings, SettingsError, load_settings
from tidegate.telemetry.redaction import redact

MASK = "********"


@click.group("config")
def config_command() -> None:
    """Look at the configuration, and check it."""


@config_command.command("validate")
@click.argument("file", required=False, type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def validate(ctx: click.Context, file: Path | None, as_json: bool) -> None:
    """Check the settings and the catalogue; exit 1 with every fault.

    FILE is a catalogue to check in place of the configured one.
    """
    faults: list[str] = []
    found = ""
    try:
        settings = load_settings({"TIDEGATE_CONFIG": str(file)} if file else None)
        if file:
            settings = settings.model_copy(update={"config_toml": None})
        catalogue = require_conditions(settings)
        found = f"{len(catalogue.models)} models, {len(catalogue.upstreams)} upstreams, version {catalogue.version}"
    except SettingsError as error:
        faults = every_fault(error)
    except StartRefused as error:
        faults = list(error.faults)
    if as_json:
        print_json({"valid": not faults, "faults": faults})
    elif not faults:
        click.echo(f"The configuration is valid: {found}.")
    else:
        for fault in faults:
            click.echo(fault, err=True)
    ctx.exit(1 if faults else 0)


@config_command.command("show")
def show() -> None:
    """Print the effective settings and catalogue as JSON, secrets masked."""
    settings = load_settings()
    catalogue = load_catalogue(settings)
    print_json(
        {
            "settings": {
                **_masked(settings.model_dump()),
                "database_url": _without_password(settings),
                # It may hold literal keys; what it says stands below.
                "config_toml": None if settings.config_toml is None else MASK,
            },
            "catalogue": {
                "version": catalogue.version,
                "models": [
                    {"name": model.name, "attempts": [f"{a.upstream.name}/{a.model}" for a in model.attempts]}
                    for model in catalogue.models
                ],
                "upstreams": {
                    name: {"provider": upstream.provider, "base_url": upstream.base_url or None}
                    for name, upstream in catalogue.upstreams.items()
                },
            },
        }
    )


@config_command.command("export")
@click.option("--catalogue", "only", flag_value="catalogue", help="Only the catalogue, as TOML.")
@click.option("--settings", "only", flag_value="settings", help="Only the settings, as lines of an env file.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def export(only: str | None, *, as_json: bool) -> None:
    """Print the effective settings and the catalogue as an env file that TIDEGATE_ENV_FILE can name.

    A secret is printed as the reference that stands in its place; where it stands itself, as env:NAME, to be set.
    """
    settings = load_settings()
    variables = exported_settings(settings)
    toml = exported_catalogue(parse_table(read_catalogue(settings)))
    if as_json:
        print_json({"settings": variables, "catalogue": toml})
        return
    if only != "catalogue":
        click.echo("".join(f"{name}={env_value(value)}\n" for name, value in variables.items()), nl=False)
    if only is None:
        click.echo(f"TIDEGATE_CONFIG_TOML={env_value(toml)}")
    elif only == "catalogue":
        click.echo(toml, nl=False)


@config_command.command("reference", hidden=True)
@click.option("--check", is_flag=True, help="Only say whether the files are as they would be written.")
@click.pass_context
def reference(ctx: click.Context, check: bool) -> None:
    """Write .env.example and the settings reference from the settings themselves."""
    behind = False
    for path, text in ((ENV_EXAMPLE, env_example()), (SETTINGS_PAGE, settings_page())):
        if path.is_file() and path.read_text("utf-8") == text:
            continue
        behind = True
        if check:
            click.echo(f"{path} is not what the settings say: run make docs", err=True)
        else:
            path.write_text(text, "utf-8")
            click.echo(f"Wrote {path}")
    ctx.exit(1 if check and behind else 0)


def _masked(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _masked(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_masked(inner) for inner in value]
    if isinstance(value, SecretStr):
        return MASK
    if isinstance(value, Path):
        return str(value)
    return value


def _without_password(settings: Settings) -> str:
    from sqlalchemy.engine import make_url  # noqa: PLC0415 - start-up time of the other commands

    # A password may stand in the query too.
    return redact(make_url(settings.database_url).render_as_string(hide_password=True))

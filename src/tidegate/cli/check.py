"""`tidegate check`: the running server against the 25 items, each with its evidence."""

import asyncio
import sys
from pathlib import Path
from typing import TextIO

import click

from tidegate.check.gathering import Asked, gather
from tidegate.check.items import findings
from tidegate.check.report import as_json as report_as_json
from tidegate.check.report import print_report
from tidegate.cli.output import print_json
from tidegate.server.control import NoRoot
from tidegate.settings import Settings, SettingsError, load_settings, wants_colours
from tidegate.settings.digests import settings_digests

_LONGEST_KEY = 256


@click.command("check")
@click.option("--data-dir", type=click.Path(path_type=Path), help="The running server's.  [default: ./var]")
@click.option("--key-file", type=click.File("r"), help="A file with an API key, - for standard input: proves streams.")
@click.option("--model", help="The model that streams are proven by.  [default: one of an echo upstream]")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def check(
    context: click.Context, data_dir: Path | None, key_file: TextIO | None, model: str | None, *, as_json: bool
) -> None:
    """Judge the running server by the 25 items of production, each with its evidence.

    It asks the root and every worker what is so in them, and the server's own port what it answers. Nothing is changed.
    With --key-file two short streams are sent, one of which hangs up; they are in the ledger like any other. --model
    names a model of a real upstream, whose tokens cost what they cost.

    Exits 0 where every item passes, 1 where one does not: fail, partial and unknown are not a pass. It prints no
    secret.
    """
    if model is not None and key_file is None:
        raise click.UsageError("--model needs --key-file: a stream is somebody's.")
    settings = _settings()
    folder = data_dir or (Path("var") if settings is None else settings.data_dir)
    digests = None if settings is None else settings_digests(settings)
    try:
        subject = asyncio.run(gather(Asked(folder, _key(key_file), model, digests)))
    except NoRoot as error:
        click.echo(str(error), err=True)
        context.exit(1)
    found = findings(subject)
    if as_json:
        print_json(report_as_json(subject, found))
    else:
        print_report(subject, found, colours=sys.stdout.isatty() and wants_colours())
    context.exit(0 if all(finding.is_harmless for finding in found) else 1)


def _key(file: TextIO | None) -> str | None:
    if file is None:
        return None
    key = file.read(_LONGEST_KEY).strip()
    if not key.startswith("tg_") or not key.isascii() or not key.isprintable():
        raise click.UsageError("--key-file: the file holds no API key, which begins with tg_.")
    return key


def _settings() -> Settings | None:
    """This shell's, which may be faulty, and need not be the server's."""
    try:
        return load_settings()
    except SettingsError as error:
        return error.settings

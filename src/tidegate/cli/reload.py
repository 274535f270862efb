"""`tidegate reload`: every worker of the running server takes the catalogue and certificate on disk."""

from pathlib import Path
from typing import Any

import click

from tidegate.cli.operator import operator
from tidegate.cli.output import print_json
from tidegate.server.control import NoRoot, ask_root
from tidegate.settings import SettingsError, load_settings

# The server answers within 5 s; other reloads, which come first, may be under way.
_ANSWER_WITHIN_S = 30.0


@click.command("reload")
@click.option("--data-dir", type=click.Path(path_type=Path), help="The running server's.  [default: ./var]")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def reload(context: click.Context, data_dir: Path | None, as_json: bool) -> None:
    """Bring the catalogue on disk, and a renewed certificate, to every worker of the running server, without a restart.

    They are validated first. Where there is a fault nothing changes anywhere. Requests that run keep the catalogue that
    they began with. Exits 0 once every worker shows the new version in /health. Settings are read anew by SIGUSR2
    alone.
    """
    try:
        answer = ask_root(data_dir or _data_dir(), {"ask": "reload", "by": operator().name}, within_s=_ANSWER_WITHIN_S)
    except NoRoot as error:
        click.echo(str(error), err=True)
        context.exit(1)
    told: dict[str, Any] = answer.get("done") or {"is_whole": False, "version": None, "faults": answer["faults"]}
    if as_json:
        shown = ("version", "before", "workers", "faults")
        until = told.get("certificate_until")
        print_json({name: told.get(name) for name in shown} | ({} if until is None else {"certificate_until": until}))
    else:
        _tell(told)
    context.exit(0 if told["is_whole"] else 1)


def _tell(told: dict[str, Any]) -> None:
    for fault in told["faults"]:
        click.echo(fault, err=True)
    if told["version"] is None:
        click.echo("Nothing was changed.", err=True)
    elif told["faults"]:
        click.echo(f"The catalogue {told['version']} is in force, but not in every worker.", err=True)
    else:
        workers = "1 worker" if told["workers"] == 1 else f"{told['workers']} workers"
        click.echo(f"The catalogue {told['version']} is in force in {workers}.")
        if told.get("certificate_until") is not None:
            click.echo(f"The certificate that is shown now is valid until {told['certificate_until']}.")


def _data_dir() -> Path:
    """The settings may be faulty in this shell, which is not the server's; the directory can still be told."""
    try:
        return load_settings().data_dir
    except SettingsError as error:
        if error.settings is None:
            raise
        return error.settings.data_dir

"""`tidegate serve`: settings from the flags and the environment, then the root of the process tree."""

import gc
import sys
from pathlib import Path

import click


def _worker_number(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    if value is None or value == "auto" or (value.isdigit() and int(value) > 0):
        return value
    raise click.BadParameter("a number from 1, or auto", ctx=context, param=parameter)


@click.command("serve")
@click.option("--host", help="The address to listen on.  [default: 127.0.0.1]")
@click.option("--port", type=click.IntRange(0, 65535), help="The port; 0 takes a free one.  [default: 8000]")
@click.option(
    "--workers",
    metavar="N|auto",
    callback=_worker_number,
    help="auto: 1 in development, 2 x CPU + 1 in production.  [default: auto]",
)
@click.option("--config", type=click.Path(path_type=Path), help="The catalogue.  [default: ./tidegate.toml if there]")
@click.option("--data-dir", type=click.Path(path_type=Path), help="What this server keeps.  [default: ./var]")
def serve(host: str | None, port: int | None, workers: str | None, config: Path | None, data_dir: Path | None) -> None:
    """Serve until told to stop: by SIGTERM or Ctrl-C, after which running requests may end.

    A flag stands above its variable (TIDEGATE_SERVER__HOST, TIDEGATE_SERVER__PORT, TIDEGATE_SERVER__WORKERS,
    TIDEGATE_CONFIG, TIDEGATE_DATA_DIR).
    """
    # Imported here: the other commands, and --help, do without. What imports leave behind is not worth collecting.
    gc.disable()
    from tidegate.server.conditions import every_fault  # noqa: PLC0415
    from tidegate.server.refusal import print_faults  # noqa: PLC0415
    from tidegate.server.root import Parts, run  # noqa: PLC0415
    from tidegate.settings import SettingsError, given_environment, load_settings  # noqa: PLC0415

    gc.enable()
    flags = {
        "TIDEGATE_SERVER__HOST": host,
        "TIDEGATE_SERVER__PORT": port,
        "TIDEGATE_SERVER__WORKERS": workers,
        "TIDEGATE_CONFIG": config,
        "TIDEGATE_DATA_DIR": data_dir,
    }
    variables = {name: str(value) for name, value in flags.items() if value is not None}
    environ = given_environment(variables)
    try:
        settings = load_settings(variables)
    except SettingsError as refusal:
        print_faults(every_fault(refusal), as_json=refusal.in_production)
        sys.exit(1)
    # Whoever runs the command from Python may bring other parts of the tree.
    sys.exit(run(settings, click.get_current_context().find_object(Parts), environ=environ))

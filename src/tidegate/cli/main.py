"""The command `tidegate`: its root group, and how its commands end.

A command's module is imported when the command is used, so that `tidegate --help` imports none. Every command exits 0
where it is done, 2 where it was called wrongly, and 1 where what it needs is not so: then each fault is one line on
standard error, without a traceback. Anything else is a defect of ours and shows its traceback.
"""

import importlib
from typing import Any, Final, NamedTuple

import click


class _Command(NamedTuple):
    module: str
    attribute: str
    short_help: str


COMMANDS: Final = {
    "serve": _Command("tidegate.cli.serve", "serve", "Start the gateway."),
    "migrate": _Command("tidegate.cli.migrate", "migrate_command", "Bring the database's schema to head."),
    "users": _Command("tidegate.cli.users", "users_command", "Create, invite, list, disable and enable accounts."),
    "workspaces": _Command("tidegate.cli.workspaces", "workspaces_command", "Create and list workspaces."),
    "auth": _Command("tidegate.cli.auth", "auth_command", "Rotate the secrets of tokens and keys."),
    "keys": _Command("tidegate.cli.keys", "keys_command", "Create, list, rotate and revoke API keys."),
    "limits": _Command("tidegate.cli.limits", "limits_command", "Create, list and delete limits."),
    "usage": _Command("tidegate.cli.usage", "usage", "Add up what was used, from the ledger."),
    "audit": _Command("tidegate.cli.audit", "audit", "Show who changed what, from where and when."),
    "reload": _Command("tidegate.cli.reload", "reload", "Bring the catalogue on disk to every worker."),
    "check": _Command("tidegate.cli.check", "check", "Judge the running server by the 25 items."),
    "config": _Command("tidegate.cli.config", "config_command", "Look at the configuration, and check it."),
}


class RootGroup(click.Group):
    """A group whose commands are named in `COMMANDS` and imported on use."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        del ctx
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        del ctx
        named = COMMANDS.get(cmd_name)
        if named is None:
            return None
        command = getattr(importlib.import_module(named.module), named.attribute)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, COMMANDS[name].short_help) for name in self.list_commands(ctx)])

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except Exception as error:
            # Imported here: it knows every floor's errors, and only a failure needs them.
            from tidegate.cli.failures import failure_lines  # noqa: PLC0415 - start-up time

            lines = failure_lines(error)
            if lines is None:
                raise
            for line in lines:
                click.echo(line, err=True)
            ctx.exit(1)


@click.group(cls=RootGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="tidegate", prog_name="tidegate")
def root() -> None:
    """Tidegate: a self-hosted LLM gateway.

    Settings come from TIDEGATE_… variables, and from a .env file in development.
    """


def main() -> None:
    root(prog_name="tidegate")


if __name__ == "__main__":
    main()

"""`tidegate users`: accounts. A password is printed only where it was made up here, and only once."""

import asyncio
import secrets
import sys

import click

from tidegate.accounts.schemas import NewUser
from tidegate.accounts.service import Accounts
from tidegate.auth.passwords import Passwords
from tidegate.cli.database import open_database
from tidegate.cli.inputs import from_options
from tidegate.cli.output import moment, print_json, print_table
from tidegate.settings import Settings, load_settings
from tidegate.storage.changes import Changes, user_topic


@click.group("users")
def users_command() -> None:
    """Create, list and disable accounts."""


@users_command.command("create")
@click.option("--email", required=True, help="The address that the user signs in with.")
@click.option("--role", type=click.Choice(["admin", "member"]), help="An admin acts in every workspace. [member]")
@click.option("--workspace", help="The workspace that the user belongs to. [default]")
@click.option("--password-stdin", is_flag=True, help="Read the password from standard input's first line.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def create(email: str, role: str | None, workspace: str | None, password_stdin: bool, as_json: bool) -> None:
    """Create a user.

    The password is asked for on a terminal; elsewhere, without --password-stdin, one is made up and printed once.
    """
    settings = load_settings()
    options = {"email": email, "role": role, "workspace": workspace}
    from_options(NewUser, options)  # what is wrong is said before a password is asked for
    password, generated = _password(from_stdin=password_stdin)
    new = from_options(NewUser, options | {"password": password})
    printed = asyncio.run(_create(settings, new)) | ({"password": password} if generated else {})
    if as_json:
        print_json(printed)
        return
    click.echo(f"Created the {printed['role']} {printed['email']} in the workspace {printed['workspace']}.")
    if generated:
        click.echo(f"Password, shown once: {password}")


@users_command.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_users(as_json: bool) -> None:
    """List every user."""
    users = asyncio.run(_list(load_settings()))
    if as_json:
        print_json(users)
    elif not users:
        click.echo("There are no users yet. Create one: tidegate users create --email you@example.com --role admin")
    else:
        columns = ("EMAIL", "ROLE", "WORKSPACE", "STATE", "CREATED")
        print_table(columns, [[str(user[column.lower()]) for column in columns] for user in users])


@users_command.command("disable")
@click.argument("email")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def disable(email: str, as_json: bool) -> None:
    """End a user's sign-in, access tokens and API keys, within a second."""
    printed = asyncio.run(_disable(load_settings(), email))
    if as_json:
        print_json(printed)
    else:
        click.echo(f"{printed['email']} is disabled.")


def _password(*, from_stdin: bool) -> tuple[str, bool]:
    """The new password, and whether it was made up here."""
    if from_stdin:
        password = sys.stdin.readline().rstrip("\r\n")
        if not password:
            raise click.UsageError("--password-stdin: standard input is empty.")
        return password, False
    if sys.stdin.isatty():
        asked: str = click.prompt("Password", hide_input=True, confirmation_prompt=True, err=True)
        return asked, False
    return secrets.token_urlsafe(18), True


async def _create(settings: Settings, new: NewUser) -> dict[str, object]:
    async with open_database(settings) as database:
        user = await Accounts(database, Passwords()).create(new)
    return {"id": user.id, "email": user.email, "role": user.role, "workspace": new.workspace}


async def _list(settings: Settings) -> list[dict[str, object]]:
    async with open_database(settings) as database:
        rows = await Accounts(database, Passwords()).list()
    return [
        {
            "id": user.id,
            "email": user.email,
            "role": user.role,
            "workspace": workspace.name,
            "state": "disabled" if user.disabled_at else "active",
            "created": moment(user.created_at),
        }
        for user, workspace in rows
    ]


async def _disable(settings: Settings, email: str) -> dict[str, object]:
    async with open_database(settings) as database, Changes.publishing(settings) as changes:
        user = await Accounts(database, Passwords()).disable(email)
        await changes.tell(user_topic(user.id))
    return {"id": user.id, "email": user.email, "disabled_at": user.disabled_at}

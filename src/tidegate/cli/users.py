"""`tidegate users`: accounts. A password is printed only where it was made up here, and only once."""

import asyncio
import secrets
import sys
import uuid
from collections.abc import Awaitable, Callable

import click

from tidegate.accounts.mailed.invitations import CallersInvitations
from tidegate.accounts.mailed.schemas import InvitationForm, InvitationView
from tidegate.accounts.models import User
from tidegate.accounts.schemas import Name, NewUser
from tidegate.accounts.second_factor.sealing import Sealing
from tidegate.accounts.second_factor.service import SecondFactors
from tidegate.accounts.service import Accounts, find_user, find_workspace, require_passwords
from tidegate.auth.passwords import Passwords
from tidegate.cli.database import open_database
from tidegate.cli.inputs import from_options
from tidegate.cli.operator import OPERATOR, operator
from tidegate.cli.output import moment, print_json, print_table
from tidegate.mail.opening import open_post
from tidegate.settings import Settings, load_settings
from tidegate.storage.changes import Changes, user_topic
from tidegate.storage.database import Database


class _Invitation(InvitationForm):
    """An invitation as the command takes it: its workspace by name."""

    workspace: Name = "default"


@click.group("users")
def users_command() -> None:
    """Create, invite, list, disable and enable accounts."""


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
    printed = asyncio.run(_create(settings, new, is_made_up=generated)) | ({"password": password} if generated else {})
    if as_json:
        print_json(printed)
        return
    click.echo(f"Created the {printed['role']} {printed['email']} in the workspace {printed['workspace']}.")
    if generated:
        click.echo(f"Password, shown once: {password}")
    click.echo(_until(settings))


@users_command.command("invite")
@click.option("--email", required=True, help="The address that the invitation is sent to.")
@click.option("--role", type=click.Choice(["admin", "member"]), help="An admin acts in every workspace. [member]")
@click.option("--workspace", help="The workspace that the user will belong to. [default]")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def invite(email: str, role: str | None, workspace: str | None, as_json: bool) -> None:
    """Send somebody a link by which they choose a password and have an account.

    The link works once, for 7 days. It is in the e-mail alone; in development without TIDEGATE_MAIL__SMTP_HOST the
    e-mail is printed on standard error.
    """
    form = from_options(_Invitation, {"email": email, "role": role, "workspace": workspace})
    view = asyncio.run(_invite(load_settings(), form))
    if as_json:
        print_json(view.model_dump())
    else:
        click.echo(f"Invited {view.email} to the workspace {form.workspace} as {view.role}.")


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
    """End a user's sign-ins, access tokens and API keys, within a second."""
    user = asyncio.run(_with_accounts(load_settings(), lambda accounts: accounts.disable(email)))
    if as_json:
        print_json({"id": user.id, "email": user.email, "disabled_at": user.disabled_at})
    else:
        click.echo(f"{user.email} is disabled.")


@users_command.command("enable")
@click.argument("email")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def enable(email: str, as_json: bool) -> None:
    """Let a disabled user in again, and their API keys. They sign in anew."""
    user = asyncio.run(_with_accounts(load_settings(), lambda accounts: accounts.enable(email)))
    if as_json:
        print_json({"id": user.id, "email": user.email, "disabled_at": user.disabled_at})
    else:
        click.echo(f"{user.email} is enabled.")


@users_command.command("unlink")
@click.argument("email")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def unlink(email: str, as_json: bool) -> None:
    """Forget who a user is at the single sign-on provider.

    The account then belongs to whoever comes next with its address verified there, API keys and all.
    """
    user = asyncio.run(_with_accounts(load_settings(), lambda accounts: accounts.unlink(email)))
    if as_json:
        print_json({"id": user.id, "email": user.email})
    else:
        click.echo(f"{user.email} is linked to nobody at the single sign-on provider.")


@users_command.command("set-password")
@click.argument("email")
@click.option("--password-stdin", is_flag=True, help="Read the password from standard input's first line.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def set_password(email: str, password_stdin: bool, as_json: bool) -> None:
    """Set a user's password, and end their sign-ins within a second. Their API keys stay.

    The password is asked for on a terminal; elsewhere, without --password-stdin, one is made up and printed once.
    """
    settings = load_settings()
    password, generated = _password(from_stdin=password_stdin)
    user = asyncio.run(
        _with_accounts(settings, lambda accounts: accounts.set_password(email, password, is_made_up=generated))
    )
    if as_json:
        told = {"id": user.id, "email": user.email, "password_ends_at": user.password_ends_at}
        print_json(told | ({"password": password} if generated else {}))
        return
    click.echo(f"The password of {user.email} is set; their sign-ins have ended.")
    if generated:
        click.echo(f"Password, shown once: {password}")
    click.echo(_until(settings))


@users_command.command("reset-second-factor")
@click.argument("email")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def reset_second_factor(email: str, as_json: bool) -> None:
    """Take away the second factor of a user who lost it, and end their sign-ins within a second.

    Their password alone opens the account then, so make sure first that it is they who ask.
    """
    user = asyncio.run(_reset_second_factor(load_settings(), email))
    if as_json:
        print_json({"id": user.id, "email": user.email})
    else:
        click.echo(f"{user.email} has no second factor.")


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


async def _create(settings: Settings, new: NewUser, *, is_made_up: bool) -> dict[str, object]:
    async with open_database(settings) as database:
        user = await _accounts(settings, database).create(new, is_made_up=is_made_up)
    return {
        "id": user.id,
        "email": user.email,
        "role": user.role,
        "workspace": new.workspace,
        "password_ends_at": user.password_ends_at,
    }


async def _invite(settings: Settings, form: _Invitation) -> InvitationView:
    require_passwords(settings)
    async with open_database(settings) as database, open_post(settings) as post:
        async with database.session() as session:
            workspace = await find_workspace(session, form.workspace)
        asked = InvitationForm(email=form.email, role=form.role, workspace_id=workspace.id)
        return await CallersInvitations(database, OPERATOR, operator(), post).create(asked)


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


async def _with_accounts(settings: Settings, change: Callable[[Accounts], Awaitable[User]]) -> User:
    """Changes a user, and tells every worker."""
    async with open_database(settings) as database, Changes.publishing(settings) as changes:
        user = await change(_accounts(settings, database))
        await changes.tell(user_topic(user.id))
    return user


async def _reset_second_factor(settings: Settings, email: str) -> User:
    async with (
        open_database(settings) as database,
        Changes.publishing(settings) as changes,
        open_post(settings) as post,
    ):
        async with database.session() as session:
            user = await find_user(session, email)

        async def tell(user_id: uuid.UUID) -> None:
            await changes.tell(user_topic(user_id))

        # It neither opens nor seals a secret, and judges no password.
        second_factors = SecondFactors(database, Passwords(), Sealing(None), post, changed=tell)
        await second_factors.reset(user.id, operator())
    return user


def _accounts(settings: Settings, database: Database) -> Accounts:
    days = settings.auth.initial_password_days
    return Accounts(database, Passwords.of(settings), actor=operator(), initial_password_days=days)


def _until(settings: Settings) -> str:
    days = settings.auth.initial_password_days
    return f"It opens log-ins for {days} day{'' if days == 1 else 's'}: its user chooses their own by then."

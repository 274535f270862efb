"""`tidegate keys`: API keys. A secret is printed once, by the command that makes it."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import TypeVar

import click

from tidegate.accounts.keys import ApiKeys, CreatedKey
from tidegate.accounts.models import ServiceAccount, User
from tidegate.accounts.schemas import NewKey
from tidegate.auth.keyring import Keyrings
from tidegate.auth.models import ApiKey
from tidegate.cli.database import open_database
from tidegate.cli.inputs import CommaSeparated, Duration, from_options
from tidegate.cli.output import moment, print_json, print_table
from tidegate.settings import load_settings

Result = TypeVar("Result")


@click.group("keys")
def keys_command() -> None:
    """Create, list, rotate and revoke API keys."""


@keys_command.command("create")
@click.option("--name", required=True, help="What the key is for. Names need not be unique.")
@click.option("--owner", help="The address of the user who owns it. [a service account made for it]")
@click.option("--workspace", help="The workspace of its service account. [default]")
@click.option("--models", type=CommaSeparated(), help="The models, groups or patterns that it is held to. [all]")
@click.option("--expires", type=Duration(), help="How long it is valid, such as 30d. [for ever]")
@click.option("--scopes", type=CommaSeparated(), help="Of inference, usage, manage, metrics. [inference]")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def create(expires: timedelta | None, as_json: bool, **options: str | tuple[str, ...] | None) -> None:
    """Create an API key and print it, once."""
    expires_at = None if expires is None else datetime.now(UTC) + expires
    new = from_options(NewKey, {**options, "expires_at": expires_at})
    created = _with_keys(lambda keys: keys.create(new))
    _show(created, f"Created the key {new.name!r}", as_json=as_json)


@keys_command.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_keys(as_json: bool) -> None:
    """List every API key, the newest first. Secrets are not kept, so none is shown."""
    rows = _with_keys(lambda keys: keys.list())
    if as_json:
        print_json([_document(key, workspace.name, _owner(user, account)) for key, workspace, user, account in rows])
    elif not rows:
        click.echo("There are no API keys yet. Create one: tidegate keys create --name my-application")
    else:
        columns = ("PREFIX", "NAME", "OWNER", "WORKSPACE", "SCOPES", "MODELS", "STATE", "EXPIRES", "LAST USED")
        print_table(
            columns, [_line(key, workspace.name, _owner(user, account)) for key, workspace, user, account in rows]
        )


@keys_command.command("rotate")
@click.argument("prefix")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def rotate(prefix: str, as_json: bool) -> None:
    """Give a key a new secret and prefix, and print it, once.

    The key keeps its id, owner, models and expiry. The old secret ends within 5 seconds; where both must work for a
    while, create a second key and revoke this one later.
    """
    _show(_with_keys(lambda keys: keys.rotate(prefix)), "Rotated the key", as_json=as_json)


@keys_command.command("revoke")
@click.argument("prefix")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def revoke(prefix: str, as_json: bool) -> None:
    """End a key within 5 seconds, for good."""
    key = _with_keys(lambda keys: keys.revoke(prefix))
    if as_json:
        print_json({"id": key.id, "prefix": key.prefix, "revoked_at": key.revoked_at})
    else:
        click.echo(f"The key {key.name!r} (tg_{key.prefix}) is revoked.")


def _with_keys(work: Callable[[ApiKeys], Awaitable[Result]]) -> Result:
    async def run() -> Result:
        settings = load_settings()
        async with open_database(settings) as database:
            return await work(ApiKeys(database, Keyrings.load(settings).peppers))

    return asyncio.run(run())


def _show(created: CreatedKey, what: str, *, as_json: bool) -> None:
    if as_json:
        print_json({"key": created.secret, "prefix": created.prefix, "id": created.id})
        return
    click.echo(f"{what} (tg_{created.prefix}). It is shown this once:\n\n{created.secret}")


def _owner(user: User | None, account: ServiceAccount | None) -> str:
    if user is not None:
        return user.email
    return f"service account {account.name}" if account is not None else "-"


def _state(key: ApiKey) -> str:
    if key.revoked_at is not None:
        return "revoked"
    return "expired" if key.expires_at is not None and key.expires_at <= datetime.now(UTC) else "active"


def _line(key: ApiKey, workspace: str, owner: str) -> list[str]:
    models = "all" if key.models is None else ",".join(key.models)
    times = (moment(key.expires_at), moment(key.last_used_at))
    return [key.prefix, key.name, owner, workspace, ",".join(key.scopes), models, _state(key), *times]


def _document(key: ApiKey, workspace: str, owner: str) -> dict[str, object]:
    return {
        "id": key.id,
        "prefix": key.prefix,
        "name": key.name,
        "owner": owner,
        "workspace": workspace,
        "scopes": key.scopes,
        "models": key.models,
        "state": _state(key),
        "created_at": key.created_at,
        "expires_at": key.expires_at,
        "revoked_at": key.revoked_at,
        "last_used_at": key.last_used_at,
    }

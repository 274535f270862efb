"""`tidegate keys`: API keys. A secret is printed once, by the command that makes it."""

import asyncio
import uuid
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Final, TypeVar, cast

import click

from tidegate.accounts.keys import ApiKeys, CreatedKey
from tidegate.accounts.models import ServiceAccount, User
from tidegate.accounts.schemas import NewKey
from tidegate.auth.keyring import Keyrings
from tidegate.auth.models import ApiKey
from tidegate.cli.database import open_database
from tidegate.cli.inputs import CommaSeparated, Duration, from_options
from tidegate.cli.output import moment, print_json, print_table
from tidegate.limits.metered import MeteredAmount
from tidegate.limits.values import Meter, Window, exact_amount
from tidegate.settings import load_settings
from tidegate.storage.changes import Changes, key_topic, limits_topic

Result = TypeVar("Result")

PERIODS: Final = ("day", "week", "month", "total")
_METERED: Final[dict[str, tuple[Meter, Window | None]]] = {
    "rpm": ("requests", "minute"),
    "tpm": ("tokens", "minute"),
    "concurrency": ("concurrency", None),
}


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
@click.option("--rpm", metavar="N", help="The most requests a minute. [no limit]")
@click.option("--tpm", metavar="N", help="The most tokens a minute. [no limit]")
@click.option("--concurrency", metavar="N", help="The most requests at once. [no limit]")
@click.option("--budget", metavar="USD", help="The most that it may spend, such as 10.00. [no limit]")
@click.option("--period", type=click.Choice(PERIODS), help="What the budget is for: a calendar's, in UTC. [month]")
@click.option("--weight", type=click.IntRange(1, 100), help="Its share of a full upstream, beside other keys'. [1]")
@click.option(
    "--trust-attribution",
    is_flag=True,
    help="Believe whom its requests name: the end user and the tags that they carry count for limits of those. For a "
    "front end of your own, which sets them itself. [they are recorded alone]",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def create(
    expires: timedelta | None,
    weight: int | None,
    trust_attribution: bool,
    as_json: bool,
    **options: str | tuple[str, ...] | None,
) -> None:
    """Create an API key and print it, once.

    Its limits are rows of their own, created with it: tidegate limits list --key PREFIX.
    """
    expires_at = None if expires is None else datetime.now(UTC) + expires
    limits = _limits({name: options.pop(name) for name in ("rpm", "tpm", "concurrency", "budget", "period")})
    said = {"expires_at": expires_at, "queue_weight": weight, "trusts_attribution": trust_attribution}
    new = from_options(NewKey, {**options, **said, "limits": limits})
    created = _with_keys(lambda keys, _: keys.create(new))
    _show(created, f"Created the key {new.name!r}", as_json=as_json)


@keys_command.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_keys(as_json: bool) -> None:
    """List every API key, the newest first. Secrets are not kept, so none is shown."""
    rows = _with_keys(lambda keys, _: keys.list())
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

    The key keeps its id, owner, models and expiry. The old secret ends within a second; where both must work for a
    while, create a second key and revoke this one later.
    """

    async def work(keys: ApiKeys, changes: Changes) -> CreatedKey:
        rotated = await keys.rotate(prefix)
        await changes.tell(key_topic(rotated.id))
        return rotated

    _show(_with_keys(work), "Rotated the key", as_json=as_json)


@keys_command.command("revoke")
@click.argument("prefix")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def revoke(prefix: str, as_json: bool) -> None:
    """End a key within a second, for good."""

    async def work(keys: ApiKeys, changes: Changes) -> ApiKey:
        revoked = await keys.revoke(prefix)
        await changes.tell(key_topic(revoked.id))
        return revoked

    key = _with_keys(work)
    if as_json:
        print_json({"id": key.id, "prefix": key.prefix, "revoked_at": key.revoked_at})
    else:
        click.echo(f"The key {key.name!r} (tg_{key.prefix}) is revoked.")


def _limits(options: Mapping[str, object]) -> tuple[MeteredAmount, ...]:
    """The limits that a key is created with."""
    period = options["period"]
    if period is not None and options["budget"] is None:
        raise click.UsageError("--period: says what a --budget is for, and there is none.")
    asked = [(name, *_METERED[name], options[name]) for name in _METERED]
    asked.append(("budget", "cost", cast("Window", period or "month"), options["budget"]))
    limits = []
    for name, meter, window, amount in asked:
        if amount is not None:
            try:
                exact_amount(meter, str(amount))
            except ValueError as error:
                raise click.UsageError(f"--{name}: {error}.") from None
            limits.append(MeteredAmount(meter=meter, window=window, amount=str(amount)))
    return tuple(limits)


def _with_keys(work: Callable[[ApiKeys, Changes], Awaitable[Result]]) -> Result:
    async def run() -> Result:
        settings = load_settings()
        async with open_database(settings) as database, Changes.publishing(settings) as changes:

            async def limits_changed(workspace_id: uuid.UUID) -> None:
                await changes.tell(limits_topic(workspace_id))

            return await work(ApiKeys(database, Keyrings.load(settings).peppers, limits_changed), changes)

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
        "trusts_attribution": key.trusts_attribution,
        "state": _state(key),
        "created_at": key.created_at,
        "expires_at": key.expires_at,
        "revoked_at": key.revoked_at,
        "last_used_at": key.last_used_at,
    }

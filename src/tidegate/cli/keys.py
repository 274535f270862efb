"""`tidegate keys`: API keys. A secret is printed once, by the command that makes it."""

import asyncio
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final, TypeVar, cast

import click

from tidegate.accounts.api_keys.keys import ApiKeys, CreatedKey, ListedKey
from tidegate.accounts.api_keys.secrets import LONGEST_OVERLAP
from tidegate.accounts.models import User
from tidegate.accounts.schemas import NewKey
from tidegate.auth.addresses import canonical_range
from tidegate.auth.keyring import Keyring, Keyrings
from tidegate.auth.models import ApiKey
from tidegate.cli.database import open_database
from tidegate.cli.inputs import CommaSeparated, Duration, from_options
from tidegate.cli.operator import operator
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


class AddressRanges(CommaSeparated):
    """Addresses and CIDRs with commas between them."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        try:
            return tuple(canonical_range(text) for text in super().convert(value, param, ctx))
        except ValueError as error:
            self.fail(f"{error}.", param, ctx)


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
@click.option(
    "--allow-from",
    "allowed_addresses",
    type=AddressRanges(),
    help="The addresses and CIDRs that it may be used from. [anywhere]",
)
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
    listed = _with_keys(lambda keys, _: keys.list())
    if as_json:
        print_json([_document(key) for key in listed])
    elif not listed:
        click.echo("There are no API keys yet. Create one: tidegate keys create --name my-application")
    else:
        columns = ("PREFIX", "NAME", "OWNER", "WORKSPACE", "SCOPES", "MODELS", "FROM", "STATE", "EXPIRES", "LAST USED")
        print_table((*columns, "OLD SECRETS"), [_line(key) for key in listed])
        for line in _peppers(listed, Keyrings.load(load_settings()).peppers):
            click.echo(line, err=True)


@keys_command.command("rotate")
@click.argument("prefix")
@click.option(
    "--overlap", type=Duration(), help="How long the old secret goes on, such as 24h; at most 7d. [not at all]"
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def rotate(prefix: str, overlap: timedelta | None, as_json: bool) -> None:
    """Give a key a new secret and prefix, and print it, once.

    The key keeps its id, owner, models and expiry. Without an overlap every older secret ends within a second. With
    one, the old secret works beside the new one until then: tidegate keys revoke, with its prefix, ends it earlier.
    """
    if overlap is not None and overlap > LONGEST_OVERLAP:
        raise click.UsageError(f"--overlap: at most {LONGEST_OVERLAP.days}d.")

    async def work(keys: ApiKeys, changes: Changes) -> CreatedKey:
        rotated = await keys.rotate(prefix, overlap or timedelta(0))
        await changes.tell(key_topic(rotated.id))
        return rotated

    _show(_with_keys(work), "Rotated the key", as_json=as_json)


@keys_command.command("revoke")
@click.argument("prefix")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def revoke(prefix: str, as_json: bool) -> None:
    """End a key within a second, for good.

    The prefix of an old secret that an overlap left working ends that secret alone.
    """

    async def work(keys: ApiKeys, changes: Changes) -> ApiKey:
        revoked = await keys.revoke(prefix)
        await changes.tell(key_topic(revoked.id))
        return revoked

    key = _with_keys(work)
    if as_json:
        print_json({"id": key.id, "prefix": key.prefix, "revoked_at": key.revoked_at})
    elif key.revoked_at is None:
        click.echo(f"The old secret is ended. The key {key.name!r} goes on as tg_{key.prefix}.")
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

            peppers = Keyrings.load(settings).peppers
            return await work(ApiKeys(database, peppers, limits_changed, actor=operator()), changes)

    return asyncio.run(run())


def _show(created: CreatedKey, what: str, *, as_json: bool) -> None:
    if as_json:
        print_json({"key": created.secret, "prefix": created.prefix, "id": created.id})
        return
    click.echo(f"{what} (tg_{created.prefix}). It is shown this once:\n\n{created.secret}")


def _owner(key: ListedKey) -> str:
    return key.owner.email if isinstance(key.owner, User) else f"service account {key.owner.name}"


def _state(key: ApiKey) -> str:
    if key.revoked_at is not None:
        return "revoked"
    return "expired" if key.expires_at is not None and key.expires_at <= datetime.now(UTC) else "active"


def _line(key: ListedKey) -> list[str]:
    row = key.row
    models = "all" if row.models is None else ",".join(row.models)
    places = "anywhere" if row.allowed_addresses is None else ",".join(row.allowed_addresses)
    old = ", ".join(f"{secret.prefix} until {moment(secret.ends_at)}" for secret in key.retiring)
    about = (row.prefix, row.name, _owner(key), key.workspace.name, ",".join(row.scopes), models, places)
    return [*about, _state(row), moment(row.expires_at), moment(row.last_used_at), old or "-"]


def _document(key: ListedKey) -> dict[str, object]:
    row = key.row
    return {
        "id": row.id,
        "prefix": row.prefix,
        "name": row.name,
        "owner": _owner(key),
        "workspace": key.workspace.name,
        "scopes": row.scopes,
        "models": row.models,
        "allowed_addresses": row.allowed_addresses,
        "trusts_attribution": row.trusts_attribution,
        "state": _state(row),
        "created_at": row.created_at,
        "expires_at": row.expires_at,
        "revoked_at": row.revoked_at,
        "last_used_at": row.last_used_at,
        "pepper_kid": row.pepper_kid,
        "retiring": [{"prefix": secret.prefix, "ends_at": secret.ends_at} for secret in key.retiring],
    }


def _peppers(listed: Sequence[ListedKey], peppers: Keyring) -> list[str]:
    """What is to be known before a pepper is dropped: how many keys that work are not under the current one."""
    working = [key for key in listed if _state(key.row) == "active"]
    kids = Counter([key.row.pepper_kid for key in working])
    kids.update(secret.pepper_kid for key in working for secret in key.retiring)
    del kids[peppers.current_kid]
    lines = []
    for kid, number in sorted(kids.items(), key=str):
        many = "1 secret is" if number == 1 else f"{number} secrets are"
        if kid is None or peppers.get(kid) is None:
            says = "which TIDEGATE_AUTH__API_KEY_PEPPERS lacks, and refused."
        else:
            says = f"until each is used: then under {peppers.current_kid!r}. Keep {kid!r} for so long."
        lines.append(f"{many} under the pepper {kid!r}, {says}")
    return lines

"""`tidegate limits`: limits as rows. Who runs it acts as an admin."""

import asyncio
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, TypeVar

import click
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from tidegate.accounts.api_keys.keys import find_key
from tidegate.accounts.models import User, Workspace
from tidegate.accounts.service import find_user, find_workspace
from tidegate.auth.api_keys import KEY_MARK
from tidegate.auth.models import ApiKey
from tidegate.cli.database import open_database
from tidegate.cli.inputs import from_options
from tidegate.cli.operator import OPERATOR, operator
from tidegate.cli.output import print_json, print_table
from tidegate.errors import ValidationFailed
from tidegate.limits.schemas import LimitQuery, LimitView, NewLimit
from tidegate.limits.service import Limits
from tidegate.routing.configuration import load_catalogue
from tidegate.settings import Settings, load_settings
from tidegate.storage.changes import Changes, limits_topic
from tidegate.storage.database import Database

Result = TypeVar("Result")

SCOPES: Final = ("deployment", "workspace", "user", "key", "end_user", "tag", "upstream")
METERS: Final = ("requests", "tokens", "cost", "concurrency")
WINDOWS: Final = ("minute", "hour", "day", "week", "month", "total")


@click.group("limits")
def limits_command() -> None:
    """Create, list and delete limits.

    A limit is so many requests, tokens, slots or so much money for someone in a window. All that match a request apply.
    """


@limits_command.command("list")
@click.option("--scope", type=click.Choice(SCOPES), help="Of this scope alone.")
@click.option("--key", metavar="PREFIX", help="Of this API key alone.")
@click.option("--workspace", help="Of this workspace alone.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_limits(key: str | None, workspace: str | None, as_json: bool, **options: str | None) -> None:
    """List limits, the newest first."""
    query = from_options(LimitQuery, options)
    rows = _with_stores(lambda stores: _list(stores.database, query, key, workspace))
    if as_json:
        print_json([_document(view, names.workspaces[view.workspace_id]) for view, names in rows])
    elif not rows:
        which = " of that kind" if workspace or query.scope or key else ""
        click.echo(
            f"There are no limits{which} yet. Create one: "
            "tidegate limits create --scope workspace --meter cost --window month --amount 100.00"
        )
    else:
        columns = ("ID", "LIMIT", "SUBJECT", "MODEL", "AMOUNT", "ACTION", "WORKSPACE")
        print_table(columns, [_line(view, names) for view, names in rows])


@limits_command.command("create")
@click.option("--scope", type=click.Choice(SCOPES), required=True, help="Whom it limits.")
@click.option(
    "--subject",
    help="Which one: a key's prefix or id, a user's address or id, an end user, name=value of a tag, an upstream's "
    "name. [every one of the scope, each counted apart]",
)
@click.option("--workspace", help="The workspace that it is for. [its key's or user's, else default]")
@click.option("--model", help="A model, a pattern such as 'gpt-*', or a group. [all models together]")
@click.option("--meter", type=click.Choice(METERS), required=True, help="What it counts.")
@click.option("--window", type=click.Choice(WINDOWS), help="In how long. [concurrency has none]")
@click.option("--zone", help="The time zone of its calendar, such as Europe/Berlin. [UTC]")
@click.option("--amount", required=True, metavar="N", help="How much: a whole number; for cost USD, such as 10.00.")
@click.option("--action", type=click.Choice(["refuse", "alert"]), help="What happens past it. [refuse]")
@click.option(
    "--on-overrun",
    type=click.Choice(["finish", "cut"]),
    help="What becomes of a stream that costs more than it reserved, past the limit. [finish]",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def create(subject: str | None, workspace: str | None, as_json: bool, **options: str | None) -> None:
    """Create a limit. It holds within seconds."""
    # What is wrong with the rest is said before the database is asked for the subject.
    from_options(NewLimit, options)

    async def work(stores: _Stores) -> tuple[LimitView, str]:
        database = stores.database
        async with database.session() as session:
            found = await _subject_id(session, str(options["scope"]), subject)
            given = None if workspace is None else (await find_workspace(session, workspace)).id
        new = from_options(NewLimit, {**options, "subject": found, "workspace_id": given})
        try:
            upstreams = load_catalogue(stores.settings).upstreams if new.scope == "upstream" else ()
            limits = Limits(database, OPERATOR, operator(), upstreams=upstreams, changed=stores.limits_changed)
            view = await limits.create(new)
        except ValidationFailed as error:
            raise click.UsageError(f"--{error.message.replace('workspace_id', 'workspace', 1)}.") from None
        return view, (await _names(database)).workspaces[view.workspace_id]

    view, name = _with_stores(work)
    if as_json:
        print_json(_document(view, name))
    else:
        click.echo(f"Created the limit {view.label} of {_amount(view)} in the workspace {name} ({view.id}).")


@limits_command.command("delete")
@click.argument("limit_id", metavar="ID", type=click.UUID)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def delete(limit_id: uuid.UUID, as_json: bool) -> None:
    """End a limit, within seconds."""

    async def work(stores: _Stores) -> None:
        await Limits(stores.database, OPERATOR, operator(), changed=stores.limits_changed).delete(limit_id)

    _with_stores(work)
    if as_json:
        print_json({"id": limit_id, "deleted": True})
    else:
        click.echo(f"The limit {limit_id} is deleted.")


@dataclass(frozen=True, slots=True)
class _Stores:
    """What a command works with. `changes` tells the workers."""

    settings: Settings
    database: Database
    changes: Changes

    async def limits_changed(self, workspace_id: uuid.UUID) -> None:
        await self.changes.tell(limits_topic(workspace_id))


def _with_stores(work: Callable[[_Stores], Awaitable[Result]]) -> Result:
    async def run() -> Result:
        settings = load_settings()
        async with open_database(settings) as database, Changes.publishing(settings) as changes:
            return await work(_Stores(settings, database, changes))

    return asyncio.run(run())


@dataclass(frozen=True, slots=True)
class _Names:
    """What people call workspaces, and the subjects of limits."""

    workspaces: dict[uuid.UUID, str]
    subjects: dict[str, str]


async def _list(
    database: Database, query: LimitQuery, key: str | None, workspace: str | None
) -> list[tuple[LimitView, _Names]]:
    async with database.session() as session:
        if workspace is not None:
            query = query.model_copy(update={"workspace_id": (await find_workspace(session, workspace)).id})
        if key is not None:
            query = query.model_copy(update={"key_prefix": (await find_key(session, key)).prefix})
    names = await _names(database)
    limits = Limits(database, OPERATOR, operator())
    found: list[tuple[LimitView, _Names]] = []
    while True:
        page = await limits.page(query)
        found += [(view, names) for view in page.data]
        if page.next is None:
            return found
        query = query.model_copy(update={"after": page.next})


async def _names(database: Database) -> _Names:
    async with database.session() as session:
        workspaces = await session.execute(select(Workspace.id, Workspace.name))
        users = await session.execute(select(User.id, User.email))
        keys = await session.execute(select(ApiKey.id, ApiKey.prefix))
        subjects = {str(user_id): email for user_id, email in users}
        subjects |= {str(key_id): f"{KEY_MARK}{prefix}" for key_id, prefix in keys}
        return _Names({uuid.UUID(int=row.id.int): row.name for row in workspaces}, subjects)


async def _subject_id(session: AsyncSession, scope: str, subject: str | None) -> str | None:
    """The subject as a limit holds it. Raises `NotFound`."""
    if subject is None or scope not in {"key", "user"} or _is_uuid(subject):
        return subject
    row = await (find_key(session, subject) if scope == "key" else find_user(session, subject))
    return str(row.id)


def _is_uuid(text: str) -> bool:
    try:
        uuid.UUID(text)
    except ValueError:
        return False
    return True


def _amount(view: LimitView) -> str:
    return f"{view.amount} USD" if view.meter == "cost" else str(view.amount)


def _line(view: LimitView, names: _Names) -> list[str]:
    nobody = "-" if view.scope in {"deployment", "workspace"} else "each"
    subject = nobody if view.subject is None else names.subjects.get(view.subject, view.subject)
    label = view.label if view.zone is None else f"{view.label} {view.zone}"
    workspace = names.workspaces[view.workspace_id]
    return [str(view.id), label, subject, view.model or "all", _amount(view), view.action, workspace]


def _document(view: LimitView, workspace: str) -> dict[str, object]:
    return {**view.model_dump(mode="json"), "workspace": workspace}

"""`tidegate audit`: the audit trail of every workspace, read from the database as it is now."""

import asyncio
from collections.abc import Mapping
from typing import Any, Final

import click
from sqlalchemy import select

from tidegate.accounts.models import Workspace
from tidegate.accounts.service import find_workspace
from tidegate.audit.schemas import AuditPage, AuditQuery, EventView
from tidegate.audit.service import AuditReader
from tidegate.cli.database import open_database
from tidegate.cli.inputs import from_options
from tidegate.cli.operator import OPERATOR
from tidegate.cli.output import moment, print_json, print_table
from tidegate.settings import Settings, load_settings

_COLUMNS: Final = ("WHEN", "ACTION", "OUTCOME", "ACTOR", "FROM", "SUBJECT", "WORKSPACE", "DETAILS")


@click.command("audit")
@click.option("--since", default="7d", show_default=True, help="A length of time such as 7d, or a date.")
@click.option("--action", help="An action such as key.revoked, or what several begin with, such as key.")
@click.option("--actor", help="An e-mail, a key's prefix, a system user, an id, or a kind such as system.")
@click.option("--workspace", help="Of this workspace alone.")
@click.option("--limit", type=click.IntRange(1, 1000), default=100, show_default=True, help="The most events.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def audit(workspace: str | None, as_json: bool, **options: str | int | None) -> None:
    """Show who changed what, from where and when, the newest first.

    The trail is of every workspace, and append-only: the database itself refuses to change or delete it.
    """
    query = from_options(AuditQuery, options)
    page, names = asyncio.run(_read(load_settings(), query, workspace))
    if as_json:
        documents = page.model_dump(mode="json")["data"]
        print_json([document | {"workspace": names[document["workspace_id"]]} for document in documents])
    elif not page.data:
        which = "" if query.action is None and query.actor is None and workspace is None else " of that kind"
        click.echo(f"The audit trail has nothing{which} since {options['since']}.")
    else:
        print_table(_COLUMNS, [_line(event, names[str(event.workspace_id)]) for event in page.data])
        if page.next is not None:
            click.echo(f"There are more; these are the newest {len(page.data)}.", err=True)


async def _read(settings: Settings, query: AuditQuery, workspace: str | None) -> tuple[AuditPage, dict[str, str]]:
    """The events, and what their workspaces are called, by id."""
    async with open_database(settings) as database, database.session() as session:
        if workspace is not None:
            query = query.model_copy(update={"workspace_id": (await find_workspace(session, workspace)).id})
        page = await AuditReader(session, OPERATOR).page(query)
        rows = await session.execute(select(Workspace.id, Workspace.name))
        return page, {str(row.id): row.name for row in rows}


def _line(event: EventView, workspace: str) -> list[str]:
    actor = event.actor.kind if event.actor.name is None else f"{event.actor.kind} {event.actor.name}"
    subject = "-" if event.subject is None else event.subject.name or event.subject.id or event.subject.kind
    told = (actor, event.client_address or "-", subject, workspace, _told(event.details))
    return [moment(event.at), event.action, event.outcome, *map(_printable, told)]


def _told(details: Mapping[str, Any]) -> str:
    return "; ".join(f"{name}: {_value(value)}" for name, value in details.items()) or "-"


def _value(value: Any) -> str:
    match value:
        case {"from": old, "to": new, **rest} if not rest:
            return f"{_value(old)} -> {_value(new)}"
        case dict():
            return ", ".join(f"{name} {_value(inner)}" for name, inner in value.items()) or "none"
        case list():
            return ", ".join(map(_value, value)) or "none"
        case None:
            return "none"
    return str(value)


def _printable(text: str) -> str:
    """Whoever acted chose some of these words, and a terminal obeys control characters."""
    return "".join(character if character.isprintable() else "?" for character in text)

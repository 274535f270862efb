"""`tidegate workspaces`: the tenants."""

import asyncio
from typing import Final

import click

from tidegate.accounts.users.schemas import WorkspaceForm, WorkspaceQuery, WorkspaceView
from tidegate.accounts.users.workspaces import CallersWorkspaces
from tidegate.cli.database import open_database
from tidegate.cli.inputs import from_options
from tidegate.cli.operator import OPERATOR, operator
from tidegate.cli.output import moment, print_json, print_table
from tidegate.settings import Settings, load_settings

_AT_ONCE: Final = 1000


@click.group("workspaces")
def workspaces_command() -> None:
    """Create and list workspaces."""


@workspaces_command.command("create")
@click.option("--name", required=True, help="What it is called. No other workspace has the name.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def create(name: str, as_json: bool) -> None:
    """Create a workspace, with nobody in it."""
    view = asyncio.run(_create(load_settings(), from_options(WorkspaceForm, {"name": name})))
    if as_json:
        print_json(view.model_dump())
    else:
        click.echo(f"Created the workspace {view.name}.")


@workspaces_command.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_workspaces(as_json: bool) -> None:
    """List every workspace, the newest first."""
    views = asyncio.run(_list(load_settings()))
    if as_json:
        print_json([view.model_dump() for view in views])
    else:
        print_table(("NAME", "ID", "CREATED"), [[view.name, str(view.id), moment(view.created_at)] for view in views])


async def _create(settings: Settings, form: WorkspaceForm) -> WorkspaceView:
    async with open_database(settings) as database:
        return await CallersWorkspaces(database, OPERATOR, operator()).create(form)


async def _list(settings: Settings) -> list[WorkspaceView]:
    views: list[WorkspaceView] = []
    async with open_database(settings) as database:
        callers = CallersWorkspaces(database, OPERATOR, operator())
        query = WorkspaceQuery(limit=_AT_ONCE)
        while True:
            page = await callers.page(query)
            views += page.data
            if page.next is None:
                return views
            query = WorkspaceQuery(limit=_AT_ONCE, after=page.next)

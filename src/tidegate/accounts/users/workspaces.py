"""Workspaces for a caller: listing, creating, renaming.

An admin who is signed in acts on all of them; whoever else sees their own. `default` keeps its name, which settings and
commands go by.
"""

import uuid
from typing import Final

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError

from tidegate.accounts.models import DEFAULT_WORKSPACE_ID, Workspace
from tidegate.accounts.users.schemas import WorkspaceForm, WorkspacePage, WorkspaceQuery, WorkspaceView
from tidegate.audit.trail import Actor, Event, Subject, differences, note
from tidegate.auth.principal import Principal
from tidegate.errors import Conflict, NotFound, PermissionDenied
from tidegate.storage.database import Database

_DEFAULT_STAYS: Final = "The workspace 'default' keeps its name: settings and commands go by it."


class CallersWorkspaces:
    """The workspaces of a database as one caller may see and change them.

    >>> view = await CallersWorkspaces(database, caller, actor).create(WorkspaceForm(name="research"))
    """

    def __init__(self, database: Database, caller: Principal, actor: Actor) -> None:
        self._database = database
        self._caller = caller
        self._actor = actor
        self._is_admin = caller.is_signed_in_admin

    async def page(self, query: WorkspaceQuery) -> WorkspacePage:
        """The newest workspaces that match."""
        statement = select(Workspace)
        if not self._is_admin:
            statement = statement.where(Workspace.id == self._caller.workspace_id)
        if query.name is not None:
            statement = statement.where(Workspace.name == query.name)
        if query.after is not None:
            statement = statement.where(Workspace.id < query.after)
        async with self._database.session() as session:
            # One more than asked for tells whether there is a next page.
            rows = (await session.scalars(statement.order_by(Workspace.id.desc()).limit(query.limit + 1))).all()
        shown = rows[: query.limit]
        following = shown[-1].id if len(rows) > len(shown) else None
        return WorkspacePage(data=[WorkspaceView.of(row) for row in shown], next=following)

    async def create(self, form: WorkspaceForm) -> WorkspaceView:
        """Raises `PermissionDenied`, `Conflict` where the name is taken."""
        self._require_admin()
        try:
            async with self._database.transaction() as session:
                row = Workspace(name=form.name)
                session.add(row)
                await session.flush()
                note(session, self._actor, Event("workspace.created", row.id, _of_workspace(row)))
        except IntegrityError:
            raise _taken(form.name) from None
        return WorkspaceView.of(row)

    async def rename(self, workspace_id: uuid.UUID, form: WorkspaceForm) -> WorkspaceView:
        """Raises `PermissionDenied`, `NotFound`, `Conflict` where the name is taken, or the workspace is `default`."""
        self._require_admin()
        try:
            async with self._database.transaction() as session:
                held = select(Workspace).where(Workspace.id == workspace_id).with_for_update(key_share=True)
                row = await session.scalar(held)
                if row is None:
                    raise NotFound(f"There is no workspace {workspace_id} that you may see.")
                changed = differences({"name": row.name}, {"name": form.name})
                if changed and row.id == DEFAULT_WORKSPACE_ID:
                    raise Conflict(_DEFAULT_STAYS)
                row.name = form.name
                await session.flush()
                if changed:
                    note(session, self._actor, Event("workspace.changed", row.id, _of_workspace(row), details=changed))
        except IntegrityError:
            raise _taken(form.name) from None
        return WorkspaceView.of(row)

    def _require_admin(self) -> None:
        if not self._is_admin:
            raise PermissionDenied("Only an admin who is signed in changes workspaces.")


def _of_workspace(row: Workspace) -> Subject:
    return Subject("workspace", row.id, row.name)


def _taken(name: str) -> Conflict:
    return Conflict(f"There is a workspace {name!r} already.", param="name")

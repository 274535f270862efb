"""Reading the audit trail for a caller: an admin sees every workspace, a key with scope `manage` its own."""

import uuid
from collections.abc import Iterator

from sqlalchemy import ColumnElement, or_, select, true
from sqlalchemy.ext.asyncio import AsyncSession

from tidegate.accounts.models import Workspace
from tidegate.audit.models import AuditEvent
from tidegate.audit.schemas import AuditPage, AuditQuery, EventView
from tidegate.auth.api_keys import KEY_MARK
from tidegate.auth.principal import Principal
from tidegate.errors import NotFound, PermissionDenied
from tidegate.ledger.entry import utc_now
from tidegate.ledger.reports import since_moment


class AuditReader:
    """The audit trail as one caller may see it.

    >>> page = await AuditReader(session, caller).page(AuditQuery(action="key."))
    """

    def __init__(self, session: AsyncSession, caller: Principal) -> None:
        self._session = session
        self._caller = caller
        self._is_admin = caller.is_signed_in_admin

    async def page(self, query: AuditQuery) -> AuditPage:
        """The newest events that match.

        Raises `PermissionDenied`, and `NotFound` for a workspace that the caller may not see.
        """
        if "manage" not in self._caller.scopes:
            raise PermissionDenied("The audit trail is for admins, and for keys with the scope 'manage'.")
        statement = select(AuditEvent).where(self._visible(), *_conditions(query))
        if query.workspace_id is not None:
            statement = statement.where(AuditEvent.workspace_id == await self._workspace(query.workspace_id))
        # One more than asked for tells whether there is a next page.
        statement = statement.order_by(AuditEvent.id.desc()).limit(query.limit + 1)
        rows = (await self._session.scalars(statement)).all()
        shown = rows[: query.limit]
        following = shown[-1].id if len(rows) > len(shown) else None
        return AuditPage(data=[EventView.of(row) for row in shown], next=following)

    def _visible(self) -> ColumnElement[bool]:
        if self._is_admin:
            return true()
        # A log-in that was refused names an address of any workspace, or of nobody.
        is_of_nobody = (AuditEvent.subject_kind == "user") & AuditEvent.subject_id.is_(None)
        return (AuditEvent.workspace_id == self._caller.workspace_id) & is_of_nobody.is_not(true())

    async def _workspace(self, wanted: uuid.UUID) -> uuid.UUID:
        is_theirs = self._is_admin or wanted == self._caller.workspace_id
        if not is_theirs or await self._session.scalar(select(Workspace.id).where(Workspace.id == wanted)) is None:
            raise NotFound(f"There is no workspace {wanted} that you may see.", param="workspace_id")
        return wanted


def _conditions(query: AuditQuery) -> Iterator[ColumnElement[bool]]:
    if query.action is not None and query.action.endswith("."):
        yield AuditEvent.action.startswith(query.action, autoescape=True)
    elif query.action is not None:
        yield AuditEvent.action == query.action
    if query.actor is not None:
        yield _acted(query.actor)
    if query.subject_id is not None:
        yield AuditEvent.subject_id == query.subject_id
    if query.request_id is not None:
        yield AuditEvent.request_id == query.request_id
    now = utc_now()
    if query.since is not None:
        yield AuditEvent.at >= since_moment(query.since, now)
    if query.until is not None:
        yield AuditEvent.at < since_moment(query.until, now)
    if query.after is not None:
        yield AuditEvent.id < query.after


def _acted(actor: str) -> ColumnElement[bool]:
    # E-mails are stored in lower case.
    names = AuditEvent.actor.in_({actor, actor.lower(), KEY_MARK + actor})
    try:
        return or_(names, AuditEvent.actor_id == uuid.UUID(actor))
    except ValueError:
        return or_(names, AuditEvent.actor_kind == actor)

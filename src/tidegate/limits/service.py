"""Limits and key policies for a caller: creating, listing, changing, deleting.

An admin acts in every workspace; whoever else may, in their own: a key with scope `manage` reads and changes, a member
reads. Limits of the whole deployment and of upstreams belong to the workspace `default`, apply to every workspace, and
are an admin's alone. What another workspace has is not found. What is changed is in the audit trail by the same
transaction.
"""

import uuid
from collections.abc import Awaitable, Callable, Collection
from typing import Any

from sqlalchemy import ColumnElement, delete, select, true
from sqlalchemy.ext.asyncio import AsyncSession

from tidegate.accounts.models import DEFAULT_WORKSPACE_ID, User, Workspace
from tidegate.audit.trail import Action, Actor, Event, Subject, differences, note
from tidegate.auth.api_keys import KEY_MARK
from tidegate.auth.models import ApiKey
from tidegate.auth.principal import Principal
from tidegate.errors import NotFound, PermissionDenied, ValidationFailed
from tidegate.limits.models import KeyPolicy, LimitRow
from tidegate.limits.policy import policies_of
from tidegate.limits.schemas import (
    ChangedLimit,
    KeyPolicies,
    KeyPolicyForm,
    LimitPage,
    LimitQuery,
    LimitView,
    NewLimit,
)
from tidegate.limits.values import exact_amount
from tidegate.storage.database import Database

SHARED_SCOPES = ("deployment", "upstream")

Changed = Callable[[uuid.UUID], Awaitable[None]]


async def nothing_changed(workspace_id: uuid.UUID) -> None:
    """What is told of a change where nobody remembers limits."""
    del workspace_id


class Limits:
    """The limits of a database as one caller may see and change them.

    `upstreams` are the names that the catalogue has. `changed` is awaited with a workspace's id after a change of its
    limits was committed; for those of the deployment and of upstreams it is the id of `default`. `actor` is the caller
    as the audit trail names them.

    >>> limits = Limits(database, caller, actor, upstreams=catalogue.upstreams)
    >>> await limits.create(NewLimit(scope="workspace", meter="cost", window="month", amount="100.00"))
    """

    def __init__(
        self,
        database: Database,
        caller: Principal,
        actor: Actor,
        *,
        upstreams: Collection[str] = (),
        changed: Changed = nothing_changed,
    ) -> None:
        self._database = database
        self._caller = caller
        self._actor = actor
        self._upstreams = upstreams
        self._changed = changed
        self._is_admin = caller.is_signed_in_admin

    async def page(self, query: LimitQuery) -> LimitPage:
        """The newest limits that match."""
        statement = select(LimitRow).where(self._visible())
        for column, wanted in (
            (LimitRow.scope, query.scope),
            (LimitRow.subject, query.subject),
            (LimitRow.workspace_id, query.workspace_id),
        ):
            if wanted is not None:
                statement = statement.where(column == wanted)
        if query.after is not None:
            statement = statement.where(LimitRow.id < query.after)
        async with self._database.session() as session:
            if query.key_prefix is not None:
                prefix = query.key_prefix.removeprefix(KEY_MARK)
                key_id = await session.scalar(select(ApiKey.id).where(ApiKey.prefix == prefix))
                statement = statement.where(LimitRow.scope == "key", LimitRow.subject == str(key_id))
            # One more than asked for tells whether there is a next page.
            rows = (await session.scalars(statement.order_by(LimitRow.id.desc()).limit(query.limit + 1))).all()
        shown = rows[: query.limit]
        following = shown[-1].id if len(rows) > len(shown) else None
        return LimitPage(data=[LimitView.of(row) for row in shown], next=following)

    async def create(self, new: NewLimit) -> LimitView:
        """Raises `PermissionDenied`, `NotFound` for an unknown workspace, `ValidationFailed` for a subject."""
        self._require_manage()
        if new.scope in SHARED_SCOPES and not self._is_admin:
            raise PermissionDenied(f"Limits of scope {new.scope!r} apply to every workspace: only an admin sets them.")
        async with self._database.transaction() as session:
            row = LimitRow(
                workspace_id=await self._workspace_of(session, new),
                scope=new.scope,
                subject=new.subject,
                model=new.model,
                meter=new.meter,
                window=new.window,
                zone=new.zone,
                amount=new.exact_amount,
                action=new.action,
                on_overrun=new.on_overrun,
            )
            session.add(row)
            await session.flush()
            self._note(session, "limit.created", row, _said(row))
        await self._changed(row.workspace_id)
        return LimitView.of(row)

    async def change(self, limit_id: uuid.UUID, change: ChangedLimit) -> LimitView:
        """Raises `PermissionDenied`, `NotFound`, `ValidationFailed` for an amount that its meter has not."""
        self._require_manage()
        async with self._database.transaction() as session:
            row = await self._find(session, limit_id)
            before = _said(row)
            if change.amount is not None:
                try:
                    row.amount = exact_amount(row.meter, change.amount)
                except ValueError as error:
                    raise _invalid("amount", str(error)) from None
            if change.on_overrun == "cut" and row.scope == "upstream":
                raise _invalid("on_overrun", "must be finish: a stream is cut by its caller's limits")
            row.action = change.action or row.action
            row.on_overrun = change.on_overrun or row.on_overrun
            if changed := differences(before, _said(row)):
                self._note(session, "limit.changed", row, changed)
        await self._changed(row.workspace_id)
        return LimitView.of(row)

    async def delete(self, limit_id: uuid.UUID) -> None:
        """Raises `PermissionDenied`, `NotFound`."""
        self._require_manage()
        async with self._database.transaction() as session:
            row = await self._find(session, limit_id)
            await session.delete(row)
            self._note(session, "limit.deleted", row, _said(row))
        await self._changed(row.workspace_id)

    async def policies(self, workspace_id: uuid.UUID | None = None) -> KeyPolicies:
        """What a workspace, without one the caller's, says of keys that members make. Raises `NotFound`."""
        async with self._database.session() as session:
            workspace = await self._workspace(session, workspace_id)
            return await _policies(session, workspace)

    async def replace_policies(self, policies: KeyPolicies, workspace_id: uuid.UUID | None = None) -> KeyPolicies:
        """Sets all of a workspace's policies at once. Raises `PermissionDenied`, `NotFound`."""
        if not self._is_admin:
            raise PermissionDenied("Only an admin who is signed in sets the policies for keys.")
        async with self._database.transaction() as session:
            workspace = await self._workspace(session, workspace_id, lock=True)
            before = await _policies(session, workspace)
            await session.execute(delete(KeyPolicy).where(KeyPolicy.workspace_id == workspace))
            session.add_all([_row(workspace, policy) for policy in policies.data])
            await session.flush()
            after = await _policies(session, workspace)
            if changed := differences(before.model_dump(mode="json"), after.model_dump(mode="json")):
                note(session, self._actor, Event("key_policies.replaced", workspace, details=changed))
            return after

    def _note(self, session: AsyncSession, action: Action, row: LimitRow, details: dict[str, Any]) -> None:
        subject = Subject("limit", row.id, LimitView.of(row).label)
        note(session, self._actor, Event(action, row.workspace_id, subject, details=details))

    def _visible(self) -> ColumnElement[bool]:
        if self._is_admin:
            return true()
        return (LimitRow.workspace_id == self._caller.workspace_id) & LimitRow.scope.not_in(SHARED_SCOPES)

    def _require_manage(self) -> None:
        if "manage" not in self._caller.scopes:
            raise PermissionDenied("Changing limits takes an admin, or a key with the scope 'manage'.")

    async def _find(self, session: AsyncSession, limit_id: uuid.UUID) -> LimitRow:
        query = select(LimitRow).where(self._visible(), LimitRow.id == limit_id).with_for_update()
        row = await session.scalar(query)
        if row is None:
            raise NotFound(f"There is no limit {limit_id} that you may see.")
        return row

    async def _workspace(self, session: AsyncSession, wanted: uuid.UUID | None, *, lock: bool = False) -> uuid.UUID:
        workspace_id = wanted or self._caller.workspace_id
        query = select(Workspace.id).where(Workspace.id == workspace_id)
        is_theirs = self._is_admin or workspace_id == self._caller.workspace_id
        if not is_theirs or await session.scalar(query.with_for_update() if lock else query) is None:
            raise NotFound(f"There is no workspace {workspace_id} that you may act in.", param="workspace_id")
        return workspace_id

    async def _workspace_of(self, session: AsyncSession, new: NewLimit) -> uuid.UUID:
        """The workspace that a new limit belongs to; its subject is there."""
        if new.scope in SHARED_SCOPES:
            if new.workspace_id not in {None, DEFAULT_WORKSPACE_ID}:
                raise _invalid("workspace_id", f"must be left out: a limit of scope {new.scope} is of every workspace")
            if new.scope == "upstream" and new.subject is not None and new.subject not in self._upstreams:
                known = ", ".join(sorted(self._upstreams)) or "none"
                raise _invalid("subject", f"there is no upstream {new.subject!r}; there are: {known}")
            return DEFAULT_WORKSPACE_ID
        wanted = new.workspace_id
        if wanted is not None:
            # Before the subject: who may not act there is not told what is there.
            await self._workspace(session, wanted)
        if new.scope in {"key", "user"} and new.subject is not None:
            table, what = (ApiKey, "API key") if new.scope == "key" else (User, "user")
            found = await session.scalar(select(table.workspace_id).where(table.id == uuid.UUID(new.subject)))
            wanted = wanted or (found if self._is_admin else self._caller.workspace_id)
            if found is None or found != wanted:
                raise _invalid("subject", f"there is no {what} {new.subject} in this workspace")
        return await self._workspace(session, wanted)


async def _policies(session: AsyncSession, workspace_id: uuid.UUID) -> KeyPolicies:
    return KeyPolicies(data=[KeyPolicyForm.of(policy) for policy in await policies_of(session, workspace_id)])


def _said(row: LimitRow) -> dict[str, Any]:
    """A limit as the audit trail writes it."""
    names = ("subject", "model", "zone", "amount", "action", "on_overrun")
    return LimitView.of(row).model_dump(mode="json", include=set(names))


def _row(workspace_id: uuid.UUID, policy: KeyPolicyForm) -> KeyPolicy:
    default, most = (
        None if amount is None else exact_amount(policy.meter, amount)
        for amount in (policy.default_amount, policy.most_amount)
    )
    return KeyPolicy(
        workspace_id=workspace_id,
        meter=policy.meter,
        window=policy.window,
        default_amount=default,
        most_amount=most,
    )


def _invalid(field: str, message: str) -> ValidationFailed:
    return ValidationFailed(f"{field}: {message}", [{"loc": ["body", field], "message": message}])

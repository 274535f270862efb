"""Users for a caller: listing, creating, changing, signing out.

An admin who is signed in acts on every user. A key with scope `manage` sees those of its own workspace, a member
themselves; neither changes anybody. What another workspace has is not found.

Invariants:
- One enabled admin remains: who takes one away holds all of them, so of two that do it at once one is refused.
- A user who moves, or whose role changes, signs in again. Their API keys stay where they are, with the scopes that they
  have: revoke those that are not to go on.
"""

import uuid
from typing import Final

from sqlalchemy import ColumnElement, select, true
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from tidegate.accounts.models import User, Workspace
from tidegate.accounts.service import (
    INITIAL_PASSWORD_DAYS,
    disable_user,
    enable_user,
    ends_after,
    locked_user,
    note_created,
    of_user,
    withdraw_invitations_of,
)
from tidegate.accounts.sign_ins.service import end_sign_ins
from tidegate.accounts.users.schemas import ChangedUser, UserForm, UserPage, UserQuery, UserView
from tidegate.audit.trail import Actor, Event, differences, note
from tidegate.auth.passwords import Passwords
from tidegate.auth.principal import Principal
from tidegate.errors import Conflict, NotFound, PermissionDenied
from tidegate.limits.service import Changed, nothing_changed
from tidegate.storage.database import Database

_LAST_ADMIN: Final = "This is the last admin who is not disabled: make another one first."


class CallersUsers:
    """The users of a database as one caller may see and change them. `changed` is awaited with a user's id after it.

    >>> view = await CallersUsers(database, caller, actor).change(user_id, ChangedUser(disabled=True))
    """

    def __init__(
        self,
        database: Database,
        caller: Principal,
        actor: Actor,
        *,
        changed: Changed = nothing_changed,
        initial_password_days: int = INITIAL_PASSWORD_DAYS,
    ) -> None:
        self._database = database
        self._caller = caller
        self._actor = actor
        self._changed = changed
        self._initial_password_days = initial_password_days
        self._is_admin = caller.is_signed_in_admin

    async def page(self, query: UserQuery) -> UserPage:
        """The newest users that match."""
        statement = select(User).where(self._visible())
        for column, wanted in (
            (User.email, query.email),
            (User.role, query.role),
            (User.workspace_id, query.workspace_id),
        ):
            if wanted is not None:
                statement = statement.where(column == wanted)
        if query.state is not None:
            active = User.disabled_at.is_(None)
            statement = statement.where(active if query.state == "active" else ~active)
        if query.after is not None:
            statement = statement.where(User.id < query.after)
        async with self._database.session() as session:
            # One more than asked for tells whether there is a next page.
            rows = (await session.scalars(statement.order_by(User.id.desc()).limit(query.limit + 1))).all()
        shown = rows[: query.limit]
        following = shown[-1].id if len(rows) > len(shown) else None
        return UserPage(data=[UserView.of(row) for row in shown], next=following)

    async def find(self, user_id: uuid.UUID) -> UserView:
        """Raises `NotFound`."""
        async with self._database.session() as session:
            row = await session.scalar(select(User).where(self._visible(), User.id == user_id))
        if row is None:
            raise _no_user(user_id)
        return UserView.of(row)

    async def create(self, form: UserForm, passwords: Passwords) -> UserView:
        """A user, whose password opens log-ins for some days: by then they have chosen their own.

        Raises `PermissionDenied`, `NotFound` for a workspace, `Conflict` where the address is taken, and
        `ValidationFailed` for a password that is short or common.
        """
        self._require_admin()
        password_hash = None
        if form.password is not None:
            password_hash = await passwords.choose(form.password.get_secret_value(), email=form.email)
        workspace_id = form.workspace_id or self._caller.workspace_id
        try:
            async with self._database.transaction() as session:
                await _require_workspace(session, workspace_id)
                user = User(
                    workspace_id=workspace_id,
                    email=form.email.lower(),
                    role=form.role,
                    password_hash=password_hash,
                    password_ends_at=ends_after(self._initial_password_days) if password_hash else None,
                )
                session.add(user)
                await session.flush()
                note_created(session, self._actor, user)
        except IntegrityError:
            raise Conflict(f"There is a user {form.email} already.", param="email") from None
        return UserView.of(user)

    async def change(self, user_id: uuid.UUID, change: ChangedUser) -> UserView:
        """Raises `PermissionDenied`, `NotFound` for a user or workspace, `Conflict` for the last admin."""
        self._require_admin()
        async with self._database.transaction() as session:
            admins = await held_admins(session) if change.may_end_an_admin else None
            user = await locked_user(session, user_id)
            if user is None:
                raise _no_user(user_id)
            if admins == [user.id]:
                raise Conflict(_LAST_ADMIN)
            await self._place(session, user, change)
            if change.disabled is True:
                await disable_user(session, user, self._actor)
            elif change.disabled is False:
                enable_user(session, user, self._actor)
        # Also where nothing changed: an earlier telling may have been lost.
        await self._changed(user_id)
        return UserView.of(user)

    async def sign_out(self, user_id: uuid.UUID) -> None:
        """Ends all sign-ins of a user. Raises `PermissionDenied`, `NotFound`."""
        self._require_admin()
        async with self._database.transaction() as session:
            user = await locked_user(session, user_id)
            if user is None:
                raise _no_user(user_id)
            await end_sign_ins(session, user.id, "signed_out_everywhere")
            note(session, self._actor, Event("account.signed_out_everywhere", user.workspace_id, of_user(user)))
        await self._changed(user_id)

    def _visible(self) -> ColumnElement[bool]:
        if self._is_admin:
            return true()
        if self._caller.key_id is not None:
            return User.workspace_id == self._caller.workspace_id
        return User.id == self._caller.user_id

    def _require_admin(self) -> None:
        if not self._is_admin:
            raise PermissionDenied("Only an admin who is signed in changes users.")

    async def _place(self, session: AsyncSession, user: User, change: ChangedUser) -> None:
        """Sets role and workspace."""
        before = {"role": user.role, "workspace_id": str(user.workspace_id)}
        if change.workspace_id is not None:
            await _require_workspace(session, change.workspace_id)
        user.role = change.role or user.role
        user.workspace_id = change.workspace_id or user.workspace_id
        changed = differences(before, {"role": user.role, "workspace_id": str(user.workspace_id)})
        if changed:
            await session.flush()
            await end_sign_ins(session, user.id, "role_changed")
            if before["role"] == "admin" and user.role != "admin":
                await withdraw_invitations_of(session, user, self._actor)
            note(session, self._actor, Event("user.changed", user.workspace_id, of_user(user), details=changed))


async def held_admins(session: AsyncSession) -> list[uuid.UUID]:
    """The enabled admins, locked in one order: who waited sees what the other left."""
    query = select(User.id).where(User.role == "admin", User.disabled_at.is_(None)).order_by(User.id)
    return list(await session.scalars(query.with_for_update()))


async def _require_workspace(session: AsyncSession, workspace_id: uuid.UUID) -> None:
    if await session.scalar(select(Workspace.id).where(Workspace.id == workspace_id)) is None:
        raise NotFound(f"There is no workspace {workspace_id} that you may act in.", param="workspace_id")


def _no_user(user_id: uuid.UUID) -> NotFound:
    return NotFound(f"There is no user {user_id} that you may see.")

"""Invitations: who may come in, made by an admin or a workspace's key, accepted by who reads the address.

An admin who is signed in invites to every workspace. A key with scope `manage` invites members to its own, and sees and
withdraws what was sent there, but for invitations of admins. What another workspace has is not found. Whoever may not
see a user learns nothing of them: their address is invited as any other is, and refused only to who accepts.
"""

import uuid
from dataclasses import replace

from sqlalchemy import ColumnElement, select, true
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from tidegate.accounts.mailed import letters
from tidegate.accounts.mailed.schemas import (
    InvitationForm,
    InvitationPage,
    InvitationQuery,
    InvitationView,
    state_of,
)
from tidegate.accounts.mailed.tokens import add_token, find_live, new_token, renew, take, withdraw_invitations
from tidegate.accounts.models import MailedToken, User, Workspace
from tidegate.accounts.service import note_created
from tidegate.accounts.users.schemas import UserView
from tidegate.audit.trail import Action, Actor, Event, Subject, note
from tidegate.auth.passwords import Passwords
from tidegate.auth.principal import Principal, Role
from tidegate.errors import Conflict, NotFound, PermissionDenied
from tidegate.ledger.entry import utc_now
from tidegate.mail.post import Post
from tidegate.storage.database import Database


class CallersInvitations:
    """The invitations of a database as one caller may see and make them.

    >>> view = await CallersInvitations(database, caller, actor, post).create(InvitationForm(email="ada@example.com"))
    """

    def __init__(self, database: Database, caller: Principal, actor: Actor, post: Post) -> None:
        self._database = database
        self._caller = caller
        self._actor = actor
        self._post = post
        self._is_admin = caller.is_signed_in_admin

    async def page(self, query: InvitationQuery) -> InvitationPage:
        """The newest invitations that match."""
        statement = select(MailedToken).where(self._visible())
        if query.workspace_id is not None:
            statement = statement.where(MailedToken.workspace_id == query.workspace_id)
        if query.email is not None:
            statement = statement.where(MailedToken.email == query.email)
        if query.state is not None:
            statement = statement.where(state_of(query.state, utc_now()))
        if query.after is not None:
            statement = statement.where(MailedToken.id < query.after)
        async with self._database.session() as session:
            # One more than asked for tells whether there is a next page.
            rows = (await session.scalars(statement.order_by(MailedToken.id.desc()).limit(query.limit + 1))).all()
        shown = rows[: query.limit]
        following = shown[-1].id if len(rows) > len(shown) else None
        return InvitationPage(data=[InvitationView.of(row) for row in shown], next=following)

    async def create(self, form: InvitationForm) -> InvitationView:
        """Sends an invitation; one that the address had to this workspace ends.

        Raises `PermissionDenied`, `NotFound` for a workspace, `Conflict` where a user whom the caller may see has the
        address, and `Unavailable` where the e-mail cannot be sent: what was made stays then, to be sent again.
        """
        self._require_may_give(form.role)
        self._post.require_ready()
        workspace_id = form.workspace_id or self._caller.workspace_id
        async with self._database.transaction() as session:
            workspace = await self._workspace(session, workspace_id)
            await self._require_no_user(session, form.email)
            await withdraw_invitations(session, form.email, workspace.id)
            row = MailedToken(
                workspace_id=workspace.id,
                purpose="invitation",
                email=form.email.lower(),
                role=form.role,
                made_by=None if self._actor.kind == "command" else self._actor.name,
            )
            token = add_token(session, row)
            await session.flush()
            self._note(session, "user.invited", row)
        await self._send(row, workspace, token)
        return InvitationView.of(row)

    async def send_again(self, invitation_id: uuid.UUID) -> InvitationView:
        """Sends it with a new link, which works for the whole time again; the old one ends.

        Raises `PermissionDenied`, `NotFound`, `Conflict` for one that was accepted or withdrawn, `Unavailable`.
        """
        self._post.require_ready()
        async with self._database.transaction() as session:
            row = await self._find(session, invitation_id)
            self._require_open(row)
            token = new_token()
            renew(row, token)
            workspace = await session.get_one(Workspace, row.workspace_id)
            self._note(session, "user.invited", row)
        await self._send(row, workspace, token)
        return InvitationView.of(row)

    async def withdraw(self, invitation_id: uuid.UUID) -> None:
        """Ends an invitation. Twice is once. Raises `PermissionDenied`, `NotFound`, `Conflict` for an accepted one."""
        async with self._database.transaction() as session:
            row = await self._find(session, invitation_id)
            if row.withdrawn_at is not None:
                return
            self._require_open(row)
            row.withdrawn_at = utc_now()
            self._note(session, "user.invitation_withdrawn", row)

    def _visible(self) -> ColumnElement[bool]:
        theirs = true() if self._is_admin else MailedToken.workspace_id == self._caller.workspace_id
        return (MailedToken.purpose == "invitation") & theirs

    def _require_may_give(self, role: Role) -> None:
        if role == "admin" and not self._is_admin:
            raise PermissionDenied("Only an admin who is signed in makes admins: invite a member.")

    def _require_open(self, row: MailedToken) -> None:
        if row.used_at is not None:
            raise Conflict(f"The invitation of {row.email} was accepted.")
        if row.withdrawn_at is not None:
            raise Conflict(f"The invitation of {row.email} was withdrawn: make another.")

    def _note(self, session: AsyncSession, action: Action, row: MailedToken) -> None:
        subject = Subject("invitation", row.id, row.email)
        note(session, self._actor, Event(action, row.workspace_id, subject, details={"role": row.role}))

    async def _workspace(self, session: AsyncSession, wanted: uuid.UUID) -> Workspace:
        """A workspace to invite to, held so that two invitations of one address do not both stand."""
        is_theirs = self._is_admin or wanted == self._caller.workspace_id
        held = select(Workspace).where(Workspace.id == wanted).with_for_update(key_share=True)
        workspace = await session.scalar(held) if is_theirs else None
        if workspace is None:
            raise NotFound(f"There is no workspace {wanted} that you may act in.", param="workspace_id")
        return workspace

    async def _require_no_user(self, session: AsyncSession, email: str) -> None:
        known = select(User.id).where(User.email == email)
        if not self._is_admin:
            known = known.where(User.workspace_id == self._caller.workspace_id)
        if await session.scalar(known) is not None:
            raise Conflict(f"There is a user {email} already.", param="email")

    async def _find(self, session: AsyncSession, invitation_id: uuid.UUID) -> MailedToken:
        """An invitation that the caller may change."""
        query = select(MailedToken).where(self._visible(), MailedToken.id == invitation_id).with_for_update()
        row: MailedToken | None = await session.scalar(query)
        if row is None:
            raise NotFound(f"There is no invitation {invitation_id} that you may see.")
        self._require_may_give(row.role or "member")
        return row

    async def _send(self, row: MailedToken, workspace: Workspace, token: str) -> None:
        link = self._post.links.to("invitation", token)
        await self._post.send(letters.invitation(row.email, workspace.name, row.made_by, link))


async def accept(database: Database, passwords: Passwords, token: str, password: str, actor: Actor) -> UserView:
    """Makes the user that an invitation is for.

    Raises `InvalidRequest` for a token that does not work, `ValidationFailed` for a password that is short or common,
    `Conflict` where the address was taken meanwhile.
    """
    async with database.session() as session:
        row = await find_live(session, token, "invitation")
    password_hash = await passwords.choose(password, email=row.email)
    try:
        async with database.transaction() as session:
            await take(session, token, "invitation")
            user = User(
                workspace_id=row.workspace_id,
                email=row.email,
                role=row.role or "member",
                password_hash=password_hash,
            )
            session.add(user)
            await session.flush()
            actor = replace(actor, kind="user", id=user.id, name=user.email)
            note_created(session, actor, user, {"invited_by": row.made_by})
    except IntegrityError:
        raise Conflict("There is a user with this address already: sign in.", param="email") from None
    return UserView.of(user)

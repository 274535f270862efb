"""The user that somebody at the provider is: found, linked or made, with the role that their groups give.

Invariants:
- Who somebody is at the provider (issuer and subject) leads to one user, whatever their address becomes, until an
  operator unlinks them.
- A user is linked by an address alone only where the provider says that it is verified, and only to one of its people:
  an address that is given to somebody else there does not open the account.
- All of it is one transaction. Of several log-ins at once one makes the user, and the others find them.
- One enabled admin remains (`users.service`): the last one keeps the role, whatever the groups say, and the log has it.
"""

import uuid
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import ColumnElement, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from tidegate.accounts.models import Identity, User, Workspace
from tidegate.accounts.service import locked_user, note_created, of_user, withdraw_invitations_of
from tidegate.accounts.sign_ins.service import Client, end_sign_ins
from tidegate.accounts.single_sign_on.people import Person
from tidegate.accounts.single_sign_on.refusals import Refused
from tidegate.accounts.users.service import held_admins
from tidegate.audit.trail import Event, differences, note
from tidegate.auth.principal import Role
from tidegate.errors import AuthenticationError, Conflict, PermissionDenied, Unavailable
from tidegate.storage.database import Database
from tidegate.telemetry.logging import get_logger

log = get_logger(__name__)

_TRIES: Final = 3


class _Stale(Exception):
    """What was read is no longer so: to be read again."""


@dataclass(frozen=True, slots=True)
class Admitted:
    """A user who may sign in. After the commit whoever has a sign-in of theirs is to be told where it `has_changed`."""

    user: User
    has_changed: bool = False


@dataclass(frozen=True, slots=True)
class _Found:
    user_id: uuid.UUID
    role: Role
    is_linked: bool


async def admit(database: Database, person: Person, workspace: str, client: Client) -> Admitted:
    """Raises `Refused` for one who may not, `Unavailable` where the settings' workspace of new users is missing."""
    for _ in range(_TRIES):
        try:
            async with database.transaction() as session:
                return await _admitted(session, person, workspace, client)
        except (IntegrityError, _Stale):
            # Another log-in of the same person, or a change of theirs, was quicker.
            continue
    raise Conflict("This account is being changed at this moment: sign in again.")


async def _admitted(session: AsyncSession, person: Person, workspace: str, client: Client) -> Admitted:
    found = await _find(session, person)
    if found is None:
        return Admitted(await _make(session, person, workspace, client))
    # Before the user, as `users.service` does, so that neither waits for the other.
    takes_admin = found.role == "admin" and person.role == "member"
    admins = await held_admins(session) if takes_admin else None
    user = await locked_user(session, found.user_id)
    if user is None or (user.role == "admin" and person.role == "member" and admins is None):
        raise _Stale
    if user.disabled_at is not None:
        told = AuthenticationError("This account is disabled: ask an admin.")
        raise Refused("disabled", told, email=user.email)
    if not found.is_linked:
        await _link(session, person, user, client)
    elif await session.scalar(select(Identity.id).where(*_is_of(person), Identity.user_id == user.id)) is None:
        raise _Stale
    return Admitted(user, has_changed=await _set_role(session, person, user, admins, client))


async def _find(session: AsyncSession, person: Person) -> _Found | None:
    linked = select(User.id, User.role).join(Identity, Identity.user_id == User.id)
    linked = linked.where(*_is_of(person))
    row = (await session.execute(linked)).one_or_none()
    if row is not None:
        return _Found(row.id, row.role, is_linked=True)
    if person.verified_email is None:
        told = PermissionDenied(
            "The single sign-on provider does not say which verified address is yours, so no account here can be: "
            "have it send the claims email and email_verified."
        )
        raise Refused("no_email", told)
    by_address = select(User.id, User.role).where(User.email == person.verified_email)
    row = (await session.execute(by_address)).one_or_none()
    return None if row is None else _Found(row.id, row.role, is_linked=False)


def _is_of(person: Person) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    return Identity.issuer == person.issuer, Identity.subject == person.subject


async def _make(session: AsyncSession, person: Person, workspace: str, client: Client) -> User:
    workspace_id = await session.scalar(select(Workspace.id).where(Workspace.name == workspace))
    if workspace_id is None:
        raise Unavailable(
            f"There is no workspace {workspace!r} for new users: make it, or set TIDEGATE_SINGLE_SIGN_ON__WORKSPACE."
        )
    assert person.verified_email is not None
    user = User(workspace_id=workspace_id, email=person.verified_email, role=person.role or "member")
    session.add(user)
    await session.flush()
    _add_identity(session, person, user)
    await session.flush()
    note_created(session, client.as_actor(user.id, user.email), user, {"by": "single_sign_on", "issuer": person.issuer})
    return user


async def _link(session: AsyncSession, person: Person, user: User, client: Client) -> None:
    if user.email != person.verified_email:
        raise _Stale
    known = select(Identity.subject).where(Identity.user_id == user.id, Identity.issuer == person.issuer)
    subjects = set(await session.scalars(known))
    if person.subject in subjects:
        raise _Stale
    if subjects:
        told = PermissionDenied(
            "The account with your address is somebody else's at the single sign-on provider, who had it before: have "
            "an operator unlink it (`tidegate users unlink`)."
        )
        raise Refused("linked_to_another", told, email=user.email)
    _add_identity(session, person, user)
    await session.flush()
    details = {"identity": {"from": None, "to": person.issuer}}
    _note(session, user, client, details)


def _add_identity(session: AsyncSession, person: Person, user: User) -> None:
    session.add(Identity(workspace_id=user.workspace_id, user_id=user.id, issuer=person.issuer, subject=person.subject))


async def _set_role(
    session: AsyncSession, person: Person, user: User, admins: list[uuid.UUID] | None, client: Client
) -> bool:
    """Whether it is another now."""
    if person.role is None or person.role == user.role:
        return False
    changed = differences({"role": user.role}, {"role": person.role})
    if admins == [user.id]:
        log.warning(
            "the last admin keeps the role, though no group of theirs at the single sign-on provider gives it",
            user_id=str(user.id),
        )
        _note(session, user, client, changed, is_refused=True)
        return False
    user.role = person.role
    await session.flush()
    await end_sign_ins(session, user.id, "role_changed")
    if user.role != "admin":
        await withdraw_invitations_of(session, user, client.as_actor(user.id, user.email))
    _note(session, user, client, changed)
    return True


def _note(
    session: AsyncSession, user: User, client: Client, details: dict[str, Any], *, is_refused: bool = False
) -> None:
    event = Event(
        "user.changed",
        user.workspace_id,
        of_user(user),
        outcome="refused" if is_refused else "done",
        details={**details, "by": "single_sign_on"},
    )
    note(session, client.as_actor(user.id, user.email), event)

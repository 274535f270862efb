"""Users: signing in, and what the command does with them: creating, listing, disabling, enabling, setting passwords.

A password is hashed or checked while no database connection is held. Whoever may not sign in learns nothing but that:
an unknown address, a wrong password and an account without a password cost the same and are answered the same. That an
account is disabled, or its password at an end, is told only to one who knew its password.

A password that an operator or an admin sets, or that was made up, opens log-ins for some days; by then its user has
chosen their own (OWASP ASVS 5, 6.4.1). `None` for when it ends is for one that its user chose.

Every change is in the audit trail by the same transaction. Its steps are functions of a session, for whoever changes
users in a transaction of their own; they take a user who is locked.
"""

import uuid
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from sqlalchemy import Row, delete, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from tidegate.accounts.mailed.tokens import withdraw_made_by, withdraw_of_user
from tidegate.accounts.models import Identity, User, Workspace
from tidegate.accounts.schemas import KeyInUse, Me, NewUser, SecondFactorState
from tidegate.accounts.second_factor.codes import count_left, find_active
from tidegate.accounts.sign_ins.service import end_sign_ins
from tidegate.audit.trail import SYSTEM, Actor, Event, Subject, note
from tidegate.auth.models import ApiKey
from tidegate.auth.passwords import Passwords
from tidegate.auth.principal import Principal
from tidegate.errors import AuthenticationError, Conflict, NotFound, PermissionDenied
from tidegate.ledger.entry import utc_now
from tidegate.settings import Settings
from tidegate.storage.database import Database

INITIAL_PASSWORD_DAYS: Final = 7
_WRONG: Final = "The e-mail address or the password is wrong."
# Where a code was sent: which of the three it is is not told.
WRONG_WITH_CODE: Final = "The e-mail address, the password or the code is wrong, or the code was used before."


class Accounts:
    """The users of a database. `actor` is who changes them; the passwords that they set end after so many days.

    >>> accounts = Accounts(database, Passwords())
    >>> user = await accounts.create(NewUser(email="a@example.com", password=SecretStr("…")))
    """

    def __init__(
        self,
        database: Database,
        passwords: Passwords,
        *,
        actor: Actor = SYSTEM,
        initial_password_days: int = INITIAL_PASSWORD_DAYS,
    ) -> None:
        self._database = database
        self._passwords = passwords
        self._actor = actor
        self._initial_password_days = initial_password_days

    async def sign_in(self, email: str, password: str, *, has_code: bool = False) -> User:
        """The user with this address and password. A code that came with them (`has_code`) is judged after this.

        Raises `AuthenticationError`, `PermissionDenied` where the password has ended, and `Overloaded` under a flood.
        """
        async with self._database.session() as session:
            user = await session.scalar(select(User).where(User.email == email))
        verdict = await self._passwords.verify(password, user.password_hash if user else None)
        if user is None or not verdict.is_right:
            raise AuthenticationError(WRONG_WITH_CODE if has_code else _WRONG)
        if user.disabled_at is not None:
            raise AuthenticationError("This account is disabled: ask an admin.")
        if user.password_ends_at is not None and user.password_ends_at <= utc_now():
            raise PermissionDenied(
                f"This password was one to begin with, and ended on {user.password_ends_at:%Y-%m-%d}. Have a link for "
                "your own sent to you at /forgot-password, or ask who runs this gateway for: "
                "tidegate users set-password."
            )
        if verdict.better_hash is not None:
            unchanged = (User.id == user.id, User.password_hash == user.password_hash)
            async with self._database.transaction() as session:
                await session.execute(update(User).where(*unchanged).values(password_hash=verdict.better_hash))
            # What its sign-in compares: where another was stored meanwhile, it does not begin.
            user.password_hash = verdict.better_hash
        return user

    async def create(self, new: NewUser, *, is_made_up: bool = False) -> User:
        """A new user. A password that was made up here (`is_made_up`) is not judged.

        Raises `NotFound` for an unknown workspace, `Conflict` where the address is taken, `ValidationFailed` for a
        password that is short or common.
        """
        password_hash = None
        if new.password is not None:
            password_hash = await self._hash(new.password.get_secret_value(), new.email, is_made_up=is_made_up)
        try:
            async with self._database.transaction() as session:
                workspace = await find_workspace(session, new.workspace)
                user = User(
                    workspace_id=workspace.id,
                    email=new.email.lower(),
                    role=new.role,
                    password_hash=password_hash,
                    password_ends_at=ends_after(self._initial_password_days) if password_hash else None,
                )
                session.add(user)
                await session.flush()
                note_created(session, self._actor, user)
        except IntegrityError:
            raise Conflict(f"There is a user {new.email} already.", param="email") from None
        return user

    async def list(self) -> list[Row[User, Workspace]]:
        """Every user with their workspace, by address."""
        query = select(User, Workspace).join(Workspace, Workspace.id == User.workspace_id).order_by(User.email)
        async with self._database.session() as session:
            return list(await session.execute(query))

    async def disable(self, email: str) -> User:
        """Ends sign-ins, access tokens and keys of this user, within a second of its being told. Twice is once.

        Raises `NotFound`.
        """
        async with self._database.transaction() as session:
            user = await find_user(session, email, lock=True)
            await disable_user(session, user, self._actor)
        return user

    async def enable(self, email: str) -> User:
        """Lets a user in again: with their keys, and no sign-in that they had. Twice is once. Raises `NotFound`."""
        async with self._database.transaction() as session:
            user = await find_user(session, email, lock=True)
            enable_user(session, user, self._actor)
        return user

    async def set_password(self, email: str, password: str, *, is_made_up: bool = False) -> User:
        """Sets a password, ends sign-ins, and withdraws what was sent by e-mail. Raises `NotFound`, `ValidationFailed`.

        One that was made up here (`is_made_up`) is not judged.
        """
        async with self._database.session() as session:
            user = await find_user(session, email)
        password_hash = await self._hash(password, user.email, is_made_up=is_made_up)
        async with self._database.transaction() as session:
            user = await find_user(session, email, lock=True)
            await replace_password(session, user, password_hash)
            user.password_ends_at = ends_after(self._initial_password_days)
            note(session, self._actor, Event("account.password_changed", user.workspace_id, of_user(user)))
        return user

    async def unlink(self, email: str) -> User:
        """Forgets who a user is at the single sign-on provider. Twice is once. Raises `NotFound`."""
        async with self._database.transaction() as session:
            user = await find_user(session, email, lock=True)
            forgetting = delete(Identity).where(Identity.user_id == user.id).returning(Identity.issuer)
            issuers = sorted(await session.scalars(forgetting))
            if issuers:
                details = {"identity": {"from": issuers[0], "to": None}}
                note(session, self._actor, Event("user.changed", user.workspace_id, of_user(user), details=details))
        return user

    async def describe(self, caller: Principal) -> Me:
        """What a caller may know of themselves."""
        async with self._database.session() as session:
            workspace = await session.get_one(Workspace, caller.workspace_id)
            user = await session.get_one(User, caller.user_id) if caller.user_id else None
            key = await session.get_one(ApiKey, caller.key_id) if caller.key_id else None
            second_factor = None
            if user is not None and key is None:
                second_factor = SecondFactorState(
                    is_on=await find_active(session, user.id) is not None,
                    recovery_codes_left=await count_left(session, user.id),
                    must_be_set_up=caller.owes_second_factor,
                )
        return Me(
            id=user.id if user else None,
            email=user.email if user else None,
            role=caller.role,
            workspace_id=workspace.id,
            workspace=workspace.name,
            scopes=sorted(caller.scopes),
            key=KeyInUse(id=key.id, name=key.name, prefix=key.prefix) if key else None,
            expires_at=None if caller.expires_at is None else datetime.fromtimestamp(caller.expires_at, UTC),
            password_ends_at=user.password_ends_at if user and key is None else None,
            second_factor=second_factor,
        )

    async def _hash(self, password: str, email: str, *, is_made_up: bool) -> str:
        if is_made_up:
            return await self._passwords.hash(password)
        return await self._passwords.choose(password, email=email)


async def find_workspace(session: AsyncSession, name: str) -> Workspace:
    workspace = await session.scalar(select(Workspace).where(Workspace.name == name))
    if workspace is None:
        raise NotFound(f"There is no workspace {name!r}.", param="workspace")
    return workspace


async def find_user(session: AsyncSession, email: str, *, lock: bool = False) -> User:
    query = select(User).where(User.email == email)
    user: User | None = await session.scalar(query.with_for_update() if lock else query)
    if user is None:
        raise NotFound(f"There is no user {email}: `tidegate users list` shows who there is.", param="email")
    return user


async def locked_user(session: AsyncSession, user_id: uuid.UUID | None) -> User | None:
    """A user, whom no other transaction changes until this one ends; None where there is none."""
    user: User | None = await session.scalar(select(User).where(User.id == user_id).with_for_update())
    return user


async def disable_user(session: AsyncSession, user: User, actor: Actor) -> None:
    """Ends what lets a user in. Twice is once. After the commit the caller tells `user_topic(user.id)`."""
    if user.disabled_at is None:
        user.disabled_at = utc_now()
        note(session, actor, Event("user.disabled", user.workspace_id, of_user(user)))
    await session.flush()
    await withdraw_of_user(session, user.id)
    await withdraw_invitations_of(session, user, actor)
    await end_sign_ins(session, user.id, "disabled")


async def withdraw_invitations_of(session: AsyncSession, user: User, actor: Actor) -> None:
    """Withdraws the open invitations that a user made, who may make none any more."""
    for invitation_id, workspace_id, email, role in await withdraw_made_by(session, user.email):
        subject, details = Subject("invitation", invitation_id, email), {"role": role, "made_by": user.email}
        note(session, actor, Event("user.invitation_withdrawn", workspace_id, subject, details=details))


def enable_user(session: AsyncSession, user: User, actor: Actor) -> None:
    """Lets a user sign in again. Twice is once. After the commit the caller tells `user_topic(user.id)`."""
    if user.disabled_at is not None:
        user.disabled_at = None
        note(session, actor, Event("user.enabled", user.workspace_id, of_user(user)))


def require_passwords(settings: Settings) -> None:
    """What stands before everything that a password is good for. Raises `PermissionDenied` where passwords are off."""
    if settings.auth.password_log_in:
        return
    page = f"{settings.http.public_url or ''}/sign-in"
    raise PermissionDenied(
        f"Passwords are off here: people sign in by {settings.single_sign_on.label}, at {page}. Who runs this gateway "
        "turns them on by TIDEGATE_AUTH__PASSWORD_LOG_IN."
    )


def ends_after(days: int) -> datetime:
    """When a password that its user did not choose, and that is set now, opens no log-in any more."""
    return utc_now() + timedelta(days=days)


async def replace_password(
    session: AsyncSession, user: User, password_hash: str, *, but: uuid.UUID | None = None
) -> None:
    """Sets a password that its user chose, and ends what the old one gave: sign-ins but one, and every link.

    After the commit the caller tells `user_topic(user.id)`.
    """
    user.password_hash = password_hash
    user.password_ends_at = None
    await session.flush()
    await withdraw_of_user(session, user.id)
    await end_sign_ins(session, user.id, "password_changed", but=but)


def note_created(session: AsyncSession, actor: Actor, user: User, details: Mapping[str, Any] | None = None) -> None:
    """Writes down a user who was just added; `user` is flushed."""
    created = Event("user.created", user.workspace_id, of_user(user), details={"role": user.role, **(details or {})})
    note(session, actor, created)


def of_user(user: User) -> Subject:
    """A user as the audit trail names them."""
    return Subject("user", user.id, user.email)

"""Users: signing in, creating, listing, disabling.

A password is hashed or checked while no database connection is held. Whoever may not sign in learns nothing but that:
an unknown address, a wrong password and an account without a password cost the same and are answered the same. That an
account is disabled is told only to one who knew its password.
"""

from datetime import UTC, datetime

from sqlalchemy import Row, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from tidegate.accounts.models import User, Workspace
from tidegate.accounts.schemas import KeyInUse, Me, NewUser
from tidegate.auth.models import ApiKey
from tidegate.auth.passwords import Passwords
from tidegate.auth.principal import Principal
from tidegate.errors import AuthenticationError, Conflict, NotFound
from tidegate.ledger.entry import utc_now
from tidegate.storage.database import Database


class Accounts:
    """The users of a database.

    >>> accounts = Accounts(database, Passwords())
    >>> user = await accounts.create(NewUser(email="a@example.com", password=SecretStr("…")))
    """

    def __init__(self, database: Database, passwords: Passwords) -> None:
        self._database = database
        self._passwords = passwords

    async def sign_in(self, email: str, password: str) -> User:
        """The user with this address and password. Raises `AuthenticationError`, and `Overloaded` under a flood."""
        async with self._database.session() as session:
            user = await session.scalar(select(User).where(User.email == email))
        verdict = await self._passwords.verify(password, user.password_hash if user else None)
        if user is None or not verdict.is_right:
            raise AuthenticationError("The e-mail address or the password is wrong.")
        if user.disabled_at is not None:
            raise AuthenticationError("This account is disabled: ask an admin.")
        if verdict.better_hash is not None:
            unchanged = (User.id == user.id, User.password_hash == user.password_hash)
            async with self._database.transaction() as session:
                await session.execute(update(User).where(*unchanged).values(password_hash=verdict.better_hash))
        return user

    async def create(self, new: NewUser) -> User:
        """Raises `NotFound` for an unknown workspace, `Conflict` where the address is taken."""
        password_hash = await self._passwords.hash(new.password.get_secret_value()) if new.password else None
        try:
            async with self._database.transaction() as session:
                workspace = await find_workspace(session, new.workspace)
                user = User(
                    workspace_id=workspace.id, email=new.email.lower(), role=new.role, password_hash=password_hash
                )
                session.add(user)
                await session.flush()
        except IntegrityError:
            raise Conflict(f"There is a user {new.email} already.", param="email") from None
        return user

    async def list(self) -> list[Row[User, Workspace]]:
        """Every user with their workspace, by address."""
        query = select(User, Workspace).join(Workspace, Workspace.id == User.workspace_id).order_by(User.email)
        async with self._database.session() as session:
            return list(await session.execute(query))

    async def disable(self, email: str) -> User:
        """Ends sign-in, access tokens and keys of this user, within a second of its being told. Twice is once.

        Raises `NotFound`.
        """
        async with self._database.transaction() as session:
            user = await find_user(session, email)
            user.disabled_at = user.disabled_at or utc_now()
        return user

    async def describe(self, caller: Principal) -> Me:
        """What a caller may know of themselves."""
        async with self._database.session() as session:
            workspace = await session.get_one(Workspace, caller.workspace_id)
            user = await session.get_one(User, caller.user_id) if caller.user_id else None
            key = await session.get_one(ApiKey, caller.key_id) if caller.key_id else None
        return Me(
            id=user.id if user else None,
            email=user.email if user else None,
            role=caller.role,
            workspace_id=workspace.id,
            workspace=workspace.name,
            scopes=sorted(caller.scopes),
            key=KeyInUse(id=key.id, name=key.name, prefix=key.prefix) if key else None,
            expires_at=None if caller.expires_at is None else datetime.fromtimestamp(caller.expires_at, UTC),
        )


async def find_workspace(session: AsyncSession, name: str) -> Workspace:
    workspace = await session.scalar(select(Workspace).where(Workspace.name == name))
    if workspace is None:
        raise NotFound(f"There is no workspace {name!r}.", param="workspace")
    return workspace


async def find_user(session: AsyncSession, email: str) -> User:
    user = await session.scalar(select(User).where(User.email == email))
    if user is None:
        raise NotFound(f"There is no user {email}: `tidegate users list` shows who there is.", param="email")
    return user

"""API keys: creating, listing, rotating, revoking.

Every key has one owner, a user or a service account, and belongs to the owner's workspace. The secret leaves this
module once, in `CreatedKey`. Rotation gives a key a new secret and prefix and keeps its id, so that what was spent and
what limits it go on; the old secret ends with it. Whoever needs both for a while creates a second key.
"""

import uuid
from dataclasses import dataclass, field

from sqlalchemy import Row, select
from sqlalchemy.ext.asyncio import AsyncSession

from tidegate.accounts.models import ServiceAccount, User, Workspace
from tidegate.accounts.schemas import NewKey
from tidegate.accounts.service import find_user, find_workspace
from tidegate.auth.api_keys import GeneratedKey, generate_key, hash_key, prefix_of
from tidegate.auth.keyring import Keyring
from tidegate.auth.models import ApiKey
from tidegate.errors import Conflict, InvalidRequest, NotFound
from tidegate.ledger.entry import utc_now
from tidegate.storage.database import Database


@dataclass(frozen=True, slots=True)
class CreatedKey:
    """A key with its secret, which is shown now and never again."""

    id: uuid.UUID
    prefix: str
    secret: str = field(repr=False)


class ApiKeys:
    """The API keys of a database.

    >>> created = await ApiKeys(database, keyrings.peppers).create(NewKey(name="search"))
    """

    def __init__(self, database: Database, peppers: Keyring) -> None:
        self._database = database
        self._peppers = peppers

    async def create(self, new: NewKey) -> CreatedKey:
        """Raises `NotFound` for an unknown owner or workspace, `InvalidRequest` where those two do not match."""
        generated = generate_key()
        async with self._database.transaction() as session:
            owner = await _owner(session, new)
            row = key_row(new, owner, generated, self._peppers)
            session.add(row)
        return CreatedKey(row.id, generated.prefix, generated.secret)

    async def list(self) -> list[Row[ApiKey, Workspace, User | None, ServiceAccount | None]]:
        """Every key with its workspace and owner, the newest first."""
        query = (
            select(ApiKey, Workspace, User, ServiceAccount)
            .join(Workspace, Workspace.id == ApiKey.workspace_id)
            .outerjoin(User, User.id == ApiKey.owner_user_id)
            .outerjoin(ServiceAccount, ServiceAccount.id == ApiKey.owner_service_account_id)
            .order_by(ApiKey.created_at.desc(), ApiKey.id.desc())
        )
        async with self._database.session() as session:
            return list(await session.execute(query))

    async def rotate(self, prefix: str) -> CreatedKey:
        """A new secret for a key; the old one ends within 5 s. Raises `NotFound`, and `Conflict` for a revoked key."""
        generated = generate_key()
        stored = hash_key(generated.secret, self._peppers)
        async with self._database.transaction() as session:
            row = await _find(session, prefix)
            if row.revoked_at is not None:
                raise Conflict(f"The API key tg_{row.prefix} was revoked and stays so: create another.")
            row.prefix = generated.prefix
            row.secret_hash = stored.secret_hash
            row.hash_scheme = stored.hash_scheme
            row.pepper_kid = stored.pepper_kid
        return CreatedKey(row.id, generated.prefix, generated.secret)

    async def revoke(self, prefix: str) -> ApiKey:
        """Ends a key within 5 s, for good. Twice is once. Raises `NotFound`."""
        async with self._database.transaction() as session:
            row = await _find(session, prefix)
            row.revoked_at = row.revoked_at or utc_now()
        return row


def key_row(new: NewKey, owner: User | ServiceAccount, generated: GeneratedKey, peppers: Keyring) -> ApiKey:
    """The row of a new key: everything but its secret."""
    stored = hash_key(generated.secret, peppers)
    return ApiKey(
        workspace_id=owner.workspace_id,
        name=new.name,
        prefix=generated.prefix,
        secret_hash=stored.secret_hash,
        hash_scheme=stored.hash_scheme,
        pepper_kid=stored.pepper_kid,
        owner_user_id=owner.id if isinstance(owner, User) else None,
        owner_service_account_id=owner.id if isinstance(owner, ServiceAccount) else None,
        scopes=sorted(new.scopes),
        models=None if new.models is None else list(new.models),
        expires_at=new.expires_at,
    )


async def _owner(session: AsyncSession, new: NewKey) -> User | ServiceAccount:
    if new.owner is None:
        workspace = await find_workspace(session, new.workspace or "default")
        account = ServiceAccount(workspace_id=workspace.id, name=new.name)
        session.add(account)
        await session.flush()
        return account
    user = await find_user(session, new.owner)
    if new.workspace is not None and (await find_workspace(session, new.workspace)).id != user.workspace_id:
        raise InvalidRequest(
            f"{new.owner} does not belong to the workspace {new.workspace!r}: a key belongs to its owner's workspace.",
            param="workspace",
        )
    if user.disabled_at is not None:
        raise Conflict(f"The account of {new.owner} is disabled: its keys would be refused.", param="owner")
    return user


async def _find(session: AsyncSession, prefix: str) -> ApiKey:
    """The key with this prefix, which may be written with its `tg_`, or as the whole key."""
    bare = prefix_of(prefix) or prefix.removeprefix("tg_")
    row = await session.scalar(select(ApiKey).where(ApiKey.prefix == bare).with_for_update())
    if row is None:
        raise NotFound(f"There is no API key {bare[:8]!r}: `tidegate keys list` shows the prefixes.", param="prefix")
    return row

"""API keys: creating, listing, rotating, revoking.

Every key has one owner, a user or a service account, and belongs to the owner's workspace. The secret leaves this
module once, in `CreatedKey`. Rotation gives a key a new secret and prefix and keeps its id, so that what was spent and
what limits it go on; the old secret ends with it, or goes on beside the new one for a while. Secrets that retire are
changed under their key's row lock alone. What is done is in the audit trail by the same transaction.
"""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta

from sqlalchemy import Row, func, select
from sqlalchemy.ext.asyncio import AsyncSession

from tidegate.accounts.api_keys.events import note_created
from tidegate.accounts.api_keys.secrets import AT_ONCE, bare_prefix, end_retiring, renew, retiring_of, revoke_key
from tidegate.accounts.models import ServiceAccount, User, Workspace
from tidegate.accounts.schemas import KeyFields, NewKey
from tidegate.accounts.service import find_user, find_workspace
from tidegate.audit.trail import SYSTEM, Actor
from tidegate.auth.api_keys import GeneratedKey, generate_key, hash_key
from tidegate.auth.keyring import Keyring
from tidegate.auth.models import ApiKey, RetiringSecret
from tidegate.errors import Conflict, InvalidRequest, NotFound
from tidegate.limits.models import LimitRow
from tidegate.limits.policy import apply_policy, key_limits, policies_of
from tidegate.limits.service import Changed, nothing_changed
from tidegate.storage.database import Database


@dataclass(frozen=True, slots=True)
class CreatedKey:
    """A key with its secret, which is shown now and never again."""

    id: uuid.UUID
    prefix: str
    secret: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class AddedKey:
    """A key of a transaction that is not committed yet."""

    row: ApiKey
    limits: Sequence[LimitRow]
    secret: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class ListedKey:
    """A key, where it belongs, and its secrets that retire."""

    row: ApiKey
    workspace: Workspace
    owner: User | ServiceAccount
    retiring: Sequence[RetiringSecret]


class ApiKeys:
    """The API keys of a database. `changed` is awaited with a workspace's id after limits of its keys were committed.

    >>> created = await ApiKeys(database, keyrings.peppers).create(NewKey(name="search"))
    """

    def __init__(
        self, database: Database, peppers: Keyring, changed: Changed = nothing_changed, *, actor: Actor = SYSTEM
    ) -> None:
        self._database = database
        self._peppers = peppers
        self._changed = changed
        self._actor = actor

    async def create(self, new: NewKey, *, made_by_member: bool = False) -> CreatedKey:
        """A key and its limits, at once; those of a key that a member makes are under the workspace's policies.

        Raises `NotFound` for an unknown owner or workspace, `InvalidRequest` where those two do not match, or where a
        policy allows less than is asked for.
        """
        async with self._database.transaction() as session:
            owner = await _owner(session, new)
            added = await add_key(session, new, owner, self._peppers, made_by_member=made_by_member)
            note_created(session, self._actor, added.row, owner, added.limits)
        if added.limits:
            await self._changed(added.row.workspace_id)
        return CreatedKey(added.row.id, added.row.prefix, added.secret)

    async def list(self) -> list[ListedKey]:
        """Every key, the newest first."""
        query = (
            select(ApiKey, Workspace, User, ServiceAccount)
            .join(Workspace, Workspace.id == ApiKey.workspace_id)
            .outerjoin(User, User.id == ApiKey.owner_user_id)
            .outerjoin(ServiceAccount, ServiceAccount.id == ApiKey.owner_service_account_id)
            .order_by(ApiKey.created_at.desc(), ApiKey.id.desc())
        )
        async with self._database.session() as session:
            rows: Sequence[Row[ApiKey, Workspace, User | None, ServiceAccount]] = (await session.execute(query)).all()
            retiring = await retiring_of(session)
        return [
            ListedKey(key, workspace, account if user is None else user, retiring.get(key.id, ()))
            for key, workspace, user, account in rows
        ]

    async def rotate(self, prefix: str, overlap: timedelta = AT_ONCE) -> CreatedKey:
        """A new secret for a key; the old one ends after `overlap`, else within a second of the change being told.

        Raises `NotFound`, and `Conflict` for a revoked key or one with too many secrets that retire.
        """
        async with self._database.transaction() as session:
            row = await find_key(session, prefix)
            secret = await renew(session, row, self._peppers, self._actor, overlap)
        return CreatedKey(row.id, row.prefix, secret)

    async def revoke(self, prefix: str) -> ApiKey:
        """Ends a key within a second of its being told, for good. Twice is once.

        The prefix of a secret that retires ends that secret alone; its key goes on. Raises `NotFound`.
        """
        async with self._database.transaction() as session:
            bare = bare_prefix(prefix)
            retiring = await session.scalar(select(RetiringSecret.key_id).where(RetiringSecret.prefix == bare))
            if retiring is None or await session.scalar(select(ApiKey.id).where(ApiKey.prefix == bare)) is not None:
                row = await find_key(session, prefix)
                await revoke_key(session, row, self._actor)
            else:
                row = await session.get_one(ApiKey, retiring, with_for_update=True)
                await end_retiring(session, row, bare, self._actor)
        return row


async def add_key(
    session: AsyncSession,
    new: KeyFields,
    owner: User | ServiceAccount,
    peppers: Keyring,
    *,
    made_by_member: bool,
) -> AddedKey:
    """Adds a key of this owner and its limits. Raises `InvalidRequest` where a policy allows less than is asked for."""
    generated = generate_key()
    row = key_row(new, owner, generated, peppers)
    session.add(row)
    await session.flush()
    limits = new.limits
    if made_by_member:
        limits = apply_policy(limits, await policies_of(session, row.workspace_id))
    rows = key_limits(row.workspace_id, row.id, limits)
    session.add_all(rows)
    await session.flush()
    return AddedKey(row, rows, generated.secret)


def key_row(new: KeyFields, owner: User | ServiceAccount, generated: GeneratedKey, peppers: Keyring) -> ApiKey:
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
        scopes=sorted(set(new.scopes)),
        models=None if new.models is None else list(new.models),
        expires_at=new.expires_at,
        queue_weight=new.queue_weight,
        trusts_attribution=new.trusts_attribution,
        allowed_addresses=written_addresses(new.allowed_addresses),
    )


def written_addresses(ranges: Sequence[str] | None) -> list[str] | None:
    """As a key's row has them: each once."""
    return None if ranges is None else list(dict.fromkeys(ranges))


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
    require_enabled(user)
    return user


def require_enabled(owner: User) -> None:
    """Raises `Conflict` for a user whose keys would be refused."""
    if owner.disabled_at is not None:
        raise Conflict(f"The account of {owner.email} is disabled: its keys would be refused.", param="owner")


async def require_room(session: AsyncSession, user_id: uuid.UUID, most: int) -> None:
    """Raises `Conflict` for a user who holds so many keys, and keeps others of their keys from being made meanwhile.

    A key is held until it is revoked, also past its expiry: that can be put off.
    """
    # Whoever makes another key of theirs waits here; what only refers to them does not.
    await session.execute(select(User.id).where(User.id == user_id).with_for_update(key_share=True))
    held = select(func.count()).where(ApiKey.owner_user_id == user_id, ApiKey.revoked_at.is_(None))
    if (await session.scalar(held) or 0) >= most:
        raise Conflict(
            f"You hold as many API keys as a member may ({most}): revoke one that is not used "
            "(DELETE /api/keys/{id}), or ask an admin for a key."
            if most
            else "Members make no API keys here: ask an admin for one."
        )


async def find_key(session: AsyncSession, prefix: str) -> ApiKey:
    """The key with this prefix, which may be written with its `tg_`, or as the whole key. Raises `NotFound`."""
    bare = bare_prefix(prefix)
    row = await session.scalar(select(ApiKey).where(ApiKey.prefix == bare).with_for_update())
    if row is None:
        raise NotFound(f"There is no API key {bare[:8]!r}: `tidegate keys list` shows the prefixes.", param="prefix")
    return row

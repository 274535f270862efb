"""API keys for a caller: listing, making, changing, rotating, revoking.

An admin acts in every workspace; a key with scope `manage`, whoever owns it, and a member in their own. What another
workspace has is not found. A member sees the keys of their workspace, and changes, rotates and revokes their own alone.

Nobody gets past what an admin gave them by making or changing a key:
- A key has no scope that its maker may not give: a member gives `inference` and `usage`; a key with `manage` those, and
  the scopes that it has itself. The same holds for who is shown a new secret by a rotation.
- A key that a member makes is under the workspace's policies. A member lets a key admit more models or addresses, or
  live longer, only where it is one that a member could make: else an admin's generous limits would reach further than
  the admin meant.
- An admin alone makes a key trusted of its attribution, or trusted no more: the first lets it use up what end users
  and tags are allowed, the second frees it of their limits.
"""

import uuid
from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import Final

from sqlalchemy import ColumnElement, or_, select, true
from sqlalchemy.ext.asyncio import AsyncSession

from tidegate.accounts.api_keys.events import changeable, note_created, of_key
from tidegate.accounts.api_keys.keys import add_key, require_enabled, require_room, written_addresses
from tidegate.accounts.api_keys.schemas import (
    ChangedKey,
    KeyForm,
    KeyOwner,
    KeyPage,
    KeyQuery,
    KeyView,
    KeyWithSecret,
    Rotation,
)
from tidegate.accounts.api_keys.secrets import end_retiring, renew, require_not_revoked, retiring_of, revoke_key
from tidegate.accounts.models import ServiceAccount, User, Workspace
from tidegate.audit.trail import Actor, Event, differences, note
from tidegate.auth.api_keys import KEY_MARK
from tidegate.auth.keyring import Keyring
from tidegate.auth.models import ApiKey
from tidegate.auth.principal import Principal, Scope
from tidegate.errors import InvalidRequest, NotFound, PermissionDenied, ValidationFailed
from tidegate.limits.metered import MeteredAmount
from tidegate.limits.models import LimitRow
from tidegate.limits.policy import apply_policy, policies_of
from tidegate.limits.service import Changed, nothing_changed
from tidegate.limits.values import written_amount
from tidegate.storage.database import Database

# A workspace's own business. `metrics` are the whole deployment's.
_SCOPES_OF_WORKSPACE: Final[frozenset[Scope]] = frozenset({"inference", "usage"})


class CallersKeys:
    """The API keys of a database as one caller may see and change them.

    After the commit `key_changed` is awaited with a key's id, and `limits_changed` with the workspace's id where limits
    were made. `actor` is the caller as the audit trail names them. A member who holds `keys_per_member` keys makes no
    other.

    >>> made = await CallersKeys(database, keyrings.peppers, caller, actor).create(KeyForm(name="search"))
    """

    def __init__(
        self,
        database: Database,
        peppers: Keyring,
        caller: Principal,
        actor: Actor,
        *,
        keys_per_member: int = 100,
        key_changed: Changed = nothing_changed,
        limits_changed: Changed = nothing_changed,
    ) -> None:
        self._database = database
        self._peppers = peppers
        self._caller = caller
        self._actor = actor
        self._keys_per_member = keys_per_member
        self._key_changed = key_changed
        self._limits_changed = limits_changed
        self._is_admin = caller.is_signed_in_admin
        self._is_member = caller.role == "member" and caller.key_id is None

    async def page(self, query: KeyQuery) -> KeyPage:
        """The newest keys that match. Raises `NotFound` for a workspace that the caller may not act in."""
        statement = select(ApiKey).where(self._visible())
        if query.prefix is not None:
            statement = statement.where(ApiKey.prefix == query.prefix.removeprefix(KEY_MARK))
        if query.owner is not None:
            statement = statement.where(_owned_by(query.owner))
        if query.after is not None:
            statement = statement.where(ApiKey.id < query.after)
        async with self._database.session() as session:
            if query.workspace_id is not None:
                statement = statement.where(ApiKey.workspace_id == await self._workspace(session, query.workspace_id))
            # One more than asked for tells whether there is a next page.
            rows = (await session.scalars(statement.order_by(ApiKey.id.desc()).limit(query.limit + 1))).all()
            shown = rows[: query.limit]
            views = await _views(session, shown)
        return KeyPage(data=views, next=shown[-1].id if len(rows) > len(shown) else None)

    async def create(self, form: KeyForm) -> KeyWithSecret:
        """Raises `PermissionDenied`, `NotFound` for a workspace, `ValidationFailed` for an owner, `Conflict` for one
        who is disabled or a member who holds as many keys as they may, and `InvalidRequest` where a policy allows less
        than is asked for.
        """
        self._require_may_ask(form)
        async with self._database.transaction() as session:
            owner = await self._owner(session, form)
            if self._is_member:
                await require_room(session, owner.id, self._keys_per_member)
            added = await add_key(session, form, owner, self._peppers, made_by_member=self._is_member)
            note_created(session, self._actor, added.row, owner, added.limits)
            (view,) = await _views(session, [added.row])
        if added.limits:
            await self._limits_changed(added.row.workspace_id)
        return KeyWithSecret.revealing(view, added.secret)

    async def change(self, key_id: uuid.UUID, change: ChangedKey) -> KeyView:
        """Raises `PermissionDenied`, `NotFound`, `Conflict` for a revoked key."""
        async with self._database.transaction() as session:
            row = await self._find(session, key_id)
            require_not_revoked(row)
            trusts = row.trusts_attribution if change.trusts_attribution is None else change.trusts_attribution
            self._require_may_trust(is_trusted=row.trusts_attribution, wanted=trusts)
            if self._is_member and change.widens(row):
                await self._require_a_member_s(session, row)
            before = changeable(row)
            row.name = change.name or row.name
            row.trusts_attribution = trusts
            if "models" in change.model_fields_set:
                row.models = None if change.models is None else list(change.models)
            if "expires_at" in change.model_fields_set:
                row.expires_at = change.expires_at
            if "allowed_addresses" in change.model_fields_set:
                row.allowed_addresses = written_addresses(change.allowed_addresses)
            if changed := differences(before, changeable(row)):
                note(session, self._actor, Event("key.changed", row.workspace_id, of_key(row), details=changed))
            (view,) = await _views(session, [row])
        await self._key_changed(key_id)
        return view

    async def rotate(self, key_id: uuid.UUID, rotation: Rotation) -> KeyWithSecret:
        """A new secret; the old one goes on for the overlap, without one it ends with all others.

        Raises `PermissionDenied`, `NotFound`, `Conflict` for a revoked key or one with too many secrets that retire.
        """
        async with self._database.transaction() as session:
            row = await self._find(session, key_id)
            self._require_may_give(row.scopes)
            overlap = timedelta(seconds=rotation.overlap)
            secret = await renew(session, row, self._peppers, self._actor, overlap)
            await session.flush()
            (view,) = await _views(session, [row])
        await self._key_changed(key_id)
        return KeyWithSecret.revealing(view, secret)

    async def revoke(self, key_id: uuid.UUID) -> None:
        """Ends a key for good. Twice is once. Raises `PermissionDenied`, `NotFound`."""
        async with self._database.transaction() as session:
            await revoke_key(session, await self._find(session, key_id), self._actor)
        # Also the second time: the first telling may have been lost.
        await self._key_changed(key_id)

    async def end_retiring(self, key_id: uuid.UUID, prefix: str) -> None:
        """Ends a secret that a rotation left working; the key goes on. Raises `PermissionDenied`, `NotFound`."""
        async with self._database.transaction() as session:
            await end_retiring(session, await self._find(session, key_id), prefix, self._actor)
        await self._key_changed(key_id)

    def _visible(self) -> ColumnElement[bool]:
        return true() if self._is_admin else ApiKey.workspace_id == self._caller.workspace_id

    def _require_may_ask(self, form: KeyForm) -> None:
        if not self._is_admin and form.owner is not None:
            raise PermissionDenied("Only an admin who is signed in names a key's owner: leave out 'owner'.")
        if not self._is_admin and form.queue_weight != 1:
            raise PermissionDenied("Only an admin who is signed in weighs keys: leave out 'queue_weight'.")
        self._require_may_trust(is_trusted=False, wanted=form.trusts_attribution)
        if self._is_member and form.service_account:
            raise PermissionDenied("Keys of service accounts outlive people: ask an admin for one.")
        self._require_may_give(form.scopes)

    def _require_may_trust(self, *, is_trusted: bool, wanted: bool) -> None:
        if not self._is_admin and wanted != is_trusted:
            raise PermissionDenied(
                "Only an admin who is signed in says whose end users and tags are trusted: "
                "leave out 'trusts_attribution'."
            )

    def _require_may_give(self, scopes: Iterable[Scope]) -> None:
        mine = self._caller.scopes
        if self._caller.key_id is not None:
            mine |= _SCOPES_OF_WORKSPACE
        missing = sorted(set(scopes) - mine)
        if missing:
            raise PermissionDenied(f"These credentials give no key the scope {missing[0]!r}: ask an admin.")

    async def _require_a_member_s(self, session: AsyncSession, row: ApiKey) -> None:
        """Raises `PermissionDenied` where a member could not have made this key."""
        self._require_may_give(row.scopes)
        limits = [
            MeteredAmount(meter=limit.meter, window=limit.window, amount=written_amount(limit.meter, limit.amount))
            for limit in (await _limits_of(session, [row])).get(str(row.id), [])
            if limit.model is None and limit.action == "refuse"
        ]
        try:
            could_be_made = len(apply_policy(limits, await policies_of(session, row.workspace_id))) == len(limits)
        except InvalidRequest:
            could_be_made = False
        if not could_be_made or row.queue_weight != 1 or row.trusts_attribution:
            raise PermissionDenied(
                "This key has more than a key that a member makes: only an admin, or a key with the scope 'manage', "
                "lets it use more models, be used from more addresses or live longer."
            )

    async def _find(self, session: AsyncSession, key_id: uuid.UUID) -> ApiKey:
        """A key that the caller may change."""
        query = select(ApiKey).where(self._visible(), ApiKey.id == key_id).with_for_update()
        row: ApiKey | None = await session.scalar(query)
        if row is None:
            raise NotFound(f"There is no API key {key_id} that you may see.")
        if self._is_member and row.owner_user_id != self._caller.user_id:
            raise PermissionDenied(
                "This API key is not yours: its owner, an admin or a key with the scope 'manage' may change it."
            )
        return row

    async def _workspace(self, session: AsyncSession, wanted: uuid.UUID) -> uuid.UUID:
        is_theirs = self._is_admin or wanted == self._caller.workspace_id
        if not is_theirs or await session.scalar(select(Workspace.id).where(Workspace.id == wanted)) is None:
            raise NotFound(f"There is no workspace {wanted} that you may act in.", param="workspace_id")
        return wanted

    async def _owner(self, session: AsyncSession, form: KeyForm) -> User | ServiceAccount:
        workspace_id = self._caller.workspace_id
        if form.workspace_id is not None:
            workspace_id = await self._workspace(session, form.workspace_id)
        if form.owner is not None:
            return await _named_owner(session, form.owner, form.workspace_id)
        if form.service_account or workspace_id != self._caller.workspace_id:
            account = ServiceAccount(workspace_id=workspace_id, name=form.name)
            session.add(account)
            await session.flush()
            return account
        if self._caller.user_id is not None:
            return await self._owner_here(session, self._caller.user_id)
        own = await session.get_one(ApiKey, self._caller.key_id)
        return await session.get_one(ServiceAccount, own.owner_service_account_id)

    async def _owner_here(self, session: AsyncSession, user_id: uuid.UUID) -> User:
        """Raises `PermissionDenied` for one who has moved: a key belongs to its owner's workspace, and that is not the
        caller's any more.
        """
        owner = await session.get_one(User, user_id)
        if owner.workspace_id != self._caller.workspace_id:
            raise PermissionDenied(
                "Whose credentials these are belongs to another workspace by now, and so would the key: "
                "with a key make one of a service account ('service_account': true), else sign in again."
            )
        return owner


async def _named_owner(session: AsyncSession, email: str, workspace_id: uuid.UUID | None) -> User:
    user: User | None = await session.scalar(select(User).where(User.email == email))
    if user is None or workspace_id not in {None, user.workspace_id}:
        where = "" if workspace_id is None else " in this workspace"
        message = f"there is no user {email}{where}"
        raise ValidationFailed(f"owner: {message}", [{"loc": ["body", "owner"], "message": message}])
    require_enabled(user)
    return user


def _owned_by(name: str) -> ColumnElement[bool]:
    """A user by their address, or every service account of this name."""
    users = select(User.id).where(User.email == name)
    accounts = select(ServiceAccount.id).where(ServiceAccount.name == name)
    return or_(ApiKey.owner_user_id.in_(users), ApiKey.owner_service_account_id.in_(accounts))


async def _views(session: AsyncSession, rows: Sequence[ApiKey]) -> list[KeyView]:
    users = {row.owner_user_id for row in rows if row.owner_user_id is not None}
    accounts = {row.owner_service_account_id for row in rows if row.owner_service_account_id is not None}
    emails = select(User.id, User.email).where(User.id.in_(users))
    names = select(ServiceAccount.id, ServiceAccount.name).where(ServiceAccount.id.in_(accounts))
    owners: dict[uuid.UUID | None, KeyOwner] = {}
    if users:
        owners |= {key: KeyOwner(kind="user", id=key, name=email) for key, email in await session.execute(emails)}
    if accounts:
        found = await session.execute(names)
        owners |= {key: KeyOwner(kind="service_account", id=key, name=name) for key, name in found}
    limits = await _limits_of(session, rows)
    retiring = await retiring_of(session, {row.id for row in rows}) if rows else {}
    return [
        KeyView.of(
            row,
            owners[row.owner_user_id or row.owner_service_account_id],
            limits.get(str(row.id), []),
            retiring.get(row.id, ()),
        )
        for row in rows
    ]


async def _limits_of(session: AsyncSession, rows: Sequence[ApiKey]) -> dict[str, list[LimitRow]]:
    """The limits of these keys by the key's id as text, the oldest first."""
    theirs = (
        LimitRow.workspace_id.in_({row.workspace_id for row in rows}),
        LimitRow.scope == "key",
        LimitRow.subject.in_([str(row.id) for row in rows]),
    )
    limits: dict[str, list[LimitRow]] = {}
    for limit in (await session.scalars(select(LimitRow).where(*theirs).order_by(LimitRow.id))) if rows else ():
        limits.setdefault(limit.subject or "", []).append(limit)
    return limits

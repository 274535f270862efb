"""Judging a credential by what the database says now: one short query, and no connection held after it.

A refusal says why only to one who presented the right secret: whoever guesses learns nothing of which prefixes exist,
which are revoked, or whose account is disabled.
"""

import uuid
from typing import Final

from sqlalchemy import select

from tidegate.accounts.models import User
from tidegate.auth.api_keys import KEY_MARK, StoredHash, verify_key
from tidegate.auth.keyring import Keyring
from tidegate.auth.last_use import LastUse
from tidegate.auth.models import ApiKey
from tidegate.auth.principal import Principal, Role, Scope
from tidegate.auth.tokens import AccessToken
from tidegate.errors import InvalidApiKey, InvalidToken
from tidegate.storage.database import Database

SCOPES_BY_ROLE: Final[dict[Role, frozenset[Scope]]] = {
    "admin": frozenset({"inference", "usage", "manage", "metrics"}),
    "member": frozenset({"inference", "usage"}),
}


class Directory:
    """Who stands behind an API key or an access token, as the database knows it.

    Both questions raise an `AuthenticationError` for a refusal, and whatever the driver raises where the database does
    not answer. Neither judges an expiry: it is the principal's `expires_at`, judged at each use.
    """

    def __init__(self, database: Database, peppers: Keyring) -> None:
        self.last_use = LastUse(database)
        self._database = database
        self._peppers = peppers

    async def judge_key(self, prefix: str, key: str) -> Principal:
        """The owner of a key that has a key's form."""
        query = select(ApiKey, User.role, User.disabled_at).outerjoin(User, User.id == ApiKey.owner_user_id)
        async with self._database.session() as session:
            found = (await session.execute(query.where(ApiKey.prefix == prefix))).one_or_none()
        if found is None or not verify_key(key, _stored(found[0]), self._peppers):
            raise InvalidApiKey("There is no such API key: check it, or ask an admin for another.")
        row, role, disabled_at = found
        if row.revoked_at is not None:
            raise InvalidApiKey(f"The API key {KEY_MARK}{prefix} was revoked: ask an admin for another.")
        if disabled_at is not None:
            raise InvalidApiKey(f"The API key {KEY_MARK}{prefix} belongs to an account that is disabled: ask an admin.")
        self.last_use.note(row.id, row.last_used_at)
        return Principal(
            workspace_id=_plain(row.workspace_id),
            key_id=_plain(row.id),
            key_prefix=prefix,
            user_id=None if row.owner_user_id is None else _plain(row.owner_user_id),
            role=role,
            scopes=frozenset(row.scopes),
            models=None if row.models is None else tuple(row.models),
            expires_at=None if row.expires_at is None else row.expires_at.timestamp(),
            trusts_attribution=row.trusts_attribution,
            queue_weight=row.queue_weight,
        )

    async def judge_token(self, token: AccessToken) -> Principal:
        """The user of a token that was verified."""
        query = select(User.workspace_id, User.role, User.disabled_at).where(User.id == token.user_id)
        async with self._database.session() as session:
            user = (await session.execute(query)).one_or_none()
        if user is None:
            raise InvalidToken("The account of this access token does not exist any more: ask an admin.")
        if user.disabled_at is not None:
            raise InvalidToken("The account of this access token is disabled: ask an admin.")
        return Principal(
            workspace_id=_plain(user.workspace_id),
            user_id=token.user_id,
            role=user.role,
            scopes=SCOPES_BY_ROLE[user.role],
            expires_at=token.expires_at,
        )


def _stored(row: ApiKey) -> StoredHash:
    return StoredHash(row.secret_hash, row.hash_scheme, row.pepper_kid)


def _plain(id_of_driver: uuid.UUID) -> uuid.UUID:
    """The driver's UUIDs are a subclass, which orjson refuses; a principal's ids end up in log lines and entries."""
    return uuid.UUID(int=id_of_driver.int)

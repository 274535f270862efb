"""Judging a credential by what the database says now: one short query, and no connection held after it.

A refusal says why only to one who presented the right secret: whoever guesses learns nothing of which prefixes exist,
which are revoked, or whose account is disabled.
"""

import uuid
from typing import Final

from sqlalchemy import ColumnElement, func, select

from tidegate.accounts.models import SignIn, User
from tidegate.accounts.second_factor.codes import has_one
from tidegate.auth.addresses import AllowedAddresses
from tidegate.auth.api_keys import KEY_MARK, StoredHash, hash_key, is_current, verify_key
from tidegate.auth.keyring import Keyring
from tidegate.auth.models import ApiKey, RetiringSecret
from tidegate.auth.principal import Principal, Role, Scope, SecondFactorRule
from tidegate.auth.tokens import AccessToken
from tidegate.auth.upkeep import KeyUpkeep
from tidegate.errors import InvalidApiKey, InvalidToken
from tidegate.ledger.entry import utc_now
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

    def __init__(self, database: Database, peppers: Keyring, second_factor: SecondFactorRule = "optional") -> None:
        self.upkeep = KeyUpkeep(database)
        self._database = database
        self._peppers = peppers
        self._second_factor = second_factor

    async def judge_key(self, prefix: str, key: str) -> Principal:
        """The owner of a key that has a key's form, by its secret or by one that retires."""
        query = (
            select(ApiKey, RetiringSecret, User.role, User.disabled_at)
            .select_from(ApiKey)
            .outerjoin(RetiringSecret, RetiringSecret.prefix == prefix)
            .outerjoin(User, User.id == ApiKey.owner_user_id)
            .where(ApiKey.id == _id_of(prefix))
        )
        async with self._database.session() as session:
            found = (await session.execute(query)).one_or_none()
        # The key's own secret, where both have this prefix.
        secret = None if found is None else found[0] if found[0].prefix == prefix else found[1]
        stored = None if secret is None else StoredHash(secret.secret_hash, secret.hash_scheme, secret.pepper_kid)
        is_right = verify_key(key, stored, self._peppers)
        if found is None or secret is None or stored is None or not is_right:
            raise InvalidApiKey("There is no such API key: check it, or ask an admin for another.")
        row, retiring, role, disabled_at = found
        if row.revoked_at is not None:
            raise InvalidApiKey(f"The API key {KEY_MARK}{prefix} was revoked: ask an admin for another.")
        if disabled_at is not None:
            raise InvalidApiKey(f"The API key {KEY_MARK}{prefix} belongs to an account that is disabled: ask an admin.")
        ends = [row.expires_at, retiring.ends_at if secret is retiring else None]
        expires_at = min((end for end in ends if end is not None), default=None)
        if expires_at is None or expires_at > utc_now():
            self.upkeep.looked_up(row)
            if not is_current(stored, self._peppers):
                self.upkeep.rehash(secret, hash_key(key, self._peppers))
        return Principal(
            workspace_id=_plain(row.workspace_id),
            key_id=_plain(row.id),
            key_prefix=prefix,
            user_id=None if row.owner_user_id is None else _plain(row.owner_user_id),
            role=role,
            scopes=frozenset(row.scopes),
            models=None if row.models is None else tuple(row.models),
            expires_at=None if expires_at is None else expires_at.timestamp(),
            trusts_attribution=row.trusts_attribution,
            queue_weight=row.queue_weight,
            allowed_from=None if row.allowed_addresses is None else AllowedAddresses(row.allowed_addresses),
        )

    async def judge_token(self, token: AccessToken) -> Principal:
        """The user of a token that was verified, by the sign-in that it names."""
        query = (
            select(
                User.workspace_id,
                User.role,
                User.email,
                User.disabled_at,
                SignIn.method,
                SignIn.created_at,
                SignIn.ended_at,
                SignIn.expires_at,
                has_one(User.id).label("has_second_factor"),
            )
            .join(SignIn, SignIn.user_id == User.id)
            .where(SignIn.id == token.sign_in_id, User.id == token.user_id)
        )
        async with self._database.session() as session:
            found = (await session.execute(query)).one_or_none()
        if found is None:
            raise InvalidToken("The sign-in of this access token does not exist any more: sign in again.")
        if found.disabled_at is not None:
            raise InvalidToken("The account of this access token is disabled: ask an admin.")
        if found.ended_at is not None:
            raise InvalidToken("The sign-in of this access token has ended: sign in again.")
        return Principal(
            workspace_id=_plain(found.workspace_id),
            user_id=token.user_id,
            role=found.role,
            email=found.email,
            sign_in_id=token.sign_in_id,
            scopes=SCOPES_BY_ROLE[found.role],
            expires_at=min(token.expires_at, found.expires_at.timestamp()),
            signed_in_at=found.created_at.timestamp(),
            # Who came by single sign-on was asked there, or not: that is its provider's.
            owes_second_factor=found.method == "password"
            and not found.has_second_factor
            and self._is_needed_by(found.role),
        )

    def _is_needed_by(self, role: Role) -> bool:
        return self._second_factor == "required" or (self._second_factor == "admins" and role == "admin")


def _id_of(prefix: str) -> ColumnElement[uuid.UUID]:
    """The key that has this prefix, or had it and retires it: two look-ups by an index, in one statement."""
    own = select(ApiKey.id).where(ApiKey.prefix == prefix).correlate(None).scalar_subquery()
    retiring = select(RetiringSecret.key_id).where(RetiringSecret.prefix == prefix).correlate(None).scalar_subquery()
    return func.coalesce(own, retiring)


def _plain(id_of_driver: uuid.UUID) -> uuid.UUID:
    """The driver's UUIDs are a subclass, which orjson refuses; a principal's ids end up in log lines and entries."""
    return uuid.UUID(int=id_of_driver.int)

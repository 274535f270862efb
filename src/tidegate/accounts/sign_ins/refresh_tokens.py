"""Refresh tokens: their form, their storage, and the one step that turns one into its successor.

Invariants:
- A token is 256 random bits, and kept as its SHA-256 alone: nobody tries so many, so neither salt nor pepper is needed,
  and no rotation of secrets logs anyone out.
- A family has one unused token at a time. It is taken by one conditional update: of any number that present it at once
  exactly one gets the successor (RFC 9700, 4.14.2).
- A used token's row stays as long as its family, so its reuse is known.
- An unused token expires with its family, or earlier where it is not used for so long as the settings say.
"""

import hashlib
import re
import secrets
import uuid
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final

from sqlalchemy import ColumnElement, case, delete, exists, select, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import aliased

from tidegate.accounts.models import RefreshToken, SignIn, User
from tidegate.errors import InvalidToken
from tidegate.ledger.entry import new_entry_id

MARK: Final = "tgr_"
# Two tabs that refresh at once are no thief: within this time of its use a token's reuse ends nothing.
GRACE: Final = timedelta(seconds=10)
# For so long an expired token is told to be that, and not to be unknown.
_KEPT_PAST_EXPIRY: Final = timedelta(days=7)
_ROWS_AT_ONCE: Final = 500
_FORM: Final = re.compile(r"tgr_[A-Za-z0-9_-]{43}")
_WITHOUT_SYNCHRONISING: Final = {"synchronize_session": False}

ENDED: Final = "This sign-in has ended: sign in again."


@dataclass(frozen=True, slots=True)
class Unused:
    """The unused token of a sign-in, as it is given out. `expires_at` is its own."""

    sign_in_id: uuid.UUID
    user_id: uuid.UUID
    expires_at: datetime
    refresh_token: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Presented:
    """A token that could not be used, as it stands. `successor_used_at` is of the token that its use gave; `expires_at`
    its own where it was not used, else its family's.
    """

    sign_in_id: uuid.UUID
    workspace_id: uuid.UUID
    user_id: uuid.UUID
    email: str
    used_at: datetime | None
    successor_used_at: datetime | None
    expires_at: datetime
    sign_in_ended_at: datetime | None
    user_disabled_at: datetime | None

    def is_of_a_race(self, now: datetime) -> bool:
        """Whether it was used a moment ago, and what it gave was not: then its presenter came second, and no more."""
        return self.used_at is not None and self.successor_used_at is None and now - self.used_at <= GRACE


def new_refresh_token() -> str:
    return MARK + secrets.token_urlsafe(32)


def hash_of(refresh_token: str) -> bytes | None:
    """How it is stored; None for what has not a refresh token's form."""
    if _FORM.fullmatch(refresh_token) is None:
        return None
    return hashlib.sha256(refresh_token.encode("ascii")).digest()


async def add_token(session: AsyncSession, sign_in: SignIn, expires_at: datetime) -> str:
    """The first token of a sign-in whose row is there."""
    refresh_token = new_refresh_token()
    session.add(_row(refresh_token, new_entry_id(), sign_in.id, sign_in.workspace_id, expires_at))
    await session.flush()
    return refresh_token


async def rotate(session: AsyncSession, token_hash: bytes, now: datetime, idle: timedelta) -> Unused | None:
    """Uses an unused token of a live sign-in and adds its successor, which is good for `idle` at most; None where there
    is no such token.

    Raises `InvalidToken` where the sign-in ended at this moment.
    """
    live = select(SignIn.id).join(User, User.id == SignIn.user_id)
    live = live.where(SignIn.ended_at.is_(None), SignIn.expires_at > now, User.disabled_at.is_(None))
    successor_id = new_entry_id()
    take = (
        update(RefreshToken)
        .where(
            RefreshToken.token_hash == token_hash,
            RefreshToken.used_at.is_(None),
            RefreshToken.expires_at > now,
            RefreshToken.sign_in_id.in_(live),
        )
        .values(used_at=now, successor_id=successor_id)
        .returning(RefreshToken.sign_in_id)
    )
    sign_in_id = (await session.execute(take, execution_options=_WITHOUT_SYNCHRONISING)).scalar_one_or_none()
    if sign_in_id is None:
        return None
    # The sign-in's row is locked here: one that ends at the same moment ends before, or sees the successor after.
    use = (
        update(SignIn)
        .where(SignIn.id == sign_in_id, SignIn.ended_at.is_(None))
        .values(last_used_at=now)
        .returning(SignIn.user_id, SignIn.workspace_id, SignIn.expires_at)
    )
    used = (await session.execute(use, execution_options=_WITHOUT_SYNCHRONISING)).one_or_none()
    if used is None:
        raise InvalidToken(ENDED)
    refresh_token = new_refresh_token()
    expires_at = min(used.expires_at, now + idle)
    session.add(_row(refresh_token, successor_id, sign_in_id, used.workspace_id, expires_at))
    await session.flush()
    return Unused(sign_in_id, used.user_id, expires_at, refresh_token)


def is_refreshable(now: datetime) -> ColumnElement[bool]:
    """Whether a sign-in has a token that can still be used."""
    return exists().where(
        RefreshToken.sign_in_id == SignIn.id, RefreshToken.used_at.is_(None), RefreshToken.expires_at > now
    )


async def find_presented(session: AsyncSession, token_hash: bytes) -> Presented | None:
    """Why a token could not be used; None for one that nobody was given."""
    successor = aliased(RefreshToken)
    query = (
        select(
            SignIn.id,
            SignIn.workspace_id,
            SignIn.user_id,
            User.email,
            RefreshToken.used_at,
            successor.used_at,
            case((RefreshToken.used_at.is_(None), RefreshToken.expires_at), else_=SignIn.expires_at),
            SignIn.ended_at,
            User.disabled_at,
        )
        .join(SignIn, SignIn.id == RefreshToken.sign_in_id)
        .join(User, User.id == SignIn.user_id)
        .outerjoin(successor, successor.id == RefreshToken.successor_id)
        .where(RefreshToken.token_hash == token_hash)
    )
    found = (await session.execute(query)).one_or_none()
    return None if found is None else Presented(*found)


async def delete_expired(session: AsyncSession, user_id: uuid.UUID, now: datetime) -> None:
    """Deletes some of a user's sign-ins that expired a week ago and more, with their tokens: some hundred rows."""
    expired = (
        select(SignIn.id)
        .where(SignIn.user_id == user_id, SignIn.expires_at < now - _KEPT_PAST_EXPIRY)
        # Two log-ins at once delete different ones, and neither waits.
        .with_for_update(skip_locked=True)
        .limit(_ROWS_AT_ONCE // 10)
    )
    families = (await session.scalars(expired)).all()
    if not families:
        return
    some = select(RefreshToken.id).where(RefreshToken.sign_in_id.in_(families)).limit(_ROWS_AT_ONCE)
    await session.execute(
        delete(RefreshToken).where(RefreshToken.id.in_(some)), execution_options=_WITHOUT_SYNCHRONISING
    )
    has_tokens = exists().where(RefreshToken.sign_in_id == SignIn.id)
    empty = delete(SignIn).where(SignIn.id.in_(families), ~has_tokens)
    await session.execute(empty, execution_options=_WITHOUT_SYNCHRONISING)


def _row(
    refresh_token: str, row_id: uuid.UUID, sign_in_id: uuid.UUID, workspace_id: uuid.UUID, expires_at: datetime
) -> RefreshToken:
    return RefreshToken(
        id=row_id,
        workspace_id=workspace_id,
        sign_in_id=sign_in_id,
        token_hash=hash_of(refresh_token),
        expires_at=expires_at,
    )

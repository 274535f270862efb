"""Tokens that are sent by e-mail: their form, their storage, and the one step that uses one.

Invariants:
- A token is 256 random bits, and kept as its SHA-256 alone. It is in one e-mail, and in no log, answer or table.
- It is used once: by one conditional update, so of any number that present it at once exactly one succeeds.
- A user has one live token a purpose, and an address one invitation to a workspace: a newer one withdraws the older.
- One that was used, withdrawn, has expired, or never was, is refused with the same words.

Whoever changes a user's tokens holds the user's row, whoever invites to a workspace the workspace's: then the tokens'.
"""

import hashlib
import re
import secrets
import uuid
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Final

from sqlalchemy import ColumnElement, Row, and_, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from tidegate.accounts.models import MailedToken, Purpose
from tidegate.auth.principal import Role
from tidegate.errors import InvalidRequest
from tidegate.ledger.entry import utc_now

MARK: Final = "tgm_"
LIFETIMES: Final[Mapping[Purpose, timedelta]] = {
    "invitation": timedelta(days=7),
    "password_reset": timedelta(minutes=30),
    "email_change": timedelta(hours=24),
}
_FORM: Final = re.compile(r"tgm_[A-Za-z0-9_-]{43}")
_WITHOUT_SYNCHRONISING: Final = {"synchronize_session": False}


def new_token() -> str:
    return MARK + secrets.token_urlsafe(32)


def hash_of(token: str) -> bytes:
    """How it is stored. Raises `InvalidRequest` for what has not a token's form."""
    if _FORM.fullmatch(token) is None:
        raise unusable()
    return hashlib.sha256(token.encode("ascii")).digest()


def unusable() -> InvalidRequest:
    """The one refusal of a token, whatever is wrong with it."""
    return InvalidRequest(
        "This link does not work: it was used, is too old, or was replaced by a newer one. Ask for another.",
        param="token",
    )


def live(purpose: Purpose, now: datetime) -> ColumnElement[bool]:
    """What a token of this purpose that may be used looks like."""
    return and_(
        MailedToken.purpose == purpose,
        MailedToken.used_at.is_(None),
        MailedToken.withdrawn_at.is_(None),
        MailedToken.expires_at > now,
    )


def add_token(session: AsyncSession, row: MailedToken) -> str:
    """Adds a row for a new token, and returns the token. The row's hash and expiry are set here."""
    token = new_token()
    renew(row, token)
    session.add(row)
    return token


def renew(row: MailedToken, token: str) -> None:
    """Gives a row this token, and the whole of its time."""
    row.token_hash = hash_of(token)
    row.expires_at = utc_now() + LIFETIMES[row.purpose]


async def find_live(session: AsyncSession, token: str, purpose: Purpose) -> MailedToken:
    """The row of a token that could be used now. Raises `InvalidRequest`."""
    query = select(MailedToken).where(MailedToken.token_hash == hash_of(token), live(purpose, utc_now()))
    row: MailedToken | None = await session.scalar(query)
    if row is None:
        raise unusable()
    return row


async def take(session: AsyncSession, token: str, purpose: Purpose) -> None:
    """Uses a token, in the caller's transaction. Raises `InvalidRequest`."""
    now = utc_now()
    using = update(MailedToken).where(MailedToken.token_hash == hash_of(token), live(purpose, now))
    using = using.values(used_at=now).returning(MailedToken.id)
    taken = await session.execute(using, execution_options=_WITHOUT_SYNCHRONISING)
    if taken.scalar_one_or_none() is None:
        raise unusable()


async def withdraw_of_user(session: AsyncSession, user_id: uuid.UUID, *purposes: Purpose) -> None:
    """Withdraws a user's unused tokens of these purposes; of every purpose where none is named."""
    whose = [MailedToken.user_id == user_id]
    if purposes:
        whose.append(MailedToken.purpose.in_(purposes))
    await _withdraw(session, *whose)


async def withdraw_invitations(session: AsyncSession, email: str, workspace_id: uuid.UUID) -> None:
    """Withdraws the unused invitations of an address to a workspace."""
    whose = (MailedToken.email == email, MailedToken.workspace_id == workspace_id)
    await _withdraw(session, MailedToken.purpose == "invitation", *whose)


async def withdraw_made_by(session: AsyncSession, maker: str) -> Sequence[Row[uuid.UUID, uuid.UUID, str, Role | None]]:
    """Withdraws the open invitations that `maker` made; their id, workspace, address and role."""
    now = utc_now()
    withdrawing = (
        update(MailedToken)
        .where(MailedToken.made_by == maker, live("invitation", now))
        .values(withdrawn_at=now)
        .returning(MailedToken.id, MailedToken.workspace_id, MailedToken.email, MailedToken.role)
    )
    return (await session.execute(withdrawing, execution_options=_WITHOUT_SYNCHRONISING)).all()


async def rename_maker(session: AsyncSession, old: str, new: str) -> None:
    """The invitations that were made under an old address are the new one's."""
    renaming = update(MailedToken).where(MailedToken.made_by == old, MailedToken.purpose == "invitation")
    await session.execute(renaming.values(made_by=new), execution_options=_WITHOUT_SYNCHRONISING)


async def _withdraw(session: AsyncSession, *whose: ColumnElement[bool]) -> None:
    unused = (MailedToken.used_at.is_(None), MailedToken.withdrawn_at.is_(None))
    withdrawing = update(MailedToken).where(*whose, *unused).values(withdrawn_at=utc_now())
    await session.execute(withdrawing, execution_options=_WITHOUT_SYNCHRONISING)

"""A second factor's rows: which one a user has, and the steps that use a code of it. Functions of a session.

Invariants:
- A code is used once: a TOTP's by one conditional update that moves `last_step` past its step, a recovery code by one
  conditional delete. Of any number that present it at once exactly one succeeds.
- After 100 wrong codes with none right between them no TOTP is taken any more (NIST SP 800-63B-4, 3.2.2): a recovery
  code is, which nobody guesses. Whoever tries so often knows the password; the owner is told after 10.
- A secret under an older key is encrypted anew by the use of a code, so that the old key can be dropped.
"""

import uuid
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, Literal

from sqlalchemy import ColumnElement, delete, exists, func, select, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import InstrumentedAttribute

from tidegate.accounts.models import RecoveryCode, SecondFactor, User
from tidegate.accounts.second_factor.recovery_codes import CODES, hash_of, new_code
from tidegate.accounts.second_factor.sealing import Sealed, Sealing
from tidegate.accounts.second_factor.totp import is_code, step_of
from tidegate.telemetry.logging import get_logger

log = get_logger(__name__)

Means = Literal["totp", "recovery_code"]

MOST_WRONG_CODES: Final = 100
WARNED_AFTER: Final = 10
# For so long a secret that was shown waits for its first code.
PENDING_FOR: Final = timedelta(hours=1)
_WITHOUT_SYNCHRONISING: Final = {"synchronize_session": False}


@dataclass(frozen=True, slots=True)
class Judged:
    """What became of a code: by what it was right, None where it was not; and how many were wrong in a row then."""

    means: Means | None
    wrong_codes: int = 0


def has_one(user_id: uuid.UUID | InstrumentedAttribute[uuid.UUID]) -> ColumnElement[bool]:
    """Whether a user has a second factor that counts."""
    return exists().where(SecondFactor.user_id == user_id, SecondFactor.confirmed_at.is_not(None))


async def find_active(session: AsyncSession, user_id: uuid.UUID) -> SecondFactor | None:
    """The second factor that a user has; None for one that was not confirmed."""
    query = select(SecondFactor).where(SecondFactor.user_id == user_id, SecondFactor.confirmed_at.is_not(None))
    factor: SecondFactor | None = await session.scalar(query)
    return factor


async def find_pending(session: AsyncSession, user_id: uuid.UUID, now: datetime) -> SecondFactor | None:
    """The one that waits for its first code."""
    query = select(SecondFactor).where(
        SecondFactor.user_id == user_id,
        SecondFactor.confirmed_at.is_(None),
        SecondFactor.created_at > now - PENDING_FOR,
    )
    factor: SecondFactor | None = await session.scalar(query)
    return factor


async def count_left(session: AsyncSession, user_id: uuid.UUID) -> int:
    """How many recovery codes a user has left."""
    query = select(func.count()).select_from(RecoveryCode).where(RecoveryCode.user_id == user_id)
    return await session.scalar(query) or 0


async def use_code(session: AsyncSession, factor: SecondFactor, code: str, sealing: Sealing, now: datetime) -> Judged:
    """Uses a code of an active second factor, or counts it as wrong. To be committed in either case."""
    plain = code.replace(" ", "")
    if is_code(plain):
        secret = _opened(factor, sealing)
        if secret is None:
            return Judged(None)
        step = step_of(secret, plain, now.timestamp(), after=factor.last_step)
        if step is not None:
            fresh = None if sealing.is_current(factor.secret_kid) else sealing.seal(secret, factor.user_id)
            if await _use_step(session, factor, step, fresh):
                return Judged("totp")
    elif await _use_recovery_code(session, factor, code):
        return Judged("recovery_code")
    counting = (
        update(SecondFactor)
        .where(SecondFactor.id == factor.id)
        .values(wrong_codes=SecondFactor.wrong_codes + 1)
        .returning(SecondFactor.wrong_codes)
    )
    counted = await session.execute(counting, execution_options=_WITHOUT_SYNCHRONISING)
    return Judged(None, counted.scalar_one_or_none() or 0)


async def replace_recovery_codes(session: AsyncSession, user: User) -> list[str]:
    """New recovery codes in place of those that a user, who is locked, had: to be shown once."""
    deleting = delete(RecoveryCode).where(RecoveryCode.user_id == user.id)
    await session.execute(deleting, execution_options=_WITHOUT_SYNCHRONISING)
    codes = [new_code() for _ in range(CODES)]
    session.add_all(
        RecoveryCode(workspace_id=user.workspace_id, user_id=user.id, code_hash=hash_of(code)) for code in codes
    )
    await session.flush()
    return codes


async def remove(session: AsyncSession, user_id: uuid.UUID, factor_id: uuid.UUID | None = None) -> bool:
    """Takes away a user's second factor, or that one alone, and their recovery codes. The user is locked.

    Returns whether one that counts was there.
    """
    whose = [SecondFactor.user_id == user_id]
    if factor_id is not None:
        whose.append(SecondFactor.id == factor_id)
    removing = delete(SecondFactor).where(*whose).returning(SecondFactor.confirmed_at)
    removed = (await session.scalars(removing, execution_options=_WITHOUT_SYNCHRONISING)).all()
    if not removed:
        return False
    deleting = delete(RecoveryCode).where(RecoveryCode.user_id == user_id)
    await session.execute(deleting, execution_options=_WITHOUT_SYNCHRONISING)
    return removed[0] is not None


def _opened(factor: SecondFactor, sealing: Sealing) -> bytes | None:
    secret = sealing.open(Sealed(factor.sealed_secret, factor.secret_kid), factor.user_id)
    if secret is None:
        log.warning(
            "a second factor cannot be decrypted: no key of TIDEGATE_AUTH__ENCRYPTION_KEYS has its kid, or it was "
            "changed in the database",
            user_id=str(factor.user_id),
            kid=factor.secret_kid,
        )
    return secret


async def _use_step(session: AsyncSession, factor: SecondFactor, step: int, fresh: Sealed | None) -> bool:
    """Whether this step was free to use. `fresh` is the secret anew, where its key is an older one."""
    using = (
        update(SecondFactor)
        .where(
            SecondFactor.id == factor.id,
            SecondFactor.confirmed_at.is_not(None),
            SecondFactor.last_step < step,
            SecondFactor.wrong_codes < MOST_WRONG_CODES,
        )
        .values(last_step=step, wrong_codes=0)
        .returning(SecondFactor.id)
    )
    if fresh is not None:
        using = using.values(sealed_secret=fresh.sealed, secret_kid=fresh.kid)
    used = await session.execute(using, execution_options=_WITHOUT_SYNCHRONISING)
    return used.scalar_one_or_none() is not None


async def _use_recovery_code(session: AsyncSession, factor: SecondFactor, code: str) -> bool:
    code_hash = hash_of(code)
    if code_hash is None:
        return False
    holding = select(SecondFactor.id).where(SecondFactor.id == factor.id).with_for_update()
    if await session.scalar(holding) is None:
        return False
    using = (
        delete(RecoveryCode)
        .where(RecoveryCode.user_id == factor.user_id, RecoveryCode.code_hash == code_hash)
        .returning(RecoveryCode.id)
    )
    used = await session.execute(using, execution_options=_WITHOUT_SYNCHRONISING)
    if used.scalar_one_or_none() is None:
        return False
    forgetting = update(SecondFactor).where(SecondFactor.id == factor.id).values(wrong_codes=0)
    await session.execute(forgetting, execution_options=_WITHOUT_SYNCHRONISING)
    return True

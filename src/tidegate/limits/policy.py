"""What a workspace's policies make of the limits that a member asks for with a new key."""

import uuid
from collections.abc import Iterable, Sequence
from typing import Final

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from tidegate.errors import InvalidRequest
from tidegate.limits.metered import MeteredAmount
from tidegate.limits.models import KeyPolicy, LimitRow
from tidegate.limits.values import Meter, Window, written_amount

_UNITS: Final[dict[Meter, str]] = {"requests": "requests", "tokens": "tokens", "cost": "USD", "concurrency": "slots"}
_PER: Final[dict[Window, str]] = {
    "minute": " a minute",
    "hour": " an hour",
    "day": " a day",
    "week": " a week",
    "month": " a month",
    "total": " in total",
}


async def policies_of(session: AsyncSession, workspace_id: uuid.UUID) -> Sequence[KeyPolicy]:
    """A workspace's policies, in one order."""
    query = select(KeyPolicy).where(KeyPolicy.workspace_id == workspace_id)
    return (await session.scalars(query.order_by(KeyPolicy.meter, KeyPolicy.window))).all()


def apply_policy(limits_asked: Iterable[MeteredAmount], policies: Iterable[KeyPolicy]) -> tuple[MeteredAmount, ...]:
    """The limits that the key gets: those asked for, and each policy's own where none was.

    Where a policy has a most and no default, the most is its default: a bound that is met by not asking is none. Raises
    `InvalidRequest` where more is asked for than a policy allows.
    """
    limits = list(limits_asked)
    for policy in policies:
        asked = [limit for limit in limits if (limit.meter, limit.window) == (policy.meter, policy.window)]
        if policy.most_amount is not None:
            for limit in asked:
                if limit.exact_amount > policy.most_amount:
                    raise _above(limit, policy.most_amount)
        granted = policy.most_amount if policy.default_amount is None else policy.default_amount
        if not asked and granted is not None:
            amount = written_amount(policy.meter, granted)
            limits.append(MeteredAmount(meter=policy.meter, window=policy.window, amount=amount))
    return tuple(limits)


def key_limits(workspace_id: uuid.UUID, key_id: uuid.UUID, limits: Iterable[MeteredAmount]) -> list[LimitRow]:
    """The rows of a key's limits."""
    return [
        LimitRow(
            workspace_id=workspace_id,
            scope="key",
            subject=str(key_id),
            meter=limit.meter,
            window=limit.window,
            amount=limit.exact_amount,
        )
        for limit in limits
    ]


def _above(limit: MeteredAmount, most: int) -> InvalidRequest:
    asked = _said(limit.meter, limit.window, limit.exact_amount)
    allowed = _said(limit.meter, limit.window, most)
    return InvalidRequest(
        f"A key may have at most {allowed} in this workspace, and {asked} were asked for: ask for less, or an admin.",
        param="limits",
    )


def _said(meter: Meter, window: Window | None, amount: int) -> str:
    return f"{written_amount(meter, amount)} {_UNITS[meter]}{'' if window is None else _PER[window]}"

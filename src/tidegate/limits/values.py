"""A limit as the rest of the gateway knows it: a value, and how its amounts are written.

Counts are whole numbers. Money is held in nano-USD, so that every sum of it is exact, also where numbers are floats of
64 bits (a store's scripts): `MOST` is below 2^53.
"""

import re
import uuid
from decimal import ROUND_CEILING, Decimal
from typing import Final, Literal

import msgspec

LimitScope = Literal["deployment", "workspace", "user", "key", "end_user", "tag", "upstream"]
Meter = Literal["requests", "tokens", "cost", "concurrency"]
Window = Literal["minute", "hour", "day", "week", "month", "total"]
Action = Literal["refuse", "alert"]
Overrun = Literal["finish", "cut"]

NANO_PER_USD: Final = 10**9
MOST_USD: Final = 9_000_000
# Of every meter, in its own unit.
MOST: Final = MOST_USD * NANO_PER_USD
_WHOLE: Final = re.compile(r"[0-9]{1,20}")
_MONEY: Final = re.compile(r"([0-9]{1,20})(?:\.([0-9]{1,9}))?")


class Limit(msgspec.Struct, frozen=True, kw_only=True):
    """How much of one meter a scope may use in one window.

    `subject` is the scope's id as text: a key's or a user's id, an end user, `name=value` of a tag, an upstream's name;
    None means every one of that scope, each counted apart. `model` is a pattern or a group's name; None means all
    models together. `window` is None for concurrency alone; `zone` is the IANA zone of its calendar, None is UTC.
    `amount` is requests, tokens or slots, for cost nano-USD. `on_overrun` is what a stream meets whose top-up is
    refused.
    """

    id: uuid.UUID
    workspace_id: uuid.UUID
    scope: LimitScope
    subject: str | None
    model: str | None
    meter: Meter
    window: Window | None
    zone: str | None
    amount: int
    action: Action
    on_overrun: Overrun

    @property
    def label(self) -> str:
        """A short name for headers and messages: `key-requests-minute`, `workspace-cost-day`, `key-concurrency`."""
        scope = self.scope.replace("_", "-")
        return f"{scope}-{self.meter}" if self.window is None else f"{scope}-{self.meter}-{self.window}"


class Matched(msgspec.Struct, frozen=True):
    """A limit that a request meets, and the name of what counts it: its id, and the subject where each has its own.

    `label` is the limit's, made once.
    """

    limit: Limit
    counter: str
    label: str = ""

    def __post_init__(self) -> None:
        msgspec.structs.force_setattr(self, "label", self.limit.label)


def nano_usd(usd: Decimal) -> int:
    """USD in nano-USD, rounded up: what is counted is never less than what was spent.

    >>> nano_usd(Decimal("0.0000000001"))
    1
    """
    return int((usd * NANO_PER_USD).to_integral_value(ROUND_CEILING))


def exact_amount(meter: Meter, written: int | str) -> int:
    """What `Limit.amount` holds for an amount as people write it: USD for cost, whole numbers for the rest.

    Raises `ValueError` with a message that says what is right.

    >>> exact_amount("cost", "10.50"), exact_amount("requests", 60)
    (10500000000, 60)
    """
    text = str(written)
    if meter == "cost":
        matched = _MONEY.fullmatch(text)
        if matched is None:
            raise ValueError("must be USD as a decimal number with at most 9 decimal places, such as 10.00")
        amount = int(matched[1]) * NANO_PER_USD + int((matched[2] or "").ljust(9, "0"))
        if not 1 <= amount <= MOST:
            raise ValueError(f"must be from 0.000000001 to {MOST_USD} USD")
        return amount
    if _WHOLE.fullmatch(text) is None:
        raise ValueError(f"must be a whole number of {'slots' if meter == 'concurrency' else meter}")
    amount = int(text)
    if not 1 <= amount <= MOST:
        raise ValueError(f"must be from 1 to {MOST}")
    return amount


def written_amount(meter: Meter, amount: int) -> int | str:
    """An amount as people read it: a decimal string of USD for cost, the number itself for the rest.

    >>> written_amount("cost", 10_500_000_000), written_amount("requests", 60)
    ('10.5', 60)
    """
    if meter != "cost":
        return amount
    return format(Decimal(amount).scaleb(-9).normalize(), "f")

"""From the limits that a request meets to the checks that a store's step takes. Pure.

A minute slides; longer windows are the calendar's, in the limit's zone. A request takes one of `requests` and of
`concurrency`, and of `tokens` and `cost` what it reserves.
"""

import msgspec

from tidegate.admission.store import Check
from tidegate.limits.values import Matched
from tidegate.limits.windows import bounds

MINUTE_BUCKET_S = 1


class Reserve(msgspec.Struct, frozen=True):
    """What a request reserves: tokens, and cost in nano-USD (None where it is unpriced)."""

    tokens: int = 0
    cost: int | None = None

    def of(self, meter: str) -> int:
        match meter:
            case "tokens":
                return self.tokens
            case "cost":
                return self.cost or 0
        return 1


def check_of(matched: Matched, reserve: Reserve, now_s: float) -> Check:
    """One limit as a check, in the window that holds `now_s` (Unix seconds, by the store's clock)."""
    limit = matched.limit
    take = reserve.of(limit.meter)
    refuses = limit.action == "refuse"
    alerts = limit.meter == "cost" or not refuses
    if limit.window is None:
        return Check(matched.counter, "held", limit.meter, limit.amount, take, refuses, alerts)
    if limit.window == "minute":
        return Check(
            matched.counter, "sliding", limit.meter, limit.amount, take, refuses, alerts, width_s=MINUTE_BUCKET_S
        )
    starts, ends = bounds(limit.window, limit.zone, now_s)
    return Check(
        matched.counter, "calendar", limit.meter, limit.amount, take, refuses, alerts, starts=starts, ends=ends
    )


def share_of(check: Check, workers: int, remaining: int | None) -> Check | None:
    """A worker's part of a limit while no store is shared: of a calendar's, its part of what was last known to remain.

    None where nothing is known of what remains.
    """
    workers = max(1, workers)
    if check.kind != "calendar":
        # One at least: a limit smaller than the number of workers is not a limit of nothing.
        return msgspec.structs.replace(check, amount=max(1, check.amount // workers))
    if remaining is None:
        return None
    return msgspec.structs.replace(check, amount=max(0, remaining) // workers)

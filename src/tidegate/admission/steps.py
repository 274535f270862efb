"""One step into a tag, from limits to the answer: checks in the store's own windows, seeding, and the refusal.

What a caller is told of a refusal is made here: which limit, how much, and when to come again.
"""

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec

from tidegate.admission.checks import Reserve
from tidegate.admission.compiled import Compiled
from tidegate.admission.desk import Desk
from tidegate.admission.headers import HeaderForm, limit_headers
from tidegate.admission.store import Asked, Check, Reply, Seat, whole
from tidegate.errors import InsufficientQuota, RateLimitExceeded, TidegateError, Unavailable
from tidegate.limits.values import Limit, Matched, written_amount

_TRIES = 4
_MOST_WATCHED = 10_000


class Seeder(Protocol):
    async def seed(self, tag: str, matched: Matched, check: Check) -> bool:
        """Gives a counter the ledger's sum. False where that cannot be done now."""
        ...


class Taken(msgspec.Struct, frozen=True, gc=False):
    """A step that was taken, or whose queue is full: what was asked, and what the store said."""

    checks: tuple[Check, ...]
    reply: Reply
    form: HeaderForm | None = None

    def headers(self) -> dict[str, str]:
        """What the answer tells of these limits; nothing where they were not judged as a whole."""
        used = self.reply.used
        return {} if self.form is None or len(used) != len(self.checks) else self.form.told(used, self.reply.now_ms)


class Steps:
    """Takes steps for one worker.

    >>> taken = await steps.take("w:…", entry, matched, Reserve(tokens=900, cost=1_200_000))
    """

    def __init__(self, desk: Desk, seeder: Seeder, *, clock: Callable[[], float] = time.time) -> None:
        self.desk = desk
        self._seeder = seeder
        self._clock = clock
        # How far the store's clock is ahead of ours. It decides which calendar window it is.
        self._ahead_s = 0.0
        self._watched: dict[str, Limit] = {}

    def limit_of(self, counter: str) -> Limit | None:
        """The limit of a counter that alerts, where this worker met it."""
        return self._watched.get(counter)

    async def take(
        self, tag: str, entry: str, limits: Sequence[Matched], reserve: Reserve, seat: Seat | None = None
    ) -> Taken:
        """Takes what every limit asks for, and the seat. Raises `RateLimitExceeded` and `Unavailable`.

        A `full` queue is an answer, not an error: whose it is says it better.
        """
        desk, form = self.desk, None
        unjudged: tuple[int, ...] = ()
        for _ in range(_TRIES):
            if limits:
                compiled = Compiled.of(limits, self._clock() + self._ahead_s)
                asked, form = Asked(entry, compiled.checks, seat, compiled.takes(reserve)), compiled.form
                for counter, limit in compiled.alerting:
                    if self._watched.get(counter) is not limit:
                        self._watch(counter, limit)
            else:
                asked = Asked(entry, (), seat)
            reply = desk.take_here(tag, asked) if desk.shared is None else await desk.take(tag, asked, unjudged)
            said = reply.said
            if said == "taken" or said == "full":  # noqa: PLR1714 - a set is slower, and this is every step
                return Taken(asked.checks, reply, form)
            match said:
                case "refused":
                    raise refusal_of(limits, whole(asked).checks, reply)
                case "clock":
                    self._ahead_s = reply.now_ms / 1000 - self._clock()
                case "unseeded":
                    unseedable = await self._unseedable(tag, limits, whole(asked).checks, reply)
                    unjudged = tuple(sorted({*unjudged, *unseedable}))
        raise Unavailable(
            "The limits of this request could not be checked. Try again in a few seconds.",
            headers={"Retry-After": "2"},
        )

    def _watch(self, counter: str, limit: Limit) -> None:
        self._watched.pop(counter, None)
        self._watched[counter] = limit
        if len(self._watched) > _MOST_WATCHED:
            del self._watched[next(iter(self._watched))]

    async def _unseedable(
        self, tag: str, limits: Sequence[Matched], checks: tuple[Check, ...], reply: Reply
    ) -> tuple[int, ...]:
        """Seeds what the store does not know. Returns what cannot be seeded now: it is judged without the store."""
        seeded = await asyncio.gather(*(self._seeder.seed(tag, limits[at], checks[at]) for at in reply.unseeded))
        return tuple(at for at, is_seeded in zip(reply.unseeded, seeded, strict=True) if not is_seeded)


def refusal_of(limits: Sequence[Matched], checks: Sequence[Check], reply: Reply) -> TidegateError:
    """What the caller is told: the limit that refuses longest."""
    limit, check = limits[reply.at].limit, checks[reply.at]
    headers = {}
    if reply.retry_ms > 0:
        headers["Retry-After"] = str(math.ceil(reply.retry_ms / 1000))
        headers["retry-after-ms"] = str(reply.retry_ms)
    else:
        # Time does not help.
        headers["x-should-retry"] = "false"
    if len(reply.used) == len(checks):
        headers |= limit_headers(limits, checks, reply.used, reply.now_ms)
    amount = written_amount(limit.meter, limit.amount)
    if limit.meter == "cost":
        span = "in all" if limit.window == "total" else f"a {limit.window}"
        # What a workspace may spend is not every caller's to know; what their own key may, is.
        sum_of = f" of {amount} USD {span}" if limit.scope in ("key", "user") else ""
        return InsufficientQuota(
            f"The budget {limit.label!r}{sum_of} has no room for this request: "
            "ask for less (max_tokens), or for a larger budget.",
            headers=headers,
        )
    if limit.meter == "concurrency":
        what = f"{amount} requests at once"
    else:
        what = f"{amount} {limit.meter} " + ("in all" if limit.window == "total" else f"a {limit.window}")
    message = f"The limit {limit.label!r} of {what} is reached."
    if check.take > limit.amount:
        message = (
            f"This request takes {check.take} {limit.meter}, more than the limit {limit.label!r} of {what} allows."
        )
        headers.pop("Retry-After", None)
        headers.pop("retry-after-ms", None)
        headers["x-should-retry"] = "false"
    elif reply.retry_ms > 0:
        message += f" Try again in {math.ceil(reply.retry_ms / 1000)} s."
    return RateLimitExceeded(message, headers=headers)

"""How a store learns what was spent: from the ledger, once, when it does not know.

The ledger is the truth of spend; the store is its projection. A counter that the store does not know (it is new, or the
store lost its memory) is given the ledger's sum and the entries that are in it, so that one which ends meanwhile is
counted once. After a loss that is not done before every worker had the time to declare what it holds.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from sqlalchemy.exc import SQLAlchemyError

from tidegate.admission.desk import Desk
from tidegate.admission.store import Check, Seeding
from tidegate.errors import Unavailable
from tidegate.limits.values import Limit, Matched
from tidegate.storage.pipeline import ScriptError, StoreGone
from tidegate.telemetry.logging import get_logger

SUM_WITHIN_S = 5.0
# How long a request waits for its budget to be summed. Then it is judged without.
SEED_WITHIN_S = 1.0
# A database that is away is not asked again for so long: until then nobody waits for it, and nothing is said twice.
REST_S = 1.0

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class LedgerSum:
    """What was used of a limit in a window, in its own unit, and entries in it that ended lately (as hex): all that
    ended at `seen_since_ms` (wall clock, milliseconds) or later.
    """

    used: int
    seen: tuple[str, ...]
    seen_since_ms: int = 0


class Sums(Protocol):
    async def of(self, limit: Limit, subject: str | None, starts: int, ends: int) -> LedgerSum:
        """The ledger's sum; `ends` 0 is a window without end. Raises `SQLAlchemyError` or `OSError`."""
        ...


class LedgerSeeder:
    """Implements `Seeder`. `may_seed` says whether every worker has declared what it holds; without it they have."""

    def __init__(self, desk: Desk, sums: Sums, may_seed: Callable[[], Awaitable[bool]] | None = None) -> None:
        self._desk = desk
        self._sums = sums
        self._may_seed = may_seed
        self._flights: dict[str, asyncio.Task[bool]] = {}
        self._rests_until = float("-inf")

    async def seed(self, tag: str, matched: Matched, check: Check) -> bool:
        flight = self._flights.get(check.counter)
        if flight is None:
            if asyncio.get_running_loop().time() < self._rests_until:
                return False
            # A task of its own: a caller that hangs up does not take the sum from the others.
            flight = asyncio.create_task(self._seed(tag, matched, check))
            self._flights[check.counter] = flight
            flight.add_done_callback(lambda _: self._flights.pop(check.counter, None))
        done, _ = await asyncio.wait({flight}, timeout=SEED_WITHIN_S)
        return bool(done) and not flight.cancelled() and flight.result()

    async def aclose(self) -> None:
        """Ends what is being summed. To be called before the database is closed."""
        flights = list(self._flights.values())
        for flight in flights:
            flight.cancel()
        await asyncio.gather(*flights, return_exceptions=True)

    async def _seed(self, tag: str, matched: Matched, check: Check) -> bool:
        _, _, subject = check.counter.partition(":")
        try:
            async with asyncio.timeout(SUM_WITHIN_S):
                if self._may_seed is not None and not await self._may_seed():
                    return False
                found = await self._sums.of(matched.limit, subject or matched.limit.subject, check.starts, check.ends)
            seeding = Seeding(
                check.counter, check.starts, check.ends, check.amount, found.used, found.seen, found.seen_since_ms
            )
            is_known = await self._desk.seed(tag, seeding)
            if not is_known:
                log.warning("budget_not_seeded", limit=matched.limit.label, reason="the sum does not name enough")
        except (Unavailable, SQLAlchemyError, OSError, TimeoutError, StoreGone, ScriptError) as error:
            if isinstance(error, Unavailable):
                self._rests_until = asyncio.get_running_loop().time() + REST_S
            log.warning("budget_not_seeded", limit=matched.limit.label, reason=f"{type(error).__name__}: {error}")
            return False
        return is_known

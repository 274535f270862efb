"""Principals that were judged, kept for a little while so that the road needs no database.

Invariants:
- What a look-up said is fresh for 5 s from the moment the look-up *began*; then it is asked again. So a revocation is
  obeyed within 5 s of its commit.
- Concurrent misses of one credential share one look-up. It runs in a task of its own: a cancelled caller neither ends
  it nor takes it from the others.
- Where the database does not answer within 1 s, what was known is used for up to 10 minutes after its last look-up, and
  the database is tried once a second. A credential that was not known is then refused with `Unavailable`, never
  admitted.
- Both kinds of memory, of the admitted and of the refused, are bounded apart: a flood of wrong keys displaces no right
  one. So are the look-ups of unknown credentials and of known ones: a flood fills neither the database's pool nor the
  way of those that are known, and waiting for a turn is not taken for a database that is silent.

Credentials are kept as their SHA-256 alone. The least recently looked-up is displaced first.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import Enum
from typing import TypeVar

from tidegate.auth.principal import Principal
from tidegate.errors import AuthenticationError, Unavailable
from tidegate.telemetry.logging import get_logger

log = get_logger(__name__)

Judge = Callable[[], Awaitable[Principal]]


@dataclass(frozen=True, slots=True)
class CacheBounds:
    """How much is kept, and for how long (seconds)."""

    entries: int = 10_000
    fresh_s: float = 5.0
    stale_s: float = 600.0
    refused_s: float = 1.0
    answer_s: float = 1.0
    retry_s: float = 1.0
    # Look-ups under way at once, apart: a worker's pool of the database is 10 connections at most.
    unknown_at_once: int = 4
    known_at_once: int = 4
    # Unknown ones that wait for their turn, and for how long. Of known ones no more wait than are kept.
    unknown_waiting: int = 1_000
    turn_s: float = 5.0


class _Admitted:
    __slots__ = ("fresh_until", "principal", "stale_until")

    def __init__(self, principal: Principal, fresh_until: float, stale_until: float) -> None:
        self.principal = principal
        self.fresh_until = fresh_until
        self.stale_until = stale_until


@dataclass(frozen=True, slots=True)
class _Refused:
    # The class and the text, not the exception: one raised twice would gather tracebacks.
    error: type[AuthenticationError]
    message: str
    until: float


class _Silence(Enum):
    """Why nothing is known of a credential, in the caller's words."""

    NO_ANSWER = "The database did not answer, so these credentials cannot be checked: try again in a few seconds."
    CROWDED = "So many unknown credentials are being checked that these cannot be: try again in a few seconds."


_Kept = TypeVar("_Kept")
_Verdict = Principal | _Refused | _Silence


class _Flight:
    """One look-up. `turn` is done once it has its turn, and asks."""

    __slots__ = ("task", "turn")

    def __init__(self, task: asyncio.Task[_Verdict], turn: asyncio.Future[None]) -> None:
        self.task = task
        self.turn = turn


class PrincipalCache:
    """Remembers what a judge said of a credential. `look_ups` and `stale_uses` count for metrics and tests."""

    def __init__(self, bounds: CacheBounds, clock: Callable[[], float] = time.monotonic) -> None:
        self.look_ups = 0
        self.stale_uses = 0
        self._bounds = bounds
        self._clock = clock
        self._admitted: dict[bytes, _Admitted] = {}
        self._refused: dict[bytes, _Refused] = {}
        self._flights: dict[bytes, _Flight] = {}
        self._unknown_lane = asyncio.Semaphore(bounds.unknown_at_once)
        self._known_lane = asyncio.Semaphore(bounds.known_at_once)
        self._unknown_waiting = 0
        self._database_answers = True
        self._retry_at = 0.0

    def fresh(self, digest: bytes) -> Principal | None:
        """What is known and fresh, without waiting. This is the hot road."""
        admitted = self._admitted.get(digest)
        if admitted is not None and self._clock() < admitted.fresh_until:
            return admitted.principal
        return None

    async def resolve(self, digest: bytes, judge: Judge) -> Principal:
        """What is known, else what `judge` says: its principal, or the `AuthenticationError` that it raises.

        Raises `Unavailable` where the judge does not answer, or too many are asked of, and nothing is known.
        """
        now = self._clock()
        refused = self._refused.get(digest)
        if refused is not None and now < refused.until:
            raise refused.error(refused.message)
        if not self._database_answers:
            if now < self._retry_at and (stale := self._stale(digest)) is not None:
                return stale
            # This caller tries; until it knows, the others go on with what they have.
            self._retry_at = now + self._bounds.answer_s + self._bounds.retry_s
        verdict = await self._fly(digest, judge)
        if isinstance(verdict, Principal):
            return verdict
        if isinstance(verdict, _Refused):
            raise verdict.error(verdict.message)
        stale = self._stale(digest)
        if stale is None:
            raise Unavailable(verdict.value, headers={"Retry-After": "1"})
        return stale

    async def aclose(self) -> None:
        """Ends the look-ups under way, before the database is closed."""
        flights = [flight.task for flight in self._flights.values()]
        for flight in flights:
            flight.cancel()
        await asyncio.gather(*flights, return_exceptions=True)

    async def _fly(self, digest: bytes, judge: Judge) -> _Verdict:
        flight = self._flights.get(digest)
        if flight is None:
            is_known = digest in self._admitted
            if not is_known and self._unknown_lane.locked():
                if not self._database_answers:
                    return _Silence.NO_ANSWER
                if self._unknown_waiting >= self._bounds.unknown_waiting:
                    return _Silence.CROWDED
            turn = asyncio.get_running_loop().create_future()
            flight = _Flight(asyncio.create_task(self._look_up_in_turn(digest, judge, turn, is_known=is_known)), turn)
            self._flights[digest] = flight
        if not flight.turn.done():
            either: set[asyncio.Task[_Verdict] | asyncio.Future[None]] = {flight.task, flight.turn}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        # The deadline stands here too: a driver may take its time to give up a connection that is dead.
        done, _ = await asyncio.wait({flight.task}, timeout=self._bounds.answer_s)
        if not done:
            self._note_silence(TimeoutError())
        return flight.task.result() if done and not flight.task.cancelled() else _Silence.NO_ANSWER

    async def _look_up_in_turn(
        self, digest: bytes, judge: Judge, turn: asyncio.Future[None], *, is_known: bool
    ) -> _Verdict:
        lane = self._known_lane if is_known else self._unknown_lane
        self._unknown_waiting += not is_known
        try:
            try:
                async with asyncio.timeout(self._bounds.turn_s):
                    await lane.acquire()
            except TimeoutError:
                return _Silence.CROWDED
            finally:
                self._unknown_waiting -= not is_known
            turn.set_result(None)
            try:
                return await self._look_up(digest, judge)
            finally:
                lane.release()
        finally:
            self._flights.pop(digest, None)

    async def _look_up(self, digest: bytes, judge: Judge) -> _Verdict:
        self.look_ups += 1
        began = self._clock()
        verdict: _Verdict
        try:
            async with asyncio.timeout(self._bounds.answer_s):
                principal = await judge()
        except AuthenticationError as error:
            verdict = _Refused(type(error), error.message, began + self._bounds.refused_s)
            self._admitted.pop(digest, None)
            _remember(self._refused, digest, verdict, self._bounds.entries)
        # The edge to the database: whatever it and its driver raise means that nothing is known of the credential.
        except Exception as error:  # noqa: BLE001 - drivers raise more than SQLAlchemy's own tree
            self._note_silence(error)
            return _Silence.NO_ANSWER
        else:
            admitted = _Admitted(principal, began + self._bounds.fresh_s, began + self._bounds.stale_s)
            self._refused.pop(digest, None)
            _remember(self._admitted, digest, admitted, self._bounds.entries)
            verdict = principal
        self._note_answer()
        return verdict

    def _stale(self, digest: bytes) -> Principal | None:
        admitted = self._admitted.get(digest)
        if admitted is None:
            return None
        if self._clock() >= admitted.stale_until:
            del self._admitted[digest]
            return None
        self.stale_uses += 1
        return admitted.principal

    def _note_silence(self, error: Exception) -> None:
        self._retry_at = self._clock() + self._bounds.retry_s
        if self._database_answers:
            self._database_answers = False
            log.warning(
                "the database does not answer for credentials: known callers go on by memory",
                error=type(error).__name__,
                for_at_most_s=self._bounds.stale_s,
            )

    def _note_answer(self) -> None:
        if not self._database_answers:
            self._database_answers = True
            log.warning("the database answers for credentials again", stale_uses=self.stale_uses)


def _remember(memory: dict[bytes, _Kept], digest: bytes, kept: _Kept, bound: int) -> None:
    memory.pop(digest, None)
    memory[digest] = kept
    if len(memory) > bound:
        del memory[next(iter(memory))]

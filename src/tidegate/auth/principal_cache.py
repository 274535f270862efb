"""Principals that were judged, kept for a little while so that the road needs no database.

Invariants:
- What a look-up said is unchanged for certain when the look-up *began*, and up to where `Vouching` vouches for it: the
  last moment before which this process heard of every change. It is fresh for 1 s past that moment, and for 30 s from
  its look-up at most; then it is asked again. So while changes are heard a look-up serves 30 s, and while they are not,
  1 s; and a revocation is obeyed within 1 s of its commit, or of its being told where that comes later.
- It is asked again before it ceases to be fresh, from 24 s and 0.5 s on: by one look-up in the background, for which no
  caller waits.
- What was told to have changed is asked again before it is used again, also with the database silent. A look-up that
  was under way when it was told asks again too: nothing that was read before is handed out after.
- Concurrent misses of one credential share one look-up. It runs in a task of its own: a cancelled caller neither ends
  it nor takes it from the others.
- Where the database does not answer within 1 s, what was known is used for up to 10 minutes after its last look-up, and
  the database is tried once a second. A credential that was not known is then refused with `Unavailable`, never
  admitted.
- Both kinds of memory, of the admitted and of the refused, are bounded apart: a flood of wrong keys displaces no right
  one. So are the look-ups of unknown credentials and of known ones: a flood fills neither the database's pool nor the
  way of those that are known, and waiting for a turn is not taken for a database that is silent.

Credentials are kept as their SHA-256 alone. The least recently looked-up is displaced first. A refusal is remembered
for 1 s, whatever is told: that is how long a key that was just admitted again may still be refused.
"""

import asyncio
import math
import time
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import Enum
from typing import Protocol, TypeVar

from tidegate.auth.principal import Principal
from tidegate.errors import AuthenticationError, Unavailable
from tidegate.telemetry.logging import get_logger

log = get_logger(__name__)

Judge = Callable[[], Awaitable[Principal]]


class Vouching(Protocol):
    """Up to when it is certain that something has not changed: `storage.changes.Changes`."""

    def vouched_until(self, read_at: float) -> float:
        """The last moment at which what was read at `read_at` had not changed, as far as was told."""
        ...


class NothingHeard:
    """Hears of no change, and so vouches for nothing past its reading."""

    def vouched_until(self, read_at: float) -> float:
        return read_at


@dataclass(frozen=True, slots=True)
class CacheBounds:
    """How much is kept, and for how long (seconds)."""

    entries: int = 10_000
    # From its look-up, while changes are heard; and past the last moment before which every change was heard of.
    fresh_s: float = 30.0
    unvouched_s: float = 1.0
    # When it is asked of again in the background: before each of those two ends.
    early_s: float = 24.0
    unvouched_early_s: float = 0.5
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
    """`due_at` and `fresh_until` follow from what was vouched for when they were last worked out, and only grow."""

    __slots__ = ("due_at", "fresh_until", "ids", "is_changed", "principal", "read_at")

    def __init__(self, principal: Principal, read_at: float) -> None:
        self.principal = principal
        self.read_at = read_at
        self.due_at = self.fresh_until = read_at
        # Kept all the same: it is known, so its next look-up does not queue behind a flood of unknown ones.
        self.is_changed = False
        # As numbers, which are compared in a tenth of the time.
        self.ids = tuple(each.int for each in (principal.key_id, principal.user_id) if each is not None)


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
    """One look-up. `turn` is done once it has its turn, and asks. `overtaken_by` is what changed since it asked."""

    __slots__ = ("asked_at", "overtaken_by", "task", "turn")

    task: asyncio.Task[_Verdict]

    def __init__(self) -> None:
        self.turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.overtaken_by: set[uuid.UUID] = set()
        self.asked_at = 0.0


class PrincipalCache:
    """Remembers what a judge said of a credential. `look_ups` and `stale_uses` count for metrics and tests."""

    def __init__(
        self, bounds: CacheBounds, clock: Callable[[], float] = time.monotonic, vouching: Vouching | None = None
    ) -> None:
        self.look_ups = 0
        self.stale_uses = 0
        self._bounds = bounds
        self._clock = clock
        self._vouching = vouching or NothingHeard()
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
        if admitted is None:
            return None
        now = self._clock()
        if now >= admitted.fresh_until:
            self._vouch(admitted)
        return admitted.principal if now < admitted.fresh_until else None

    def is_due(self, digest: bytes) -> bool:
        """Whether what is known should be asked again now, before it ceases to be fresh. It is not while it is."""
        admitted = self._admitted.get(digest)
        if admitted is None:
            return False
        now = self._clock()
        if now >= admitted.due_at:
            self._vouch(admitted)
        if now < admitted.due_at or digest in self._flights:
            return False
        return self._database_answers or now >= self._retry_at

    def refresh(self, digest: bytes, judge: Judge) -> None:
        """Asks again in the background."""
        if digest in self._flights:
            return
        if not self._database_answers:
            self._retry_at = self._clock() + self._bounds.answer_s + self._bounds.retry_s
        self._begin(digest, judge)

    def forget(self, changed: uuid.UUID) -> None:
        """The key or the user with this id changed: what was read of them before is handed out no more."""
        # A millisecond for 10,000. Keys and users change seldom; an index would cost every look-up.
        number = changed.int
        for admitted in self._admitted.values():
            if number in admitted.ids:
                admitted.is_changed = True
                admitted.due_at = admitted.fresh_until = -math.inf
        for flight in self._flights.values():
            flight.overtaken_by.add(changed)

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
            flight = self._begin(digest, judge)
        if not flight.turn.done():
            either: set[asyncio.Task[_Verdict] | asyncio.Future[None]] = {flight.task, flight.turn}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        # The deadline stands here too: a driver may take its time to give up a connection that is dead.
        done, _ = await asyncio.wait({flight.task}, timeout=self._bounds.answer_s)
        if not done:
            self._note_silence(TimeoutError())
        return flight.task.result() if done and not flight.task.cancelled() else _Silence.NO_ANSWER

    def _begin(self, digest: bytes, judge: Judge) -> _Flight:
        flight = _Flight()
        flight.task = asyncio.create_task(self._look_up_in_turn(digest, judge, flight))
        self._flights[digest] = flight
        return flight

    async def _look_up_in_turn(self, digest: bytes, judge: Judge, flight: _Flight) -> _Verdict:
        is_known = digest in self._admitted
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
            flight.turn.set_result(None)
            try:
                return await self._look_up(digest, judge, flight)
            finally:
                lane.release()
        finally:
            self._flights.pop(digest, None)

    async def _look_up(self, digest: bytes, judge: Judge, flight: _Flight) -> _Verdict:
        verdict: _Verdict
        try:
            async with asyncio.timeout(self._bounds.answer_s):
                admitted = await self._ask(judge, flight)
        except AuthenticationError as error:
            verdict = _Refused(type(error), error.message, flight.asked_at + self._bounds.refused_s)
            self._admitted.pop(digest, None)
            _remember(self._refused, digest, verdict, self._bounds.entries)
        # The edge to the database: whatever it and its driver raise means that nothing is known of the credential.
        except Exception as error:  # noqa: BLE001 - drivers raise more than SQLAlchemy's own tree
            self._note_silence(error)
            return _Silence.NO_ANSWER
        else:
            self._refused.pop(digest, None)
            _remember(self._admitted, digest, admitted, self._bounds.entries)
            verdict = admitted.principal
        self._note_answer()
        return verdict

    async def _ask(self, judge: Judge, flight: _Flight) -> _Admitted:
        while True:
            flight.overtaken_by.clear()
            self.look_ups += 1
            flight.asked_at = self._clock()
            principal = await judge()
            if flight.overtaken_by.isdisjoint((principal.key_id, principal.user_id)):
                return _Admitted(principal, flight.asked_at)

    def _vouch(self, admitted: _Admitted) -> None:
        if admitted.is_changed:
            return
        bounds, read_at = self._bounds, admitted.read_at
        until = self._vouching.vouched_until(read_at)
        admitted.due_at = max(admitted.due_at, min(read_at + bounds.early_s, until + bounds.unvouched_early_s))
        admitted.fresh_until = max(admitted.fresh_until, min(read_at + bounds.fresh_s, until + bounds.unvouched_s))

    def _stale(self, digest: bytes) -> Principal | None:
        admitted = self._admitted.get(digest)
        if admitted is None or admitted.is_changed:
            return None
        if self._clock() >= admitted.read_at + self._bounds.stale_s:
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

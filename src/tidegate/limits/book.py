"""The limits of each workspace, compiled for the road and remembered in this process.

Invariants:
- What was read is used for `fresh_s` from the moment its reading *began*. A workspace that is in use is read again in
  the background before that, so that its requests never wait; one that was idle waits for one reading, shared by all
  who ask.
- What was forgotten is read again before it is used again. A reading that began earlier is not remembered.
- A key is made together with its limits. A key that may be younger than what was read makes it be read again, so a new
  key is never without its limits.
- Where the database does not answer within a second, the last that was read is used for up to 10 minutes, and the
  database is tried once a second. A workspace of which nothing is known is then refused with `Unavailable`.
- Memory is bounded: the workspace that was read longest ago is displaced first.
"""

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from tidegate.accounts.models import DEFAULT_WORKSPACE_ID
from tidegate.errors import Unavailable
from tidegate.limits.matching import WorkspaceLimits
from tidegate.telemetry.logging import get_logger

log = get_logger(__name__)

# A key's id tells when it was made, by the clock of whoever made it, before its transaction was committed.
_KEY_MARGIN_S: Final = 10.0
_MOST_YOUNG_KEYS: Final = 1_000
_NOT_KNOWN: Final = (
    "The database did not answer, so the limits of this workspace are not known: try again in a few seconds."
)

Read = Callable[[uuid.UUID], Awaitable[WorkspaceLimits]]
"""Reads a workspace's limits, those that apply to every workspace included: `LimitReader`."""


@dataclass(frozen=True, slots=True)
class BookBounds:
    """How much is remembered, and for how long (seconds)."""

    workspaces: int = 10_000
    fresh_s: float = 5.0
    # From which part of `fresh_s` on it is read again in the background.
    early: float = 0.6
    stale_s: float = 600.0
    answer_s: float = 1.0
    retry_s: float = 1.0
    # Readings under way at once: a worker's pool of the database is 10 connections at most.
    at_once: int = 4
    turn_s: float = 5.0


@dataclass(slots=True)
class _Reading:
    """What one reading covers: keys made before `covers_ms` (Unix milliseconds), and the younger ones it was for."""

    covers_ms: int
    young_keys: frozenset[uuid.UUID]

    def covers(self, key_id: uuid.UUID | None) -> bool:
        # The first 48 bits of a UUIDv7 are when it was made (RFC 9562, 5.7).
        return key_id is None or key_id.int >> 80 < self.covers_ms or key_id in self.young_keys


@dataclass(slots=True)
class _Kept:
    limits: WorkspaceLimits
    reading: _Reading
    early_at: float
    fresh_until: float
    stale_until: float


@dataclass(slots=True)
class _Flight:
    """A reading under way. `turn` is done once it has its turn, and asks."""

    reading: _Reading
    turn: asyncio.Future[None]
    task: asyncio.Task[WorkspaceLimits | None] | None = None


class LimitBook:
    """The limits of every workspace that calls. `readings` and `stale_uses` count for metrics and tests.

    >>> book = LimitBook(LimitReader(database))
    >>> (await book.of(principal.workspace_id, key_id=principal.key_id)).caller(principal, attribution, "gpt-4.1", ())
    >>> await book.aclose()  # before the database is
    """

    def __init__(
        self,
        read: Read,
        bounds: BookBounds | None = None,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.readings = 0
        self.stale_uses = 0
        self._read = read
        self._bounds = bounds or BookBounds()
        self._monotonic = monotonic
        self._clock = clock
        self._kept: dict[uuid.UUID, _Kept] = {}
        self._flights: dict[uuid.UUID, _Flight] = {}
        self._tasks: set[asyncio.Task[WorkspaceLimits | None]] = set()
        self._lane = asyncio.Semaphore(self._bounds.at_once)
        self._database_answers = True
        self._retry_at = 0.0

    async def of(self, workspace_id: uuid.UUID, *, key_id: uuid.UUID | None = None) -> WorkspaceLimits:
        """A workspace's limits; without any wait while they are fresh. `key_id` is the key that calls.

        Raises `Unavailable` where the database does not answer and nothing is known.
        """
        if (known := self.known(workspace_id, key_id)) is not None:
            return known
        now = self._monotonic()
        if not self._database_answers:
            if not self._may_try(now) and (stale := self._stale(workspace_id, now)) is not None:
                return stale
            # This caller tries; until it knows, the others go on with what they have.
            self._retry_at = now + self._bounds.answer_s + self._bounds.retry_s
        flight = self._flights.get(workspace_id)
        if flight is None or not flight.reading.covers(key_id):
            flight = self._fly(workspace_id, key_id)
        limits = await self._landed(flight) or self._stale(workspace_id, self._monotonic())
        if limits is None:
            raise Unavailable(_NOT_KNOWN, headers={"Retry-After": "1"})
        return limits

    def known(self, workspace_id: uuid.UUID, key_id: uuid.UUID | None) -> WorkspaceLimits | None:
        """`of`, at once, while they are fresh; None where they have to be read."""
        kept = self._kept.get(workspace_id)
        now = self._monotonic()
        if kept is None or now >= kept.fresh_until or not kept.reading.covers(key_id):
            return None
        if now >= kept.early_at and workspace_id not in self._flights and self._may_try(now):
            self._fly(workspace_id, None)
        return kept.limits

    def forget(self, workspace_id: uuid.UUID | None) -> None:
        """The limits of this workspace, or of any (None), changed: they are read before they are used again.

        Those of `default` hold what applies to all, so it stands for all.
        """
        if workspace_id is None or workspace_id == DEFAULT_WORKSPACE_ID:
            for kept in self._kept.values():
                kept.fresh_until = 0.0
            self._flights.clear()
        else:
            if workspace_id in self._kept:
                self._kept[workspace_id].fresh_until = 0.0
            # It may have read what was there before. Who waits for it asked before the change was told.
            self._flights.pop(workspace_id, None)

    async def aclose(self) -> None:
        """Ends the readings under way. To be called before the database is closed."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _may_try(self, now: float) -> bool:
        return self._database_answers or now >= self._retry_at

    def _stale(self, workspace_id: uuid.UUID, now: float) -> WorkspaceLimits | None:
        kept = self._kept.get(workspace_id)
        if kept is None:
            return None
        if now >= kept.stale_until:
            del self._kept[workspace_id]
            return None
        self.stale_uses += 1
        return kept.limits

    def _fly(self, workspace_id: uuid.UUID, key_id: uuid.UUID | None) -> _Flight:
        covers_ms = round((self._clock() - _KEY_MARGIN_S) * 1000)
        kept = self._kept.get(workspace_id)
        young = () if kept is None else (key for key in kept.reading.young_keys if key.int >> 80 >= covers_ms)
        keys = frozenset([*young][-_MOST_YOUNG_KEYS:] + ([] if key_id is None else [key_id]))
        flight = _Flight(_Reading(covers_ms, keys), asyncio.get_running_loop().create_future())
        self._flights[workspace_id] = flight
        task = asyncio.create_task(self._read_in_turn(workspace_id, flight))
        flight.task = task
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return flight

    async def _landed(self, flight: _Flight) -> WorkspaceLimits | None:
        """What a flight brings; None where the database does not answer."""
        task = flight.task
        assert task is not None
        if not flight.turn.done():
            either: set[asyncio.Task[WorkspaceLimits | None] | asyncio.Future[None]] = {task, flight.turn}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        # The deadline stands here too: a driver may take its time to give up a connection that is dead.
        done, _ = await asyncio.wait({task}, timeout=self._bounds.answer_s)
        if not done:
            self._note_silence(TimeoutError())
        return task.result() if done and not task.cancelled() else None

    async def _read_in_turn(self, workspace_id: uuid.UUID, flight: _Flight) -> WorkspaceLimits | None:
        try:
            waits = self._lane.locked()
            try:
                async with asyncio.timeout(self._bounds.turn_s):
                    await self._lane.acquire()
            except TimeoutError:
                return None
            try:
                if waits and not self._database_answers:
                    return None
                flight.turn.set_result(None)
                return await self._ask(workspace_id, flight)
            finally:
                self._lane.release()
        finally:
            if self._flights.get(workspace_id) is flight:
                del self._flights[workspace_id]

    async def _ask(self, workspace_id: uuid.UUID, flight: _Flight) -> WorkspaceLimits | None:
        self.readings += 1
        bounds, began = self._bounds, self._monotonic()
        try:
            async with asyncio.timeout(bounds.answer_s):
                limits = await self._read(workspace_id)
        # The edge to the database: whatever it and its driver raise means that nothing was read.
        except Exception as error:  # noqa: BLE001 - drivers raise more than SQLAlchemy's own tree
            self._note_silence(error)
            return None
        self._note_answer()
        if self._flights.get(workspace_id) is flight:
            early_at = began + bounds.fresh_s * bounds.early
            self._kept.pop(workspace_id, None)
            self._kept[workspace_id] = _Kept(
                limits, flight.reading, early_at, began + bounds.fresh_s, began + bounds.stale_s
            )
            if len(self._kept) > bounds.workspaces:
                del self._kept[next(iter(self._kept))]
        return limits

    def _note_silence(self, error: Exception) -> None:
        self._retry_at = self._monotonic() + self._bounds.retry_s
        if self._database_answers:
            self._database_answers = False
            log.warning(
                "the database does not answer for limits: those last read hold",
                error=type(error).__name__,
                for_at_most_s=self._bounds.stale_s,
            )

    def _note_answer(self) -> None:
        if not self._database_answers:
            self._database_answers = True
            log.warning("the database answers for limits again", stale_uses=self.stale_uses)

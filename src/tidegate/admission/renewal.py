"""What keeps a worker's holds alive, and brings the shared store back: one task a worker.

Every 5 s each tag that this worker holds something in is attended to, by pipelined calls in one turn: the cost grows
with tags, not with streams. Where the store's record is not this worker's, it is declared anew. While somebody waits
here, their tags are attended every second: a grant whose message was lost is found, and one that nobody claimed goes
on. While the store is away it is tried every half second.
Of a cluster, what falls on a node that is away is left as it is until that is back, and who waits there waits here.
How many workers there are is counted every second.
"""

import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress

from sqlalchemy.exc import SQLAlchemyError

from tidegate.admission.desk import ANSWER_WITHIN_S as ANSWER_STEPS_WITHIN_S
from tidegate.admission.desk import Desk
from tidegate.admission.epoch import Epoch, looked_at
from tidegate.admission.holding import Turn
from tidegate.admission.patience import Patience
from tidegate.admission.store import RENEW_EVERY_S, Presence
from tidegate.errors import Unavailable
from tidegate.storage.pipe import Pipe
from tidegate.storage.pipeline import NodeGone, ScriptError, StoreGone
from tidegate.storage.redis import DEPLOYMENT_TAG, key
from tidegate.telemetry.logging import get_logger

WAITING_EVERY_S = 1.0
AWAY_EVERY_S = 0.5
ANSWER_WITHIN_S = 1.0
_WORKER_LEASE_S = 15

log = get_logger(__name__)


class Renewal:
    """Attends to a desk's tags. `run` is a task of the lifespan's; it never ends by itself."""

    def __init__(self, desk: Desk, pipe: Pipe | None = None, epoch: Epoch | None = None, *, prefix: str = "") -> None:
        self._desk = desk
        self._pipe = pipe
        self._epoch = epoch
        self._workers_key = key(prefix, DEPLOYMENT_TAG, "workers") if pipe is not None else ""
        self._renewed_at = self._counted_at = float("-inf")
        self._misses_epoch = False
        self._lives = 0
        self._wake = asyncio.Event()

    def wake(self) -> None:
        """The shared store may be back, or may have lost its memory: look now."""
        self._renewed_at = float("-inf")
        self._wake.set()

    async def begin(self) -> None:
        """What the first request needs: how many workers there are, and which life the store is in."""
        try:
            await self._count_workers()
            await self._look_at_epoch()
        except (StoreGone, ScriptError, TimeoutError) as error:
            self._desk.failed(error)

    async def run(self) -> None:
        while True:
            try:
                await self.step()
            except (StoreGone, ScriptError, TimeoutError) as error:
                self._desk.failed(error)
            except Exception:
                # An edge: whatever it was, leases must be renewed again in a moment.
                log.exception("gate_renewal_failed")
            pause_s = AWAY_EVERY_S if self._desk.is_away else WAITING_EVERY_S
            try:
                async with asyncio.timeout(pause_s):
                    await self._wake.wait()
            except TimeoutError:
                continue
            self._wake.clear()

    async def step(self) -> None:
        """One look. Raises what the shared store raises."""
        desk = self._desk
        if desk.is_away:
            if self._pipe is None or not self._pipe.is_connected:
                return
            # As quick as a step has to be: a store that is still slow would be left again at once.
            with Patience(ANSWER_STEPS_WITHIN_S):
                await self._count_workers()
            await desk.come_back()
            self._renewed_at = float("-inf")
        await self._look_at_epoch()
        is_due = time.monotonic() - self._renewed_at >= RENEW_EVERY_S
        tags = [tag for tag, entries in desk.holdings.items() if is_due or any(h.is_waiting for h in entries.values())]
        if self._pipe is not None:
            await self._count_workers()
        elif is_due and DEPLOYMENT_TAG not in tags:
            # What is counted there and never held (tries to sign in) is forgotten by looking; Redis does so by itself.
            tags.append(DEPLOYMENT_TAG)
        async with asyncio.timeout(ANSWER_WITHIN_S):
            await asyncio.gather(*(self._attend(tag) for tag in tags))
            for tag in list(desk.ended):
                # What the store may not have heard, though it was never away.
                with suppress(NodeGone):
                    await desk.declare(tag)
        if is_due:
            self._renewed_at = time.monotonic()

    async def _attend(self, tag: str) -> None:
        desk = self._desk
        entries = desk.holdings.get(tag, {})
        store = desk.shared or desk.local
        waiting = [entry for entry, holding in entries.items() if holding.is_waiting and holding.where is store]
        elsewhere = [holding for holding in entries.values() if holding.is_waiting and holding.where is not store]
        pending = sum(holding.is_pending for holding in entries.values())
        # Those that wait elsewhere come back to this queue. Who was judged elsewhere and goes on is to be known here.
        held = len(entries) - pending - len(elsewhere)
        for holding in elsewhere:
            holding.lose()
        try:
            presence = await store.attend(tag, desk.worker, tuple(waiting))
        except NodeGone:
            for entry in waiting:
                entries[entry].lose()
            return
        self._tell(tag, waiting, presence)
        if desk.shared is not None and not held <= presence.entries <= held + pending:
            log.warning("gate_declared_anew", tag=tag, known=presence.entries, held=held)
            await desk.declare(tag)

    def _tell(self, tag: str, waiting: Sequence[str], presence: Presence) -> None:
        turns: dict[str, Turn] = {"held": "held", "granted": "granted", "none": "lost"}
        for entry, state in zip(waiting, presence.waiting, strict=True):
            if state in turns:
                self._desk.granted(self._desk.worker, tag, entry, turns[state])

    async def _look_at_epoch(self) -> None:
        if self._epoch is None:
            return
        try:
            async with asyncio.timeout(ANSWER_WITHIN_S):
                await self._epoch.look()
            if self._epoch.lives != self._lives:
                self._lives = self._epoch.lives
                # It may have lost what this worker holds: look at all of it, now.
                self._renewed_at = float("-inf")
            self._misses_epoch = False
        except (Unavailable, SQLAlchemyError, OSError, TimeoutError, NodeGone) as error:
            # Until it is known, no budget is seeded.
            if not self._misses_epoch:
                log.warning("gate_epoch_unknown", reason=f"{type(error).__name__}: {error}")
            self._misses_epoch = True

    async def _count_workers(self) -> None:
        """Says that this worker lives, and learns how many do."""
        assert self._pipe is not None
        now = int(time.time())
        async with asyncio.timeout(ANSWER_WITHIN_S):
            self._pipe.send("ZADD", self._workers_key, now, self._desk.worker).add_done_callback(looked_at)
            gone = self._pipe.send("ZREMRANGEBYSCORE", self._workers_key, "-inf", now - _WORKER_LEASE_S)
            gone.add_done_callback(looked_at)
            try:
                counted: int = await self._pipe.send("ZCARD", self._workers_key)
            except NodeGone:
                # As many as were last seen.
                return
        # A store that forgot them knows of fewer than there are, until each was here.
        is_stale = time.monotonic() - self._counted_at > _WORKER_LEASE_S
        if counted >= self._desk.workers or is_stale:
            self._counted_at = time.monotonic()
            self._desk.workers = max(1, counted)

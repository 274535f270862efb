"""One worker's side of the gate: what it holds in which tag, who waits here, and which store is asked.

The shared store is asked while it answers; while it is away this worker judges alone (`alone.py`). What is held is
known here, and is declared to the shared store when it comes back: so nothing is lost with a store, and nothing is
counted twice. Every entry that is taken is released by `release`, once, which neither waits nor raises.
"""

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress

import msgspec

from tidegate.admission.alone import Alone, LocalStore, Mode, Remainders
from tidegate.admission.holding import Ended, Ends, Holding, Holdings, Turn, topped_up
from tidegate.admission.memory_store import Alerted
from tidegate.admission.patience import Patience
from tidegate.admission.redis_store import RedisStore
from tidegate.admission.store import UNDO, Asked, Check, GateStore, Held, Reply, Seeding, Spent, whole
from tidegate.storage.pipeline import NodeGone, ScriptError, StoreGone
from tidegate.telemetry.logging import get_logger

ANSWER_WITHIN_S = 0.05
DECLARE_WITHIN_S = 1.0
FAILURES_TO_LEAVE = 3
_SILENCE = (StoreGone, ScriptError, TimeoutError)

log = get_logger(__name__)


class Desk:
    """What one worker holds at the gate.

    `workers` is how many were last seen; `judged_alone` counts steps that the shared store did not judge. `on_change`
    hears that the shared store is away (True) or back (False).
    """

    def __init__(
        self,
        worker: str,
        mode: Mode = "local",
        *,
        on_change: Callable[[bool], None] = lambda _: None,
        alerted: Alerted = lambda *_: None,
    ) -> None:
        self.worker = worker
        self.shared: RedisStore | None = None
        self.workers = 1
        self.judged_alone = 0
        self.answer_within_s = ANSWER_WITHIN_S
        self.holdings = Holdings()
        self._ends = Ends()
        self._mode = mode
        self._on_change = on_change
        self._alerted = alerted
        self._remainders = Remainders()
        self._local = self._new_local()
        self._away: Alone | None = None
        self._failures = 0

    @property
    def is_away(self) -> bool:
        """Whether there is a shared store, and it does not answer."""
        return self._away is not None

    @property
    def ended(self) -> dict[str, dict[str, Ended]]:
        """What the shared store is still to be told of, by tag and entry."""
        return self._ends.by_tag

    @property
    def forgotten_ends(self) -> int:
        """How many ends it will never be told of."""
        return self._ends.forgotten

    @property
    def local(self) -> LocalStore:
        return self._local

    async def take(self, tag: str, asked: Asked, unjudged: tuple[int, ...] = ()) -> Reply:
        """One step into a tag; `unjudged` are checks (by place) that the shared store is known not to know.

        Raises `Unavailable` where no store can judge and the mode denies.
        """
        if self.shared is None:
            return self.take_here(tag, asked)
        holding = Holding(asked)
        self.holdings.hold(tag, asked.entry, holding)
        try:
            reply = await self._judged(self.shared, tag, holding, unjudged)
        except BaseException:
            self.holdings.forget(tag, asked.entry)
            self._give_back(self.shared, tag, asked.entry, holding, UNDO)
            raise
        holding.is_pending = False
        if reply.said != "taken":
            self.holdings.forget(tag, asked.entry)
            self._give_back_apart(tag, holding)
        elif reply.seat not in ("queued", "granted"):
            holding.turn = None
        elif holding.turn is None:
            holding.turn = asyncio.get_running_loop().create_future()
        return reply

    def take_here(self, tag: str, asked: Asked) -> Reply:
        """`take` where no store is shared: this process's own answers at once."""
        entry = asked.entry
        try:
            reply = self._local.taken(tag, self.worker, asked)
        except BaseException:
            self._local.release(tag, self.worker, entry, UNDO)
            raise
        if reply.said == "taken":
            turn = asyncio.get_running_loop().create_future() if reply.seat == "queued" else None
            self.holdings.hold(tag, entry, Holding(asked, self._local, is_pending=False, turn=turn))
        return reply

    def release(self, tag: str, entry: str, spent: Spent) -> None:
        """Gives an entry back, whoever judged it. Twice is once."""
        holding = self.holdings.forget(tag, entry)
        if holding is None:
            return
        if self.shared is None:
            self._local.released(tag, self.worker, entry, spent)
        else:
            self._give_back(self.shared, tag, entry, holding, spent)

    def recover(self, tag: str, entry: str, spent: Spent, checks: tuple[Check, ...]) -> None:
        """Ends an entry of a dead worker, whoever held it; one that no store knows is counted by `checks`."""
        if self.shared is None:
            self._local.recover(tag, self.worker, entry, spent, checks)
        elif self._away is None:
            self.shared.recover(tag, self.worker, entry, spent, checks)
        else:
            self._ends.note(tag, entry, Ended(spent, checks))

    async def top_up(self, tag: str, entry: str, more: Spent) -> Reply | None:
        """Reserves more for an entry. None where no store can say."""
        holding = self.holdings.of(tag, entry)
        if holding is None or holding.where is None:
            return None
        try:
            with Patience(self.answer_within_s):
                reply = await holding.where.top_up(tag, self.worker, entry, more)
            if reply.said == "taken":
                # What is declared anew is all that it reserved.
                holding.asked = topped_up(whole(holding.asked), more)
            return holding.placed(reply)
        except _SILENCE as error:
            self.failed(error)
            return None

    async def turn(self, tag: str, entry: str) -> Turn:
        """Waits until a queued entry's slot is held, or its ticket is lost. Cancel it to stop, then release."""
        holding = self.holdings[tag][entry]
        if holding.turn is None:
            return "held"
        turn = await holding.turn
        if turn != "granted":
            holding.turn = None
            return turn
        is_ours = False
        try:
            with Patience(self.answer_within_s):
                is_ours = holding.where is not None and await holding.where.claim(tag, self.worker, entry)
        except _SILENCE as error:
            self.failed(error)
        holding.turn = None
        return "held" if is_ours else "lost"

    def granted(self, worker: str, tag: str, entry: str, turn: Turn = "held") -> None:
        """A slot of the shared store that came to one who waits here (or of this worker's own, where none is shared).

        What nobody waits for was released, and is given back by that.
        """
        self._turned(self.shared or self._local, worker, tag, entry, turn)

    def note_lost(self, tag: str, entry: str, spent: Spent, checks: tuple[Check, ...]) -> None:
        """A release that the shared store may not have heard: it is told again when that is asked anew."""
        if self.holdings.of(tag, entry) is None:
            self._ends.note(tag, entry, Ended(spent, checks))

    def standing(self, tag: str) -> tuple[int, int]:
        """How many entries hold what they asked for in a tag here, and how many wait for it."""
        holdings = [holding for holding in self.holdings.get(tag, {}).values() if not holding.is_pending]
        waiting = sum(holding.turn is not None and not holding.turn.done() for holding in holdings)
        leaving = sum(holding.turn is not None and holding.turn.cancelled() for holding in holdings)
        return len(holdings) - waiting - leaving, waiting

    async def seed(self, tag: str, seeding: Seeding) -> bool:
        """Raises `StoreGone`, `ScriptError` or `TimeoutError` where the store does not answer."""
        if self.shared is None:
            return await self._local.seed(tag, seeding)
        async with asyncio.timeout(DECLARE_WITHIN_S):
            return await self.shared.seed(tag, seeding)

    async def place(self, tag: str, entry: str) -> int:
        """The place in the queue, 0 where it is not known."""
        holding = self.holdings.of(tag, entry)
        if holding is None or holding.where is None:
            return 0
        try:
            with Patience(self.answer_within_s):
                return await holding.where.place(tag, self.worker, entry)
        except _SILENCE:
            return 0

    def failed(self, error: BaseException) -> None:
        """The shared store did not answer: it is left at once where it is gone, after some times where it is slow.

        It is not left for one node of a cluster: what falls on that is judged alone, step by step.
        """
        if isinstance(error, NodeGone):
            return
        self._failures += 1
        if isinstance(error, StoreGone) or self._failures >= FAILURES_TO_LEAVE:
            self.leave(f"{type(error).__name__}: {error}" if str(error) else type(error).__name__)

    def leave(self, reason: str) -> None:
        """Judges without the shared store from now on. Who waits there comes back here."""
        if self.shared is None or self._away is not None:
            return
        self._renew_local()
        self._away = Alone(self._local, self.worker, self._mode, self._remainders)
        for tag in self.holdings:
            # It is this process's memory: it never waits.
            _at_once(self._away.hold(tag, self._held(tag)))
        log.warning("limits_judged_alone", mode=self._mode, workers=self.workers, reason=reason)
        self._on_change(True)
        self._lose_tickets()

    async def come_back(self) -> None:
        """Declares to the shared store what is held, and tells it what ended. Raises what the store raises."""
        for tag in {*self.holdings, *self.ended}:
            with suppress(NodeGone):
                await self.declare(tag)
        if self._away is None:
            return
        # Nothing is awaited from here on: who comes next asks the shared store.
        away, self._away, self._failures = self._away, None, 0
        self._renew_local()
        log.warning("limits_judged_together", judged_alone=away.judged)
        self._on_change(False)
        self._lose_tickets()
        for tag, ended in list(self.ended.items()):
            # Those that ended while it was declared.
            self._tell_ended(tag, dict(ended))

    async def declare(self, tag: str) -> None:
        """Makes the shared store's record of this worker in a tag what it is here."""
        assert self.shared is not None
        holdings = self.holdings.get(tag, {})
        for entry in holdings:
            # It lost its ticket and took another: what it was is over, what it is counts.
            self.ended.get(tag, {}).pop(entry, None)
        ended = dict(self.ended.get(tag, {}))
        # Also who waits in that store, or was granted a slot there and claims it: that is between them and it.
        pending = [
            entry
            for entry, holding in holdings.items()
            if holding.is_pending or (self._away is None and holding.is_waiting and holding.where is self.shared)
        ]
        held = self._held(tag)
        async with asyncio.timeout(DECLARE_WITHIN_S):
            await self.shared.declare(tag, self.worker, held, (*pending, *ended))
        for one in held:
            holding = self.holdings.of(tag, one.entry)
            if holding is not None:
                # What was judged here is that store's to count now; it is not held twice.
                self._local.release(tag, self.worker, one.entry, UNDO)
                holding.where, holding.unjudged = self.shared, ()
                holding.asked = Asked(one.entry, one.checks, one.seat)
            elif (late := self.ended.get(tag, {}).get(one.entry)) is not None:
                # It ended while it was declared: the store knows of it now.
                self.ended[tag][one.entry] = Ended(late.spent, ())
        self._tell_ended(tag, ended)

    async def _judged(self, shared: RedisStore, tag: str, holding: Holding, unjudged: tuple[int, ...]) -> Reply:
        asked = holding.asked
        if self._away is None:
            if unjudged and (refusal := await self._judge_apart(tag, holding, unjudged)) is not None:
                return refusal
            holding.where = shared
            try:
                with Patience(self.answer_within_s):
                    reply = await shared.take(tag, self.worker, holding.asked)
            except _SILENCE as error:
                # It may have been taken all the same, and is not to be.
                shared.release(tag, self.worker, asked.entry, UNDO)
                self._give_back_apart(tag, holding)
                holding.asked, holding.turn = asked, None
                self.failed(error)
            else:
                self._failures = 0
                if reply.used:
                    self._remainders.note(holding.asked.checks, reply, self._local.money(tag))
                return holding.placed(reply)
        self.judged_alone += 1
        alone = self._away or self._alone()
        holding.where = self._local if self._mode == "local" else None
        return await alone.take(tag, whole(asked), self.workers)

    async def _judge_apart(self, tag: str, holding: Holding, unjudged: tuple[int, ...]) -> Reply | None:
        """Judges alone what the shared store does not know, and leaves it the rest. None where there is room."""
        self.judged_alone += 1
        asked = whole(holding.asked)
        checks = asked.checks
        apart = tuple(checks[at] for at in unjudged)
        reply = await self._alone().take(tag, Asked(asked.entry, apart), self.workers)
        if reply.said != "taken":
            return msgspec.structs.replace(reply, at=unjudged[reply.at] if reply.at >= 0 else -1, used=())
        rest = tuple(at for at in range(len(checks)) if at not in unjudged)
        holding.unjudged, holding.places = apart, (*rest, *unjudged)
        holding.asked = Asked(asked.entry, tuple(checks[at] for at in rest), asked.seat)
        return None

    def _alone(self) -> Alone:
        return Alone(self._local, self.worker, self._mode, self._remainders)

    def _give_back_apart(self, tag: str, holding: Holding) -> None:
        if holding.unjudged:
            self._local.release(tag, self.worker, holding.asked.entry, UNDO)
            holding.unjudged = holding.places = ()

    def _give_back(self, shared: RedisStore, tag: str, entry: str, holding: Holding, spent: Spent) -> None:
        if holding.where is self._local or holding.unjudged or self._away is not None:
            # Also what the shared store holds: its slots were counted here when that was left.
            self._local.release(tag, self.worker, entry, spent)
        is_shared = holding.where is shared
        if is_shared and self._away is None and not holding.unjudged:
            shared.release(tag, self.worker, entry, spent)
        elif is_shared or not spent.undo:
            # What that store never knew of and was undone is nothing to it.
            checks = holding.unjudged if is_shared else holding.asked.checks
            end = self._ends.note(tag, entry, Ended(spent, checks))
            if self._away is None:
                self._tell_ended(tag, {entry: end})

    def _tell_ended(self, tag: str, ended: dict[str, Ended]) -> None:
        """Tells the shared store. What that may not have heard comes back by `note_lost`."""
        assert self.shared is not None
        self._ends.forget(tag, ended)
        for entry, end in ended.items():
            self.shared.release(tag, self.worker, entry, end.spent)
            if end.checks and not end.spent.undo:
                # By what that store did not judge: it is counted there all the same, and once.
                self.shared.release(tag, self.worker, entry, end.spent, end.checks)

    def _held(self, tag: str) -> tuple[Held, ...]:
        return tuple(
            Held(entry, (*whole(holding.asked).checks, *holding.unjudged), holding.asked.seat)
            for entry, holding in self.holdings.get(tag, {}).items()
            if not holding.is_pending and not holding.is_waiting
        )

    def _lose_tickets(self) -> None:
        for entries in self.holdings.values():
            for holding in entries.values():
                holding.lose()

    def _turned(self, store: GateStore, worker: str, tag: str, entry: str, turn: Turn) -> None:
        holding = self.holdings.of(tag, entry)
        # A late word of a store that it waits in no more means a ticket that was given back.
        if worker != self.worker or holding is None or holding.where is not store:
            return
        if holding.turn is None:
            if not holding.is_pending:
                return
            # Its take is being answered: the answer may not say so yet.
            holding.turn = asyncio.get_running_loop().create_future()
        if not holding.turn.done():
            holding.turn.set_result(turn)

    def _renew_local(self) -> None:
        """This worker's own store, begun afresh; what it let be spent there stays known."""
        for counter, starts, spent in self._local.all_money():
            self._remainders.note_spent_alone(counter, starts, spent)
        self._local = self._new_local()

    def _new_local(self) -> LocalStore:
        def told(worker: str, tag: str, entry: str) -> None:
            self._turned(local, worker, tag, entry, "held")

        local = LocalStore(told=told, alerted=self._alerted)
        return local


def _at_once(work: Coroutine[object, object, None]) -> None:
    """Runs what never waits. Raises `RuntimeError` where it does."""
    try:
        work.send(None)
    except StopIteration:
        return
    work.close()
    raise RuntimeError("a step in memory waited")

"""The gate's store in Redis: one script, one round trip a step, shared by all workers.

The script is `gate.lua`. Its clock is the server's; its arguments and answers are MessagePack. The server's run id goes
with every step: a tag that was written under another one (Redis was restarted, emptied, or restored from a snapshot; in
a cluster the tag's slot has another master) is begun anew, its money seeded from the ledger, and its slots declared by
those who hold them.

Who stops waiting for an answer does not stop the step: what it granted to others of this worker is told all the same.
"""

import asyncio
from collections.abc import Callable
from importlib import resources
from typing import Any, Generic, TypeVar

import msgspec

from tidegate.admission.memory_store import Told
from tidegate.admission.store import (
    Alert,
    Asked,
    Check,
    Checks,
    Held,
    Presence,
    Reply,
    Seeding,
    Spent,
    askable,
    askable_more,
    askable_seat,
    askable_takes,
    countable,
    countable_checks,
    countable_held,
    countable_seeding,
)
from tidegate.storage.pipe import Pipe
from tidegate.storage.pipeline import StoreGone, Taker
from tidegate.telemetry.logging import get_logger

SCRIPT = "gate"

Answer = TypeVar("Answer", Reply, Presence)
Lost = Callable[[str, str, Spent, tuple[Check, ...]], None]

log = get_logger(__name__)

_encode = msgspec.msgpack.Encoder().encode
_decode_reply = msgspec.msgpack.Decoder(Reply).decode
_decode_presence = msgspec.msgpack.Decoder(Presence).decode


def script_source() -> str:
    return resources.files(__package__).joinpath("gate.lua").read_text()


def grant_channel(prefix: str, worker: str) -> str:
    """Where a worker hears of slots that others' steps granted it. Messages are the tag's key, a newline, the entry."""
    return f"{prefix}:grants:{worker}"


def nothing(tag: str, entry: str, spent: Spent, checks: tuple[Check, ...]) -> None:
    """Hears of no loss."""


class RedisStore:
    """Implements `GateStore`. `told` hears of this worker's grants, `alerted` of what its releases set off.

    `lost` hears of releases that Redis may not have done: (tag, entry, spent, checks). They may be released again: an
    entry is counted once.

    >>> store = RedisStore(pipe, "tidegate", told=desk.granted, alerted=alerts.tell)
    """

    def __init__(
        self,
        pipe: Pipe,
        prefix: str,
        *,
        told: Told,
        alerted: Callable[[str, tuple[Alert, ...]], None],
        lost: Lost = nothing,
        clock_ms: Callable[[], int] | None = None,
    ) -> None:
        self.lost_releases = 0
        self._lost = lost
        self._pipe = pipe
        self._prefix = prefix
        self._told = told
        self._alerted = alerted
        self._clock_ms = clock_ms

    @property
    def run_id(self) -> str | None:
        """Which run of the server it speaks to; None while not connected."""
        return self._pipe.run_id

    async def take(self, tag: str, worker: str, asked: Asked) -> Reply:
        answer = _Answer(self, tag, worker, _decode_reply)
        self._hand(answer, "take", tag, worker, _told_to_take(asked))
        return await answer.waiter

    async def top_up(self, tag: str, worker: str, entry: str, more: Spent) -> Reply:
        answer = _Answer(self, tag, worker, _decode_reply)
        self._hand(answer, "top_up", tag, worker, (entry, askable_more(more)))
        return await answer.waiter

    def release(self, tag: str, worker: str, entry: str, spent: Spent, checks: tuple[Check, ...] = ()) -> None:
        self._end("release", _Ending(self, tag, worker, entry, spent, checks))

    def recover(self, tag: str, worker: str, entry: str, spent: Spent, checks: tuple[Check, ...] = ()) -> None:
        self._end("recover", _Ending(self, tag, worker, entry, spent, checks))

    async def claim(self, tag: str, worker: str, entry: str) -> bool:
        return bool(await self._step("claim", tag, worker, (entry,)))

    async def attend(self, tag: str, worker: str, waiting: tuple[str, ...]) -> Presence:
        answer = _Answer(self, tag, worker, _decode_presence)
        self._hand(answer, "attend", tag, worker, (waiting,))
        return await answer.waiter

    async def declare(self, tag: str, worker: str, held: tuple[Held, ...], pending: tuple[str, ...]) -> Presence:
        answer = _Answer(self, tag, worker, _decode_presence)
        self._hand(answer, "declare", tag, worker, (tuple(map(countable_held, held)), pending))
        return await answer.waiter

    async def seed(self, tag: str, seeding: Seeding) -> bool:
        return bool(await self._step("seed", tag, "", msgspec.structs.astuple(countable_seeding(seeding))))

    async def place(self, tag: str, worker: str, entry: str) -> int:
        return int(await self._step("place", tag, worker, (entry,)))

    def _step(self, op: str, tag: str, worker: str, payload: tuple[Any, ...]) -> "asyncio.Future[Any]":
        answer = asyncio.get_running_loop().create_future()
        self._hand(answer, op, tag, worker, payload)
        return answer

    def _hand(self, taker: Taker, op: str, tag: str, worker: str, payload: tuple[Any, ...]) -> None:
        """Raises `StoreGone` where no connection stands."""
        packed = _encode((worker, None if self._clock_ms is None else self._clock_ms(), *payload))
        self._pipe.hand_script(taker, SCRIPT, f"{self._prefix}:{{{tag}}}", op, packed)

    def _end(self, op: str, ending: "_Ending") -> None:
        spent, checks = countable(ending.spent), ending.checks and countable_checks(ending.checks)
        try:
            self._hand(ending, op, ending.tag, ending.worker, (ending.entry, spent, checks))
        except StoreGone:
            # What this worker still holds is declared when the store is back: this entry is not among it.
            self.lose(ending)

    def lose(self, ending: "_Ending") -> None:
        """Redis may not have done this."""
        self.lost_releases += 1
        self._lost(ending.tag, ending.entry, ending.spent, ending.checks)

    def hear(self, tag: str, worker: str, answer: Reply | Presence) -> None:
        """Tells what an answer says beside what was asked."""
        for grant in answer.grants:
            if grant.worker == worker:
                self._told(worker, tag, grant.entry)
        if isinstance(answer, Reply) and answer.alerts:
            self._alerted(tag, answer.alerts)


def _told_to_take(asked: Asked) -> tuple[Any, ...]:
    """What the script is told of a step. Checks that are asked for again and again are packed once."""
    checks, takes = asked.checks, asked.takes
    if takes is None or not isinstance(checks, Checks):
        asked = askable(asked)
        return asked.entry, asked.checks, asked.seat
    if checks.packed is None:
        checks.packed = msgspec.Raw(_encode(askable(Asked("", checks)).checks))
    return asked.entry, checks.packed, askable_seat(asked.seat), askable_takes(asked)


class _Answer(Generic[Answer]):
    """A step's answer, for who waits for it. What it grants to others is told also where nobody waits any longer."""

    __slots__ = ("_decode", "_store", "_tag", "_worker", "waiter")

    def __init__(self, store: RedisStore, tag: str, worker: str, decode: Callable[[bytes], Answer]) -> None:
        self._store = store
        self._tag = tag
        self._worker = worker
        self._decode: Callable[[bytes], Answer] = decode
        self.waiter: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()

    def done(self) -> bool:
        return False

    def set_result(self, answer: bytes) -> None:
        try:
            reply = self._decode(answer)
            self._store.hear(self._tag, self._worker, reply)
        except Exception as error:  # noqa: BLE001 - an edge: who waits is told, and the connection reads on
            self.set_exception(error)
            return
        if not self.waiter.done():
            self.waiter.set_result(reply)

    def set_exception(self, error: Exception) -> None:
        if not self.waiter.done():
            self.waiter.set_exception(error)
            # Where nobody waits any longer, nobody is to complain of it either.
            self.waiter.exception()

    def exception(self) -> None: ...


class _Ending(msgspec.Struct, frozen=True, eq=False):
    """An entry's end, for which nobody waits: what it sets off is told, and that it may not have been done."""

    store: RedisStore
    tag: str
    worker: str
    entry: str
    spent: Spent
    checks: tuple[Check, ...]

    def done(self) -> bool:
        return False

    def set_result(self, answer: bytes | None) -> None:
        if not answer:
            return
        try:
            self.store.hear(self.tag, self.worker, _decode_reply(answer))
        except Exception:
            # An edge: nobody waits for it, and the connection reads on.
            log.exception("gate_answer_not_told", tag=self.tag)

    def set_exception(self, _: Exception) -> None:
        self.store.lose(self)

    def exception(self) -> None: ...

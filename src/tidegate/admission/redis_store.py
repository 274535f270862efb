"""The gate's store in Redis: one script, one round trip a step, shared by all workers.

The script is `gate.lua`. Its clock is the server's; its arguments and answers are MessagePack. The server's run id goes
with every step: a tag that was written under another one (Redis was restarted, emptied, or restored from a snapshot)
is begun anew, its money seeded from the ledger, and its slots declared by those who hold them.

Who stops waiting for an answer does not stop the step: what it granted to others of this worker is told all the same.
"""

import asyncio
from collections.abc import Callable
from importlib import resources
from typing import Any, TypeVar

import msgspec

from tidegate.admission.memory_store import Told
from tidegate.admission.store import (
    Alert,
    Asked,
    Check,
    Held,
    Presence,
    Reply,
    Seeding,
    Spent,
    askable,
    askable_more,
    countable,
    countable_checks,
    countable_held,
    countable_seeding,
)
from tidegate.storage.pipeline import PipelinedRedis, StoreGone

SCRIPT = "gate"

Answer = TypeVar("Answer", Reply, Presence)
Lost = Callable[[str, str, Spent, tuple[Check, ...]], None]

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
        pipe: PipelinedRedis,
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
        self._channel = grant_channel(prefix, "")
        self._told = told
        self._alerted = alerted
        self._clock_ms = clock_ms

    async def take(self, tag: str, worker: str, asked: Asked) -> Reply:
        return await self._answered(tag, worker, _decode_reply, self._step("take", tag, worker, askable(asked)))

    async def top_up(self, tag: str, worker: str, entry: str, more: Spent) -> Reply:
        payload = (entry, askable_more(more))
        return await self._answered(tag, worker, _decode_reply, self._step("top_up", tag, worker, payload))

    def release(self, tag: str, worker: str, entry: str, spent: Spent, checks: tuple[Check, ...] = ()) -> None:
        try:
            answer = self._step("release", tag, worker, (entry, countable(spent), countable_checks(checks)))
        except StoreGone:
            # What this worker still holds is declared when the store is back: this entry is not among it.
            self.lost_releases += 1
            self._lost(tag, entry, spent, checks)
            return
        answer.add_done_callback(lambda done: self._released(tag, worker, (entry, spent, checks), done))

    def recover(self, tag: str, worker: str, entry: str, spent: Spent, checks: tuple[Check, ...] = ()) -> None:
        try:
            answer = self._step("recover", tag, worker, (entry, countable(spent), countable_checks(checks)))
        except StoreGone:
            self._lost(tag, entry, spent, checks)
            return
        answer.add_done_callback(lambda done: self._released(tag, worker, (entry, spent, checks), done))

    async def claim(self, tag: str, worker: str, entry: str) -> bool:
        return bool(await self._step("claim", tag, worker, entry))

    async def attend(self, tag: str, worker: str, waiting: tuple[str, ...]) -> Presence:
        return await self._answered(tag, worker, _decode_presence, self._step("attend", tag, worker, waiting))

    async def declare(self, tag: str, worker: str, held: tuple[Held, ...], pending: tuple[str, ...]) -> Presence:
        payload = (tuple(map(countable_held, held)), pending)
        return await self._answered(tag, worker, _decode_presence, self._step("declare", tag, worker, payload))

    async def seed(self, tag: str, seeding: Seeding) -> bool:
        return bool(await self._step("seed", tag, "", countable_seeding(seeding)))

    async def place(self, tag: str, worker: str, entry: str) -> int:
        return int(await self._step("place", tag, worker, entry))

    def _step(self, op: str, tag: str, worker: str, payload: Any) -> "asyncio.Future[Any]":
        """Raises `StoreGone` where no connection stands."""
        run_id = self._pipe.run_id
        if run_id is None:
            raise StoreGone("not connected")
        arguments: list[str | bytes | int] = [op, worker, run_id, self._channel, _encode(payload)]
        if self._clock_ms is not None:
            arguments.append(self._clock_ms())
        return self._pipe.script(SCRIPT, [f"{self._prefix}:{{{tag}}}"], arguments)

    async def _answered(
        self, tag: str, worker: str, decode: Callable[[bytes], Answer], answer: "asyncio.Future[Any]"
    ) -> Answer:
        try:
            reply = decode(await asyncio.shield(answer))
        except asyncio.CancelledError:
            answer.add_done_callback(lambda done: self._answered_late(tag, worker, decode, done))
            raise
        self._heard(tag, worker, reply)
        return reply

    def _answered_late(
        self, tag: str, worker: str, decode: Callable[[bytes], Answer], done: "asyncio.Future[Any]"
    ) -> None:
        if not done.cancelled() and done.exception() is None:
            self._heard(tag, worker, decode(done.result()))

    def _heard(self, tag: str, worker: str, answer: Reply | Presence) -> None:
        for grant in answer.grants:
            if grant.worker == worker:
                self._told(worker, tag, grant.entry)
        if isinstance(answer, Reply) and answer.alerts:
            self._alerted(tag, answer.alerts)

    def _released(
        self, tag: str, worker: str, what: tuple[str, Spent, tuple[Check, ...]], done: "asyncio.Future[Any]"
    ) -> None:
        if done.cancelled() or done.exception() is not None:
            self.lost_releases += 1
            self._lost(tag, *what)
            return
        self._heard(tag, worker, _decode_reply(done.result()))

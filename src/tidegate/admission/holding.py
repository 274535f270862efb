"""What a worker holds in a tag, as its desk knows it: an entry that was taken, and one that ended unheard."""

import asyncio
import time
from dataclasses import dataclass
from typing import Literal

import msgspec

from tidegate.admission.store import Asked, Check, GateStore, Reply, Spent, more_of
from tidegate.telemetry.logging import get_logger

MOST_ENDED = 100_000

log = get_logger(__name__)

# What became of a ticket: its slot is held, is granted and to be claimed, or is lost with its store or its time.
Turn = Literal["held", "granted", "lost"]


class Holding(msgspec.Struct, eq=False):
    """One entry in one tag. `where` is the store that has it, None where none has (the mode `allow`).

    `unjudged` are checks that the shared store could not judge: it did not know what was spent. Where there were any,
    `places` are those of the other checks, and then theirs, among all that were asked for.
    """

    asked: Asked
    where: GateStore | None = None
    is_pending: bool = True
    turn: "asyncio.Future[Turn] | None" = None
    unjudged: tuple[Check, ...] = ()
    places: tuple[int, ...] = ()

    @property
    def is_waiting(self) -> bool:
        turn = self.turn
        return turn is not None and (not turn.done() or turn.cancelled() or turn.result() != "held")

    def lose(self) -> None:
        """Its ticket is over: it takes another."""
        if self.turn is not None and not self.turn.done():
            self.turn.set_result("lost")

    def placed(self, reply: Reply) -> Reply:
        """A reply on the checks that the shared store was left, in terms of all that were asked for."""
        if not self.places or reply.said == "taken":
            return reply
        return msgspec.structs.replace(
            reply,
            at=self.places[reply.at] if reply.at >= 0 else -1,
            unseeded=tuple(self.places[at] for at in reply.unseeded),
        )


class Holdings(dict[str, dict[str, Holding]]):
    """What a worker holds, by tag and entry. A tag of which it holds nothing is not there."""

    __slots__ = ()

    def of(self, tag: str, entry: str) -> Holding | None:
        entries = self.get(tag)
        return None if entries is None else entries.get(entry)

    def hold(self, tag: str, entry: str, holding: Holding) -> None:
        entries = self.get(tag)
        if entries is None:
            entries = self[tag] = {}
        entries[entry] = holding

    def forget(self, tag: str, entry: str) -> Holding | None:
        """Returns what was held, None where nothing was."""
        entries = self.get(tag)
        if entries is None:
            return None
        holding = entries.pop(entry, None)
        if not entries:
            del self[tag]
        return holding


def topped_up(asked: Asked, more: Spent) -> Asked:
    """What was asked for, with what was added to it since."""
    checks = tuple(
        msgspec.structs.replace(check, take=check.take + more_of(more, check.meter))
        if check.meter in ("tokens", "cost")
        else check
        for check in asked.checks
    )
    return msgspec.structs.replace(asked, checks=checks)


@dataclass(frozen=True, slots=True)
class Ended:
    """An entry that ended while the shared store was away. `checks` where that store never knew of it."""

    spent: Spent
    checks: tuple[Check, ...]


class Ends:
    """Entries that ended and that the shared store is still to be told of, by tag. Of too many in a tag, those that
    ended first are forgotten: `forgotten` counts them.
    """

    def __init__(self) -> None:
        self.by_tag: dict[str, dict[str, Ended]] = {}
        self.forgotten = 0

    def note(self, tag: str, entry: str, end: Ended) -> Ended:
        """Returns it with the time of its end."""
        if not end.spent.ended_ms:
            end = Ended(msgspec.structs.replace(end.spent, ended_ms=int(time.time() * 1000)), end.checks)
        ended = self.by_tag.setdefault(tag, {})
        ended[entry] = end
        if len(ended) > MOST_ENDED:
            del ended[next(iter(ended))]
            self.forgotten += 1
            if self.forgotten == 1:
                log.warning("gate_ends_forgotten", tag=tag, reason=f"more than {MOST_ENDED} ended while Redis was away")
        return end

    def forget(self, tag: str, ended: dict[str, Ended]) -> None:
        """The shared store is being told of these; of one that ended anew since, it is to be told again."""
        known = self.by_tag.get(tag, {})
        for entry, end in ended.items():
            if known.get(entry) is end:
                del known[entry]
        if not known:
            self.by_tag.pop(tag, None)

"""What a worker holds in a tag, as its desk knows it: an entry that was taken, and one that ended unheard."""

import asyncio
from dataclasses import dataclass
from typing import Literal

import msgspec

from tidegate.admission.store import Asked, Check, GateStore, Reply, Spent, more_of

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

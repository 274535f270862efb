"""Which slot of a Redis Cluster a key falls on, and which master a node says has it."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from redis.crc import REDIS_CLUSTER_HASH_SLOTS as SLOTS
from redis.crc import key_slot

from tidegate.storage.pipeline_wire import Address, Wire, ask_all

__all__ = ["ASK_SLOTS", "SLOTS", "SlotRange", "ask_slots", "ranges_of", "slot_of"]

ASK_SLOTS = ("CLUSTER", "SLOTS")


@functools.lru_cache(maxsize=8192)
def slot_of(key: str) -> int:
    """The slot of a key: of what its first braces hold, else of the whole.

    >>> slot_of("tidegate:{w:1}:t") == slot_of("{w:1}")
    True
    """
    slot: int = key_slot(key.encode())
    return slot


@dataclass(frozen=True, slots=True)
class SlotRange:
    """Slots from `first` to `last`, and the master that has them."""

    first: int
    last: int
    host: str
    port: int


def ranges_of(answer: Sequence[Any], asked_host: str) -> list[SlotRange]:
    """What CLUSTER SLOTS answers: first slot, last slot, the master's host and port, then replicas.

    A node that does not know how it is called gives no host: then it is called as it was asked.
    """
    ranges = []
    for first, last, master, *_ in answer:
        host = (master[0] or b"").decode()
        ranges.append(SlotRange(first, last, asked_host if host in ("", "?") else host, int(master[1])))
    return ranges


async def ask_slots(address: Address, *, client_name: str, within_s: float) -> list[SlotRange]:
    """Asks over a connection of its own. Raises `OSError`, `StoreGone`; its deadline is the caller's."""
    wire = Wire(silent_s=within_s, on_lost=lambda _: None)
    try:
        await address.dial(lambda: wire)
        answers = await ask_all(wire, [*await address.greeting(client_name), ASK_SLOTS])
    finally:
        wire.lose("it was asked")
    return ranges_of(answers[-1], address.host)

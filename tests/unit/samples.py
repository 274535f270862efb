"""What several unit tests of the road are made of: cut streams, prices, entries, a store that fails when told."""

import asyncio
import copy
import itertools
import os
import uuid
from collections import Counter
from collections.abc import Iterable, Sequence
from decimal import Decimal
from typing import Any

from hypothesis import strategies as st

from tests.support.ledger_entries import NOON
from tidegate.accounts.models import DEFAULT_WORKSPACE_ID
from tidegate.ledger.entry import Attempt, Ending, Entry, OpenEntry, close_entry, new_entry_id
from tidegate.ledger.journal import AttemptBegun, Journal
from tidegate.ledger.prices import Price, price_from_table


def cut(stream: bytes, places: Iterable[int]) -> list[bytes]:
    """The stream in pieces, cut at these places."""
    bounds = [0, *places, len(stream)]
    return [stream[start:end] for start, end in itertools.pairwise(bounds)]


def cuttings(stream: bytes) -> st.SearchStrategy[list[bytes]]:
    """Every way to cut a stream into pieces, empty ones included."""
    places = st.lists(st.integers(0, len(stream)), max_size=8).map(sorted)
    return places.map(lambda at: cut(stream, at))


def an_open_entry(**fields: Any) -> OpenEntry:
    """An open record that says what it must, and `fields`."""
    said: dict[str, Any] = dict.fromkeys(OpenEntry.__struct_fields__)
    said |= {"entry_id": new_entry_id(), "workspace_id": DEFAULT_WORKSPACE_ID, "request_id": "r-1", "tags": {}}
    said |= {"protocol": "chat", "model": "m", "streamed": False, "started_at": NOON}
    return OpenEntry(**{**said, **fields})


class Store:
    """An `EntryStore` in memory: the first of an id stays. While `reason` is set it takes nothing and raises that."""

    def __init__(self) -> None:
        self.entries: dict[uuid.UUID, Entry] = {}
        self.arrivals: Counter[uuid.UUID] = Counter()
        self.reason: Exception | None = None
        self.refusals = 0

    async def insert(self, entries: Sequence[Entry]) -> None:
        await asyncio.sleep(0)
        if self.reason is not None:
            self.refusals += 1
            # A new one each time: an exception keeps what its frames held.
            raise copy.copy(self.reason)
        for entry in entries:
            self.arrivals[entry.entry_id] += 1
            self.entries.setdefault(entry.entry_id, entry)


def a_price(rate: str = "2") -> Price:
    """So many dollars a million tokens of every kind."""
    return price_from_table({"input": Decimal(rate), "output": Decimal(rate)})


def begun(entry_id: uuid.UUID, n: int = 1, **fields: Any) -> AttemptBegun:
    """The record of an attempt that begins, and `fields`."""
    said = {"upstream": f"up{n}", "model": "m", "price": a_price(), "input_tokens": 10, "started_at": NOON}
    return AttemptBegun(entry_id=entry_id, n=n, **{**said, **fields})


def ended(opened: OpenEntry, *attempts: Attempt) -> Entry:
    """The terminal entry of an open one that was completed."""
    return close_entry(opened, list(attempts), Ending(outcome="completed", status=200, ended_at=NOON))


def die(journal: Journal) -> None:
    """Lets go of a journal as the kernel does for a process that is killed."""
    os.close(journal._fd)
    os.close(journal._lock_fd)

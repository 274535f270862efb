"""What several unit tests of the road are made of: cut streams, entries, requests, plans, a store that fails."""

import asyncio
import copy
import itertools
import json
import os
import uuid
from collections import Counter
from collections.abc import Iterable, Sequence
from decimal import Decimal
from typing import Any, cast

from hypothesis import strategies as st

from tests.support.ledger_entries import NOON
from tidegate.accounts.models import DEFAULT_WORKSPACE_ID
from tidegate.auth.principal import Principal
from tidegate.http.context import RequestContext
from tidegate.inference.client import Client
from tidegate.inference.exchange import Exchange, RoadHeaders
from tidegate.inference.wire import ChatCall, parse_chat
from tidegate.ledger.entry import Attempt, Attribution, Ending, Entry, OpenEntry, close_entry, new_entry_id
from tidegate.ledger.journal import AttemptBegun, Journal
from tidegate.ledger.prices import Price, price_from_table
from tidegate.routing.catalogue import CatalogueTable, build_catalogue
from tidegate.routing.plan import Plan


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


def a_call(**fields: Any) -> ChatCall:
    """A chat call of one message, and `fields`."""
    members = {"model": "m", "messages": [{"role": "user", "content": "Hello"}], **fields}
    return parse_chat(json.dumps(members).encode())


def an_exchange(*, deadline_at: float | None = None, client: Client | None = None, **fields: Any) -> Exchange:
    """A request of a key, whose call has `fields`."""
    return Exchange(
        call=a_call(**fields),
        principal=Principal(workspace_id=DEFAULT_WORKSPACE_ID, key_id=uuid.UUID(int=1), user_id=uuid.UUID(int=2)),
        context=RequestContext("r-1", "POST", "/v1/chat/completions", "::1", "curl"),
        client=client or cast("Client", None),
        attribution=Attribution(end_user="e", session_id="s", tags={"a": "b"}),
        headers=RoadHeaders({}),
        deadline_at=deadline_at,
    )


def a_plan(*attempts: str, price: dict[str, str] | None = None, **fields: Any) -> Plan:
    """The plan for the model `m` with these attempts at the upstreams `one` and `two`, and `fields`."""
    upstreams = {name: {"provider": "openai", "base_url": "http://127.0.0.1:1/v1"} for name in ("one", "two")}
    model = {"name": "m", "attempts": attempts or ("one/m",), **({"price": price} if price else {}), **fields}
    catalogue = build_catalogue(CatalogueTable.model_validate({"upstreams": upstreams, "models": [model]}), {})
    [only] = catalogue.models
    return Plan("m", only, only.attempts)

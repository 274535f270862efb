"""How many entries wait for the database, and since when, is known at any moment."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.unit.samples import Store
from tests.unit.test_drain import settle_one
from tidegate.ledger.drain import Drain
from tidegate.ledger.entry import Entry
from tidegate.ledger.journal import Journal, segment_path


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal.create(tmp_path)


async def test_what_is_settled_waits_until_the_store_has_it(journal: Journal) -> None:
    drain = Drain(journal, Store())
    assert (drain.waiting, drain.waiting_since) == (0, None)
    first = settle_one(journal)
    settle_one(journal)
    assert (drain.waiting, drain.waiting_since) == (2, first.ended_at)
    assert await drain.finish(10)
    assert (drain.waiting, drain.waiting_since) == (0, None)


async def test_while_the_store_is_away_they_add_up_and_the_oldest_stays_the_oldest(journal: Journal) -> None:
    store = Store()
    drain = Drain(journal, store)
    store.reason = ConnectionError("away")
    oldest = settle_one(journal)
    for count in range(1, 4):
        assert not await drain.finish(0.05)
        assert (drain.waiting, drain.waiting_since) == (count, oldest.ended_at)
        settle_one(journal)
    store.reason = None
    assert await drain.finish(10)
    assert (drain.waiting, drain.waiting_since) == (0, None)


async def test_one_that_a_bad_block_spoiled_waits_for_nobody(journal: Journal) -> None:
    drain = Drain(journal, Store())
    settle_one(journal)
    path = segment_path(journal.directory, 1)
    path.write_bytes(path.read_bytes().replace(b'"settled"', b'"sXttled"'))
    assert await drain.finish(10)
    assert drain.waiting == 0


async def test_a_round_ends_while_requests_keep_coming(tmp_path: Path) -> None:
    class Busy(Store):
        async def insert(self, entries: Sequence[Entry]) -> None:
            await super().insert(entries)
            if len(self.entries) < 500:
                # As under load: whenever the store has taken some, others have ended.
                settle_one(filled)

    filled = Journal.create(tmp_path, segment_bytes=2000)
    store = Busy()
    drain = Drain(filled, store)
    settle_one(filled)
    for _ in range(20):
        assert await drain._try_once()
        assert drain.waiting == 1
        assert len(list(filled.directory.glob("*.jsonl"))) <= 3
    assert len(store.entries) == 20

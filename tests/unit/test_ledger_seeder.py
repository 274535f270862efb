"""A budget that cannot be summed now is judged without the store: no caller is refused for the database's sake."""

import asyncio
import logging
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tests.unit.virtual_time import in_virtual_time
from tidegate.admission.budgets import REST_S, LedgerSeeder
from tidegate.errors import Unavailable


class _Away:
    """A database that refuses each connection at once."""

    def __init__(self) -> None:
        self.asked = 0

    async def __call__(self) -> bool:
        self.asked += 1
        raise Unavailable("The database cannot be used now.")


@in_virtual_time
async def test_while_the_database_is_away_nothing_is_seeded_and_it_is_said(caplog: pytest.LogCaptureFixture) -> None:
    away = _Away()
    seeder = LedgerSeeder(cast("Any", None), cast("Any", None), away)
    matched = SimpleNamespace(limit=SimpleNamespace(label="a month of alpha"))
    check = SimpleNamespace(counter="cost:alpha")
    try:
        for _ in range(5):
            assert await seeder.seed("w:1", cast("Any", matched), cast("Any", check)) is False
        # However many requests come.
        assert away.asked == 1
    finally:
        await seeder.aclose()
    told = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(told) == 1
    assert "budget_not_seeded" in told[0]


@in_virtual_time
async def test_a_database_that_was_away_is_asked_again_after_a_rest() -> None:
    away = _Away()
    seeder = LedgerSeeder(cast("Any", None), cast("Any", None), away)
    matched, check = SimpleNamespace(limit=SimpleNamespace(label="a month")), SimpleNamespace(counter="cost:alpha")
    for expected in (1, 2):
        assert await seeder.seed("w:1", cast("Any", matched), cast("Any", check)) is False
        assert away.asked == expected
        await asyncio.sleep(REST_S)
    await seeder.aclose()

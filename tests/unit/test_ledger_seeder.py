"""A budget that cannot be summed now is judged without the store: no caller is refused for the database's sake."""

import logging
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tidegate.admission.budgets import LedgerSeeder
from tidegate.errors import Unavailable


async def _away() -> bool:
    raise Unavailable("The database cannot be used now.")


async def test_while_the_database_is_away_nothing_is_seeded_and_it_is_said(caplog: pytest.LogCaptureFixture) -> None:
    seeder = LedgerSeeder(cast("Any", None), cast("Any", None), _away)
    matched = SimpleNamespace(limit=SimpleNamespace(label="a month of alpha"))
    check = SimpleNamespace(counter="cost:alpha")
    try:
        assert await seeder.seed("w:1", cast("Any", matched), cast("Any", check)) is False
    finally:
        await seeder.aclose()
    told = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(told) == 1
    assert "budget_not_seeded" in told[0]

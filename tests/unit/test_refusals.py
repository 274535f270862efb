"""Refusals that are counted: none is lost because a write was."""

import asyncio
import uuid
from collections.abc import Iterable

import pytest

from tests.unit.virtual_time import in_virtual_time
from tidegate.auth.principal import Principal
from tidegate.ledger.refusals import Refusals
from tidegate.ledger.store import RefusalCount

CALLER = Principal(workspace_id=uuid.uuid4())


class Table:
    """Takes counts once the gate is open; raises `reason` while there is one."""

    def __init__(self) -> None:
        self.written: dict[str, int] = {}
        self.asked = 0
        self.gate = asyncio.Event()
        self.reason: Exception | None = None

    async def add_refusals(self, refusals: Iterable[RefusalCount]) -> None:
        self.asked += 1
        await self.gate.wait()
        if self.reason is not None:
            raise self.reason
        for refusal in refusals:
            self.written[refusal.code] = self.written.get(refusal.code, 0) + refusal.count


@in_virtual_time
async def test_a_write_that_is_cancelled_at_the_end_loses_no_count() -> None:
    table = Table()
    async with Refusals.running(table) as refusals:
        for code in ("model_not_found", "model_not_found", "invalid_request"):
            refusals.count(CALLER, code)
        while not table.asked:
            await asyncio.sleep(1)
        refusals.count(CALLER, "invalid_request")
        asyncio.get_running_loop().call_soon(table.gate.set)
    assert table.asked == 2
    assert table.written == {"model_not_found": 2, "invalid_request": 2}


@in_virtual_time
async def test_a_cancelled_write_is_cancelled() -> None:
    table = Table()
    refusals = Refusals(table)
    refusals.count(CALLER, "invalid_request")
    writing = asyncio.create_task(refusals.write())
    await asyncio.sleep(1)
    writing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writing
    table.gate.set()
    await refusals.write()
    assert table.written == {"invalid_request": 1}


@in_virtual_time
async def test_counts_wait_for_a_database_that_fails() -> None:
    table = Table()
    table.gate.set()
    refusals = Refusals(table)
    refusals.count(CALLER, "invalid_request")
    table.reason = OSError("gone")
    await refusals.write()
    table.reason = None
    await refusals.write()
    assert table.written == {"invalid_request": 1}

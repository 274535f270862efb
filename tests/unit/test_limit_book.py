"""What is remembered of limits: how long, shared by whom, forgotten when, and what when the database is gone."""

import asyncio
import logging
import uuid
from collections.abc import AsyncIterator, Coroutine
from typing import Any

import pytest

from tests.support.waiting import eventually
from tidegate.accounts.models import DEFAULT_WORKSPACE_ID
from tidegate.errors import Unavailable
from tidegate.limits.book import BookBounds, LimitBook
from tidegate.limits.matching import WorkspaceLimits

A, B = uuid.uuid4(), uuid.uuid4()
LONG_S = 30.0
UNIX = 1_800_000_000.0


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now

    def unix(self) -> float:
        return UNIX + self.now - 1_000.0


class Rows:
    """A database's limits: a new value each time, which may be held up or fail."""

    def __init__(self) -> None:
        self.asked: list[uuid.UUID] = []
        self.error: Exception | None = None
        self.gate = asyncio.Event()
        self.gate.set()

    async def __call__(self, workspace_id: uuid.UUID) -> WorkspaceLimits:
        self.asked.append(workspace_id)
        limits, gate = WorkspaceLimits(), self.gate
        await gate.wait()
        if self.error is not None:
            raise self.error
        return limits


class Desk:
    """A book over rows, by a clock that stands until it is moved."""

    def __init__(self, **bounds: Any) -> None:
        self.clock, self.rows = Clock(), Rows()
        # What is held up must not be given up by a busy machine's clock.
        self.book = LimitBook(
            self.rows, BookBounds(**{"answer_s": LONG_S} | bounds), monotonic=self.clock, clock=self.clock.unix
        )

    def at_once(self, workspace_id: uuid.UUID = A, key_id: uuid.UUID | None = None) -> WorkspaceLimits | None:
        """What is answered without any wait; None where it would wait."""
        asking: Coroutine[Any, Any, WorkspaceLimits] = self.book.of(workspace_id, key_id=key_id)
        try:
            asking.send(None)
        except StopIteration as answered:
            limits: WorkspaceLimits = answered.value
            return limits
        asking.close()
        return None


def key_made_at(unix: float) -> uuid.UUID:
    return uuid.UUID(int=(round(unix * 1000) << 80) | (7 << 76) | (2 << 62) | uuid.uuid4().int & 0xFFFF)


@pytest.fixture
async def desk() -> AsyncIterator[Desk]:
    desk = Desk()
    yield desk
    await desk.book.aclose()


async def test_what_is_known_is_answered_without_a_wait(desk: Desk) -> None:
    limits = await desk.book.of(A)
    for _ in range(3):
        assert desk.at_once() is limits
    assert desk.rows.asked == [A]


async def test_those_who_ask_at_once_share_one_reading(desk: Desk) -> None:
    desk.rows.gate.clear()
    asking = [asyncio.create_task(desk.book.of(A)) for _ in range(50)]
    await eventually(lambda: desk.rows.asked)
    asking[0].cancel()
    desk.rows.gate.set()
    assert len(set(await asyncio.gather(*asking[1:]))) == 1
    assert desk.rows.asked == [A]


async def test_what_is_in_use_is_read_again_before_it_expires_and_nobody_waits(desk: Desk) -> None:
    first = await desk.book.of(A)
    desk.clock.now += 2.9
    assert desk.at_once() is first
    assert not desk.book._flights
    desk.clock.now += 0.2
    desk.rows.gate.clear()
    for _ in range(3):
        assert desk.at_once() is first
    await eventually(lambda: len(desk.rows.asked) == 2)
    desk.rows.gate.set()
    second = await eventually(lambda: desk.at_once() if desk.at_once() is not first else None)
    desk.clock.now += 4.9 - 2
    assert desk.at_once() is second


async def test_what_expired_is_read_again_and_freshness_counts_from_when_that_began(desk: Desk) -> None:
    first = await desk.book.of(A)
    desk.clock.now += 5.0
    desk.rows.gate.clear()
    asking = asyncio.create_task(desk.book.of(A))
    await eventually(lambda: len(desk.rows.asked) == 2)
    desk.clock.now += 4.9
    desk.rows.gate.set()
    second = await asking
    assert second is not first
    assert desk.at_once() is second
    desk.clock.now += 0.1
    assert desk.at_once() is None


async def test_a_change_is_seen_by_whoever_asks_after_it(desk: Desk) -> None:
    first, other = await desk.book.of(A), await desk.book.of(B)
    desk.book.forget(A)
    second = await desk.book.of(A)
    assert second is not first
    assert desk.at_once(B) is other
    for everything in (None, DEFAULT_WORKSPACE_ID):
        desk.book.forget(everything)
        assert desk.at_once(A) is None
        assert desk.at_once(B) is None
        await asyncio.gather(desk.book.of(A), desk.book.of(B))


@pytest.mark.parametrize("forgotten", [A, None])
async def test_a_reading_that_began_before_a_change_is_not_remembered(desk: Desk, forgotten: uuid.UUID | None) -> None:
    old_gate = desk.rows.gate
    old_gate.clear()
    before = asyncio.create_task(desk.book.of(A))
    await eventually(lambda: desk.rows.asked)
    desk.book.forget(forgotten)
    desk.rows.gate = asyncio.Event()
    after = asyncio.create_task(desk.book.of(A))
    await eventually(lambda: len(desk.rows.asked) == 2)
    desk.rows.gate.set()
    changed = await after
    old_gate.set()
    assert await before is not changed
    assert desk.at_once() is changed


async def test_a_new_key_is_never_without_its_limits(desk: Desk) -> None:
    old, new = key_made_at(UNIX - 60), key_made_at(UNIX + 1)
    first = await desk.book.of(A, key_id=old)
    assert desk.at_once(key_id=old) is first
    desk.clock.now += 2
    second = await desk.book.of(A, key_id=new)
    assert second is not first
    for key_id in (new, old, None):
        assert desk.at_once(key_id=key_id) is second
    # It stays known when its limits are read again, also where clocks differ.
    desk.book.forget(A)
    third = await desk.book.of(A)
    assert desk.at_once(key_id=new) is third
    desk.clock.now += 20
    fourth = await desk.book.of(A)
    assert desk.at_once(key_id=new) is fourth


async def test_a_new_key_does_not_take_a_reading_that_began_before_it(desk: Desk) -> None:
    desk.rows.gate.clear()
    before = asyncio.create_task(desk.book.of(A))
    await eventually(lambda: desk.rows.asked)
    with_key = asyncio.create_task(desk.book.of(A, key_id=key_made_at(UNIX)))
    await eventually(lambda: len(desk.rows.asked) == 2)
    desk.rows.gate.set()
    assert await with_key is not await before


async def test_without_the_database_the_last_that_was_read_holds_for_ten_minutes(
    desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    first = await desk.book.of(A)
    desk.rows.error = OSError("gone")
    desk.clock.now += 5
    with caplog.at_level(logging.WARNING):
        assert await desk.book.of(A) is first
        # Tried once a second; meanwhile nobody waits.
        assert desk.at_once() is first
        assert len(desk.rows.asked) == 2
        desk.clock.now += 594
        assert await desk.book.of(A) is first
        assert len(desk.rows.asked) == 3
        desk.clock.now += 1
        with pytest.raises(Unavailable) as refused:
            await desk.book.of(A)
        assert refused.value.headers["Retry-After"]
        desk.rows.error = None
        desk.clock.now += 1
        assert await desk.book.of(A) is not first
    assert len(caplog.records) == 2
    assert desk.book.stale_uses == 3


async def test_what_was_never_read_is_refused_without_the_database(desk: Desk) -> None:
    desk.rows.error = OSError("gone")
    for _ in range(2):
        with pytest.raises(Unavailable):
            await desk.book.of(A)


async def test_a_database_that_is_silent_is_given_up() -> None:
    desk = Desk(answer_s=0.05)
    first = await desk.book.of(A)
    desk.rows.gate.clear()
    desk.clock.now += 5
    assert await desk.book.of(A) is first
    with pytest.raises(Unavailable):
        await desk.book.of(B)
    await desk.book.aclose()


async def test_readings_take_turns() -> None:
    desk = Desk(at_once=2)
    desk.rows.gate.clear()
    asking = [asyncio.create_task(desk.book.of(uuid.uuid4())) for _ in range(6)]
    await eventually(lambda: len(desk.rows.asked) == 2)
    assert len(desk.book._flights) == 6
    desk.rows.gate.set()
    await asyncio.gather(*asking)
    assert len(desk.rows.asked) == 6


async def test_memory_is_bounded() -> None:
    desk = Desk(workspaces=2)
    for workspace_id in (A, B, A, uuid.uuid4(), uuid.uuid4()):
        await desk.book.of(workspace_id)
    assert len(desk.book._kept) == 2
    assert A not in desk.book._kept
    for _ in range(20):
        await desk.book.of(B, key_id=key_made_at(UNIX + 5))
    assert len(desk.book._kept[B].reading.young_keys) == 20
    desk.clock.now += 60
    await desk.book.of(B)
    assert not desk.book._kept[B].reading.young_keys
    assert not desk.book._flights
    await eventually(lambda: not desk.book._tasks)


async def test_closing_ends_what_runs(desk: Desk) -> None:
    desk.rows.gate.clear()
    asking = asyncio.create_task(desk.book.of(A))
    await eventually(lambda: desk.rows.asked)
    await desk.book.aclose()
    with pytest.raises(Unavailable):
        await asking
    assert not desk.book._flights

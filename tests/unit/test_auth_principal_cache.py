"""What is remembered of a credential: how much, shared by whom, and what when the database is gone."""

import asyncio
import logging
import uuid

import pytest

from tests.support.waiting import eventually
from tests.unit.judging import LONG_S, A, B, Clock, Judge, a_cache
from tests.unit.virtual_time import in_virtual_time, now
from tidegate.auth.principal import Principal
from tidegate.auth.principal_cache import CacheBounds, PrincipalCache
from tidegate.errors import InvalidApiKey, InvalidToken, Unavailable


async def test_a_refusal_is_remembered_briefly_and_raised_as_a_new_error_each_time() -> None:
    clock, judge = Clock(), Judge()
    cache = a_cache(clock)
    judge.error = InvalidApiKey("no such key")
    caught = []
    for _ in range(3):
        with pytest.raises(InvalidApiKey, match="no such key") as refused:
            await cache.resolve(A, judge)
        caught.append(refused.value)
    assert judge.calls == 1
    assert len({id(error) for error in caught}) == 3
    clock.now += 1.0
    judge.error = None
    assert (await cache.resolve(A, judge)).workspace_id == judge.workspace_id


async def test_a_refusal_ends_what_was_admitted() -> None:
    clock, judge = Clock(), Judge()
    cache = a_cache(clock)
    await cache.resolve(A, judge)
    clock.now += 5
    judge.error = InvalidToken("revoked")
    with pytest.raises(InvalidToken):
        await cache.resolve(A, judge)
    # Not even with the database gone does it come back.
    clock.now += 2
    judge.error = OSError("gone")
    with pytest.raises(Unavailable):
        await cache.resolve(A, judge)


async def test_concurrent_misses_of_one_credential_share_one_look_up() -> None:
    judge, other = Judge(), Judge()
    cache = a_cache(Clock())
    judge.gate.clear()
    asking = [asyncio.create_task(cache.resolve(A, judge)) for _ in range(50)]
    asking_other = asyncio.create_task(cache.resolve(B, other))
    await asking_other
    judge.gate.set()
    assert {principal.workspace_id for principal in await asyncio.gather(*asking)} == {judge.workspace_id}
    assert (judge.calls, other.calls) == (1, 1)


async def test_a_cancelled_leader_takes_the_look_up_from_nobody() -> None:
    judge = Judge()
    cache = a_cache(Clock())
    judge.gate.clear()
    leader = asyncio.create_task(cache.resolve(A, judge))
    await eventually(lambda: judge.calls)
    followers = [asyncio.create_task(cache.resolve(A, judge)) for _ in range(5)]
    leader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leader
    judge.gate.set()
    assert len(await asyncio.gather(*followers)) == 5
    assert judge.calls == 1


async def test_a_look_up_whose_callers_all_left_still_serves_the_next() -> None:
    judge = Judge()
    cache = a_cache(Clock())
    judge.gate.clear()
    leader = asyncio.create_task(cache.resolve(A, judge))
    await eventually(lambda: judge.calls)
    leader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leader
    judge.gate.set()
    await eventually(lambda: cache.fresh(A))
    assert judge.calls == 1


async def test_a_database_that_fails_lets_known_callers_go_on_for_ten_minutes(
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock, judge = Clock(), Judge()
    cache = a_cache(clock, CacheBounds(answer_s=LONG_S, retry_s=0.5))
    principal = await cache.resolve(A, judge)
    judge.error = ConnectionRefusedError()
    with caplog.at_level(logging.WARNING, "tidegate.auth.principal_cache"):
        for _ in range(100):
            clock.now += 5.9
            assert await cache.resolve(A, judge) is principal
    assert cache.stale_uses == 100
    assert len(caplog.records) == 1
    clock.now = 1_000 + 600
    with pytest.raises(Unavailable) as refused:
        await cache.resolve(A, judge)
    assert refused.value.headers["Retry-After"] == "1"


async def test_a_database_that_is_gone_is_tried_once_a_second_and_not_by_every_caller() -> None:
    clock, judge = Clock(), Judge()
    cache = a_cache(clock, CacheBounds(answer_s=LONG_S, retry_s=1.0))
    await cache.resolve(A, judge)
    await cache.resolve(B, judge)
    clock.now += 5
    judge.error = ConnectionRefusedError()
    before = judge.calls
    for _ in range(50):
        await cache.resolve(A, judge)
        await cache.resolve(B, judge)
    assert judge.calls - before == 1
    clock.now += 1
    judge.gate.clear()
    trying = asyncio.create_task(cache.resolve(A, judge))
    await eventually(lambda: judge.calls - before == 2)
    # While one caller tries, the others wait for nothing.
    await asyncio.wait_for(cache.resolve(A, judge), LONG_S)
    await asyncio.wait_for(cache.resolve(B, judge), LONG_S)
    judge.gate.set()
    await trying
    assert judge.calls - before == 2


async def test_a_database_that_comes_back_is_believed_again(caplog: pytest.LogCaptureFixture) -> None:
    clock, judge = Clock(), Judge()
    cache = a_cache(clock, CacheBounds(answer_s=LONG_S))
    await cache.resolve(A, judge)
    clock.now += 5
    with caplog.at_level(logging.WARNING, "tidegate.auth.principal_cache"):
        judge.error = ConnectionRefusedError()
        await cache.resolve(A, judge)
        clock.now += 1
        judge.error = None
        judge.workspace_id = uuid.uuid4()
        assert (await cache.resolve(A, judge)).workspace_id == judge.workspace_id
    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"]
    assert cache.fresh(A) is not None


async def test_a_database_that_says_nothing_is_given_up_after_its_bound() -> None:
    clock, judge = Clock(), Judge()
    cache = a_cache(clock, CacheBounds(answer_s=0.05))
    principal = await cache.resolve(A, judge)
    clock.now += 5
    judge.gate.clear()
    assert await cache.resolve(A, judge) is principal
    with pytest.raises(Unavailable):
        await cache.resolve(B, judge)
    await eventually(lambda: judge.ended == judge.calls)


async def test_a_driver_that_cannot_be_cancelled_holds_nobody_up() -> None:
    released = asyncio.Event()

    async def stubborn() -> Principal:
        while not released.is_set():
            try:
                await released.wait()
            except asyncio.CancelledError:
                continue
        raise ConnectionResetError

    cache = a_cache(Clock(), CacheBounds(answer_s=0.05))
    for _ in range(2):
        with pytest.raises(Unavailable):
            await asyncio.wait_for(cache.resolve(A, stubborn), LONG_S)
    assert cache.look_ups == 1
    released.set()
    await eventually(lambda: not cache._flights)


async def test_an_unknown_credential_is_never_admitted_without_the_database() -> None:
    judge = Judge()
    judge.error = ConnectionRefusedError()
    cache = a_cache(Clock())
    for _ in range(3):
        with pytest.raises(Unavailable):
            await cache.resolve(A, judge)
    assert cache.stale_uses == 0


async def test_both_memories_are_bounded_and_the_refused_displace_no_admitted() -> None:
    clock, judge, refusing = Clock(), Judge(), Judge()
    cache = a_cache(clock, CacheBounds(entries=10, answer_s=LONG_S))
    refusing.error = InvalidApiKey("no")
    for n in range(10):
        await cache.resolve(b"good%d" % n, judge)
    for n in range(100):
        with pytest.raises(InvalidApiKey):
            await cache.resolve(b"bad%d" % n, refusing)
    assert len(cache._refused) == 10
    assert all(cache.fresh(b"good%d" % n) for n in range(10))
    await cache.resolve(b"good0", judge)
    await cache.resolve(b"one more", judge)
    assert len(cache._admitted) == 10


async def test_the_one_looked_up_least_recently_is_displaced_first() -> None:
    clock, judge = Clock(), Judge()
    cache = a_cache(clock, CacheBounds(entries=2, answer_s=LONG_S))
    await cache.resolve(A, judge)
    await cache.resolve(B, judge)
    clock.now += 5
    await cache.resolve(A, judge)
    await cache.resolve(b"c", judge)
    assert cache.fresh(A) is not None
    assert B not in cache._admitted


async def test_unknown_credentials_that_wait_for_a_look_up_are_bounded() -> None:
    judge = Judge()
    cache = a_cache(Clock(), CacheBounds(unknown_at_once=2, unknown_waiting=3, answer_s=LONG_S, turn_s=LONG_S))
    judge.gate.clear()
    asking = [asyncio.create_task(cache.resolve(b"%d" % n, judge)) for n in range(5)]
    await eventually(lambda: judge.calls == 2 and cache._unknown_waiting == 3)
    with pytest.raises(Unavailable, match="So many") as refused:
        await cache.resolve(b"one more", judge)
    assert refused.value.headers["Retry-After"] == "1"
    assert cache._database_answers
    judge.gate.set()
    await asyncio.gather(*asking)
    assert judge.calls == 5
    assert cache._unknown_waiting == 0
    assert not cache._flights


@in_virtual_time
async def test_a_turn_that_does_not_come_is_no_silence_of_the_database() -> None:
    judge, cache = Judge(), PrincipalCache(CacheBounds(unknown_at_once=1, turn_s=0.5, answer_s=1.0), now)
    judge.gate.clear()
    first = asyncio.create_task(cache.resolve(A, judge))
    await asyncio.sleep(0)
    with pytest.raises(Unavailable, match="So many"):
        await cache.resolve(B, judge)
    assert now() == 0.5
    assert cache._database_answers
    judge.gate.set()
    await first


@in_virtual_time
async def test_a_flood_of_wrong_keys_neither_refuses_right_ones_nor_hides_a_revocation() -> None:
    pool, workspace_id = asyncio.Semaphore(5), uuid.uuid4()

    async def judge(*, is_right: bool) -> Principal:
        async with pool:
            await asyncio.sleep(0.02)
        if not is_right:
            raise InvalidApiKey("no such key")
        return Principal(workspace_id=workspace_id)

    async def wrong(n: int) -> None:
        with pytest.raises(InvalidApiKey):
            await cache.resolve(b"wrong%d" % n, lambda: judge(is_right=False))

    cache = PrincipalCache(CacheBounds(), now)
    await cache.resolve(A, lambda: judge(is_right=True))
    await asyncio.sleep(5)
    flood = [asyncio.create_task(wrong(n)) for n in range(500)]
    await asyncio.sleep(0)
    began = now()
    # It was revoked meanwhile.
    with pytest.raises(InvalidApiKey):
        await cache.resolve(A, lambda: judge(is_right=False))
    assert now() - began < 0.1
    # Behind them all, and soon: 500 look-ups of 20 ms, four at a time.
    assert (await cache.resolve(B, lambda: judge(is_right=True))).workspace_id == workspace_id
    assert now() - began < 3
    await asyncio.gather(*flood)
    assert cache.stale_uses == 0


@in_virtual_time
async def test_while_the_database_is_silent_an_unknown_credential_waits_for_no_turn() -> None:
    judge, cache = Judge(), PrincipalCache(CacheBounds(unknown_at_once=1), now)
    judge.gate.clear()
    with pytest.raises(Unavailable, match="did not answer"):
        await cache.resolve(A, judge)
    trying = asyncio.create_task(cache.resolve(B, judge))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    began = now()
    with pytest.raises(Unavailable, match="did not answer"):
        await cache.resolve(b"c", judge)
    assert now() == began
    with pytest.raises(Unavailable):
        await trying


async def test_closing_ends_what_is_under_way() -> None:
    judge = Judge()
    cache = a_cache(Clock())
    judge.gate.clear()
    asking = asyncio.create_task(cache.resolve(A, judge))
    await eventually(lambda: judge.calls)
    await cache.aclose()
    assert judge.ended == 1
    with pytest.raises(Unavailable):
        await asking

"""How long what was said of a credential is used: what is heard of changes, and what is asked early."""

import asyncio
import uuid

import pytest

from tests.support.waiting import eventually
from tests.unit.judging import LONG_S, A, B, Clock, Heard, Judge, a_cache
from tests.unit.virtual_time import in_virtual_time, now
from tidegate.auth.principal import Principal
from tidegate.auth.principal_cache import CacheBounds, PrincipalCache
from tidegate.errors import InvalidApiKey, Unavailable


async def test_an_answer_is_fresh_for_a_second_where_no_change_is_heard() -> None:
    clock, judge = Clock(), Judge()
    cache = a_cache(clock)
    principal = await cache.resolve(A, judge)
    clock.now += 0.999
    assert cache.fresh(A) is principal
    clock.now += 0.001
    assert cache.fresh(A) is None
    await cache.resolve(A, judge)
    assert (judge.calls, cache.look_ups) == (2, 2)
    assert cache.fresh(A) is not None


async def test_an_answer_is_fresh_for_thirty_seconds_while_changes_are_heard() -> None:
    clock, judge, heard = Clock(), Judge(), Heard()
    cache = a_cache(clock, heard=heard)
    principal = await cache.resolve(A, judge)
    for _ in range(299):
        clock.now += 0.1
        heard.confirmed_at = clock.now - 0.2
        assert cache.fresh(A) is principal
    clock.now += 0.1
    heard.confirmed_at = clock.now
    assert cache.fresh(A) is None
    assert judge.calls == 1


async def test_an_answer_is_fresh_for_a_second_past_what_was_heard_last() -> None:
    clock, judge, heard = Clock(), Judge(), Heard()
    cache = a_cache(clock, heard=heard)
    principal = await cache.resolve(A, judge)
    clock.now += 10
    heard.confirmed_at = clock.now
    assert cache.fresh(A) is principal
    clock.now += 0.999
    assert cache.fresh(A) is principal
    clock.now += 0.001
    assert cache.fresh(A) is None


async def test_what_was_read_before_a_gap_is_fresh_for_what_was_vouched_for_before_it() -> None:
    clock, judge, heard = Clock(), Judge(), Heard()
    cache = a_cache(clock, heard=heard)
    await cache.resolve(A, judge)
    clock.now += 2
    heard.confirmed_at = clock.now
    assert cache.fresh(A) is not None
    # The subscription broke, and stands anew: what came between is not known.
    heard.unbroken_since = heard.confirmed_at = clock.now + 0.1
    clock.now += 0.999
    assert cache.fresh(A) is not None
    clock.now += 0.001
    assert cache.fresh(A) is None
    await cache.resolve(A, judge)
    clock.now += 5
    heard.confirmed_at = clock.now
    assert cache.fresh(A) is not None


async def test_freshness_counts_from_when_the_look_up_began() -> None:
    clock, judge = Clock(), Judge()
    cache = a_cache(clock)
    judge.gate.clear()
    asking = asyncio.create_task(cache.resolve(A, judge))
    await eventually(lambda: judge.calls)
    clock.now += 0.75
    judge.gate.set()
    await asking
    assert cache.fresh(A) is not None
    clock.now += 0.25
    assert cache.fresh(A) is None


@pytest.mark.parametrize(("is_heard", "due_s", "fresh_s"), [(False, 0.5, 1.0), (True, 24.0, 30.0)])
async def test_what_is_nearly_no_more_fresh_is_asked_again_and_nobody_waits(
    is_heard: bool, due_s: float, fresh_s: float
) -> None:
    clock, judge, heard = Clock(), Judge(), Heard()
    cache = a_cache(clock, heard=heard)

    def pass_time(seconds: float) -> None:
        clock.now += seconds
        if is_heard:
            heard.confirmed_at = clock.now

    first = await cache.resolve(A, judge)
    pass_time(due_s - 0.001)
    assert not cache.is_due(A)
    pass_time(0.001)
    assert cache.is_due(A)
    judge.gate.clear()
    cache.refresh(A, judge)
    await eventually(lambda: judge.calls == 2)
    # One asks; the others go on with what is fresh.
    assert not cache.is_due(A)
    cache.refresh(A, judge)
    assert cache.fresh(A) is first
    judge.gate.set()
    await eventually(lambda: not cache._flights)
    assert judge.calls == 2
    pass_time(fresh_s - 0.001)
    second = cache.fresh(A)
    assert second is not None
    assert second is not first


def test_what_is_not_known_is_not_due() -> None:
    assert not a_cache(Clock()).is_due(A)


async def test_a_refresh_that_is_refused_ends_what_was_admitted() -> None:
    clock, judge = Clock(), Judge()
    cache = a_cache(clock)
    await cache.resolve(A, judge)
    clock.now += 0.5
    judge.error = InvalidApiKey("revoked")
    cache.refresh(A, judge)
    await eventually(lambda: not cache._flights)
    assert cache.fresh(A) is None
    with pytest.raises(InvalidApiKey):
        await cache.resolve(A, judge)


async def test_a_silent_database_is_asked_early_by_one_caller_a_second() -> None:
    clock, judge = Clock(), Judge()
    cache = a_cache(clock, CacheBounds(answer_s=LONG_S, unvouched_s=LONG_S))
    judge_of_b = Judge()
    await cache.resolve(A, judge)
    await cache.resolve(B, judge_of_b)
    clock.now += 0.5
    judge.error = judge_of_b.error = ConnectionRefusedError()
    cache.refresh(A, judge)
    await eventually(lambda: not cache._flights)
    assert not cache.is_due(A)
    assert not cache.is_due(B)
    clock.now += 1
    assert cache.is_due(A)
    cache.refresh(A, judge)
    assert not cache.is_due(B)
    await eventually(lambda: not cache._flights)
    assert (judge.calls, judge_of_b.calls) == (3, 1)
    assert cache.fresh(A) is not None


@pytest.mark.parametrize("named", ["key_id", "user_id"])
async def test_what_was_told_to_have_changed_is_asked_again_before_it_is_used_again(named: str) -> None:
    clock, judge, other = Clock(), Judge(), Judge()
    cache = a_cache(clock)
    await cache.resolve(A, judge)
    untouched = await cache.resolve(B, other)
    cache.forget(getattr(judge, named))
    assert cache.fresh(A) is None
    assert cache.fresh(B) is untouched
    judge.workspace_id = uuid.uuid4()
    assert (await cache.resolve(A, judge)).workspace_id == judge.workspace_id
    assert cache.fresh(A) is not None
    assert (judge.calls, other.calls) == (2, 1)


async def test_what_was_told_to_have_changed_is_not_used_stale_either() -> None:
    clock, judge = Clock(), Judge()
    cache = a_cache(clock)
    await cache.resolve(A, judge)
    cache.forget(judge.key_id)
    judge.error = ConnectionRefusedError()
    with pytest.raises(Unavailable):
        await cache.resolve(A, judge)
    assert cache.stale_uses == 0
    judge.error = None
    clock.now += 2
    await cache.resolve(A, judge)
    assert cache.fresh(A) is not None


async def test_a_look_up_that_was_overtaken_by_a_change_asks_again() -> None:
    """Whoever asks after the change never gets what was read before it, also where they joined that look-up."""
    cache = a_cache(Clock())
    judge, read = Judge(), asyncio.Event()
    older, newer = judge.workspace_id, uuid.uuid4()

    async def slow() -> Principal:
        principal = await judge()
        if principal.workspace_id == older:
            read.set()
            await changed.wait()
        return principal

    changed = asyncio.Event()
    before = asyncio.create_task(cache.resolve(A, slow))
    await read.wait()
    judge.workspace_id = newer
    cache.forget(uuid.uuid4())
    cache.forget(judge.user_id)
    after = asyncio.create_task(cache.resolve(A, slow))
    await asyncio.sleep(0)
    changed.set()
    assert (await after).workspace_id == newer
    assert (await before).workspace_id == newer
    known = cache.fresh(A)
    assert known is not None
    assert known.workspace_id == newer
    assert judge.calls == 2


async def test_a_look_up_that_another_change_overtook_asks_once() -> None:
    cache, judge = a_cache(Clock()), Judge()
    judge.gate.clear()
    asking = asyncio.create_task(cache.resolve(A, judge))
    await eventually(lambda: judge.calls)
    cache.forget(uuid.uuid4())
    judge.gate.set()
    await asking
    assert judge.calls == 1


@in_virtual_time
async def test_a_known_credential_that_changed_does_not_queue_behind_a_flood() -> None:
    cache, judge, stuck = PrincipalCache(CacheBounds(unknown_at_once=1), now), Judge(), Judge()
    await cache.resolve(A, judge)
    stuck.gate.clear()
    flood = [asyncio.create_task(cache.resolve(b"%d" % n, stuck)) for n in range(10)]
    await asyncio.sleep(0)
    cache.forget(judge.key_id)
    began = now()
    await cache.resolve(A, judge)
    assert now() == began
    stuck.gate.set()
    await asyncio.gather(*flood)

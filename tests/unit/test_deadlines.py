"""Each phase has its own deadline and its own error; what is not the upstream's time is nobody's but the total's."""

import asyncio
from collections.abc import Callable

import anyio
import pytest

from tests.support.waiting import eventually
from tidegate.errors import UpstreamTimeout
from tidegate.upstream.deadlines import Deadlines, Phase

SHORT_S = 0.02
LONG_S = 600.0


def has_passed(seconds: float) -> Callable[[], bool]:
    """Whether so much of the loop's time has passed since this call."""
    loop = asyncio.get_running_loop()
    at = loop.time() + seconds
    return lambda: loop.time() >= at


async def forever() -> None:
    await asyncio.Event().wait()


@pytest.mark.parametrize(
    ("phase", "words"),
    [
        ("headers", "headers timeout: the upstream 'scripted' sent no response headers within 0.02 s."),
        ("first_token", "first_token timeout: the upstream 'scripted' sent no first token within 0.02 s."),
        ("idle", "idle timeout: the upstream 'scripted' sent nothing more for 0.02 s."),
    ],
)
async def test_each_phase_runs_out_with_its_own_words(phase: Phase, words: str) -> None:
    with pytest.raises(UpstreamTimeout) as caught, Deadlines("scripted", total_s=LONG_S) as deadlines:
        deadlines.expect(phase, SHORT_S)
        await forever()
    assert (caught.value.phase, caught.value.message, caught.value.http_status) == (phase, words, 504)
    assert caught.value.__cause__ is None
    await asyncio.sleep(0)


async def test_the_total_bounds_what_has_no_phase() -> None:
    with pytest.raises(UpstreamTimeout, match="total timeout: the upstream 'scripted' did not finish within 0.02 s"):
        with Deadlines("scripted", total_s=SHORT_S):
            await forever()


async def test_the_total_bounds_a_phase_that_would_be_longer() -> None:
    with pytest.raises(UpstreamTimeout) as caught, Deadlines("scripted", total_s=SHORT_S) as deadlines:
        deadlines.expect("first_token", LONG_S)
        await forever()
    assert caught.value.phase == "total"


async def test_the_total_is_not_put_off_by_phases() -> None:
    turns = 0
    with pytest.raises(UpstreamTimeout) as caught, Deadlines("scripted", total_s=0.1) as deadlines:
        while True:
            deadlines.expect("idle", 0.08)
            await asyncio.sleep(0.005)
            turns += 1
    assert caught.value.phase == "total"
    assert turns > 0


async def test_a_phase_that_is_asked_again_in_time_never_runs_out() -> None:
    with Deadlines("scripted", total_s=LONG_S) as deadlines:
        done = has_passed(0.5)
        while not done():
            deadlines.expect("idle", 5)
            await asyncio.sleep(0)


async def test_a_shorter_phase_after_a_longer_one_runs_out_in_its_own_time() -> None:
    with pytest.raises(UpstreamTimeout) as caught, Deadlines("scripted", total_s=LONG_S) as deadlines:
        deadlines.expect("headers", 300)
        deadlines.expect("first_token", 200)
        deadlines.expect("idle", SHORT_S)
        await asyncio.wait_for(forever(), 30)
    assert caught.value.phase == "idle"


async def test_a_longer_phase_after_a_shorter_one_is_not_cut_by_the_old_timer() -> None:
    with Deadlines("scripted", total_s=LONG_S) as deadlines:
        deadlines.expect("headers", SHORT_S)
        deadlines.expect("first_token", LONG_S)
        await eventually(has_passed(3 * SHORT_S))


async def test_time_spent_on_a_slow_reader_counts_for_the_total_alone() -> None:
    with Deadlines("scripted", total_s=LONG_S) as deadlines:
        deadlines.expect("idle", SHORT_S)
        deadlines.relax()
        await eventually(has_passed(3 * SHORT_S))
        deadlines.expect("idle", LONG_S)
        await asyncio.sleep(0)
    with pytest.raises(UpstreamTimeout) as caught, Deadlines("scripted", total_s=3 * SHORT_S) as deadlines:
        deadlines.expect("idle", SHORT_S)
        deadlines.relax()
        await forever()
    assert caught.value.phase == "total"


async def test_a_phase_expected_before_the_block_counts_too() -> None:
    deadlines = Deadlines("scripted", total_s=LONG_S)
    deadlines.expect("headers", SHORT_S)
    with pytest.raises(UpstreamTimeout) as caught, deadlines:
        await forever()
    assert caught.value.phase == "headers"


async def test_work_that_is_done_when_the_timer_fires_late_is_done() -> None:
    finished = False
    with Deadlines("scripted", total_s=SHORT_S):
        finished = True
        # As an upstream's connection is closed: shielded, and longer than was left.
        with anyio.CancelScope(shield=True):
            await eventually(has_passed(3 * SHORT_S))
    assert finished
    await asyncio.sleep(0)
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


async def test_a_block_that_the_loop_was_late_for_but_that_never_waited_is_done() -> None:
    loop = asyncio.get_running_loop()
    with Deadlines("scripted", total_s=SHORT_S):
        until = loop.time() + 2 * SHORT_S
        while loop.time() < until:
            pass


async def test_nothing_fires_after_the_block() -> None:
    with Deadlines("scripted", total_s=SHORT_S) as deadlines:
        deadlines.expect("idle", SHORT_S / 2)
    await eventually(has_passed(3 * SHORT_S))


async def test_an_error_of_the_work_is_not_taken_for_a_timeout() -> None:
    with pytest.raises(ZeroDivisionError), Deadlines("scripted", total_s=LONG_S):
        raise ZeroDivisionError
    with pytest.raises(ZeroDivisionError), Deadlines("scripted", total_s=SHORT_S):
        try:
            await forever()
        finally:
            raise ZeroDivisionError


@pytest.mark.parametrize("is_late", [True, False])
async def test_a_cancellation_from_outside_stays_one(is_late: bool) -> None:
    seen: list[str] = []

    async def work() -> None:
        try:
            with Deadlines("scripted", total_s=SHORT_S if is_late else LONG_S):
                if is_late:
                    with anyio.CancelScope(shield=True):
                        await eventually(has_passed(3 * SHORT_S))
                    task = asyncio.current_task()
                    assert task is not None
                    task.cancel()
                await forever()
        except UpstreamTimeout:
            seen.append("timeout")
            raise
        except asyncio.CancelledError:
            seen.append("cancelled")
            raise

    task = asyncio.create_task(work())
    if not is_late:
        await asyncio.sleep(0)
        task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert seen == ["cancelled"]


async def test_what_is_opened_in_the_block_is_closed_when_it_runs_out() -> None:
    closed = False
    with pytest.raises(UpstreamTimeout), Deadlines("scripted", total_s=SHORT_S):
        try:
            await forever()
        finally:
            with anyio.CancelScope(shield=True):
                await asyncio.sleep(0)
                closed = True
    assert closed


async def test_many_phases_cost_one_timer() -> None:
    loop = asyncio.get_running_loop()
    with Deadlines("scripted", total_s=LONG_S) as deadlines:
        before = len(getattr(loop, "_scheduled", ()))
        for _ in range(1000):
            deadlines.expect("idle", 30)
            deadlines.relax()
        assert len(getattr(loop, "_scheduled", ())) <= before + 1

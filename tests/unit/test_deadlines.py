"""Each phase has its own deadline and its own error; what is not the upstream's time is nobody's but the total's."""

import asyncio

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.virtual_time import in_virtual_time, now
from tidegate.errors import RequestTimeout, UpstreamTimeout
from tidegate.upstream.deadlines import Deadlines, Phase

Step = tuple[str, float]


async def timed_out(*steps: Step, total_s: float) -> tuple[str, float]:
    """The phase that ran out and when, to the millisecond, in work that does these steps and then waits for ever.

    A step is a phase with its seconds, `wait` with its seconds, or `relax`.
    """
    began = now()
    try:
        with Deadlines("scripted", total_s=total_s) as deadlines:
            for what, seconds in steps:
                if what == "wait":
                    await asyncio.sleep(seconds)
                elif what == "relax":
                    deadlines.relax()
                else:
                    deadlines.expect(what, seconds)  # type: ignore[arg-type]
            await asyncio.Event().wait()
    except UpstreamTimeout as error:
        return error.phase, round(now() - began, 3)
    raise AssertionError


@pytest.mark.parametrize(
    ("phase", "words"),
    [
        ("headers", "headers timeout: the upstream 'scripted' sent no response headers within 20 s."),
        ("first_token", "first_token timeout: the upstream 'scripted' sent no first token within 20 s."),
        ("idle", "idle timeout: the upstream 'scripted' sent nothing more for 20 s."),
    ],
)
@in_virtual_time
async def test_each_phase_runs_out_with_its_own_words(phase: Phase, words: str) -> None:
    async def work() -> None:
        with Deadlines("scripted", total_s=600) as deadlines:
            deadlines.expect(phase, 20)
            await asyncio.Event().wait()

    with pytest.raises(UpstreamTimeout) as caught:
        await work()
    assert (caught.value.phase, caught.value.message, caught.value.http_status) == (phase, words, 504)
    assert (now(), caught.value.__cause__) == (20, None)
    await asyncio.sleep(0)


@pytest.mark.parametrize(
    ("steps", "total_s", "phase", "at"),
    [
        # The total bounds what has no phase, and a phase that would be longer; phases do not put it off.
        ([], 30, "total", 30),
        ([("first_token", 60)], 30, "total", 30),
        ([("idle", 20), ("wait", 15), ("idle", 20)], 30, "total", 30),
        ([("first_token", 30)], 30, "total", 30),
        # A phase counts from when it is expected, and the last one holds.
        ([("wait", 7), ("headers", 20)], 600, "headers", 27),
        ([("headers", 20), ("wait", 19), ("first_token", 20)], 600, "first_token", 39),
        ([("headers", 300), ("first_token", 200), ("idle", 5)], 600, "idle", 5),
        ([("headers", 5), ("first_token", 200)], 600, "first_token", 200),
        ([("idle", 5), ("wait", 4), ("idle", 5), ("wait", 4), ("idle", 5)], 600, "idle", 13),
        # Relaxed, as while a slow reader is sent to, nothing runs out but the total.
        ([("idle", 5), ("relax", 0), ("wait", 100), ("idle", 5)], 600, "idle", 105),
        ([("idle", 5), ("relax", 0)], 30, "total", 30),
        ([("headers", 5), ("wait", 5)], 600, "headers", 5),
    ],
)
@in_virtual_time
async def test_what_runs_out_when(steps: list[Step], total_s: float, phase: str, at: float) -> None:
    assert await timed_out(*steps, total_s=total_s) == (phase, at)


STEPS = st.tuples(st.sampled_from(["wait", "relax", "headers", "first_token", "idle"]), st.integers(1, 50))


@settings(deadline=None)
@given(st.lists(STEPS, max_size=12), st.integers(1, 200))
@in_virtual_time
async def test_it_is_as_a_slow_account_of_all_phases_says(steps: list[Step], total_s: int) -> None:
    at, phase, due = 0.0, "total", float(total_s)
    for what, seconds in steps:
        if what == "wait":
            # At the very moment that it is due, whichever timer was set first fires first.
            if at + seconds > due:
                break
            at += seconds
            if at == due:
                return
        elif what == "relax" or at + seconds >= total_s:
            phase, due = "total", float(total_s)
        else:
            phase, due = what, at + seconds
    assert await timed_out(*steps, total_s=total_s) == (phase, due)


@in_virtual_time
async def test_a_phase_expected_before_the_block_counts_too() -> None:
    deadlines = Deadlines("scripted", total_s=600)
    deadlines.expect("headers", 20)
    caught: UpstreamTimeout | None = None
    try:
        with deadlines:
            await asyncio.Event().wait()
    except UpstreamTimeout as error:
        caught = error
    assert caught is not None
    assert (caught.phase, now()) == ("headers", 20)


@in_virtual_time
async def test_work_that_is_done_when_the_timer_fires_late_is_done() -> None:
    with Deadlines("scripted", total_s=30):
        # As an upstream's connection is closed: shielded, and longer than was left.
        with anyio.CancelScope(shield=True):
            await asyncio.sleep(100)
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
    await asyncio.sleep(0)


@in_virtual_time
async def test_work_that_ends_in_the_turn_in_which_it_is_due_is_done_or_too_late_and_nothing_else() -> None:
    for after_s in (29.999999, 30, 30.000001):
        outcome = "done"
        try:
            with Deadlines("scripted", total_s=30):
                await asyncio.sleep(after_s)
        except UpstreamTimeout:
            outcome = "late"
        assert outcome == "done" if after_s < 30 else outcome in ("done", "late")
        await asyncio.sleep(0)


@in_virtual_time
async def test_nothing_fires_after_the_end_of_waiting() -> None:
    with Deadlines("scripted", total_s=30) as deadlines:
        deadlines.expect("idle", 5)
        deadlines.end()
        await asyncio.sleep(100)


@in_virtual_time
async def test_a_deadline_of_the_caller_is_nobodys_fault_and_a_phase_within_it_is_the_upstreams() -> None:
    async def work(phase_s: float) -> None:
        with Deadlines("scripted", total_s=30, is_callers=True) as deadlines:
            deadlines.expect("idle", phase_s)
            await asyncio.Event().wait()

    with pytest.raises(RequestTimeout, match="X-Tidegate-Deadline-Ms") as caught:
        await work(60)
    assert (caught.value.http_status, now()) == (408, 30)
    with pytest.raises(UpstreamTimeout):
        await work(5)


@in_virtual_time
async def test_nothing_fires_after_the_block() -> None:
    with Deadlines("scripted", total_s=30) as deadlines:
        deadlines.expect("idle", 5)
    await asyncio.sleep(100)


@in_virtual_time
async def test_an_error_of_the_work_is_not_taken_for_a_timeout() -> None:
    with pytest.raises(ZeroDivisionError), Deadlines("scripted", total_s=30):
        raise ZeroDivisionError

    async def fail_in_closing() -> None:
        with Deadlines("scripted", total_s=30):
            try:
                await asyncio.Event().wait()
            finally:
                raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail_in_closing()


@pytest.mark.parametrize("is_due", [True, False])
@in_virtual_time
async def test_a_cancellation_from_outside_stays_one(is_due: bool) -> None:
    async def work() -> None:
        with Deadlines("scripted", total_s=30):
            # What is due while it is shielded, and the cancellation, are both waiting when the shield ends.
            with anyio.CancelScope(shield=True):
                await asyncio.sleep(100 if is_due else 1)
            await asyncio.Event().wait()

    task = asyncio.create_task(work())
    await asyncio.sleep(60 if is_due else 0.5)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()


@in_virtual_time
async def test_what_is_opened_in_the_block_is_closed_when_it_runs_out() -> None:
    closed_at = 0.0

    async def work() -> None:
        nonlocal closed_at
        with Deadlines("scripted", total_s=30):
            try:
                await asyncio.Event().wait()
            finally:
                with anyio.CancelScope(shield=True):
                    await asyncio.sleep(1)
                    closed_at = now()

    with pytest.raises(UpstreamTimeout):
        await work()
    assert closed_at == 31


@in_virtual_time
async def test_a_thousand_chunks_set_no_thousand_timers() -> None:
    with Deadlines("scripted", total_s=600) as deadlines:
        for _ in range(1000):
            deadlines.relax()
            deadlines.expect("idle", 30)
            await asyncio.sleep(0)
        timers: list[asyncio.TimerHandle] = asyncio.get_running_loop()._scheduled  # type: ignore[attr-defined]
        assert len(timers) <= 2

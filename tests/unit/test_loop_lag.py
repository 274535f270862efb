"""How late the loop turns is always known, and a loop that stands still is told of once, with what held it."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import orjson
import pytest

from tests.support.waiting import eventually
from tidegate.telemetry.loop_lag import INTERVAL_S, WINDOW_S, LoopLag, Stall, cause_of


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def stalls() -> list[Stall]:
    return []


def turn(lag: LoopLag, clock: Clock, *, late_s: float) -> None:
    clock.now = lag.due_at + late_s
    lag.turned()


def test_lag_is_by_how_much_a_turn_came_late(clock: Clock) -> None:
    lag = LoopLag(clock=clock)
    for late_s in (0.0, 0.5, 0.125):
        turn(lag, clock, late_s=late_s)
    assert (lag.last_s, lag.worst_s, lag.worst_ever_s) == (0.125, 0.5, 0.5)


def test_turn_that_is_overdue_counts_before_it_comes(clock: Clock) -> None:
    lag = LoopLag(clock=clock)
    clock.now = lag.due_at + 3
    assert (lag.overdue_s, lag.worst_s, lag.last_s) == (3.0, 3.0, 0.0)


def test_worst_is_forgotten_after_a_minute_and_not_before(clock: Clock) -> None:
    lag = LoopLag(clock=clock)
    turn(lag, clock, late_s=2.0)
    at = clock.now
    while clock.now < at + WINDOW_S - 6:
        turn(lag, clock, late_s=0.0)
        assert lag.worst_s == 2.0
    while clock.now < at + WINDOW_S + 6:
        turn(lag, clock, late_s=0.0)
    assert (lag.worst_s, lag.worst_ever_s) == (0.0, 2.0)


def test_turns_do_not_drift_and_missed_ones_are_not_made_up_for(clock: Clock) -> None:
    lag = LoopLag(clock=clock)
    first = lag.due_at
    for _ in range(100):
        turn(lag, clock, late_s=0.0625)
    assert lag.due_at == first + 100 * INTERVAL_S
    turn(lag, clock, late_s=10.0)
    assert clock.now < lag.due_at <= clock.now + INTERVAL_S


async def test_ticks_in_a_loop_and_ends_with_its_context() -> None:
    with LoopLag().watching(stall_s=0) as lag:
        first = lag.due_at
        await eventually(lambda: lag.due_at > first + INTERVAL_S)
    last = lag.due_at
    await eventually(after(2 * INTERVAL_S))
    assert lag.due_at == last


def after(seconds: float) -> Callable[[], bool]:
    at = time.monotonic() + seconds
    return lambda: time.monotonic() > at


def either(one: Callable[[], bool], other: Callable[[], bool]) -> Callable[[], bool]:
    return lambda: one() or other()


def turns_again(lag: LoopLag) -> Callable[[], bool]:
    due_at = lag.due_at
    return lambda: lag.due_at > due_at


def wait_in_a_call(told: Callable[[], bool]) -> None:
    while not told():
        time.sleep(0.05)


def compute(told: Callable[[], bool]) -> None:
    while not told():
        sum(range(1000))


@pytest.mark.parametrize(
    ("cpu_s", "starved_s", "cause"),
    [
        (0.0, 0.0, "blocked"),
        (0.2, 0.2, "blocked"),
        (0.9, 0.0, "busy"),
        (0.6, 0.9, "busy"),
        (0.45, 0.4, "busy"),
        (0.4, 0.45, "starved"),
        (0.1, 0.9, "starved"),
    ],
)
def test_cause_is_what_took_most_of_the_time(cpu_s: float, starved_s: float, cause: str) -> None:
    assert cause_of(1.0, cpu_s=cpu_s, starved_s=starved_s) == cause


# Where the machine is busy elsewhere, either may be starved too.
@pytest.mark.parametrize(
    ("held_by", "causes"), [(wait_in_a_call, {"blocked", "starved"}), (compute, {"busy", "starved"})]
)
async def test_loop_that_stands_still_is_told_of_once_with_what_holds_it(
    stalls: list[Stall], held_by: Callable[[Callable[[], bool]], None], causes: set[str]
) -> None:
    with LoopLag().watching(stall_s=0.2, told=stalls.append) as lag:
        for count in (1, 2):
            await eventually(turns_again(lag))
            held_by(either(lambda: len(stalls) >= count, after(30)))  # noqa: B023 - called before the next turn
            # Held on for a while: it is one standstill.
            held_by(after(0.5))
            assert len(stalls) == count
    assert len(stalls) == 2
    for stall in stalls:
        assert stall.stalled_s >= 0.2
        assert stall.cause in causes
        assert held_by.__name__ in stall.stack
        assert stall.cpu_s is not None
    assert lag.worst_ever_s >= 0.5
    assert lag.worst_cpu_s > 0


STOPPED = """
import asyncio, sys
from tidegate.settings import Settings
from tidegate.telemetry.logging import configure_logging
from tidegate.telemetry.loop_lag import LoopLag
configure_logging(Settings(environment="production"), process="worker")
async def main():
    with LoopLag().watching(stall_s=1.0) as lag:
        print("{}", flush=True)
        while lag.worst_ever_s < 1.0:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.5)
asyncio.run(main())
"""


async def test_program_that_was_stopped_as_a_whole_is_starved_and_has_no_stack() -> None:
    with subprocess.Popen([sys.executable, "-c", STOPPED], stdout=subprocess.PIPE) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == b"{}\n"
        os.kill(running.pid, signal.SIGSTOP)
        await eventually(after(2.5))
        os.kill(running.pid, signal.SIGCONT)
        lines = [orjson.loads(line) for line in running.stdout.read().splitlines()]
        assert running.wait(60) == 0
    # A machine that is busy elsewhere may hold it for a second more, before or after.
    assert all(line["event"].startswith("the loop did not turn for ") for line in lines)
    line = max(lines, key=lambda line: float(line["event"].split()[-2]))
    assert (line["level"], line["cause"], "stack" in line) == ("warning", "starved", False)
    assert line["cpu_s"] < 1

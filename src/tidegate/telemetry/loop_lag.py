"""Whether the loop turns: how late it is, always measured, and what held it where it stood still.

A ticker asks the loop for a turn every quarter of a second and sees how late it comes. While the loop stands still no
code of its own can tell, so a thread looks on: once the loop has not turned for `stall_s`, it takes the stack of the
loop's thread and tells of it, once a stall.

What held it is told apart by the thread's CPU time since its last turn. `busy`: it computed all the while, so its stack
is the fault. `blocked`: it waited in a call, so its stack is the fault too. `starved`: the watching thread was late
too, or the loop's was ready and got no CPU; then the machine, a quota or a debugger held the whole program, and the
stack, being where it happened to be, is left out.
"""

import asyncio
import contextlib
import contextvars
import os
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tidegate.telemetry.logging import get_logger

log = get_logger(__name__)

INTERVAL_S = 0.25
WINDOW_S = 60
_BUCKETS = 12
_BUCKET_S = WINDOW_S / _BUCKETS
# Of the time that a loop stood still, what is "all of it" on a machine that is shared.
_MOST = 0.5
_DEEPEST_STACK = 40
_END_WITHIN_S = 2.0
_LONGEST_LOOK_S = 1.0

Cause = Literal["busy", "blocked", "starved"]


@dataclass(frozen=True, slots=True)
class Stall:
    """One standstill so far. `cpu_s` is the CPU time of the loop's thread in it, None where the system tells none."""

    stalled_s: float
    cpu_s: float | None
    cause: Cause
    stack: str


Told = Callable[[Stall], None]


class LoopLag:
    """The lag of one loop. `last_s` is how late its last turn came, `worst_ever_s` the worst so far, in seconds;
    `worst_cpu_s` is the most CPU time that its thread took between two turns, the interval between them included.
    `observe`, where it is set, hears each.

    >>> with LoopLag().watching(stall_s=1.0) as lag:
    ...     lag.worst_s
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.last_s = 0.0
        self.worst_ever_s = 0.0
        self.worst_cpu_s = 0.0
        self.observe: Callable[[float], None] | None = None
        self._clock = clock
        self._worst: deque[tuple[int, float]] = deque(maxlen=_BUCKETS + 1)
        self._due_at = clock()
        self._cpu_at_turn_s = time.thread_time()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._watchdog: _Watchdog | None = None

    @property
    def worst_s(self) -> float:
        """The worst of the last minute, the turn that is overdue now included."""
        oldest = int(self._clock() / _BUCKET_S) - _BUCKETS
        return max([self.overdue_s, *(worst for bucket, worst in self._worst if bucket > oldest)])

    @property
    def due_at(self) -> float:
        """When the next turn is due, by the clock."""
        return self._due_at

    @property
    def overdue_s(self) -> float:
        """How late the next turn is by now; 0 while it is not. May be asked from any thread."""
        return max(0.0, self._clock() - self._due_at)

    @contextlib.contextmanager
    def watching(self, *, stall_s: float, told: Told | None = None) -> Iterator["LoopLag"]:
        """Ticks in the running loop, and tells `told` (the log, where none is given) of a loop that stands still for
        `stall_s`; never with 0.
        """
        self._loop = asyncio.get_running_loop()
        self._cpu_at_turn_s = time.thread_time()
        self._due_at = self._clock() + INTERVAL_S
        self._arm(INTERVAL_S)
        self._watchdog = _Watchdog(self, stall_s, told or _log_stall) if stall_s else None
        try:
            yield self
        finally:
            if self._timer is not None:
                self._timer.cancel()
            if self._watchdog is not None:
                self._watchdog.end()

    def turned(self) -> None:
        """A turn of the loop, for which the ticker asked."""
        now = self._clock()
        lag_s = max(0.0, now - self._due_at)
        self.last_s = lag_s
        if self.observe is not None:
            self.observe(lag_s)
        bucket = int(now / _BUCKET_S)
        if not self._worst or self._worst[-1][0] != bucket:
            self._worst.append((bucket, lag_s))
        elif lag_s > self._worst[-1][1]:
            self._worst[-1] = (bucket, lag_s)
        self.worst_ever_s = max(self.worst_ever_s, lag_s)
        cpu_now_s = time.thread_time()
        cpu_s, self._cpu_at_turn_s = cpu_now_s - self._cpu_at_turn_s, cpu_now_s
        self.worst_cpu_s = max(self.worst_cpu_s, cpu_s)
        if self._watchdog is not None and lag_s >= self._watchdog.stall_s:
            self._watchdog.turned_again(lag_s, cpu_s)
        # From when this one was due, so that ticks do not drift; those that were missed are not made up for.
        missed = int(lag_s / INTERVAL_S)
        self._due_at += (missed + 1) * INTERVAL_S

    def cpu_since_turn_s(self, clock_id: int | None) -> float | None:
        """CPU time of the loop's thread since its last turn; `clock_id` is that thread's clock."""
        return None if clock_id is None else time.clock_gettime(clock_id) - self._cpu_at_turn_s

    def _tick(self) -> None:
        self.turned()
        self._arm(self._due_at - self._clock())

    def _arm(self, after_s: float) -> None:
        assert self._loop is not None
        # An empty context: the ticker is nobody's request. By delay: uvloop's own clock stands while a callback runs.
        self._timer = self._loop.call_later(max(0.0, after_s), self._tick, context=contextvars.Context())


def cause_of(stalled_s: float, *, cpu_s: float, starved_s: float) -> Cause:
    """What held a loop that stood still so long, by its thread's CPU time and by how long it was kept from any."""
    most_s = _MOST * stalled_s
    # Not what held it longest, but whether it waited in a call at all: a thread that computes on a busy machine has
    # now its turn and now none, and waits for nobody.
    if cpu_s + starved_s < most_s:
        return "blocked"
    return "busy" if cpu_s >= most_s or cpu_s >= starved_s else "starved"


class _Watchdog:
    """The thread that looks on. Made in the loop's thread."""

    def __init__(self, lag: LoopLag, stall_s: float, told: Told) -> None:
        self.stall_s = stall_s
        self._lag = lag
        self._told = told
        self._told_of: float | None = None
        self._looked_at = _Thread()
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="loop watchdog", daemon=True)
        self._thread.start()

    def end(self) -> None:
        self._ending.set()
        # Bounded: at worst it waits for whoever reads the log.
        self._thread.join(_END_WITHIN_S)
        self._looked_at.close()

    def turned_again(self, stalled_s: float, cpu_s: float) -> None:
        """The loop turned after a standstill: told of here where this thread got no turn in it either.

        That is a program that was stopped as a whole, or a call that kept the interpreter's lock.
        """
        if self._told_of != self._lag.due_at:
            self._told(Stall(stalled_s, cpu_s, cause_of(stalled_s, cpu_s=cpu_s, starved_s=stalled_s), stack=""))

    def _watch(self) -> None:
        every_s = min(self.stall_s / 4, _LONGEST_LOOK_S)
        woken_at = time.monotonic()
        # Since the loop turned last: how late this thread was, and how long the loop's had waited for a CPU before.
        late_s, waited_s = 0.0, self._looked_at.waited_s()
        while not self._ending.wait(every_s):
            now = time.monotonic()
            late_s, woken_at = late_s + max(0.0, now - woken_at - every_s), now
            overdue_s = self._lag.overdue_s
            if overdue_s < every_s:
                late_s, waited_s = 0.0, self._looked_at.waited_s()
            elif overdue_s >= self.stall_s and self._told_of != self._lag.due_at:
                self._tell(overdue_s, starved_s=max(late_s, self._looked_at.waited_s() - waited_s))

    def _tell(self, overdue_s: float, *, starved_s: float) -> None:
        due_at = self._lag.due_at
        cpu_s = self._lag.cpu_since_turn_s(self._looked_at.clock_id)
        cause = cause_of(overdue_s, cpu_s=cpu_s or 0.0, starved_s=starved_s)
        stack = self._looked_at.stack()
        # Else it turned while this looked, and the stack is of something else.
        if self._lag.due_at == due_at:
            self._told_of = due_at
            self._told(Stall(overdue_s, cpu_s, cause, stack))


class _Thread:
    """What can be known of a thread from outside; of the one that makes it."""

    def __init__(self) -> None:
        self._ident = threading.get_ident()
        self.clock_id: int | None = None
        if sys.platform == "linux":
            self.clock_id = time.pthread_getcpuclockid(self._ident)
        self._schedule = _opened(Path(f"/proc/self/task/{threading.get_native_id()}/schedstat"))

    def waited_s(self) -> float:
        """How long it was ready in its life and had no CPU; 0 where the system tells none."""
        if self._schedule is None:
            return 0.0
        try:
            return int(os.pread(self._schedule, 128, 0).split()[1]) / 1e9
        except (OSError, ValueError, IndexError):
            return 0.0

    def stack(self) -> str:
        frame = sys._current_frames().get(self._ident)  # noqa: SLF001 - its name, but documented: the way to see another thread
        return "" if frame is None else "".join(traceback.format_stack(frame)[-_DEEPEST_STACK:]).rstrip()

    def close(self) -> None:
        if self._schedule is not None:
            os.close(self._schedule)


def _opened(path: Path) -> int | None:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None


def _log_stall(stall: Stall) -> None:
    told: dict[str, object] = {"cause": stall.cause, "cpu_s": None if stall.cpu_s is None else round(stall.cpu_s, 3)}
    if stall.cause != "starved" and stall.stack:
        told["stack"] = stall.stack
    log.warning("the loop did not turn for %.1f s", stall.stalled_s, **told)

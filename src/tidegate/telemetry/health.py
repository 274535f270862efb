"""Whether this process can work, and what it lacks: named checks of its dependencies, and its own state.

The invariants: an answer comes in bounded time whatever the dependencies do (a check has 1 s, and one that cannot even
be cancelled in time is left behind and not started again beside itself); a crowd of callers costs one round of checks a
second; a dependency's own words are in the log, never in an answer; what a stranger has no use for (`details`) is told
to those alone whom the endpoints let.
"""

import asyncio
import contextvars
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from tidegate.telemetry.logging import get_logger

log = get_logger(__name__)

CHECK_TIMEOUT_S = 1.0
FRESH_S = 1.0
# Who starts a server waits for it.
FRESH_WHILE_STARTING_S = 0.1

State = Literal["starting", "ready", "draining", "behind"]
ReadyState = Literal["starting", "ready", "draining", "behind", "unavailable"]
Check = Callable[[], Awaitable[str | None]]


@dataclass(frozen=True, slots=True)
class CheckResult:
    """One dependency, asked once. `note` is what a working one says of itself; `last_ok_at` when it was last found to
    work, in Unix seconds, None where it never was.
    """

    status: Literal["ok", "down"]
    latency_ms: float
    note: str | None = None
    last_ok_at: float | None = None


@dataclass(slots=True)
class _Dependency:
    check: Check
    degrades_as: str
    must_have_answered: bool
    has_answered: bool = False
    last_ok_at: float | None = None
    running: "asyncio.Task[str | None] | None" = None


class HealthBoard:
    """The health of one process. The lifespan fills and closes it; the endpoints read it.

    `state` begins as `starting`; the lifespan sets `ready` (or `behind` on migrations), `draining` is asked of
    `is_draining`. `flagged` is for whoever else knows of something that is lost, such as a breaker; `refuses_work` says
    that what is lost leaves nothing to be done. `details` is what this process tells of itself, as JSON takes it;
    `modes` says for each name of `degraded` what goes on without it. `details_port` is where everybody reads those,
    `details_are_open` that they do everywhere.

    >>> board = HealthBoard(version="0.1.0", catalogue_version="…", is_draining=lambda: drain.draining)
    >>> board.add("database", check_database)
    >>> board.add("cache", check_redis, degrades_as="redis")
    >>> board.add("model", check_model, must_have_answered=True)
    """

    def __init__(
        self,
        *,
        version: str,
        catalogue_version: str | None = None,
        is_draining: Callable[[], bool] = lambda: False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.version = version
        self.catalogue_version = catalogue_version
        self.flagged: set[str] = set()
        self.refuses_work: Callable[[], bool] = lambda: False
        self.details: Callable[[], dict[str, Any]] = dict
        self.modes: Mapping[str, str] = {}
        self.details_are_open = False
        self.details_port: int | None = None
        self._is_draining = is_draining
        self._clock = clock
        self._state: State = "starting"
        self._dependencies: dict[str, _Dependency] = {}
        self._results: dict[str, CheckResult] = {}
        self._checked_at = float("-inf")
        self._round: asyncio.Task[None] | None = None

    @property
    def state(self) -> State:
        return "draining" if self._is_draining() else self._state

    @state.setter
    def state(self, state: State) -> None:
        self._state = state

    @property
    def degraded(self) -> set[str]:
        """What is lost, as far as is known: what its last check did not find, and what is flagged."""
        down = {name for name, result in self._results.items() if result.status == "down"}
        return self.flagged | {self._dependencies[name].degrades_as for name in down}

    @property
    def degraded_modes(self) -> dict[str, str]:
        """For what is lost: what goes on without it."""
        return {name: self.modes.get(name, "") for name in sorted(self.degraded)}

    @property
    def readiness(self) -> ReadyState:
        """Its state as those see it who send work: `ready` says that it takes some. A dependency that was lost later
        does not end that; `unavailable` where what is lost leaves nothing to be done.
        """
        if self.state != "ready":
            return self.state
        if self._is_starting:
            return "starting"
        return "unavailable" if self.refuses_work() else "ready"

    @property
    def is_ready(self) -> bool:
        """Whether this process takes work."""
        return self.readiness == "ready"

    @property
    def _is_starting(self) -> bool:
        unheard = any(each.must_have_answered and not each.has_answered for each in self._dependencies.values())
        return self._state == "starting" or unheard

    def add(self, name: str, check: Check, *, degrades_as: str | None = None, must_have_answered: bool = False) -> None:
        """Adds a dependency. `check` returns (a note or None) where it answers, and raises where it does not.

        `degrades_as` is its name in `degraded` where that is another. `must_have_answered`: not ready until it was
        found once.
        """
        self._dependencies[name] = _Dependency(check, degrades_as or name, must_have_answered)

    async def results(self, *, within_s: float | None = None) -> dict[str, CheckResult]:
        """What each dependency's check found, at most a second ago (a tenth of one while this process starts).

        With `within_s` it waits no longer than that, and gives what was found before.
        """
        fresh_s = FRESH_WHILE_STARTING_S if self._is_starting else FRESH_S
        if self._round is None and self._clock() - self._checked_at >= fresh_s:
            # A context of its own: the round is not one request's work.
            self._round = asyncio.create_task(self._check_all(), context=contextvars.Context())
        if self._round is not None:
            # Not awaited itself: a caller that goes away must not take the round with it.
            await asyncio.wait({self._round}, timeout=within_s)
        return dict(self._results)

    async def aclose(self) -> None:
        """Ends what is being checked, before the dependencies are closed."""
        running = {each.running for each in self._dependencies.values()} | {self._round}
        tasks = {task for task in running if task is not None and not task.done()}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=CHECK_TIMEOUT_S)

    async def _check_all(self) -> None:
        try:
            found = await asyncio.gather(*(self._check(name) for name in self._dependencies))
            self._results = dict(zip(self._dependencies, found, strict=True))
            self._checked_at = self._clock()
        finally:
            self._round = None

    async def _check(self, name: str) -> CheckResult:
        dependency = self._dependencies[name]
        started = time.perf_counter()
        if dependency.running is None or dependency.running.done():
            dependency.running = asyncio.create_task(_awaited(dependency.check))
            dependency.running.add_done_callback(_look_at)
        task = dependency.running
        await asyncio.wait({task}, timeout=CHECK_TIMEOUT_S)
        latency_ms = round((time.perf_counter() - started) * 1000, 3)
        if not task.done():
            task.cancel()
            return self._told(name, CheckResult("down", latency_ms), f"no answer within {CHECK_TIMEOUT_S:g} s")
        if task.cancelled():
            return self._told(name, CheckResult("down", latency_ms), "the check was cancelled")
        error = task.exception()
        if error is not None:
            return self._told(name, CheckResult("down", latency_ms), f"{type(error).__name__}: {error}")
        dependency.has_answered = True
        dependency.last_ok_at = time.time()
        return self._told(name, CheckResult("ok", latency_ms, task.result()), "")

    def _told(self, name: str, result: CheckResult, reason: str) -> CheckResult:
        """Logs a change, not a state."""
        before = self._results.get(name)
        dependency = self._dependencies[name]
        result = replace(result, last_ok_at=dependency.last_ok_at)
        if result.status == "down" and (before is None or before.status == "ok"):
            if dependency.must_have_answered and not dependency.has_answered:
                log.info("waiting for a dependency", dependency=name, reason=reason[:500])
            else:
                log.warning("a dependency is down", dependency=name, reason=reason[:500])
        elif result.status == "ok" and before is not None and before.status == "down":
            log.info("a dependency is back", dependency=name)
        return result


def _look_at(task: "asyncio.Task[str | None]") -> None:
    """An error that nobody looked at, as that of a check that was left behind, is a complaint of asyncio's."""
    if not task.cancelled():
        task.exception()


async def _awaited(check: Check) -> str | None:
    return await check()

"""The generations of a root: the one that serves, the next while it comes, and older ones while they leave.

A new one takes over when each of its workers serves. Where it does not come to that it is ended, and the one that
serves has noticed nothing.
"""

import asyncio
from collections.abc import Awaitable, Callable

from tidegate.server.children import describe_exit
from tidegate.server.control_door import ControlDoor
from tidegate.server.generation import Generation, Opened
from tidegate.server.refusal import EXIT_REFUSED
from tidegate.telemetry.logging import get_logger


class NotReplaced(Exception):
    """The generation that serves stays; the text says why."""


class Generations:
    """`launch` starts the server of a number; `stop_within_s` is the bound of one that told none.

    >>> generations = Generations(launch, door, stop_within_s=60, comes_within_s=60)
    >>> await generations.begin()
    >>> code = await generations.until_over()
    """

    def __init__(
        self,
        launch: Callable[[int], Awaitable[Generation]],
        door: ControlDoor,
        *,
        stop_within_s: float,
        comes_within_s: float,
    ) -> None:
        self._launch = launch
        self._door = door
        self._stop_within_s = stop_within_s
        self._comes_within_s = comes_within_s
        self._number = 0
        self._alive: list[Generation] = []
        self._leaving: set[asyncio.Task[None]] = set()
        self._taken_over = asyncio.Event()
        self._current: Generation | None = None
        self._log = get_logger(__name__)

    @property
    def current(self) -> Generation | None:
        """The one that serves, or is the first to come."""
        return self._current

    @property
    def alive(self) -> tuple[Generation, ...]:
        """All that have a process."""
        return tuple(self._alive)

    def numbered(self, number: int) -> Generation | None:
        return next((generation for generation in self._alive if generation.number == number), None)

    async def begin(self) -> Generation:
        """Starts the first."""
        self._current = await self._start()
        return self._current

    async def until_over(self) -> int:
        """The exit code of the generation that serves, once it ended by itself."""
        while True:
            current = self._current
            assert current is not None
            self._taken_over.clear()
            switched = asyncio.create_task(self._taken_over.wait())
            try:
                await asyncio.wait({current.ended, switched}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                switched.cancel()
            if current is self._current and current.ended.done():
                return current.ended.result()

    async def replace(self, model_slots: int | None) -> Opened:
        """Starts the next generation, and retires the current one when that serves. Raises `NotReplaced`.

        `model_slots` are the local model's, which outlives generations: they cannot have another number. Older ones
        that still leave are waited for: connections to the stores are counted for two generations at once, not three.
        """
        if self._leaving:
            self._log.info("the next generation waits for an older one to leave")
            await asyncio.wait(self._leaving)
        old = self._current
        new = await self._start()
        self._log.info("a new generation starts", generation=new.number, pid=new.child.pid)
        try:
            opened = await self._until_it_serves(new, model_slots)
        except NotReplaced:
            # Some of its workers may serve, and what they were asked is answered.
            self._retire(new)
            raise
        self._current = new
        self._taken_over.set()
        assert old is not None
        self._retire(old)
        return opened

    async def stop(self) -> bool:
        """Ends all of them at once. Returns whether the one that serves, and one that was to come, ended in time."""
        for task in self._leaving:
            task.cancel()
        await asyncio.gather(*self._leaving, return_exceptions=True)
        ended = await asyncio.gather(*(self._end(generation) for generation in tuple(self._alive)))
        return all(ended)

    async def _start(self) -> Generation:
        self._number += 1
        generation = await self._launch(self._number)
        self._alive.append(generation)
        return generation

    async def _until_it_serves(self, new: Generation, model_slots: int | None) -> Opened:
        await asyncio.wait({new.opened, new.ended}, timeout=self._comes_within_s, return_when=asyncio.FIRST_COMPLETED)
        self._require_alive(new)
        if not new.opened.done():
            raise NotReplaced(f"it was not prepared within {self._comes_within_s:g} s")
        if (opened := new.told) is None:
            # Its report is closed a moment before its process is gone.
            await asyncio.wait({new.ended}, timeout=self._comes_within_s)
            self._require_alive(new)
            raise NotReplaced("it told nothing of itself")
        if opened.model_slots != model_slots:
            raise NotReplaced("its catalogue has other slots of the local model: restart the server for that")
        attached = asyncio.create_task(self._door.until_attached(new.number, opened.workers))
        try:
            await asyncio.wait({attached, new.ended}, timeout=self._comes_within_s, return_when=asyncio.FIRST_COMPLETED)
            self._require_alive(new)
            if not attached.done():
                serving = len(self._door.workers_of(new.number))
                raise NotReplaced(f"{serving} of its {opened.workers} workers served within {self._comes_within_s:g} s")
        finally:
            attached.cancel()
            await asyncio.gather(attached, return_exceptions=True)
        return opened

    def _require_alive(self, new: Generation) -> None:
        if new.ended.done():
            code = new.ended.result()
            told = "it was refused, for what stands above" if code == EXIT_REFUSED else describe_exit(code)
            raise NotReplaced(told)

    def _retire(self, leaving: Generation) -> None:
        leaving.retire()
        task = asyncio.create_task(self._see_off(leaving))
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)

    async def _see_off(self, leaving: Generation) -> None:
        within_s = self._stop_within_s if leaving.told is None else leaving.told.retire_within_s
        await asyncio.wait({leaving.ended}, timeout=within_s)
        if not leaving.ended.done():
            self._log.error("a generation did not leave in time: it is stopped", generation=leaving.number)
        await self._end(leaving)
        self._log.info("a generation has left", generation=leaving.number)

    async def _end(self, generation: Generation) -> bool:
        in_time = await generation.stop(self._stop_within_s)
        # Whoever is interrupted in this leaves it to `stop`.
        self._alive.remove(generation)
        if not in_time:
            self._log.error("the server did not end in time and was killed", generation=generation.number)
        return in_time

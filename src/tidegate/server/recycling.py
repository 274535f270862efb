"""Which of an arbiter's workers start and leave: a worn one is replaced first, and leaves when the other serves.

Workers say what they are (`serving`, `worn`) by a pipe that they inherit. One worn worker is replaced at a time, and
the next not before it is gone: what a generation holds of the database's connections grows by one worker alone.
"""

import os
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

Word = Literal["serving", "worn"]


class WordPipe:
    """The workers' way to tell their arbiter something. Neither end ever waits."""

    def __init__(self) -> None:
        self._reading, self._writing = os.pipe()
        os.set_blocking(self._reading, False)
        os.set_blocking(self._writing, False)
        self._rest = b""

    def enter_worker(self) -> None:
        """In a worker, after the fork: only the arbiter reads."""
        os.close(self._reading)

    def close(self) -> None:
        """Both ends: where there is nobody else."""
        os.close(self._reading)
        os.close(self._writing)

    def say(self, word: Word) -> bool:
        """Whether it was said; else the arbiter has not read for long, and it may be said again."""
        try:
            os.write(self._writing, f"{word} {os.getpid()}\n".encode())
        except OSError:
            return False
        return True

    def heard(self) -> list[tuple[str, int]]:
        """What workers said since, with their pids."""
        try:
            while piece := os.read(self._reading, 4096):
                self._rest += piece
        except BlockingIOError:
            pass
        *lines, self._rest = self._rest.split(b"\n")
        words = [line.decode().split(" ") for line in lines]
        return [(word, int(pid)) for word, pid in words]


@dataclass(frozen=True, slots=True)
class Orders:
    """How many workers to start, and which to retire."""

    start: int = 0
    retire: tuple[int, ...] = ()


class Crew:
    """The workers of one arbiter, by pid. `retires`: all are to leave, and none is started any more.

    >>> crew = Crew(wanted=2)
    >>> crew.orders(alive=())
    Orders(start=2, retire=())
    """

    def __init__(self, wanted: int) -> None:
        self._wanted = wanted
        self._serving: set[int] = set()
        self._worn: list[int] = []
        self._leaving: set[int] = set()
        self.retires = False

    @property
    def leaving(self) -> frozenset[int]:
        return frozenset(self._leaving)

    def hear(self, word: str, pid: int) -> None:
        if word == "serving":
            self._serving.add(pid)
        elif word == "worn" and pid not in self._worn:
            self._worn.append(pid)

    def orders(self, alive: Collection[int]) -> Orders:
        """What is to be done now. Who is to retire counts as leaving from then on."""
        self._forget_all_but(set(alive))
        active = set(alive) - self._leaving
        if self.retires:
            self._leaving |= active
            return Orders(retire=tuple(sorted(active)))
        worn = None if self._leaving else next((pid for pid in self._worn if pid in active), None)
        if worn is None:
            return Orders(start=max(0, self._wanted - len(active)))
        if len((self._serving & active) - {worn}) >= self._wanted:
            self._leaving.add(worn)
            return Orders(retire=(worn,))
        return Orders(start=max(0, self._wanted + 1 - len(active)))

    def _forget_all_but(self, alive: set[int]) -> None:
        self._serving &= alive
        self._leaving &= alive
        self._worn = [pid for pid in self._worn if pid in alive]

"""What the server gives its app, and the settings do not know."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from tidegate.inference.gateway import DrainState


@dataclass(frozen=True, slots=True)
class NeverLeaving:
    """The drain of an app that no server stops by signal: a test's."""

    draining: bool = False


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the server gives its app: this worker's share of database connections, how many workers there are (of all
    servers), and word of its leaving.

    `leaving` is entered on the running loop, when the server's own signal handlers stand.
    """

    pool_size: int = 5
    max_overflow: int = 5
    workers: int = 1
    leaving: Callable[[], AbstractContextManager[DrainState]] = lambda: nullcontext(NeverLeaving())

"""What the server gives its app, and the settings do not know."""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol

from tidegate.inference.gateway import DrainState
from tidegate.routing.configuration import CatalogueSource
from tidegate.storage.redis import MOST_CONNECTIONS


@dataclass(frozen=True, slots=True)
class NeverLeaving:
    """The drain of an app that no server stops by signal: a test's."""

    draining: bool = False


class ServedProcess(Protocol):
    """What a root may ask of a process that serves."""

    async def reload(self, source: CatalogueSource) -> str:
        """Serves by this catalogue from now on, and returns its version. Raises `CatalogueError`: nothing changed."""

    def report(self) -> dict[str, Any]:
        """What this process is, as JSON takes it: `state` and `catalogue_version` at least."""

    async def facts(self, request_id: str | None = None) -> dict[str, Any]:
        """What is so in this process, as JSON takes it and without a secret: what `tidegate check` judges by.

        Where a request is named, its entries of the ledger too.
        """


class Supervisor(Protocol):
    """The root, as a process that serves speaks to it."""

    async def catalogue(self) -> CatalogueSource | None:
        """The catalogue in force; None where this process is to read it by itself."""

    def attached(self, process: ServedProcess) -> AbstractAsyncContextManager[None]:
        """While it is entered, the root is told what `process` is, and may ask it."""


class NoSupervisor:
    """An app that nobody stands above: a test's, or another program's."""

    async def catalogue(self) -> CatalogueSource | None:
        return None

    def attached(self, process: ServedProcess) -> AbstractAsyncContextManager[None]:
        del process
        return nullcontext()


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the server gives its app: this worker's share of connections to the database and to Redis, how many workers
    there are (of all servers), word of its leaving, and who stands above.

    `leaving` is entered on the running loop, when the server's own signal handlers stand.
    """

    pool_size: int = 5
    max_overflow: int = 5
    redis_connections: int = MOST_CONNECTIONS
    workers: int = 1
    leaving: Callable[[], AbstractContextManager[DrainState]] = lambda: nullcontext(NeverLeaving())
    supervisor: Supervisor = field(default_factory=NoSupervisor)

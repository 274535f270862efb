"""A generation: one server of the root's, an arbiter with its workers or one process, from its start to its end."""

import asyncio
import os
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Protocol, Self, TypeVar

import orjson

from tidegate.routing.configuration import CatalogueSource
from tidegate.server.children import Child
from tidegate.settings import Settings

Told = TypeVar("Told", "Opened", CatalogueSource)
# What is left behind by a generation that ended by itself.
_LEFT_BEHIND_S = 5


class Start(Protocol):
    """How a server becomes a child: `Child.start`."""

    async def __call__(
        self, command: Sequence[str], *, descriptors: Sequence[int] = (), environ: Mapping[str, str] | None = None
    ) -> Child: ...


@dataclass(frozen=True, slots=True)
class Opened:
    """What a generation tells once it is prepared: what was made, how many workers it will have, its bounds, and its
    catalogue: what was written, where (`config`, `config_toml`), and how many slots the local model has there.
    """

    made: dict[str, str] | None
    workers: int
    stop_within_s: float
    retire_within_s: float
    source: CatalogueSource
    version: str
    config: str | None = None
    config_toml: str | None = None
    model_slots: int | None = None

    def settings_of_catalogue(self, settings: Settings) -> Settings:
        """The root's settings, with this generation's place of the catalogue."""
        config = None if self.config is None else Path(self.config)
        return settings.model_copy(update={"config": config, "config_toml": self.config_toml})


@dataclass(slots=True)
class InForce:
    """The catalogue in force. `serial` counts what was taken over: a worker with an older one is behind."""

    source: CatalogueSource
    version: str
    serial: int = 1


@dataclass(slots=True)
class Generation:
    """A server that was started. `opened` is done when it is prepared, with None where it ended before that."""

    number: int
    child: Child
    opened: "asyncio.Task[Opened | None]"
    ended: "asyncio.Task[int]"
    catalogue: InForce | None = None
    retires: bool = field(default=False)

    @classmethod
    async def start(
        cls, number: int, start: Start, command: Sequence[str], *, descriptors: Sequence[int], **how: Any
    ) -> Self:
        """`command` is given the descriptor of its report as one more argument. Raises `OSError`."""
        reading, writing = os.pipe()
        try:
            child = await start([*command, f"--report={writing}"], descriptors=[*descriptors, writing], **how)
        except BaseException:
            os.close(reading)
            raise
        finally:
            os.close(writing)
        ended = asyncio.create_task(child.wait())
        generation = cls(number, child, asyncio.create_task(_told(reading)), ended)
        generation.opened.add_done_callback(generation._take)
        return generation

    @property
    def told(self) -> Opened | None:
        """What it told by now."""
        is_there = self.opened.done() and not self.opened.cancelled() and self.opened.exception() is None
        return self.opened.result() if is_there else None

    def retire(self) -> None:
        """Others take its place: it ends by itself once it has nothing to do."""
        self.retires = True
        self.child.send(signal.SIGUSR2)

    async def stop(self, default_within_s: float) -> bool:
        """Ends it, and what is left of it. Returns whether it ended within its bound, else killed."""
        within_s: float = _LEFT_BEHIND_S
        if not self.ended.done():
            within_s = default_within_s if self.told is None else self.told.stop_within_s
        in_time = await self.child.stop(within_s)
        self.child.release()
        self.opened.cancel()
        await asyncio.gather(self.opened, self.ended, return_exceptions=True)
        return in_time

    def _take(self, _: "asyncio.Task[Opened | None]") -> None:
        if (told := self.told) is not None:
            self.catalogue = InForce(told.source, told.version)


async def _told(descriptor: int) -> Opened | None:
    """Reads to the end: None where there was nothing to read."""
    reader = asyncio.StreamReader()
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(descriptor, "rb")
    )
    try:
        text = await reader.read()
    finally:
        transport.close()
    if not text:
        return None
    told = orjson.loads(text)
    return _of(Opened, {**told, "source": _of(CatalogueSource, told["source"])})


def _of(kind: type[Told], told: Mapping[str, Any]) -> Told:
    """A newer release may tell more than this root knows of."""
    known = {each.name for each in fields(kind)}
    return kind(**{name: value for name, value in told.items() if name in known})

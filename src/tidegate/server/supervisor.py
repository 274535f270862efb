"""The root, as a worker speaks to it: by the control socket.

A worker serves without it. Where the root does not answer, the worker reads the catalogue by itself; where the line
breaks, it connects again for as long as it serves; where the root is gone, its lifeline ends it, not this.
"""

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tidegate.lifespan.surroundings import ServedProcess
from tidegate.routing.configuration import CatalogueError, CatalogueSource
from tidegate.server.certificate import CertificateError, Entrance
from tidegate.server.control import LONGEST_LINE, SOCKET_NAME, Message, decode, encode
from tidegate.storage.unix_socket import short_address
from tidegate.telemetry.logging import get_logger

Recorder = Callable[[Message], Awaitable[None]]

_ASK_WITHIN_S = 5.0
_FIRST_PAUSE_S = 0.05
_LONGEST_PAUSE_S = 2.0
# They wait for a database: a reload does not wait for them.
_BESIDE = ("record", "facts")

log = get_logger(__name__)


async def record_nothing(told: Message) -> None:
    """For an app that keeps no audit trail."""
    del told


class RootSupervisor:
    """Implements `Supervisor` for one worker. Made before the fork; it opens nothing until it is used.

    `is_retiring` is the server's to set. A reload renews what `entrance` shows too.

    >>> supervisor = RootSupervisor(settings.data_dir, generation=1)
    >>> source = await supervisor.catalogue()
    >>> async with supervisor.attached(served): ...
    """

    def __init__(self, data_dir: Path, *, generation: int, entrance: Entrance | None = None) -> None:
        self._path = data_dir.absolute() / SOCKET_NAME
        self._generation = generation
        self._entrance = entrance
        self._record: Recorder = record_nothing
        self._serial = 0
        self.is_retiring = False

    def record_by(self, record: Recorder) -> None:
        """What writes an event of the root's into the audit trail; else nothing does."""
        self._record = record

    async def catalogue(self) -> CatalogueSource | None:
        """The catalogue in force; None where the root does not tell it."""
        try:
            async with asyncio.timeout(_ASK_WITHIN_S):
                told = await self._told_catalogue()
        except OSError as error:
            reason = error.strerror or type(error).__name__
            log.warning("the root did not tell the catalogue in force; it is read from its file", reason=reason)
            return None
        if told is None:
            return None
        self._serial = told["serial"]
        return CatalogueSource(**told["source"])

    async def _told_catalogue(self) -> Message | None:
        """Asks until there is an answer: a root that many ask at once lets some of them go. Raises `OSError`."""
        while True:
            reader, writer = await self._connect()
            try:
                writer.write(encode({"ask": "catalogue", "generation": self._generation}))
                told: Message | None = decode(await reader.readline())["done"]
            except (ConnectionError, ValueError, KeyError):
                await asyncio.sleep(_FIRST_PAUSE_S)
            else:
                return told
            finally:
                writer.close()

    @asynccontextmanager
    async def attached(self, process: ServedProcess) -> AsyncIterator[None]:
        """While it is entered, the root is told what `process` is, and may ask it."""
        keeping = asyncio.create_task(self._keep(process))
        try:
            yield
        finally:
            keeping.cancel()
            await asyncio.wait({keeping})

    async def _keep(self, process: ServedProcess) -> None:
        pause_s = _FIRST_PAUSE_S
        while True:
            try:
                reader, writer = await self._connect()
            except OSError:
                await asyncio.sleep(pause_s)
                pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)
                continue
            began = asyncio.get_running_loop().time()
            try:
                await self._serve(process, reader, writer)
            except (OSError, ValueError, KeyError):
                log.debug("the line to the root broke")
            finally:
                writer.close()
            if asyncio.get_running_loop().time() - began > _LONGEST_PAUSE_S:
                pause_s = _FIRST_PAUSE_S
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)

    async def _serve(self, process: ServedProcess, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        me = {"pid": os.getpid(), "generation": self._generation, "serial": self._serial}
        writer.write(encode({"ask": "attach", **me}))
        beside: set[asyncio.Task[None]] = set()
        try:
            while line := await reader.readline():
                ask = decode(line)
                telling = self._tell(process, ask, ask["id"], writer)
                if ask["ask"] in _BESIDE:
                    task = asyncio.create_task(telling)
                    beside.add(task)
                    task.add_done_callback(beside.discard)
                else:
                    await telling
                    await writer.drain()
        finally:
            for task in beside:
                task.cancel()
            await asyncio.gather(*beside, return_exceptions=True)

    async def _tell(self, process: ServedProcess, ask: Message, number: int, writer: asyncio.StreamWriter) -> None:
        writer.write(encode({**await self._answer(process, ask), "id": number}))

    async def _answer(self, process: ServedProcess, ask: Message) -> Message:
        try:
            match ask["ask"]:
                case "reload":
                    return {"done": await self._reload(process, ask)}
                case "report":
                    return {"done": self._report(process)}
                case "facts":
                    return {"done": await process.facts(ask.get("request_id"))}
                case "record":
                    await self._record(ask)
                    return {"done": None}
        except CatalogueError as error:
            return {"faults": error.faults}
        except CertificateError as error:
            return {"faults": [error.fault]}
        except Exception as error:
            # An edge: the root hears that it failed, and the worker serves on.
            log.exception("what the root asked for failed", ask=ask["ask"])
            return {"faults": [f"it failed with {type(error).__name__}: look at the log"]}
        return {"faults": ["there is no such ask"]}

    async def _reload(self, process: ServedProcess, ask: Message) -> str:
        """Both or neither: the certificate is judged first, and taken last, which cannot fail."""
        pair = None if self._entrance is None else await self._entrance.read()
        version = await process.reload(CatalogueSource(**ask["source"]))
        self._serial = ask["serial"]
        if self._entrance is not None and pair is not None:
            self._entrance.use(pair)
        return version

    def _report(self, process: ServedProcess) -> dict[str, Any]:
        report = process.report()
        if self.is_retiring:
            report["state"] = "retiring"
        return report

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.setblocking(False)
            with short_address(self._path) as address:
                # It never waits: a root whose queue is full says so at once.
                connection.connect(address)
            return await asyncio.open_unix_connection(sock=connection, limit=LONGEST_LINE)
        except BaseException:
            connection.close()
            raise

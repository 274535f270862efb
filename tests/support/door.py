"""A door before a server of loopback: clients connect to the door's port, and a test holds, slows or shuts it.

Held, it passes nothing on in either direction and takes new connections: a server that is stopped. With `delay_s` each
piece passes so much later: one that is slow. Shut, it ends every connection and refuses new ones: one that is gone.
"""

import asyncio
import contextlib
from types import TracebackType
from typing import Self

LOOPBACK = "127.0.0.1"


class Door:
    """Relays to `port` from a port of its own.

    >>> async with Door(6379) as door:
    ...     client = Redis(port=door.port)
    ...     door.hold()
    """

    def __init__(self, port: int) -> None:
        self.port = 0
        self.delay_s = 0.0
        """How much later each piece passes on, in either direction."""
        self.passed = 0
        """How many connections were made through it."""
        self._target = port
        self._server: asyncio.Server | None = None
        self._is_open = asyncio.Event()
        self._relays: set[asyncio.Task[None]] = set()

    def hold(self) -> None:
        self._is_open.clear()

    def release(self) -> None:
        self._is_open.set()

    async def shut(self) -> None:
        assert self._server is not None
        self._server.close()
        for relay in self._relays:
            relay.cancel()
        await asyncio.gather(*self._relays, return_exceptions=True)

    async def open(self) -> None:
        self._is_open.set()
        self._server = await asyncio.start_server(self._serve, LOOPBACK, self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.shut()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.passed += 1
        relay = asyncio.ensure_future(self._relay(reader, writer))
        self._relays.add(relay)
        relay.add_done_callback(self._relays.discard)

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            # Behind it nobody may be listening: then its client is cut off, as it would be without a door.
            with contextlib.suppress(ConnectionError):
                server_reader, server_writer = await asyncio.open_connection(LOOPBACK, self._target)
                try:
                    await asyncio.gather(self._pass_on(reader, server_writer), self._pass_on(server_reader, writer))
                finally:
                    server_writer.close()
        finally:
            writer.close()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while piece := await reader.read(65536):
                await self._is_open.wait()
                if self.delay_s:
                    await asyncio.sleep(self.delay_s)
                writer.write(piece)
                await writer.drain()
        # Either side's end is both sides' end.
        writer.close()

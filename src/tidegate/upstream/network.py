"""TCP and TLS for httpcore2, on asyncio's own transports.

httpcore2's own backend goes through anyio, which for each read and write opens a cancel scope, a timer and two
checkpoints: a third of the CPU of a request. Here a read that finds data is a copy, a write that the kernel takes at
once is a call. Deadlines are the attempt's (`deadlines.py`); of the timeouts given here connect and write are kept.
Memory is bounded: past `_HIGH_WATER` bytes that nobody has read, the socket is not read either.
"""

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Iterable
from typing import Any, cast

import aiohappyeyeballs
import anyio.lowlevel
import httpcore2

_HIGH_WATER = 256 * 1024
_LOW_WATER = 64 * 1024
# Read as one piece, this is some hundred chunks and 5 ms of one turn of the loop.
_MOST_AT_ONCE = 16 * 1024
_NEXT_ADDRESS_AFTER_S = 0.25


class AsyncioBackend(httpcore2.AsyncNetworkBackend):
    """Connects by name, to whichever address answers first (RFC 8305)."""

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - httpcore2's interface
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        """Raises `ConnectTimeout` or `ConnectError`. Cancelled, it leaves no socket."""
        assert local_address is None
        assert socket_options is None
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(timeout):
                addresses = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
                sock = await aiohappyeyeballs.start_connection(
                    addresses, happy_eyeballs_delay=_NEXT_ADDRESS_AFTER_S, loop=loop
                )
                try:
                    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    _, stream = await loop.create_connection(UpstreamStream, sock=sock)
                except BaseException:
                    sock.close()
                    raise
        except TimeoutError as error:
            raise httpcore2.ConnectTimeout(str(error)) from error
        except OSError as error:
            raise httpcore2.ConnectError(error.strerror or str(error)) from error
        return stream

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class UpstreamStream(asyncio.Protocol, httpcore2.AsyncNetworkStream):
    """One connection: what came and was not read yet, and whether the kernel takes more."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport
        self._received = bytearray()
        self._is_ended = False
        self._lost: Exception | None = None
        self._is_paused = False
        self._reader: asyncio.Future[None] | None = None
        self._writer: asyncio.Future[None] | None = None
        self._is_writable = True

    # What the transport says

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._received += data
        if len(self._received) > _HIGH_WATER and not self._is_paused:
            self._is_paused = True
            self._transport.pause_reading()
        self._wake_reader()

    def eof_received(self) -> None:
        self._is_ended = True
        self._wake_reader()

    def connection_lost(self, exc: Exception | None) -> None:
        self._is_ended = True
        self._lost = exc
        self._wake_reader()
        self.resume_writing()

    def pause_writing(self) -> None:
        self._is_writable = False

    def resume_writing(self) -> None:
        self._is_writable = True
        if self._writer is not None and not self._writer.done():
            self._writer.set_result(None)

    # What httpcore2 asks

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109
        """What has come, at least one byte; none at the end. Raises `ReadError` where the connection broke."""
        assert timeout is None, "the attempt's deadlines bound reading"
        if self._received:
            # An upstream that sends faster than we read would keep the loop from everybody else.
            await asyncio.sleep(0)
        while not self._received:
            if self._lost is not None:
                raise httpcore2.ReadError(str(self._lost)) from self._lost
            if self._is_ended:
                return b""
            self._reader = asyncio.get_running_loop().create_future()
            try:
                await self._reader
            finally:
                self._reader = None
        # anyio cancels a task only while it waits for what has not come yet. Where an upstream sends faster than we
        # read, that is never: a hang-up and every deadline would pass unseen.
        await anyio.lowlevel.checkpoint_if_cancelled()
        data = bytes(self._received[: min(max_bytes, _MOST_AT_ONCE)])
        del self._received[: len(data)]
        if self._is_paused and len(self._received) < _LOW_WATER:
            self._is_paused = False
            self._transport.resume_reading()
        return data

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ASYNC109
        """Returns when the kernel or a small buffer has it. Raises `WriteTimeout` or `WriteError`."""
        if self._lost is not None or self._transport.is_closing():
            raise httpcore2.WriteError(str(self._lost or "the connection is closed"))
        self._transport.write(buffer)
        if self._is_writable:
            return
        self._writer = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(timeout):
                await self._writer
        except TimeoutError as error:
            raise httpcore2.WriteTimeout(str(error)) from error
        finally:
            self._writer = None
        if self._lost is not None:
            raise httpcore2.WriteError(str(self._lost)) from self._lost

    async def aclose(self) -> None:
        """Closes at once: what is not written yet is for nobody."""
        if hasattr(self, "_transport"):
            self._transport.abort()

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> httpcore2.AsyncNetworkStream:
        """This stream over TLS. Raises `ConnectTimeout` or `ConnectError`; then the connection is closed."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(timeout):
                secured = await loop.start_tls(self._transport, self, ssl_context, server_hostname=server_hostname)
        except BaseException as error:
            await self.aclose()
            if isinstance(error, TimeoutError):
                raise httpcore2.ConnectTimeout(str(error)) from error
            if isinstance(error, OSError):
                raise httpcore2.ConnectError(str(error)) from error
            raise
        assert secured is not None
        self._transport = secured
        return self

    def get_extra_info(self, info: str) -> Any:
        """`is_readable` says of an idle connection that it ended, or that something came that nobody asked for."""
        if info == "is_readable":
            return self._is_ended or bool(self._received)
        names = {"client_addr": "sockname", "server_addr": "peername"}
        with contextlib.suppress(AttributeError):
            return self._transport.get_extra_info(names.get(info, info))
        return None

    def _wake_reader(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

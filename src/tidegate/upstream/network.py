"""TCP and TLS to upstreams, on asyncio's own transports: bytes in, bytes out, and who waits for them.

A read that finds data is a copy of nothing, a write that the kernel takes at once is a call. Memory is bounded: past
`_HIGH_WATER` bytes that nobody has read, the socket is not read either.
"""

import asyncio
import socket
import ssl
from collections import deque
from typing import cast

import aiohappyeyeballs
import httpx2

from tidegate.upstream.addresses import Find, allowed_addresses, find_addresses

_HIGH_WATER = 64 * 1024
_LOW_WATER = 16 * 1024
# Read as one piece, this is some hundred chunks and 5 ms of one turn of the loop.
_MOST_AT_ONCE = 16 * 1024
# anyio cancels a task only while it waits for what has not come yet. Where an upstream sends faster than we read, that
# is never: a hang-up and every deadline would pass unseen. In a turn that is given away they are seen.
_READS_A_TURN = 16
_NEXT_ADDRESS_AFTER_S = 0.25


class UpstreamStream(asyncio.Protocol):
    """One connection: what came and was not read yet, and whether the kernel takes more. One task uses it at a time."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._received: deque[bytes | memoryview] = deque()
        self._unread = 0
        self._reads = 0
        self._is_ended = False
        self._lost: Exception | None = None
        self._is_paused = False
        self._is_writable = True
        self._waiter: asyncio.Future[None] | None = None

    # What the transport says

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Not an instance under uvloop.
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._received.append(data)
        self._unread += len(data)
        if self._unread > _HIGH_WATER and not self._is_paused and self._transport is not None:
            self._is_paused = True
            self._transport.pause_reading()
        self._wake()

    def eof_received(self) -> None:
        self._is_ended = True
        self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        self._is_ended = True
        self._lost = exc
        self._is_writable = True
        self._wake()

    def pause_writing(self) -> None:
        self._is_writable = False

    def resume_writing(self) -> None:
        self._is_writable = True
        self._wake()

    # What is asked of it

    @property
    def is_quiet(self) -> bool:
        """Nothing came that was not read, nothing waits to be sent, and both ends are open: fit for a next request."""
        return (
            not self._received
            and not self._is_ended
            and self._transport is not None
            and not self._transport.is_closing()
            and not self._transport.get_write_buffer_size()
        )

    async def read(self, timeout: float | None = None) -> bytes | memoryview:  # noqa: ASYNC109 - one timer a read
        """What has come, at least one byte and at most 16 KiB; none at the end.

        Raises `ReadError` where the connection broke, and `ReadTimeout` after `timeout` seconds.
        """
        self._reads += 1
        if self._received or not self._reads % _READS_A_TURN:
            # An upstream that sends faster than we read would keep the loop from everybody else.
            await asyncio.sleep(0)
        while not self._received:
            if self._lost is not None:
                raise httpx2.ReadError(str(self._lost)) from self._lost
            if self._is_ended:
                return b""
            try:
                await self._change(timeout)
            except TimeoutError as error:
                raise httpx2.ReadTimeout(f"nothing came within {timeout:g} s") from error
        data = self._received.popleft()
        if len(data) > _MOST_AT_ONCE:
            view = memoryview(data)
            self._received.appendleft(view[_MOST_AT_ONCE:])
            data = view[:_MOST_AT_ONCE]
        self._unread -= len(data)
        if self._is_paused and self._unread < _LOW_WATER and self._transport is not None:
            self._is_paused = False
            self._transport.resume_reading()
        return data

    def write(self, *parts: bytes) -> None:
        """Hands over what is to be sent. Where the connection has ended it is dropped: reading tells of it."""
        if self._transport is not None and not self._is_ended and not self._transport.is_closing():
            self._transport.writelines(parts)

    async def taken(self, timeout: float | None = None) -> bool:  # noqa: ASYNC109 - one timer a write
        """Returns when the kernel or a small buffer has what was written; false where first there is what to read.

        Raises `WriteTimeout` after `timeout` seconds.
        """
        if self._is_writable and not self._is_ended:
            return True
        try:
            async with asyncio.timeout(timeout):
                while not self._is_writable and not self._received and not self._is_ended:
                    await self._change(None)
        except TimeoutError as error:
            raise httpx2.WriteTimeout(f"the request was not taken within {timeout:g} s") from error
        return self._is_writable and not self._is_ended

    def close(self) -> None:
        """Closes at once: what is not written yet is for nobody."""
        self._is_ended = True
        self._received.clear()
        self._unread = 0
        if self._transport is not None:
            self._transport.abort()

    async def _change(self, timeout: float | None) -> None:  # noqa: ASYNC109
        """Waits until something happens to the connection. Raises `TimeoutError`."""
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            if timeout is None:
                await self._waiter
            else:
                async with asyncio.timeout(timeout):
                    await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


async def connect(
    host: str,
    port: int,
    ssl_context: ssl.SSLContext | None,
    timeout: float | None,  # noqa: ASYNC109 - of httpx2's names
    *,
    find: Find = find_addresses,
) -> UpstreamStream:
    """A connection to whichever allowed address of a name answers first (RFC 8305), over TLS where there is a context.

    Raises `ConnectTimeout` after `timeout` seconds in all, or `ConnectError`. Cancelled, it leaves no socket.
    """
    try:
        async with asyncio.timeout(timeout):
            return await _connect(host, port, ssl_context, find)
    except TimeoutError as error:
        raise httpx2.ConnectTimeout(str(error)) from error
    except UnicodeError as error:
        # A name with an empty label, or one of more than 63 characters.
        raise httpx2.ConnectError("its name is none that can be looked up") from error
    except OSError as error:
        raise httpx2.ConnectError(error.strerror or str(error) or type(error).__name__) from error


async def _connect(host: str, port: int, ssl_context: ssl.SSLContext | None, find: Find) -> UpstreamStream:
    loop = asyncio.get_running_loop()
    addresses = await allowed_addresses(host, port, find=find)
    sock = await aiohappyeyeballs.start_connection(addresses, happy_eyeballs_delay=_NEXT_ADDRESS_AFTER_S, loop=loop)
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # Not `start_tls` on a connection that stands: under uvloop, what came before the handshake was read as if it
        # had come by TLS, and anybody on the way could forge an answer.
        secured_for = None if ssl_context is None else host
        _, stream = await loop.create_connection(
            UpstreamStream, sock=sock, ssl=ssl_context, server_hostname=secured_for
        )
    except BaseException:
        sock.close()
        raise
    return stream

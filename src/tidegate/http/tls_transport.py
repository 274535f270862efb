"""A connection's transport where it speaks TLS: as bounded as one in the clear, and closed as soon.

The loop's own lets 512 KiB wait for a slow reader, and a close waits until the client has said its goodbye too: one
that keeps the connection in a pool reads it only with its next request. TLS asks nobody to wait for that (RFC 8446,
6.1). So once the client has all that was written, the connection ends.

Below TLS the loop has another buffer, of which it tells nothing: not how much waits there, and not that the client has
sent its FIN behind it. Both are asked of the system.
"""

import asyncio
import fcntl
import socket
import struct
import termios
from typing import Any, Final

# As asyncio has it for a connection in the clear.
_HIGH_WATER: Final = 64 * 1024
_LOOK_EVERY_S: Final = 0.25
# Linux' struct tcp_info: its first byte is the state, which is this one from the client's FIN on; tcpi_bytes_acked.
_CLOSE_WAIT: Final = 8
_ACKNOWLEDGED: Final = struct.Struct("@120xQ")


class TlsTransport(asyncio.Transport):
    """Around the loop's own transport; what uvicorn and the protocol call."""

    def __init__(self, inner: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self._inner = inner
        self._loop = loop
        self._look: asyncio.TimerHandle | None = None
        self._was_delivered = False
        inner.set_write_buffer_limits(high=_HIGH_WATER)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self._inner.write(data)

    def close(self) -> None:
        """Says goodbye after what was written, and ends when that has been delivered."""
        self._inner.close()
        if self._look is None and self._socket() is not None:
            self._look = self._loop.call_later(_LOOK_EVERY_S, self._end_where_delivered)

    def abort(self) -> None:
        self._inner.abort()

    def forget(self) -> None:
        """The connection is lost."""
        if self._look is not None:
            self._look.cancel()

    def is_closing(self) -> bool:
        return self._inner.is_closing()

    def can_write_eof(self) -> bool:
        return False

    def pause_reading(self) -> None:
        self._inner.pause_reading()

    def resume_reading(self) -> None:
        self._inner.resume_reading()

    def get_write_buffer_size(self) -> int:
        return self._inner.get_write_buffer_size()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._inner.get_extra_info(name, default)

    def has_client_ended(self) -> bool:
        """Whether it has sent its FIN. False where the system does not tell."""
        told = self._tcp_info(1)
        return bool(told) and told[0] == _CLOSE_WAIT

    def taken_bytes(self) -> int:
        """How much the client's system has acknowledged of all that was sent; 0 where this one does not tell."""
        told = self._tcp_info(_ACKNOWLEDGED.size)
        return int(_ACKNOWLEDGED.unpack(told)[0]) if len(told) == _ACKNOWLEDGED.size else 0

    def _tcp_info(self, size: int) -> bytes:
        sock = self._socket()
        if sock is None or sock.fileno() < 0 or not hasattr(socket, "TCP_INFO"):
            return b""
        try:
            told: bytes = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, size)
        except OSError:
            return b""
        return told

    def _end_where_delivered(self) -> None:
        # Twice in a row: between two looks the loop has handed the system what it could.
        is_delivered = self._is_delivered()
        if is_delivered and self._was_delivered:
            self._inner.abort()
            return
        self._was_delivered = is_delivered
        self._look = self._loop.call_later(_LOOK_EVERY_S, self._end_where_delivered)

    def _is_delivered(self) -> bool:
        """Whether the client's system has all that was written."""
        if self._inner.get_write_buffer_size():
            return False
        sock = self._socket()
        if sock is None or sock.fileno() < 0:
            return True
        try:
            return not any(fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4)))
        except OSError:
            # Not every system tells (macOS does not): then the client's goodbye or the protocol's bound ends it.
            return False

    def _socket(self) -> Any:
        return self._inner.get_extra_info("socket")

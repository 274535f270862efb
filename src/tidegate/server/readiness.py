"""When the server may be called ready: it answers GET /health/ready with 200 on its own port.

The root listens before its workers do, so a question waits in the listener's queue instead of being refused.
"""

import asyncio
import socket
from collections.abc import Callable
from ssl import SSLContext
from typing import Any

import orjson

_ANSWER_BOUND_S = 5.0
_PAUSE_S = 0.1
_LONGEST_ANSWER = 1024 * 1024


async def until_ready(
    listener: socket.socket,
    *,
    patience_s: float,
    impatient: Callable[[str], None],
    tls: SSLContext | None = None,
) -> None:
    """Returns when the server is ready. Says once, after `patience_s`, what it waits for.

    `tls` is what it is asked by, None in the clear.
    """
    loop = asyncio.get_running_loop()
    loses_patience = loop.time() + patience_s
    said = False
    while await _status(listener, "/health/ready", tls) != 200:
        if loop.time() >= loses_patience and not said:
            said = True
            impatient(await _awaited(listener, tls))
        await asyncio.sleep(_PAUSE_S)


async def _awaited(listener: socket.socket, tls: SSLContext | None) -> str:
    _, body = await _ask(listener, "/health", tls)
    try:
        checks: dict[str, Any] = orjson.loads(body)["checks"]
        names = [name for name, check in checks.items() if check["status"] != "ok"]
    except (ValueError, KeyError, TypeError, AttributeError):
        return "the server's process, which does not answer"
    return ", ".join(names) or "the server"


async def _status(listener: socket.socket, path: str, tls: SSLContext | None) -> int:
    status, _ = await _ask(listener, path, tls)
    return status


async def _ask(listener: socket.socket, path: str, tls: SSLContext | None) -> tuple[int, bytes]:
    """The status and body of a GET; status 0 where there was no answer in time."""
    host, port = listener.getsockname()[:2]
    address = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - compared, not bound
    name = f"[{address}]" if ":" in address else address
    try:
        async with asyncio.timeout(_ANSWER_BOUND_S):
            reader, writer = await asyncio.open_connection(address, port, ssl=tls)
            try:
                writer.write(f"GET {path} HTTP/1.1\r\nHost: {name}:{port}\r\nConnection: close\r\n\r\n".encode())
                answer = await _read_all(reader)
            finally:
                writer.close()
    except (OSError, TimeoutError):
        return 0, b""
    head, _, body = answer.partition(b"\r\n\r\n")
    parts = head.split(b" ", 2)
    return (int(parts[1]) if len(parts) > 1 and parts[1].isdigit() else 0), body


async def _read_all(reader: asyncio.StreamReader) -> bytes:
    answer = b""
    while len(answer) < _LONGEST_ANSWER and (more := await reader.read(65536)):
        answer += more
    return answer

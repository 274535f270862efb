"""The bound of a request's body: 413 by Content-Length before a byte of it is read, else by counting.

What the settings allow holds for paths under /v1/, whose bodies are prompts and images. Every other route takes 64 KiB,
or the settings' bound where that is less: anybody may send to /auth/login, and what came is parsed before he is known.
How long a body may take to come is `protocol.py`'s.

A body that says its length is refused at once; the server then throws away what still comes, so that a client that
sends before it reads gets its answer. One of unknown length (chunked) is refused where it passes the bound; what still
comes is thrown away, for 30 s at most and until nothing came for 5, then the connection is closed (nginx's
`lingering_time` and `lingering_timeout`). Nothing of either is kept.
"""

import anyio
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tidegate.errors import InvalidRequest, RequestTooLarge
from tidegate.http.context import request_context
from tidegate.http.errors import send_error

VARIABLE = "TIDEGATE_HTTP__MAX_BODY_BYTES"
ROAD = "/v1/"
MAX_BYTES_OFF_ROAD = 64 * 1024
_LINGER_S = 30.0
_LINGER_IDLE_S = 5.0
_MOST_DIGITS = 18


class BodyLimit:
    """Refuses bodies over `max_bytes` under /v1/, over 64 KiB of it elsewhere.

    Inside the edge: it asks the request's context for the length.
    """

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        by_settings = f"The body is larger than {max_bytes} bytes, the limit that {VARIABLE} sets."
        self._on_road = (max_bytes, by_settings)
        self._off_road = (max_bytes, by_settings)
        if max_bytes > MAX_BYTES_OFF_ROAD:
            fixed = f"The body is larger than {MAX_BYTES_OFF_ROAD} bytes, the limit of every route but those under /v1."
            self._off_road = (MAX_BYTES_OFF_ROAD, fixed)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        max_bytes, message = self._on_road if scope["path"].startswith(ROAD) else self._off_road
        length = request_context(scope).content_length
        if length is None:
            counted = _Counted(receive, send, max_bytes, message)
            await self._app(scope, counted.receive, counted.send)
        elif not length.isdigit():
            await send_error(scope, send, InvalidRequest("The Content-Length header is not a number."))
        elif len(length) > _MOST_DIGITS or int(length) > max_bytes:
            await send_error(scope, send, RequestTooLarge(message))
        else:
            # The server holds the body to the length that it named.
            await self._app(scope, receive, send)


class _Counted:
    """One request whose body has no length: counts what comes, and sees the answer out where it was too much."""

    def __init__(self, receive: Receive, send: Send, max_bytes: int, message: str) -> None:
        self._receive = receive
        self._send = send
        self._max_bytes = max_bytes
        self._message = message
        self._received_bytes = 0
        self._is_over = False
        self._more_body = True

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.request":
            self._received_bytes += len(message.get("body", b""))
            self._more_body = message.get("more_body", False)
            if self._received_bytes > self._max_bytes:
                self._is_over = True
                # Starlette's own class: FastAPI turns any other error of reading a body into a 400.
                raise HTTPException(413, self._message, headers={"Connection": "close"})
        return message

    async def send(self, message: Message) -> None:
        is_last = message["type"] == "http.response.body" and not message.get("more_body", False)
        if not (self._is_over and is_last and self._more_body):
            await self._send(message)
            return
        # Closed with bytes unread, a socket is reset, and the reset may overtake the answer.
        await self._send({**message, "more_body": True})
        with anyio.move_on_after(_LINGER_S):
            while await self._comes_more():
                pass
        await self._send({"type": "http.response.body", "body": b""})

    async def _comes_more(self) -> bool:
        """Throws away what comes next. False where the body has ended, the client is gone, or nothing came."""
        with anyio.move_on_after(_LINGER_IDLE_S):
            rest = await self._receive()
            return rest["type"] == "http.request" and bool(rest.get("more_body"))
        return False

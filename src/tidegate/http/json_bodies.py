"""JSON bodies are judged once, before the framework reads them: whatever route they are for.

What passes is UTF-8, nested no deeper than 200 levels, and without NUL, lone surrogates, and numbers past a float's or
4,300 digits: nothing that the standard library's parser, a model behind it, or PostgreSQL would fail on. The parser is
pydantic-core's, with its own bound of depth: JSON schemas are the deepest that callers send, and OpenAI takes them of
10 levels, which are some 45 of JSON; 200 leaves room for four times that, and costs nothing. The road's own bodies
(`RoadRoute`) do not pass here: they are read by the same parser, in `inference.wire`.

A name that stands twice in an object counts as it stands last, as everywhere in this gateway. Sources: RFC 8259, 8.1
(UTF-8 alone); OpenAI's guide to structured outputs (the depth of schemas).
"""

import math
import re
from collections.abc import Iterator
from typing import Any

from pydantic_core import from_json
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tidegate.errors import InvalidRequest

# An odd number of backslashes before it: an even one writes backslashes.
_NUL = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")
_EXPONENT = re.compile(rb"[0-9][eE]\+?[0-9]{3}|[0-9]{300}")


class JsonBodies:
    """Refuses what the routes behind it could fail on; every other body passes as it came."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not _says_json(scope):
            await self._app(scope, receive, send)
            return
        body = await _whole(receive)
        if body:
            judge_json(body)
        unread = [body]

        async def receive_again() -> Message:
            if unread:
                return {"type": "http.request", "body": unread.pop(), "more_body": False}
            return await receive()

        await self._app(scope, receive_again, send)


def judge_json(body: bytes) -> None:
    """Raises `InvalidRequest` where this is not JSON, or JSON that is not taken. Its time is linear."""
    try:
        value = from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise InvalidRequest(fault_in_json(str(error))) from None
    if _NUL.search(body):
        raise InvalidRequest("The body holds a NUL character (\\u0000) in a string; leave it out.")
    # Only what may write such a number is walked through.
    if _EXPONENT.search(body) and any(not math.isfinite(number) for number in _floats(value)):
        raise InvalidRequest("The body holds a number that is too large.")


def fault_in_json(reason: str) -> str:
    """What a caller is told of the parser's reason."""
    if "recursion limit" in reason:
        return "The body is nested deeper than 200 levels."
    return f"The body is not valid JSON: {reason}."


def _says_json(scope: Scope) -> bool:
    # More than the framework takes for JSON, never less.
    return any(name == b"content-type" and b"json" in value.lower() for name, value in scope["headers"])


async def _whole(receive: Receive) -> bytes:
    """The body, which `BodyLimit` bounds. Raises `ClientDisconnect`."""
    parts = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(parts)


def _floats(value: Any) -> Iterator[float]:
    left = [value]
    while left:
        part = left.pop()
        if isinstance(part, float):
            yield part
        elif isinstance(part, dict):
            left += part.values()
        elif isinstance(part, list):
            left += part

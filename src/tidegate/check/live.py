"""One stream through the server's own port, read to its end, and another that hangs up at its first content.

It goes to an echo model, which costs nothing, or to the model that was named.
"""

import asyncio
import secrets
import ssl
import time
from collections.abc import Awaitable, Callable
from typing import Any

import httpx2

from tidegate.check.subject import Facts, Live
from tidegate.tls import client_context

WITHIN_S = 60.0
_ENTRY_WITHIN_S = 5.0
_LOOK_EVERY_S = 0.3
# As long as an echo of it takes some 100 ms, and more than sockets buffer.
_WORDS = "the quick brown fox jumps over the lazy dog " * 400
_QUESTION = "Count from 1 to 100, in digits."
_MOST_TOKENS = 128

Look = Callable[[str], Awaitable[list[Facts]]]


async def stream(
    url: str, key: str, model: str, *, is_echo: bool, look: Look, context: ssl.SSLContext | None = None
) -> Live:
    """`look` gathers what every worker tells now, of this request too. `context` is as `Probes` has it."""
    body = {"model": model, "stream": True, "messages": [{"role": "user", "content": _WORDS if is_echo else _QUESTION}]}
    if not is_echo:
        body["max_tokens"] = _MOST_TOKENS
    verify = context or client_context()
    async with httpx2.AsyncClient(base_url=url, verify=verify, timeout=WITHIN_S, trust_env=False) as client:
        client.headers["authorization"] = f"Bearer {key}"
        try:
            async with asyncio.timeout(WITHIN_S):
                whole = await _whole(client, model, body)
                if whole.problem is not None:
                    return whole
                hung_up_id, hung_up_at = await _hang_up(client, body)
        except (httpx2.HTTPError, OSError) as error:
            return Live(model, problem=f"{type(error).__name__} within {WITHIN_S:g} s")
    entries, held = await _settled(hung_up_id, look)
    return Live(
        model=model,
        request_id=whole.request_id,
        status=whole.status,
        content_type=whole.content_type,
        pieces=whole.pieces,
        first_s=whole.first_s,
        total_s=whole.total_s,
        is_done=whole.is_done,
        hung_up_id=hung_up_id,
        hung_up_at=hung_up_at,
        entries=tuple(entries),
        slots_left=held,
    )


async def _whole(client: httpx2.AsyncClient, model: str, body: dict[str, Any]) -> Live:
    request_id = _new_id()
    began = time.perf_counter()
    pieces, first_s, last = 0, 0.0, b""
    async with client.stream("POST", "/v1/chat/completions", json=body, headers={"x-request-id": request_id}) as answer:
        if answer.status_code != 200:
            await answer.aread()
            return Live(model, problem=f"it was answered {answer.status_code} ({_code(answer)})")
        async for piece in answer.aiter_raw():
            pieces += 1
            first_s = first_s or time.perf_counter() - began
            last = (last + piece)[-64:]
        content_type = answer.headers.get("content-type", "")
    return Live(
        model=model,
        request_id=request_id,
        status=answer.status_code,
        content_type=content_type,
        pieces=pieces,
        first_s=first_s,
        total_s=time.perf_counter() - began,
        is_done=last.rstrip().endswith(b"data: [DONE]"),
    )


async def _hang_up(client: httpx2.AsyncClient, body: dict[str, Any]) -> tuple[str, float]:
    """At the first piece: the request's id, and when. A response that is left early closes its connection."""
    request_id = _new_id()
    async with client.stream("POST", "/v1/chat/completions", json=body, headers={"x-request-id": request_id}) as answer:
        pieces = answer.aiter_raw()
        await anext(pieces, b"")
        hung_up_at = time.time()
    return request_id, hung_up_at


async def _settled(request_id: str, look: Look) -> tuple[list[Facts], int]:
    """The entries of a request and the slots that no running request accounts for, once there are entries and no such
    slots, or as they are when time is over.
    """
    deadline = time.monotonic() + _ENTRY_WITHIN_S
    while True:
        workers = await look(request_id)
        entries = next((_entries(facts) for facts in workers if _entries(facts)), [])
        left = sum(_slots_left(facts) for facts in workers)
        if (entries and not left) or time.monotonic() > deadline:
            return entries, left
        await asyncio.sleep(_LOOK_EVERY_S)


def _entries(facts: Facts) -> list[Facts]:
    found: list[Facts] = facts["ledger"].get("of_request", [])
    return found


def _slots_left(facts: Facts) -> int:
    """Slots that are held in a worker beyond the requests that run there: each of those holds one at most."""
    held = sum(int(upstream["in_use"]) for upstream in facts["upstreams"].values())
    return max(0, held - int(facts["requests"]))


def _new_id() -> str:
    return f"tidegate-check.{secrets.token_hex(8)}"


def _code(answer: httpx2.Response) -> str:
    try:
        return str(answer.json()["error"]["code"])
    except (ValueError, KeyError, TypeError):
        return "no envelope"

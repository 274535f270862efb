"""What is said on the wire itself: lines within headers, requests within requests, and clients that take their time."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import orjson
import pytest

from tests.integration.test_http_smuggling import REFUSED
from tests.security.attacked import Attacked
from tests.security.serving import Served, served
from tests.support.behaviours import Completion
from tests.support.client import ConnectionEnded, RawClient
from tests.support.upstream import ScriptedUpstream
from tests.support.waiting import eventually
from tidegate.http.protocol import TidegateHttpProtocol

# Headers that are stored, answered, logged or sent on.
CARRIED: Final = (
    "x-request-id",
    "user-agent",
    "origin",
    "referer",
    "cookie",
    "authorization",
    "x-api-key",
    "traceparent",
    "tracestate",
    "x-forwarded-for",
    "x-forwarded-proto",
    "x-tidegate-session",
    "x-tidegate-tags",
    "x-tidegate-end-user",
    "x-tidegate-cache",
    "if-none-match",
    "accept",
)
SPLIT: Final = {
    "CR": b"a\rinjected: yes",
    "NUL": b"a\x00injected: yes",
    "LF": b"a\ninjected: yes",
    "LF and more": b"a\n\ninjected: yes",
    "CR at its end": b"a\r",
    "a vertical tab": b"a\x0binjected: yes",
    "a bell": b"a\x07",
    "DEL": b"a\x7f",
}
# What is a header's text to whoever receives it, and no line.
LOOKS_SPLIT: Final = (
    b"a%0d%0ainjected: yes",
    b"a\\r\\ninjected: yes",
    b"a\xe5\x98\x8a\xe5\x98\x8dinjected: yes",
    b"a\xc4\x8a injected: yes",
    b"a\xe2\x80\xa8injected: yes",
    b"a\x85injected: yes",
)
MARK: Final = "smuggled-"


async def spoken(url: str, sent: bytes) -> tuple[int, dict[str, str], bytes]:
    async with asyncio.timeout(30), RawClient(url) as client:
        await client.send_raw(sent)
        head = await client.head()
        return head.status, head.headers, await client.body()


@pytest.mark.parametrize("value", [pytest.param(value, id=name) for name, value in SPLIT.items()])
async def test_a_header_with_a_line_or_a_control_character_within_is_refused(attacked: Attacked, value: bytes) -> None:
    key = attacked.credentials["caller"].encode()
    for name in CARRIED:
        extra = b"" if name in ("authorization", "x-api-key") else b"authorization: Bearer " + key + b"\r\n"
        request = b"GET /v1/models HTTP/1.1\r\nhost: x\r\n" + extra + name.encode() + b": " + value + b"\r\n\r\n"
        status, headers, body = await spoken(attacked.gateway.base_url, request)
        assert (status, orjson.loads(body)["error"]["code"]) == (400, "invalid_request"), name
        assert "injected" not in headers


@pytest.mark.parametrize("value", LOOKS_SPLIT)
async def test_what_only_looks_like_a_line_becomes_none_on_either_side(
    attacked: Attacked, models: ScriptedUpstream, value: bytes
) -> None:
    key = attacked.credentials["caller"].encode()
    body = b'{"model":"m","messages":[{"role":"user","content":"hi"}]}'
    for name in CARRIED:
        if name in ("authorization", "x-api-key", "x-tidegate-cache"):
            continue
        models.enqueue(Completion(deltas=("Hi",)))
        request = (
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
            b"authorization: Bearer " + key + b"\r\n" + name.encode() + b": " + value + b"\r\n"
            b"content-length: " + str(len(body)).encode() + b"\r\n\r\n" + body
        )
        status, headers, _ = await spoken(attacked.gateway.base_url, request)
        assert status in (200, 400), name
        assert "injected" not in headers
        assert headers["x-request-id"].isascii()
    assert all("injected" not in received.headers for received in models.requests)
    assert len(models.requests) > 0


async def test_no_text_of_a_caller_becomes_a_header_of_an_answer(attacked: Attacked) -> None:
    for path in ("/v1/models/a%0d%0ainjected:%20yes", "/assets/a%0d%0ainjected:%20yes", "/a%0d%0ainjected:%20yes"):
        answer = await attacked.call("GET", path, by="caller")
        assert 400 <= answer.status_code < 500
        assert "injected" not in answer.headers
    answer = await attacked.call("POST", "/api/keys", by="admin", json={"name": "a\r\ninjected: yes"})
    assert answer.status_code == 422


async def test_nothing_within_a_request_that_is_read_in_two_ways_is_served(attacked: Attacked) -> None:
    admin = attacked.credentials["admin"]
    for n, (name, sent) in enumerate(REFUSED.items()):
        behind = f"GET /api/keys?{MARK}{n} HTTP/1.1\r\nhost: x\r\nx-request-id: {MARK}{n}\r\n"
        behind += f"authorization: Bearer {admin}\r\n\r\n"
        async with asyncio.timeout(30), RawClient(attacked.gateway.base_url) as client:
            await client.send_raw(sent + behind.encode())
            head = await client.head()
            body = await client.body()
            assert (head.status, orjson.loads(body)["error"]["code"]) == (400, "invalid_request"), name
            assert head.headers["connection"] == "close", name
            assert await client.closed_by_server()
    # The line of a request that came later is there: those of earlier ones would be.
    last = await attacked.call("GET", "/api/keys", by="admin", headers={"X-Request-ID": "the-last"})
    assert last.status_code == 200
    await eventually(lambda: "the-last" in attacked.gateway.output())
    assert MARK not in attacked.gateway.output()


async def test_what_a_body_holds_is_no_request_of_the_next_caller(attacked: Attacked) -> None:
    """Behind a body whose length counts, and behind chunks, stands the victim's request, and its answer is its own."""
    inner = f"GET /api/users HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {attacked.credentials['admin']}\r\n\r\n"
    for framing, body in (
        (f"content-length: {len(inner)}", inner),
        ("transfer-encoding: chunked", f"{len(inner):x}\r\n{inner}\r\n0\r\n\r\n"),
        (f"content-length: {len(inner)}\r\nexpect: 100-continue", inner),
        (f"connection: upgrade\r\nupgrade: h2c\r\ncontent-length: {len(inner)}", inner),
    ):
        victim = f"GET /auth/me HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {attacked.credentials['victim']}\r\n\r\n"
        async with asyncio.timeout(30), RawClient(attacked.gateway.base_url) as client:
            await client.send_raw(f"POST /health HTTP/1.1\r\nhost: x\r\n{framing}\r\n\r\n{body}{victim}".encode())
            answers: list[tuple[int, bytes]] = []
            with contextlib.suppress(ConnectionEnded):
                while len(answers) < 2:
                    status = (await client.head()).status
                    said = await client.body()
                    answers += [(status, said)] if status != 100 else []
            assert answers[0][0] == 405, framing
            # A connection that is closed at the first answer serves nobody at all.
            assert [orjson.loads(said)["email"] for _, said in answers[1:]] in ([], ["victim@example.com"])


class Hasty(TidegateHttpProtocol):
    """Bounds of tenths of a second."""

    head_within_s = 0.4
    body_idle_s = 0.4
    body_grace_s = 0.8
    silent_for_s = 0.6
    look_every_s = 0.1


@pytest.fixture
async def hasty(tmp_path: Path) -> AsyncIterator[Served]:
    async with served(tmp_path, protocol=Hasty) as gateway:
        yield gateway


SLOW: Final[dict[str, tuple[bytes, bytes]]] = {
    "heads that drip": (b"GET /health/live HTTP/1.1\r\nhost: x\r\nx-a: ", b"b"),
    "headers without end": (b"GET /health/live HTTP/1.1\r\nhost: x\r\n", b"a: b\r\n"),
    "bodies that drip": (
        b"POST /auth/login HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 9000\r\n\r\n{",
        b" ",
    ),
    "chunks that drip": (
        b"POST /auth/login HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n",
        b"1\r\n \r\n",
    ),
    "bodies for a route that never reads one": (
        b"POST /nowhere HTTP/1.1\r\nhost: x\r\ncontent-length: 9000\r\n\r\n",
        b"x",
    ),
    "silence": (b"", b""),
    "empty lines": (b"\r\n", b"\r\n"),
}


@pytest.mark.parametrize("kind", sorted(SLOW))
async def test_many_slow_clients_are_cut_off_and_hold_up_nobody(hasty: Served, kind: str) -> None:
    began, drop = SLOW[kind]
    many = 60
    ended = 0

    async def a_slow_client() -> None:
        nonlocal ended
        async with RawClient(hasty.url) as client:
            watching = asyncio.create_task(client.closed_by_server())
            with contextlib.suppress(ConnectionError):
                await client.send_raw(began)
                while not watching.done():
                    if drop:
                        await client.send_raw(drop)
                    await asyncio.wait([watching], timeout=0.1)
            await watching
            ended += 1

    descriptors = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - the kernel's list
    slow = [asyncio.create_task(a_slow_client()) for _ in range(many)]
    served_meanwhile = 0
    async with RawClient(hasty.url) as client:

        async def is_served() -> bool:
            nonlocal served_meanwhile
            await client.send("GET", "/health/live")
            head = await client.head()
            await client.body()
            served_meanwhile += head.status == 200
            return ended == many

        async with asyncio.timeout(60):
            await eventually(is_served, within_s=60, poll_s=0.02)
    await asyncio.gather(*slow)
    assert served_meanwhile >= 3
    await eventually(lambda: len(os.listdir("/proc/self/fd")) <= descriptors)  # noqa: PTH208


async def test_who_reads_slowly_holds_up_nobody(attacked: Attacked) -> None:
    base: Any = attacked.gateway.base_url
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(20):
            client = await stack.enter_async_context(RawClient(base, receive_buffer=1024))
            await client.send_raw(b"GET /openapi.json HTTP/1.1\r\nhost: x\r\n\r\n" * 8)
        for _ in range(20):
            assert (await attacked.call("GET", "/health/live")).status_code == 200

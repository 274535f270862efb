"""Serving an app in the test's own loop, and the gateway as a process, hold what they promise."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from tests.support.client import RawClient
from tests.support.server import answers, in_process_server


async def _hello(request: Request) -> PlainTextResponse:
    return PlainTextResponse(f"hello {request.state.name}")


async def _endless(request: Request) -> StreamingResponse:
    async def words() -> AsyncIterator[str]:
        while True:
            yield "data: word\n\n"
            await asyncio.sleep(0.01)

    return StreamingResponse(words(), media_type="text/event-stream")


def _app(ended: list[str]) -> Starlette:
    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[dict[str, str]]:
        yield {"name": "lifespan"}
        ended.append("lifespan")

    return Starlette(routes=[Route("/", _hello), Route("/endless", _endless)], lifespan=lifespan)


async def test_an_app_is_served_on_a_real_socket_with_its_lifespan() -> None:
    ended: list[str] = []
    async with in_process_server(_app(ended)) as base_url, RawClient(base_url) as client:
        await client.send("GET", "/")
        assert (await client.head()).status == 200
        assert await client.body() == b"hello lifespan"
        assert ended == []
    assert ended == ["lifespan"]
    assert await answers(base_url, "/") == 0


async def test_a_stream_is_read_event_by_event() -> None:
    async with in_process_server(_app([])) as base_url, RawClient(base_url) as client:
        await client.send("GET", "/endless")
        await client.head()
        events = [await client.event() for _ in range(3)]
        assert [event and event.data for event in events] == ["word"] * 3
        client.hang_up()


async def test_a_start_that_fails_is_an_error_of_the_test() -> None:
    async def refuses(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "lifespan.startup.failed", "message": "no"})

    with pytest.raises(RuntimeError, match="the app's start failed"):
        async with in_process_server(refuses):
            pass

"""Each scope of an API key opens what it is for, and nothing else: asked of every route that the app has."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute, iter_route_contexts

from tests.support.keys_api import Json, KeysApi
from tests.support.waiting import eventually
from tidegate.app import create_app
from tidegate.auth.dependencies import RequireScope, get_caller
from tidegate.auth.principal import Scope
from tidegate.settings import Settings

NOTHING: Final = "00000000-0000-7000-8000-0000000000ff"
A_CHAT: Json = {"model": "echo", "messages": [{"role": "user", "content": "hi"}]}
# Any key is told whose it is, and of the requests that it made itself.
OF_EVERY_KEY: Final = {("GET", "/auth/me"), ("GET", "/api/requests"), ("GET", "/api/requests/{entry_id}")}


@pytest.fixture
async def api(sqlite_url: str, tmp_path: Path) -> AsyncIterator[KeysApi]:
    async with KeysApi.open(sqlite_url, tmp_path) as api:
        yield api


def routes() -> Iterator[tuple[str, str, list[Any]]]:
    """Every method and path, with all that is called before its endpoint."""

    def calls(dependant: Dependant) -> list[Any]:
        return [found for inner in dependant.dependencies for found in (inner.call, *calls(inner))]

    for context in iter_route_contexts(create_app(Settings(environment="test")).routes):
        if isinstance(context.original_route, APIRoute):
            for method in context.original_route.methods or ():
                yield method, context.path or context.original_route.path, calls(context.dependant)


async def status_of(api: KeysApi, key: str, method: str, path: str, body: Json | None = None) -> int:
    parts = [NOTHING if part.startswith("{") else part for part in path.split("/")]
    return (await api.call(method, by=key, at="/".join(parts), json=body)).status_code


def test_every_route_that_infers_requires_its_scope() -> None:
    inferring = [(path, called) for _, path, called in routes() if path.startswith("/v1/")]
    assert "/v1/chat/completions" in {path for path, _ in inferring}
    for path, called in inferring:
        assert RequireScope("inference") in called, path


def test_every_route_below_api_has_a_caller() -> None:
    below = [(path, called) for _, path, called in routes() if path.startswith("/api/")]
    assert {"/api/keys", "/api/usage", "/api/limits", "/api/audit"} <= {path for path, _ in below}
    for path, called in below:
        assert get_caller in called, path
        assert path != "/api/audit" or RequireScope("manage") in called


async def test_a_key_for_metrics_opens_no_route_of_management_and_none_that_infers(api: KeysApi) -> None:
    key = (await api.make(scopes=["metrics"]))["key"]
    asked = 0
    for method, path, _ in routes():
        if path.startswith(("/api/", "/v1/")) and (method, path) not in OF_EVERY_KEY:
            assert await status_of(api, key, method, path, {}) == 403, (method, path)
            asked += 1
    assert asked > 10


@pytest.mark.parametrize(
    ("scope", "opens"),
    [
        ("inference", {"/v1/models", "/v1/chat/completions"}),
        ("usage", {"/api/usage"}),
        ("manage", {"/api/usage", "/api/keys", "/api/limits", "/api/audit"}),
        ("metrics", set()),
    ],
)
async def test_a_scope_alone_opens_what_it_is_for(api: KeysApi, scope: Scope, opens: set[str]) -> None:
    key = (await api.make(scopes=[scope]))["key"]
    doors = {
        "/v1/models": ("GET", None),
        "/v1/chat/completions": ("POST", A_CHAT),
        "/api/usage": ("GET", None),
        "/api/keys": ("GET", None),
        "/api/limits": ("GET", None),
        "/api/audit": ("GET", None),
    }
    answered = {path: await status_of(api, key, method, path, body) for path, (method, body) in doors.items()}
    assert answered == {path: 200 if path in opens else 403 for path in doors}


async def test_a_key_sees_its_own_requests_and_with_usage_those_of_its_workspace(api: KeysApi) -> None:
    one, other = await api.make(), await api.make()
    reader = await api.make(scopes=["usage"])
    for key in (one, other):
        assert await status_of(api, key["key"], "POST", "/v1/chat/completions", A_CHAT) == 200

    async def seen(key: Json) -> set[str]:
        answer = await api.call("GET", by=key["key"], at="/api/requests")
        return {entry["key_id"] for entry in answer.json()["data"]}

    async def reader_sees_both() -> bool:
        return await seen(reader) == {one["id"], other["id"]}

    await eventually(reader_sees_both)
    assert await seen(one) == {one["id"]}

"""One workspace's answers are never another's: the response cache, joined requests, reports, and caches between.

Over Redis, where all workers share what is kept, and in one process.
"""

import asyncio
import itertools
import re
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from functools import partial
from typing import Any, Final

import httpx2
import pytest

from tests.security.attacked import Attacked, plan_for
from tests.security.routes import callers_routes, routes
from tests.security.searching import keys_of
from tests.support import services
from tests.support.behaviours import Completion
from tests.support.services import Service
from tests.support.smtp import MailServer
from tests.support.upstream import ScriptedUpstream
from tests.support.waiting import eventually
from tests.support.wire import Gate
from tidegate.accounts.models import DEFAULT_WORKSPACE_ID

CACHED: Final = {"X-Tidegate-Cache": "60s"}
# What may name another workspace to a gateway that listened to it.
CLAIMS: Final = (
    "X-Workspace",
    "X-Workspace-ID",
    "X-Tidegate-Workspace",
    "X-Tenant-ID",
    "OpenAI-Organization",
    "OpenAI-Project",
    "X-Forwarded-Host",
    "X-Forwarded-For",
    "Host",
    "Origin",
    "Vary",
    "Cookie",
    "X-Tidegate-End-User",
    "X-Request-ID",
)


@pytest.fixture(scope="module", params=["memory", "redis"])
def redis(request: pytest.FixtureRequest) -> Iterator[tuple[str, str] | None]:
    """Where, and under which prefix."""
    if request.param == "memory":
        yield None
        return
    service: Service = request.getfixturevalue("redis_service")
    url, prefix = services.redis_url(service), f"tgtest-tenants-{id(request):x}"
    yield url, prefix
    services.delete_keys(url, prefix)


@pytest.fixture(scope="module")
async def attacked(
    redis: tuple[str, str] | None,
    models: ScriptedUpstream,
    mail: MailServer,
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[Attacked]:
    plan = plan_for(models, mail)
    if redis is not None:
        plan = replace(plan, redis_url=redis[0], redis_prefix=redis[1])
    async with Attacked.open(tmp_path_factory.mktemp("attacked"), plan) as attacked:
        yield attacked


def asking(text: str) -> dict[str, Any]:
    return {"model": "m", "temperature": 0, "messages": [{"role": "user", "content": text}]}


async def ask(attacked: Attacked, by: str, text: str, **headers: str) -> tuple[str, str | None]:
    """What was answered, and what the cache says."""
    answer = await attacked.call("POST", "/v1/chat/completions", by=by, json=asking(text), headers=CACHED | headers)
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]["message"]["content"], answer.headers.get("x-tidegate-cache")


def _is_waited_at(gate: Gate) -> bool:
    return gate.waiting == 1


def saying(text: str, **more: Any) -> Completion:
    return Completion(deltas=(text,), **more)


async def test_a_kept_answer_is_its_own_workspaces_whatever_a_request_says_of_itself(
    attacked: Attacked, models: ScriptedUpstream
) -> None:
    models.enqueue(saying("of default"))
    assert (await ask(attacked, "caller", "the same"))[0] == "of default"
    assert (await ask(attacked, "caller", "the same")) == ("of default", "hit")
    models.enqueue(saying("of research"))
    assert (await ask(attacked, "theirs", "the same"))[0] == "of research"
    before = len(models.requests)
    for name, value in itertools.product(CLAIMS, (str(DEFAULT_WORKSPACE_ID), "default", "caller")):
        told, _ = await ask(attacked, "theirs", "the same", **{name: value})
        assert told == "of research", f"{name}: {value}"
    assert (await ask(attacked, "caller", "the same")) == ("of default", "hit")
    assert len(models.requests) == before


async def test_what_one_workspace_puts_in_is_not_what_another_gets(
    attacked: Attacked, models: ScriptedUpstream
) -> None:
    """A poisoner asks first, as everybody will, and has its own upstream's answer kept."""
    models.enqueue(saying("poison"))
    assert (await ask(attacked, "theirs", "asked by all"))[0] == "poison"
    models.enqueue(saying("clean"))
    assert (await ask(attacked, "caller", "asked by all")) == ("clean", "miss")


async def test_requests_of_two_workspaces_at_once_are_two(attacked: Attacked, models: ScriptedUpstream) -> None:
    gates = {"caller": Gate(), "theirs": Gate()}
    tasks = {}
    for by, gate in gates.items():
        models.enqueue(saying(f"for {by}", before_headers=gate))
        tasks[by] = asyncio.create_task(ask(attacked, by, "at once"))
        await eventually(partial(_is_waited_at, gate), within_s=20)
        # Its own workspace's joins it, and makes no request of its own.
        tasks[f"{by} too"] = asyncio.create_task(ask(attacked, by, "at once"))
    for gate in gates.values():
        gate.open()
    answers = {name: (await task)[0] for name, task in tasks.items()}
    assert {name: text.removeprefix("for ") for name, text in answers.items()} == {
        name: name.split()[0] for name in answers
    }


async def test_reports_are_each_callers_own_however_often_they_are_asked(
    attacked: Attacked, models: ScriptedUpstream
) -> None:
    models.enqueue(saying("x"))
    await ask(attacked, "theirs", "one of research")

    async def reports(by: str) -> list[httpx2.Response]:
        paths = ("/api/usage?by=key", "/api/usage?by=model", "/api/usage?by=day")
        return [await attacked.call("GET", path, by=by) for path in paths]

    for _ in range(2):
        for by, place in (("member", DEFAULT_WORKSPACE_ID), ("stranger", attacked.research)):
            for answer in await reports(by):
                assert answer.json()["workspace_id"] == str(place)
                other = attacked.keys["caller" if by == "stranger" else "theirs"].prefix
                assert other not in answer.text
    # An admin's is of all, and kept apart from both.
    for answer in await reports("admin"):
        assert answer.json()["workspace_id"] is None


@pytest.mark.parametrize("redis", ["redis"], indirect=True)  # what is in a process has no names
async def test_every_key_of_a_store_begins_with_whose_it_is(attacked: Attacked, redis: tuple[str, str]) -> None:
    for by, user in (("caller", "member"), ("theirs", "stranger")):
        await ask(attacked, by, "kept for the names of its keys")
        await attacked.call("GET", "/api/usage", by=user)
    await attacked.call("GET", "/api/usage", by="admin")
    names = {name async for name, _ in keys_of(*redis)}
    # Redis' own way to say what belongs together: the deployment, a workspace, an upstream.
    tag = re.compile(rf"{re.escape(redis[1])}:\{{(d|u:[^}}]+|w:[^}}]+)\}}:")
    assert not [name for name in names if not tag.match(name)]
    kept = [name for name in names if "answer" in name or "read" in name or "usage" in name]
    places = tuple(f"{redis[1]}:{{w:{place}}}:" for place in (DEFAULT_WORKSPACE_ID, attacked.research))
    assert not [place for place in places if not any(name.startswith(place) for name in kept)]
    assert not [name for name in kept if not name.startswith(places)]


async def test_no_cache_between_is_told_to_keep_what_is_somebodys(attacked: Attacked) -> None:
    """Neither by its headers, nor by a path that looks like a file's (web cache deception)."""
    for route in callers_routes():
        if route.method != "GET":
            continue
        answer = await attacked.call("GET", route.url(), by="admin")
        said = answer.headers.get("cache-control", "")
        assert "public" not in said, route
        assert "s-maxage" not in said, route
        assert not {"expires", "age"} & set(answer.headers), route
        for suffix in ("/x.css", ".css", "/.js", "%2fx.png", ";x.ico", "%0ax.css", "%3fx.css"):
            looks_like = await attacked.call("GET", route.url() + suffix, by="admin")
            assert looks_like.status_code in (400, 404, 405, 422), f"{route}{suffix}: {looks_like.text[:200]}"


async def test_what_a_caller_sends_beside_the_key_of_a_cache_is_in_no_public_answer(attacked: Attacked) -> None:
    evil = {
        "X-Forwarded-Host": "evil.example",
        "X-Forwarded-Scheme": "nothttps",
        "X-Original-URL": "/evil.example",
        "X-Host": "evil.example",
        "User-Agent": "evil.example",
        "Cookie": "x=evil.example",
        "Accept-Language": "evil.example",
        "Origin": "https://evil.example",
        "Referer": "https://evil.example/",
    }
    for route in routes():
        if route.is_public and route.method == "GET" and "{" not in route.path:
            plain, said = [await attacked.call("GET", route.url(), headers=headers) for headers in ({}, evil)]
            assert "evil.example" not in said.text + str(said.headers), route
            assert said.status_code == plain.status_code, route

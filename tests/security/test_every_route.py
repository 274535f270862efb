"""Every route of the app, as the app itself lists them: without a credential, with a false one, with another
workspace's ids, and as somebody who may not.

A route that is added is tried without anybody's doing. It fails here where it answers those who have no credential and
does not stand among `routes.PUBLIC` with its reason; where it names something that `things.make_things` does not make;
and where it lets a member change what `OF_MEMBERS` does not have.
"""

import asyncio
import itertools
import re
from collections.abc import Iterator
from typing import Any, Final

import httpx2
import pytest

from tests.security.attacked import Attacked
from tests.security.routes import Parameter, Route, callers_routes, routes
from tests.security.things import OF_NO_WORKSPACE, NoMaker, Things, make_things, unknown_like
from tests.support.client import RawClient
from tidegate.auth.dependencies import get_caller

FORGED = "eyJhbGciOiJIUzI1NiIsImtpZCI6IjEifQ.eyJzdWIiOiJhZG1pbiJ9.Zm9yZ2VkLWZvcmdlZC1mb3JnZWQtZm9yZ2VkLWZvcmdl"
FALSE: Final = {
    None: "missing_credentials",
    FORGED: "invalid_token",
    "tg_abcd2345_QhX4c0m8Tn2vKp6wRz9bLd3fJs7gYu1eAi5oVk0xWqE": "invalid_api_key",
}
# What a member changes by right: their own. Every other route that changes something is not theirs.
OF_MEMBERS: Final = {
    "POST /v1/chat/completions": "inference",
    "POST /auth/logout/everywhere": "their own sign-ins",
    "DELETE /auth/sign-ins/{sign_in_id}": "their own sign-in",
    "POST /auth/password": "their own",
    "POST /auth/second-factor": "their own",
    "POST /auth/second-factor/confirm": "their own",
    "POST /auth/second-factor/recovery-codes": "their own",
    "DELETE /auth/second-factor": "their own",
    "POST /auth/email": "their own",
    "POST /api/keys": "a key of their own, under the workspace's policies",
    "PATCH /api/keys/{key_id}": "their own key",
    "DELETE /api/keys/{key_id}": "their own key",
    "POST /api/keys/{key_id}/rotate": "their own key",
    "DELETE /api/keys/{key_id}/retiring/{prefix}": "their own key",
}
OF_KEYS: Final = {"POST /v1/chat/completions": "inference"}
STRANGERS: Final = ("member", "keeper", "caller")
_VARYING: Final = re.compile(r'"(request_id|last_used_at|since)":"[^"]*"|\d{4}-\d\d-\d\dT[\d:.]+Z')


@pytest.fixture(scope="module")
async def things(attacked: Attacked) -> Things:
    return await make_things(attacked)


def error_of(answer: httpx2.Response) -> dict[str, Any]:
    body = answer.json()
    assert (body["type"], body["request_id"]) == ("error", answer.headers["x-request-id"]), answer.text
    error: dict[str, Any] = body["error"]
    return error


def with_id(route: Route) -> list[Parameter]:
    """The parameters of a route that name something, each that could be another workspace's."""
    return [one for one in route.parameters if names_something(one)]


def names_something(parameter: Parameter) -> bool:
    if parameter.where not in ("path", "query", "body") or parameter.name in OF_NO_WORKSPACE:
        return False
    if parameter.where == "body":
        return parameter.is_an_id or parameter.name in ("owner", "subject")
    return parameter.is_text


async def tried(
    attacked: Attacked, route: Route, parameter: Parameter, things: Things, *, by: str, is_unknown: bool
) -> tuple[int, str]:
    """What is answered, without what differs from one answer to the next; what was named reads as its name."""
    named = {one.name: things.value(route, one) for one in route.of("path") if names_something(one)}
    value = named.get(parameter.name) or things.value(route, parameter)
    if is_unknown:
        value = unknown_like(parameter.name, value)
    options: dict[str, Any] = {}
    if parameter.where == "path":
        named[parameter.name] = value
    elif parameter.where == "query":
        options["params"] = {parameter.name: value}
        if any(one.name == "since" for one in route.of("query")):
            options["params"]["since"] = "2026-01-01T00:00:00Z"
    if route.body is not None:
        options["json"] = route.sample(parameter.place, value) if parameter.where == "body" else route.sample()
    if parameter.name == "subject" and parameter.where == "body":
        options["json"]["scope"] = "key"
    answer = await attacked.call(route.method, route.url(named), by=by, **options)
    text = _VARYING.sub("", answer.text).replace(value, f"<{parameter.name}>")
    is_refused_for_its_form = answer.status_code in (400, 422) and "there is no" not in text.lower()
    assert not is_refused_for_its_form, f"give {route} a sample that is valid: {parameter} {options} {text}"
    return answer.status_code, text


def everything_with_an_id() -> Iterator[tuple[Route, Parameter]]:
    for route in callers_routes():
        for parameter in with_id(route):
            yield route, parameter


def test_every_route_that_is_public_is_one_and_every_other_asks_who_calls() -> None:
    assert len(callers_routes()) > 35
    for route in routes():
        assert route.is_public or get_caller in route.calls, f"{route} asks nobody who they are"


async def test_every_route_refuses_who_has_no_credential_or_a_false_one(attacked: Attacked) -> None:
    before = await attacked.dump()
    for route, (credential, code) in itertools.product(callers_routes(), FALSE.items()):
        # Not even what a valid body would be is told.
        body = {"json": {"unheard": "of"}} if route.body is not None else {}
        answer = await attacked.call(route.method, route.url(), by=credential, **body)
        assert answer.status_code == 401, f"{route}: {answer.status_code} {answer.text}"
        assert answer.headers["www-authenticate"].startswith("Bearer"), route
        if route.method != "HEAD":
            assert error_of(answer)["code"] == code, route
    assert await attacked.dump() == before


async def test_every_route_for_inference_refuses_before_it_reads_anything_of_the_body(attacked: Attacked) -> None:
    reading = [route for route in callers_routes() if route.body is not None and route.path.startswith("/v1/")]
    assert reading
    for route in reading:
        async with asyncio.timeout(20), RawClient(attacked.gateway.base_url) as client:
            head = f"{route.method} {route.url()} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
            await client.send_raw(f"{head}content-length: 1000\r\n\r\n".encode())
            assert (await client.head()).status == 401, route


async def test_what_is_another_workspaces_is_as_if_it_were_not_there(attacked: Attacked, things: Things) -> None:
    compared, told = 0, []
    for route, parameters in itertools.groupby(everything_with_an_id(), key=lambda found: found[0]):
        before = await attacked.dump()
        for (_, parameter), by in itertools.product(list(parameters), STRANGERS):
            theirs = await tried(attacked, route, parameter, things, by=by, is_unknown=False)
            nobodys = await tried(attacked, route, parameter, things, by=by, is_unknown=True)
            if theirs != nobodys:
                told.append(f"{route} tells {by} of a {parameter.name} ({parameter.where}): {theirs}, not {nobodys}")
            compared += 1
        after = await attacked.dump()
        assert after == before, f"{route} changed something of another workspace"
    assert told == []
    assert compared > 60


async def test_who_may_see_it_is_told_of_each_of_them(attacked: Attacked) -> None:
    """What the test above compares would differ, had the route looked: else it compares nothing with nothing."""
    unseen = []
    things = await make_things(attacked)
    for route, parameter in everything_with_an_id():
        if route.changes_something:
            things = await make_things(attacked)
        for by in ("admin", "stranger", "warden"):
            # After what a page begins is a place in an order, whether or not something stands there.
            if parameter.name == "after":
                break
            theirs = await tried(attacked, route, parameter, things, by=by, is_unknown=False)
            if theirs != await tried(attacked, route, parameter, things, by=by, is_unknown=True):
                break
        else:
            unseen.append(f"{route} {parameter.name}")
    assert "; ".join(unseen) == ""


async def test_a_page_is_the_same_for_whoever_asks(attacked: Attacked) -> None:
    pages = [route for route in routes() if route.is_a_page]
    assert pages
    assert not [str(route) for route in pages if route.changes_something]
    for route in pages:
        asked_by = [await attacked.call(route.method, route.url(), by=by) for by in (None, "admin", FORGED)]
        assert len({(answer.status_code, _VARYING.sub("", answer.text)) for answer in asked_by}) == 1, route


def test_a_parameter_that_nothing_makes_says_what_to_add() -> None:
    parameter = Parameter("teapot_id", "path", {"type": "string"})
    with pytest.raises(NoMaker, match=r"'teapot_id'.*Add it to tests/security/things\.py"):
        Things({}).value(Route("GET", "/api/teapots/{teapot_id}", ()), parameter)


@pytest.mark.parametrize(("by", "own"), [("member", OF_MEMBERS), ("caller", OF_KEYS)])
async def test_nobody_changes_what_only_somebody_else_may(attacked: Attacked, by: str, own: dict[str, str]) -> None:
    changing = [route for route in callers_routes() if route.changes_something]
    assert own.keys() <= {str(route) for route in changing}
    before = await attacked.dump()
    for route in changing:
        if str(route) not in own:
            body = {"json": route.sample()} if route.body is not None else {}
            answer = await attacked.call(route.method, route.url(), by=by, **body)
            assert answer.status_code == 403, f"{route} lets a {by} in: {answer.status_code} {answer.text}"
            assert error_of(answer)["code"] == "permission_denied"
    assert await attacked.dump() == before

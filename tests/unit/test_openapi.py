"""The OpenAPI document: what it says of a route is read from the route."""

import re
from typing import Annotated, Any

import httpx2
import pytest
from fastapi import APIRouter, Depends, FastAPI
from pydantic import BaseModel

from tests.support.stand_in import ECHO
from tidegate.accounts.dependencies import RefreshBody
from tidegate.app import create_app
from tidegate.auth.dependencies import Caller, RequireScope
from tidegate.auth.page_session import CSRF_HEADER, require_own_page
from tidegate.http.openapi import complete
from tidegate.settings import Settings
from tidegate.settings.groups import ServerSettings

Json = dict[str, Any]
EVERYWHERE = {400, 408, 413, 431, 500, 503}


class Thing(BaseModel):
    name: str


router = APIRouter()


@router.get("/open")
async def is_open() -> Thing:
    raise NotImplementedError


@router.get("/guarded", dependencies=[Depends(RequireScope("manage"))])
async def guarded() -> Thing:
    raise NotImplementedError


@router.get("/guarded/{name}")
async def one(name: str, caller: Caller) -> Thing:
    raise NotImplementedError


@router.post("/guarded", status_code=201)
async def make(body: Thing, caller: Caller) -> Thing:
    raise NotImplementedError


@router.delete("/guarded/{name}", status_code=204)
async def end(name: str, caller: Caller) -> None: ...


@router.get("/v1/things/{name}")
async def on_the_api(name: str, caller: Caller) -> Thing:
    raise NotImplementedError


@router.post("/tried")
async def tried(body: RefreshBody) -> Thing:
    raise NotImplementedError


@router.post("/page", dependencies=[Depends(require_own_page)])
async def of_the_page(caller: Caller) -> Thing:
    raise NotImplementedError


@router.get("/reports", responses={503: {"model": Thing}})
async def reports(since: Annotated[str, "a query"] = "") -> Thing:
    raise NotImplementedError


@pytest.fixture(scope="module")
def made() -> Json:
    app = FastAPI()
    app.include_router(router)
    document = app.openapi()
    complete(document, app.routes)
    return document


def errors_of(operation: Json) -> set[int]:
    return {int(status) for status in operation["responses"] if int(status) >= 400}


@pytest.mark.parametrize(
    ("method", "path", "more"),
    [
        ("get", "/open", set()),
        ("get", "/guarded", {401, 403, 429}),
        ("get", "/guarded/{name}", {401, 403, 404, 422, 429}),
        ("post", "/guarded", {401, 403, 404, 409, 422, 429}),
        ("delete", "/guarded/{name}", {401, 403, 404, 409, 422, 429}),
        ("get", "/v1/things/{name}", {401, 403, 404, 429}),
        ("post", "/tried", {401, 403, 409, 422, 429}),
        ("post", "/page", {401, 403, 409, 429}),
        ("get", "/reports", {422}),
    ],
)
def test_errors_are_those_that_such_a_route_can_answer(made: Json, method: str, path: str, more: set[int]) -> None:
    assert errors_of(made["paths"][path][method]) == EVERYWHERE | more


def test_credentials_are_asked_for_where_a_caller_is(made: Json) -> None:
    of_a_caller: list[Json] = [{"bearer": []}, {"x-api-key": []}, {"page": []}]
    assert made["paths"]["/guarded"]["get"]["security"] == of_a_caller
    assert made["paths"]["/page"]["post"]["security"] == of_a_caller
    assert "security" not in made["paths"]["/open"]["get"]
    assert "security" not in made["paths"]["/tried"]["post"]


def test_the_page_s_routes_take_its_header(made: Json) -> None:
    (header,) = made["paths"]["/page"]["post"]["parameters"]
    assert (header["name"], header["required"]) == (CSRF_HEADER, True)


def test_an_error_with_a_report_of_its_own_has_both_forms(made: Json) -> None:
    schema = made["paths"]["/reports"]["get"]["responses"]["503"]["content"]["application/json"]["schema"]
    assert schema == {"allOf": [{"$ref": "#/components/schemas/ErrorEnvelope"}, {"$ref": "#/components/schemas/Thing"}]}


@pytest.fixture(scope="module")
def document() -> Json:
    return create_app(Settings(environment="test", config_toml=ECHO)).openapi()


def test_every_error_of_every_route_is_the_envelope(document: Json) -> None:
    shared = document["components"]["responses"]
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            for status, answer in operation["responses"].items():
                if int(status) < 400:
                    continue
                told = shared[answer["$ref"].rpartition("/")[2]] if "$ref" in answer else answer
                written = str(told["content"]["application/json"]["schema"])
                assert "#/components/schemas/ErrorEnvelope" in written, (method, path, status)


def test_every_reference_leads_somewhere(document: Json) -> None:
    for reference in set(re.findall(r"'#/([^']+)'", str(document))):
        place: Any = document
        for part in reference.split("/"):
            place = place[part]
    assert "HTTPValidationError" not in str(document)


def test_a_chat_is_told_of_with_its_body_its_headers_and_both_its_answers(document: Json) -> None:
    chat = document["paths"]["/v1/chat/completions"]["post"]
    assert set(chat["responses"]["200"]["content"]) == {"application/json", "text/event-stream"}
    assert chat["requestBody"]["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/ChatRequest"}
    assert {header["name"] for header in chat["parameters"]} >= {"X-Tidegate-Deadline-Ms", "X-Tidegate-Tags"}
    assert errors_of(chat) == EVERYWHERE | {401, 403, 404, 409, 422, 429, 502, 504}


def test_what_answers_nothing_has_no_content(document: Json) -> None:
    nothing = [
        answer
        for operations in document["paths"].values()
        for operation in operations.values()
        for status, answer in operation["responses"].items()
        if status == "204"
    ]
    assert nothing
    assert not any("content" in answer for answer in nothing)


async def asked(app: Any, method: str, path: str) -> httpx2.Response:
    transport = httpx2.ASGITransport(app)
    async with httpx2.AsyncClient(transport=transport, base_url="http://gateway") as client:
        return await client.request(method, path)


async def test_a_method_that_is_not_allowed_is_told_which_are(document: Json) -> None:
    app = create_app(Settings(environment="test", config_toml=ECHO))
    for path, operations in document["paths"].items():
        if path == "/api/limits/key-policies":
            # It has the form of a limit's path, too.
            continue
        answer = await asked(app, "TRACE", re.sub(r"{[^}]*}", "01a20470-1425-72ec-9150-dd4154931ae9", path))
        assert answer.status_code == 405, path
        allowed = set(answer.headers["allow"].lower().split(", "))
        assert allowed - {"head"} == set(operations), path
        assert answer.headers["allow"] in answer.json()["error"]["message"]


async def test_no_method_of_a_route_on_another_port_is_told() -> None:
    settings = Settings(environment="test", config_toml=ECHO, server=ServerSettings(port=8000, management_port=9000))
    assert (await asked(create_app(settings), "TRACE", "/api/users")).status_code == 404

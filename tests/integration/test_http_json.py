"""Bodies, queries and paths that parsers and databases fail on: a clean 4xx from every route, on either database."""

import contextlib
import re
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.support.edge import call
from tests.support.keys_api import KeysApi
from tidegate.errors import InvalidRequest
from tidegate.http.json_bodies import JsonBodies, judge_json
from tidegate.http.middleware import with_edge
from tidegate.settings import Settings
from tidegate.settings.groups import HttpSettings

JSON = "application/json"
NOBODY = "00000000-0000-4000-8000-000000000000"
# No body of the road reads it, and no form has such a field.
WRAPPED = b'{"name":"k","model":"echo","messages":[{"role":"user","content":"hi"}],"email":"a@example.com","x":%s}'
UNREADABLE = {
    "nested too deep": WRAPPED % (b"[" * 250 + b"]" * 250),
    "objects nested too deep": WRAPPED % (b'{"a":' * 250 + b"1" + b"}" * 250),
    "deep without end": b"[" * 60_000,
    "a lone surrogate": WRAPPED % rb'"\ud800"',
    "the second half of a pair": WRAPPED % rb'"\udc00"',
    "NaN": WRAPPED % b"NaN",
    "Infinity": WRAPPED % b"-Infinity",
    "a number of 5,000 digits": WRAPPED % (b"9" * 5000),
    "a byte order mark": b"\xef\xbb\xbf" + WRAPPED % b"1",
    "UTF-16": (WRAPPED % b"1").decode().encode("utf-16"),
    "UTF-16 without a mark": (WRAPPED % b"1").decode().encode("utf-16-le"),
    "UTF-32": (WRAPPED % b"1").decode().encode("utf-32"),
    "invalid UTF-8": WRAPPED % b'"\xff"',
    "a surrogate in UTF-8": WRAPPED % b'"\xed\xa0\x80"',
    "overlong UTF-8": WRAPPED % b'"\xc0\xaf"',
    "a raw NUL": WRAPPED % b'"a\x00b"',
    "a comment": WRAPPED % b"/* */1",
    "a comma too many": WRAPPED % b"[1,]",
    "something behind": WRAPPED % b"1" + b"{}",
    "half": (WRAPPED % b"1")[:-5],
    "blanks": b"  \n ",
}
# Valid, and too much for this or that: not taken as they stand, and no error of ours.
ODD = {
    "NUL in a string": b'{"name":"a\\u0000b","model":"a\\u0000b","email":"a\\u0000@example.com","password":"\\u0000"}',
    "NUL in a name": b'{"na\\u0000me":1}',
    "numbers past a float": b'{"name":1e999999,"limits":[{"amount":1e999999,"meter":-1e999}]}',
    "a long number": b'{"name":' + b"9" * 4000 + b',"limit":' + b"9" * 4000 + b"}",
    "a long fraction": b'{"name":0.' + b"9" * 60_000 + b"}",
    "a long name": b'{"' + b"k" * 60_000 + b'":1}',
    "a long string": b'{"name":"' + b"n" * 60_000 + b'","email":"' + b"e" * 2_000 + b'"}',
    "a long list": b"[" + b"1," * 30_000 + b"1]",
    "a long list within": b'{"models":[' + b'"a",' * 15_000 + b'"a"]}',
    "many names": b"{" + b",".join(b'"%d":1' % n for n in range(6_000)) + b"}",
    "one name many times": b"{" + b",".join([b'"name":1'] * 6_000) + b"}",
    "a string": b'"name"',
    "a number": b"1",
    "null": b"null",
    "a list": b"[]",
    "nothing": b"",
}


@pytest.fixture
async def api(database_url: str, tmp_path: Path) -> AsyncIterator[KeysApi]:
    async with KeysApi.open(database_url, tmp_path) as api:
        yield api


async def routes(api: KeysApi, *methods: str) -> list[tuple[str, str, Any]]:
    """Every route of the document with these methods: method, path with ids of nobody, and what it says of itself."""
    document = (await api.client.get("/openapi.json")).json()
    return [
        (method.upper(), re.sub(r"\{[^}]*\}", NOBODY, path), operation)
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
        if method.upper() in methods
    ]


def assert_clean(answer: httpx2.Response, what: str) -> None:
    assert 400 <= answer.status_code < 500, f"{what}: {answer.status_code} {answer.text[:300]}"
    assert answer.json()["type"] == "error", what


async def send(api: KeysApi, method: str, path: str, body: bytes, **headers: str) -> httpx2.Response:
    sent = {"Authorization": f"Bearer {api.tokens['admin']}", "Content-Type": JSON} | headers
    return await api.client.request(method, path, content=body, headers=sent)


async def test_every_route_that_takes_a_body_refuses_what_is_no_json_of_ours(api: KeysApi) -> None:
    taking = {
        (method, path): told["requestBody"].get("required", False)
        for method, path, told in await routes(api, "POST", "PATCH", "PUT", "DELETE")
        if "requestBody" in told
    }
    assert {("POST", "/auth/login"), ("POST", "/api/keys"), ("POST", "/v1/chat/completions")} <= taking.keys()
    for (method, path), is_needed in taking.items():
        for name, body in UNREADABLE.items():
            answer = await send(api, method, path, body)
            assert_clean(answer, f"{name} to {method} {path}")
            assert answer.status_code in (400, 429), f"{name} to {method} {path}: {answer.text}"
        for name, body in ODD.items():
            if not is_needed and name in ("null", "nothing"):
                continue
            assert_clean(await send(api, method, path, body), f"{name} to {method} {path}")


async def test_a_body_that_does_not_say_that_it_is_json_is_a_4xx(api: KeysApi) -> None:
    form = b'--x\r\ncontent-disposition: form-data; name="name"\r\n\r\nk\r\n--x--\r\n'
    for content_type in ("text/plain", "multipart/form-data; boundary=x", "", "application/jsonp", "a/b/c"):
        for path in ("/api/keys", "/api/limits"):
            for body in (b'{"name":"k"}', form, b"name=k"):
                assert_clean(await send(api, "POST", path, body, **{"Content-Type": content_type}), content_type)


async def test_json_under_another_name_of_it_is_judged_too(api: KeysApi) -> None:
    for content_type in ("application/problem+json", 'Application/JSON; charset="utf-16"', "application/json;x=y"):
        answer = await send(api, "POST", "/api/keys", UNREADABLE["a lone surrogate"], **{"Content-Type": content_type})
        assert answer.status_code == 400


async def test_a_compressed_body_is_refused_unread(api: KeysApi) -> None:
    for path in ("/api/keys", "/v1/chat/completions", "/auth/login", "/nowhere"):
        for coding in ("gzip", "deflate", "br", "GZIP", "identity, gzip", "x"):
            answer = await send(api, "POST", path, b"\x1f\x8b", **{"Content-Encoding": coding})
            assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_request")
            assert "Content-Encoding" in answer.json()["error"]["message"]
    assert (await send(api, "POST", "/nowhere", b"{}", **{"Content-Encoding": "identity"})).status_code == 404


async def test_the_message_says_how_deep_a_body_may_be(api: KeysApi) -> None:
    for path in ("/api/keys", "/v1/chat/completions"):
        answer = await send(api, "POST", path, UNREADABLE["nested too deep"])
        assert "nested deeper than 200 levels" in answer.json()["error"]["message"]


async def test_what_the_deepest_schemas_of_tools_need_is_let_through(api: KeysApi) -> None:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(10):
        # A level of OpenAI's, as deep in JSON as one can be.
        schema = {"type": "object", "properties": {"next": {"anyOf": [{"type": "array", "items": schema}]}}}
    tool = {"type": "function", "function": {"name": "f", "parameters": schema}}
    body = {"model": "echo", "messages": [{"role": "user", "content": "hi"}], "tools": [tool]}
    key = (await api.make())["key"]
    answer = await api.call("POST", by=key, at="/v1/chat/completions", json=body)
    assert (answer.status_code, answer.json()["choices"][0]["message"]["content"]) == (200, "hi")


async def test_nul_in_a_name_of_the_road_is_refused(api: KeysApi) -> None:
    body = {"model": "echo", "messages": [{"role": "user", "content": "a\0b"}]}
    key = (await api.make())["key"]
    for name in ("user", "safety_identifier", "model"):
        told = await api.call("POST", by=key, at="/v1/chat/completions", json=body | {name: "a\0b"})
        assert (told.status_code, "NUL" in told.text) == (400, True)
    # In what is said it is the model's to read.
    assert (await api.call("POST", by=key, at="/v1/chat/completions", json=body)).status_code == 200


TWICE = (
    b'{"messages":5,"model":"echo","messages":[{"role":"user","content":"hi"}]}',
    b'{"model":"echo","messages":[{"role":"user","content":5,"content":"hi"}]}',
    b'{"model":"echo","messages":[{"role":"user","content":"hi"}],"temperature":0,"tools":[{"type":5,"type":"function"}]}',
)


async def test_a_name_that_stands_twice_is_no_error_of_ours(api: KeysApi) -> None:
    bearer = f"Bearer {(await api.make())['key']}"
    for body in TWICE:
        answer = await send(
            api, "POST", "/v1/chat/completions", body, Authorization=bearer, **{"X-Tidegate-Cache": "60s"}
        )
        assert answer.status_code in (200, 400, 502), answer.text


HOSTILE_TEXTS = (
    "%00",
    "a%00b",
    "%ff%fe",
    "%ed%a0%80",
    "%c0%af",
    "%zz",
    "%",
    "9" * 5000,
    "-1",
    "1e999",
    "NaN",
    "%F0%9F%92%A9",
)


async def test_every_query_of_every_route_survives_hostile_values(api: KeysApi) -> None:
    for method, path, told in await routes(api, "GET", "DELETE"):
        names = [one["name"] for one in told.get("parameters", ()) if one["in"] == "query"]
        for name in [*names, "surprise"]:
            for text in HOSTILE_TEXTS:
                answer = await send(api, method, f"{path}?{name}={text}", b"")
                assert answer.status_code < 500, f"{method} {path}?{name}={text[:20]}: {answer.text[:300]}"
                if "%00" in text:
                    assert answer.status_code == 400


async def test_every_path_of_every_route_survives_hostile_values(api: KeysApi) -> None:
    for method, path, _ in await routes(api, "GET", "DELETE", "PATCH", "POST"):
        for text in HOSTILE_TEXTS:
            for tried in {path.replace(NOBODY, text), f"{path}/{text}", path + text}:
                answer = await send(api, method, tried, b"")
                assert answer.status_code < 500, f"{method} {tried[:60]}: {answer.text[:300]}"


def hostile_bodies() -> Iterator[bytes]:
    for kind in (
        b"[",
        b'{"a":',
        b'"\\u0000',
        b"\\",
        b'"' + b"\\" * 1000,
        b"1",
        b"[],",
        b'{"a":"\\\\\\\\',
        b"1e400,",
        b"9",
    ):
        yield kind * (64 * 1024 // len(kind))
        yield b"[" + kind * (64 * 1024 // len(kind)) + b"1]"


def test_judging_takes_linear_time() -> None:
    for body in hostile_bodies():
        began = time.perf_counter()
        for _ in range(5):
            with contextlib.suppress(InvalidRequest):
                judge_json(body)
        assert time.perf_counter() - began < 5, body[:40]


@pytest.mark.parametrize("body", [rb'"\\u0000"', rb'"\\\\u0000"', b"1e308", b"9" * 400, b"[1.5e2]", b'{"a":1,"a":2}'])
def test_what_only_looks_so_passes(body: bytes) -> None:
    judge_json(body)


@pytest.mark.parametrize(
    "body", [rb'"\u0000"', rb'"\\\u0000"', rb'{"\u0000":1}', b"1e309", b"[[-1e999]]", b"9" * 400 + b".0"]
)
def test_what_is_so_does_not_pass(body: bytes) -> None:
    with pytest.raises(InvalidRequest):
        judge_json(body)


async def test_a_body_that_passes_comes_as_it_was_and_its_bound_holds_before() -> None:
    heard: list[bytes] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        message = await receive()
        heard.append(message["body"])
        assert not message["more_body"]
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body"})

    edge = with_edge(JsonBodies(app), Settings(environment="test", http=HttpSettings(max_body_bytes=100)))
    headers = [(b"content-type", b"application/json")]
    assert (await call(edge, "POST", "/x", headers=headers, body=[b'{"a"', b": ", b"1} "])).status == 204
    assert (await call(edge, "POST", "/x", headers=headers, body=[b'{"a":"', b"x" * 100, b'"}'])).status == 413
    assert (await call(edge, "POST", "/x", headers=headers, body=b"")).status == 204
    assert heard == [b'{"a": 1} ', b""]


async def test_a_request_without_a_body_of_json_is_not_waited_for(api: KeysApi) -> None:
    assert (await send(api, "DELETE", f"/api/keys/{uuid.uuid4()}", b"")).status_code == 404

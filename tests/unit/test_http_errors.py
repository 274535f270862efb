"""Every error of every route has the one envelope and the request's id."""

import pytest
from starlette.types import Receive, Scope, Send

from tests.support.edge import Answer, EdgeApp, call, scope_of
from tidegate.errors import (
    Draining,
    InsufficientQuota,
    InvalidRequest,
    Overloaded,
    RateLimitExceeded,
    TidegateError,
    Unavailable,
    error_type,
)
from tidegate.http.errors import error_response, from_faults, param_of
from tidegate.http.middleware import with_edge
from tidegate.settings import Settings

JSON = [(b"content-type", b"application/json")]


@pytest.fixture
def app() -> EdgeApp:
    return EdgeApp(Settings(environment="test"))


def assert_envelope(answer: Answer, status: int, code: str) -> None:
    assert answer.status == status
    assert answer.starts == 1
    assert answer.complete
    assert answer.values("content-type") == ["application/json"]
    assert answer.json.keys() == {"type", "error", "request_id"}
    assert answer.json["type"] == "error"
    assert answer.error["type"] == error_type(status)
    assert answer.error["code"] == code
    assert answer.error["message"]
    assert "param" in answer.error
    assert answer.values("x-request-id") == [answer.json["request_id"]]


async def test_unknown_route(app: EdgeApp) -> None:
    answer = await call(app, "GET", "/nowhere")
    assert_envelope(answer, 404, "not_found")
    assert "/nowhere" in answer.error["message"]


async def test_wrong_method_keeps_allow(app: EdgeApp) -> None:
    answer = await call(app, "DELETE", "/ok")
    assert_envelope(answer, 405, "method_not_allowed")
    assert answer.header("allow") == "GET"
    assert "GET" in answer.error["message"]


@pytest.mark.parametrize("path", ["/v1/ask", "/ask"])
async def test_broken_json_is_a_400_everywhere(app: EdgeApp, path: str) -> None:
    answer = await call(app, "POST", path, headers=JSON, body=b'{"count": 1,')
    assert_envelope(answer, 400, "invalid_request")
    assert "not valid JSON" in answer.error["message"]


@pytest.mark.parametrize("path", ["/v1/ask", "/ask"])
async def test_invalid_utf8_is_a_400(app: EdgeApp, path: str) -> None:
    answer = await call(app, "POST", path, headers=JSON, body=b'{"count": "\xff\xfe"}')
    assert_envelope(answer, 400, "invalid_request")


async def test_validation_on_v1_names_the_param(app: EdgeApp) -> None:
    answer = await call(app, "POST", "/v1/ask", headers=JSON, body=b'{"count": 1, "turns": [{"role": 5}]}')
    assert_envelope(answer, 400, "invalid_request")
    assert answer.error["param"] == "turns[0].role"
    assert answer.error["message"].startswith("turns[0].role: ")


async def test_validation_off_v1_lists_every_fault_and_no_input(app: EdgeApp) -> None:
    answer = await call(app, "POST", "/ask", headers=JSON, body=b'{"count": "hunter2", "turns": []}')
    assert_envelope(answer, 422, "validation_error")
    assert [fault["loc"] for fault in answer.error["errors"]] == [["body", "count"], ["body", "turns"]]
    assert all(fault["message"] and fault.keys() == {"loc", "message"} for fault in answer.error["errors"])
    assert b"hunter2" not in answer.body


async def test_exception_in_a_route(app: EdgeApp, caplog: pytest.LogCaptureFixture) -> None:
    answer = await call(app, "GET", "/boom")
    assert_envelope(answer, 500, "internal_error")
    assert b"broken" not in answer.body
    assert [record.levelname for record in caplog.records if "failed" in str(record.msg)] == ["ERROR"]


async def test_exception_in_a_dependency(app: EdgeApp) -> None:
    answer = await call(app, "GET", "/dependency-boom")
    assert_envelope(answer, 500, "internal_error")
    assert b"hunter2" not in answer.body


async def test_our_own_error_keeps_its_headers(app: EdgeApp) -> None:
    answer = await call(app, "GET", "/overloaded")
    assert_envelope(answer, 503, "overloaded")
    assert answer.header("retry-after") == "2"


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (Overloaded("x", headers={"Retry-After": "2"}), ("2", "2000", "true")),
        (Unavailable("x", headers={"retry-after": "1"}), ("1", "1000", "true")),
        (RateLimitExceeded("x", headers={"Retry-After": "60"}), ("60", "60000", "true")),
        (InsufficientQuota("x", headers={"Retry-After": "3600"}), ("3600", "3600000", "false")),
        (RateLimitExceeded("x", headers={"x-should-retry": "false"}), (None, None, "false")),
        (RateLimitExceeded("x", headers={"Retry-After": "60", "x-should-retry": "false"}), ("60", "60000", "false")),
        (InsufficientQuota("x"), (None, None, "false")),
        (Draining("x"), ("1", "1000", "true")),
        (Overloaded("x"), (None, None, None)),
        (InvalidRequest("x"), (None, None, None)),
        (
            Overloaded("x", headers={"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"}),
            ("Wed, 21 Oct 2026 07:28:00 GMT", None, "true"),
        ),
    ],
)
async def test_a_refusal_says_in_the_vendors_headers_when_and_whether_to_come_again(
    error: TidegateError, expected: tuple[str | None, ...]
) -> None:
    async def refusing(scope: Scope, receive: Receive, send: Send) -> None:
        raise error

    answer = await call(with_edge(refusing, Settings(environment="test")))
    assert tuple(answer.header(name) for name in ("retry-after", "retry-after-ms", "x-should-retry")) == expected
    assert error_response(scope_of(), error).headers.get("x-should-retry") == expected[2]


async def test_any_other_status_of_the_framework(app: EdgeApp) -> None:
    answer = await call(app, "GET", "/teapot")
    assert_envelope(answer, 418, "invalid_request")
    assert answer.error["message"] == "I am a teapot"
    assert answer.header("x-pot") == "tea"


async def test_answer_that_does_not_fit_its_schema(app: EdgeApp, caplog: pytest.LogCaptureFixture) -> None:
    answer = await call(app, "GET", "/wrong")
    assert_envelope(answer, 500, "internal_error")
    assert "schema" in caplog.text
    assert "secret-answer" not in caplog.text


async def test_broken_stream_has_no_clean_end(app: EdgeApp, caplog: pytest.LogCaptureFixture) -> None:
    answer = await call(app, "GET", "/broken-stream")
    assert (answer.status, answer.body) == (200, b"first")
    assert answer.starts == 1
    assert not answer.complete
    assert "the stream broke" in caplog.text


async def test_no_answer_at_all_becomes_a_500(app: EdgeApp) -> None:
    assert_envelope(await call(app, "GET", "/silent/x"), 500, "internal_error")


async def test_request_id_is_on_good_answers_too(app: EdgeApp) -> None:
    answer = await call(app, "GET", "/ok", headers=[(b"x-request-id", b"mine-1")])
    assert answer.values("x-request-id") == ["mine-1"]


async def test_a_start_message_that_is_used_again_is_not_written_to() -> None:
    start = {"type": "http.response.start", "status": 204, "headers": []}

    async def constant(scope: object, receive: object, send: object) -> None:
        assert callable(send)
        await send(start)
        await send({"type": "http.response.body"})

    app = EdgeApp(Settings(environment="test"))
    app.mount("/constant", constant)
    for _ in range(2):
        assert len((await call(app, "GET", "/constant/")).values("x-request-id")) == 1
    assert start["headers"] == []


def test_place_is_written_as_a_caller_would() -> None:
    assert param_of(("body", "messages", 0, "content", 1, "text")) == "messages[0].content[1].text"
    assert param_of(("query", "limit")) == "limit"
    assert param_of(("body", "body")) == "body"
    assert param_of(("body",)) == "body"
    assert param_of(()) == "body"


def test_many_faults_are_bounded() -> None:
    faults = [{"type": "missing", "loc": ("body", "turns", n), "msg": "Field required"} for n in range(500)]
    assert len(from_faults(faults, on_api=False).detail()["errors"]) == 50

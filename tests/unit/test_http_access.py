"""The access line: one a request, with what the ledger's entry says, and no secret."""

import os
import uuid
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import orjson
import pytest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tests.support.edge import EdgeApp, call, scope_of
from tidegate.http.access import AccessLog
from tidegate.http.context import HUNG_UP_KEY, request_context
from tidegate.http.middleware import RequestEdge
from tidegate.ledger.entry import Attempt, Ending, Entry, OpenEntry, close_entry, new_entry_id, utc_now
from tidegate.settings import Settings
from tidegate.telemetry.lines import LineWriter
from tidegate.telemetry.logging import LineHandler

WORKSPACE = uuid.UUID(int=7)
KEY = "tg_abcdefgh_" + "S" * 43


class Lines:
    """An access log that writes into a pipe, and what came out of it."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe()
        os.set_blocking(self._read, False)
        self.writer = LineWriter(self._write)
        self.log = AccessLog(LineHandler(self.writer, "worker"))

    def taken(self) -> list[dict[str, Any]]:
        self.writer.flush()
        try:
            text = os.read(self._read, 1 << 16)
        except BlockingIOError:
            return []
        return [orjson.loads(line) for line in text.splitlines()]

    def close(self) -> None:
        os.close(self._read)
        os.close(self._write)


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Iterator[Lines]:
    caplog.set_level("INFO", logger="tidegate.access")
    lines = Lines()
    yield lines
    lines.close()


def app(lines: Lines) -> EdgeApp:
    return EdgeApp(Settings(environment="test"), edge=lambda inner, _: RequestEdge(inner, lines.log))


def entry(**ending: Any) -> Entry:
    now = utc_now()
    opened = OpenEntry(
        entry_id=new_entry_id(),
        workspace_id=WORKSPACE,
        key_id=None,
        user_id=None,
        request_id="r-1",
        end_user=None,
        session_id=None,
        tags={},
        protocol="chat",
        model="small",
        streamed=True,
        reserved_cost=None,
        client_address=None,
        user_agent=None,
        started_at=now,
    )
    attempt = Attempt(
        n=1,
        upstream="local",
        model="smollm2",
        outcome="completed",
        input_tokens=11,
        output_tokens=0,
        usage_source="provider",
        cost=Decimal("0.000100"),
        started_at=now,
        ended_at=now,
    )
    how: dict[str, Any] = {"outcome": "completed", "status": 200, "upstream": "local", "ended_at": now}
    return close_entry(opened, [attempt], Ending(**how | {"queue_ms": 0, "ttft_ms": 12} | ending))


async def test_line_of_a_plain_request(lines: Lines) -> None:
    await call(app(lines), "GET", "/ok", headers=[(b"x-request-id", b"r-9")])
    (line,) = lines.taken()
    assert line.pop("ts").endswith("Z")
    assert line.pop("duration_ms") > 0
    assert line.pop("pid") == os.getpid()
    assert line == {
        "level": "info",
        "event": "request",
        "logger": "tidegate.access",
        "process": "worker",
        "request_id": "r-9",
        "method": "GET",
        "path": "/ok",
        "status": 200,
        "bytes": 11,
        "client": "192.0.2.1",
    }


async def test_line_tells_what_the_entry_says(lines: Lines) -> None:
    settled = entry()

    async def flow(scope: Scope, receive: Receive, send: Send) -> None:
        context = request_context(scope)
        context.key_prefix, context.workspace_id = "tg_abcdefgh", WORKSPACE
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"abc", "more_body": True})
        await send({"type": "http.response.body", "body": b"de"})
        context.entry = settled

    await call(RequestEdge(flow, lines.log), "POST", "/v1/chat/completions")
    (line,) = lines.taken()
    assert line["entry_id"] == str(settled.entry_id)
    assert line["workspace"] == str(WORKSPACE)
    told = {name: line[name] for name in ("key", "model", "upstream", "outcome", "attempts", "bytes")}
    assert told == {
        "key": "tg_abcdefgh",
        "model": "small",
        "upstream": "local",
        "outcome": "completed",
        "attempts": 1,
        "bytes": 5,
    }
    # Zero is a value, and a cost keeps its digits.
    assert (line["input_tokens"], line["output_tokens"], line["queue_ms"], line["ttft_ms"]) == (11, 0, 0, 12)
    assert line["cost"] == "0.000100"


async def test_error_is_told_by_its_code(lines: Lines) -> None:
    await call(app(lines), "GET", "/overloaded")
    (line,) = lines.taken()
    assert (line["status"], line["error_code"]) == (503, "overloaded")


async def test_one_line_a_request_whatever_happens(lines: Lines) -> None:
    for path in ("/boom", "/dependency-boom", "/broken-stream", "/wrong", "/silent/x", "/nowhere"):
        await call(app(lines), "GET", path)
        assert [line["path"] for line in lines.taken()] == [path]


async def run_with_client_that_goes(application: ASGIApp, scope: Any) -> None:
    async def receive() -> Message:
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None: ...

    await application(scope, receive, send)


async def test_hang_up_that_the_application_saw_is_a_499(lines: Lines) -> None:
    await run_with_client_that_goes(app(lines), scope_of("GET", "/endless"))
    (line,) = lines.taken()
    assert line["status"] == 499


async def test_hang_up_while_the_body_is_read_is_a_499_and_no_error(
    lines: Lines, caplog: pytest.LogCaptureFixture
) -> None:
    await run_with_client_that_goes(app(lines), scope_of("POST", "/size"))
    (line,) = lines.taken()
    assert line["status"] == 499
    assert "failed" not in caplog.text


async def test_hang_up_that_only_the_connection_saw_is_a_499(lines: Lines) -> None:
    scope = scope_of("GET", "/ok")

    async def send(message: Message) -> None:
        scope[HUNG_UP_KEY] = True

    async def receive() -> Message:
        return {"type": "http.request"}

    await app(lines)(scope, receive, send)
    assert lines.taken()[0]["status"] == 499


async def test_going_after_the_end_is_no_hang_up(lines: Lines) -> None:
    async def asks_again(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body"})
        await receive()

    await run_with_client_that_goes(RequestEdge(asks_again, lines.log), scope_of())
    assert lines.taken()[0]["status"] == 200


@pytest.mark.parametrize(
    ("path", "label", "shown"),
    [
        (f"/api/keys/{KEY}", b"r-1", "tg_abcdefgh_[redacted]"),
        ("/x/sk-proj-abcdefghijkl", b"r-1", "sk-[redacted]"),
        ("/x", b"of-" + KEY.encode(), "tg_abcdefgh_[redacted]"),
    ],
)
async def test_secret_in_a_path_or_in_a_request_id_is_redacted(
    lines: Lines, path: str, label: bytes, shown: str
) -> None:
    await call(app(lines), "GET", path, headers=[(b"x-request-id", label)])
    (line,) = lines.taken()
    assert "S" * 43 not in str(line)
    assert "sk-proj" not in str(line)
    assert shown in str(line)


async def test_quiet_log_level_has_no_access_lines(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("WARNING", logger="tidegate.access")
    lines = Lines()
    await call(app(lines), "GET", "/ok")
    assert lines.taken() == []
    lines.close()


async def test_without_configured_logs_the_line_is_a_record(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="tidegate.access")
    unconfigured = EdgeApp(Settings(environment="test"), edge=lambda inner, _: RequestEdge(inner, AccessLog(None)))
    await call(unconfigured, "GET", "/ok")
    assert [record.name for record in caplog.records if "'path': '/ok'" in str(record.msg)] == ["tidegate.access"]


async def test_path_is_bounded_and_may_be_anything(lines: Lines) -> None:
    await call(app(lines), "GET", "/" + "x" * 5000)
    await call(RequestEdge(app(lines), lines.log), "GET", '/"\n\u2028é')
    first, *others = lines.taken()
    assert len(first["path"]) == 1024
    assert {line["path"] for line in others} == {'/"\n\u2028é'}


async def test_lone_surrogate_costs_no_line(lines: Lines) -> None:
    async def nothing(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body"})

    scope = scope_of("GET", "/x")
    scope["path"] = "/\ud800"
    await run_with_client_that_goes(RequestEdge(nothing, lines.log), scope)
    assert len(lines.taken()) == 1

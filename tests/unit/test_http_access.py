"""The access line: one a request, with what the ledger's entry says, and no secret."""

import os
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal
from typing import Any

import orjson
import pytest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tests.support.edge import EdgeApp, call, scope_of
from tidegate.http.access import AccessLog
from tidegate.http.context import HUNG_UP_KEY, RequestContext, request_context
from tidegate.http.middleware import RequestEdge
from tidegate.ledger.entry import Attempt, Ending, Entry, OpenEntry, close_entry, new_entry_id, utc_now
from tidegate.settings import Settings
from tidegate.settings.logs import LogsSettings
from tidegate.telemetry.lines import LineWriter
from tidegate.telemetry.logging import LineHandler, bound_entry_id

WORKSPACE = uuid.UUID(int=7)
KEY = "tg_abcdefgh_" + "S" * 43


class Lines:
    """An access log that writes into a pipe, and what came out of it."""

    def __init__(self, logs: LogsSettings | None = None, *, console: bool = False) -> None:
        self._read, self._write = os.pipe()
        os.set_blocking(self._read, False)
        self.writer = LineWriter(self._write)
        self.handler = LineHandler(self.writer, "worker", console=console)
        self.log = AccessLog(self.handler, logs)

    def text(self) -> bytes:
        self.writer.flush()
        try:
            return os.read(self._read, 1 << 20)
        except BlockingIOError:
            return b""

    def taken(self) -> list[dict[str, Any]]:
        return [orjson.loads(line) for line in self.text().splitlines()]

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


@contextmanager
def logging_as(logs: LogsSettings | None = None, *, console: bool = False) -> Iterator[Lines]:
    lines = Lines(logs, console=console)
    yield lines
    lines.close()


def ended(label: str, *, status: int | None = 200, took_s: float = 0.0, **ending: Any) -> RequestContext:
    """A request of the road that has ended so."""
    context = RequestContext(label, "POST", "/v1/chat/completions")
    context.status, context.complete = status, True
    context.entry = entry(**ending)
    context.started -= took_s
    return context


def test_secret_in_an_upstreams_code_is_redacted(lines: Lines) -> None:
    code = f"no-{KEY}"
    in_answer = RequestContext("r-1", "POST", "/v1/chat/completions")
    in_answer.error_code = code
    for context in (in_answer, ended("r-2", status=400, outcome="upstream_failed", error_code=code)):
        lines.log.write(context)
    assert [line["error_code"] for line in lines.taken()] == ["no-tg_abcdefgh_[redacted]"] * 2


def test_share_of_the_healthy_is_written_and_says_which_share(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="tidegate.access")
    with logging_as(LogsSettings(access_sample=0.1)) as lines, logging_as(LogsSettings(access_sample=0.1)) as other:
        labels = [f"req-{number:06d}" for number in range(3000)]
        written, elsewhere = [], []
        for label in labels:
            lines.log.write(ended(label))
            other.log.write(ended(label))
            written += lines.taken()
            elsewhere += other.taken()
        assert {line["sample"] for line in written} == {0.1}
        # Scaled up they are as many as there were, but for chance: 6 standard deviations.
        assert abs(len(written) / 0.1 - len(labels)) < 6 * (len(labels) * 0.09) ** 0.5 / 0.1
        # Every gateway that sees a label decides alike.
        assert [line["request_id"] for line in elsewhere] == [line["request_id"] for line in written]


@pytest.mark.parametrize(
    "how",
    [
        {"status": 499, "outcome": "client_disconnected"},
        {"status": 502, "outcome": "upstream_failed"},
        {"status": 404},
        {"status": None},
        {"outcome": "upstream_failed"},
        {"outcome": "interrupted"},
        {"took_s": 30.5},
    ],
)
def test_what_failed_was_cut_or_was_slow_is_always_written(
    how: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="tidegate.access")
    with logging_as(LogsSettings(access_sample=0)) as lines:
        lines.log.write(ended("healthy"))
        assert lines.taken() == []
        lines.log.write(ended("r-1", **how))
        (line,) = lines.taken()
        # It stands for itself alone.
        assert "sample" not in line


def test_answer_that_broke_in_the_middle_is_always_written(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="tidegate.access")
    with logging_as(LogsSettings(access_sample=0)) as lines:
        context = ended("r-1")
        context.entry, context.complete = None, False
        lines.log.write(context)
        assert len(lines.taken()) == 1


def test_slow_is_what_the_settings_say(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="tidegate.access")
    with logging_as(LogsSettings(access_sample=0, slow_s=2)) as lines:
        lines.log.write(ended("quick", took_s=1))
        lines.log.write(ended("slow", took_s=3))
        assert [line["request_id"] for line in lines.taken()] == ["slow"]


def test_without_a_share_every_line_is_written_and_none_says_so(lines: Lines) -> None:
    for number in range(50):
        lines.log.write(ended(f"r-{number}"))
    taken = lines.taken()
    assert len(taken) == 50
    assert not any("sample" in line for line in taken)


@pytest.mark.parametrize("sign", ["\x7f", "\x80", "\x9b", "\x9f", "\u2028", "\u2029"])
def test_what_a_terminal_or_a_viewer_obeys_is_escaped(lines: Lines, sign: str) -> None:
    context = ended("r-1")
    context.path = f"/é{sign}"
    lines.log.write(context)
    text = lines.text()
    assert sign.encode() not in text
    assert "é".encode() in text
    assert orjson.loads(text)["path"] == f"/é{sign}"


def test_person_at_a_terminal_gets_one_readable_line(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="tidegate.access")
    with logging_as(console=True) as lines:
        lines.handler.colours = False
        lines.log.write(ended("r-1", took_s=1.2, ttft_ms=80))
        lines.log.write(ended("r-2", status=502, outcome="upstream_failed", error_code="upstream_error", ttft_ms=None))
        lines.log.write(RequestContext("r-3", "GET", "/x\x1b[2J"))
        first, second, third = (line.split(" ", 1)[1] for line in lines.text().decode().splitlines())
    assert re.sub(r"\d\.\d s", "1.2 s", first) == (
        "POST   /v1/chat/completions         200    1.2 s  ttft 80 ms  11→0 tokens  small via local  r-1"
    )
    assert second.endswith("s  11→0 tokens  small via local  upstream_failed  upstream_error  r-2")
    # Aligned: the same columns below each other, and nothing of a caller's moves the cursor.
    assert first.index("200") == second.index("502")
    assert third.startswith("GET    /x\\x1b[2J")


@pytest.mark.parametrize(
    ("status", "colour"), [(200, "\x1b[32m"), (404, "\x1b[33m"), (499, "\x1b[33m"), (502, "\x1b[31m")]
)
def test_status_has_its_colour(status: int, colour: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="tidegate.access")
    with logging_as(console=True) as lines:
        lines.handler.colours = True
        lines.log.write(ended("r-1", status=status))
        assert f"{colour}{status}\x1b[0m" in lines.text().decode()


async def test_request_that_waited_behind_another_on_its_connection_does_not_bear_that_ones_entry(lines: Lines) -> None:
    bound_entry_id.set(uuid.UUID(int=1))
    await call(app(lines), "GET", "/ok")
    assert bound_entry_id.get() is None

"""Whatever an upstream sends: it is read, or it is that upstream's fault; in linear time, and nothing else happens.

What is fuzzed where it is tested: the cut of a stream into events (`unit/test_sse.py`), heads and bodies as HTTP/1.1
writes them (`unit/test_answer_reader.py`), and what is read of valid chunks (`unit/test_reading.py`).
"""

import itertools
import json
from collections.abc import AsyncIterator, Mapping
from typing import Any

import httpx2
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.security.fuzzing import assert_linear, fuzzed, mutated
from tidegate.errors import TidegateError, UpstreamError, envelope
from tidegate.inference.collect import Collector
from tidegate.inference.reading import ChatReader, Kind, read_completion
from tidegate.inference.refusal import refusal_of
from tidegate.inference.replay import StreamCopy, finish_reason_of, stream_of
from tidegate.inference.sse import DONE, EventSplitter, data_event, event_data
from tidegate.upstream.answer_reader import LONGEST_HEAD, AnswerReader
from tidegate.upstream.openai import HttpAnswer

SECRET = "sk-secret-0123456789"


def _chunk(**delta: Any) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": None}
    return json.dumps({"id": "c", "object": "chat.completion.chunk", "choices": [choice]}).encode()


CHUNKS = [
    _chunk(role="assistant", content=""),
    _chunk(content='a "quoted" text: \\ é'),
    _chunk(reasoning_content="hm", refusal=None),
    _chunk(tool_calls=[{"index": 0, "id": "1", "function": {"name": "f", "arguments": '{"a":'}}]),
    b'{"choices":[{"index":1,"delta":{},"finish_reason":"stop","logprobs":{"content":[{"token":"a"}]}}]}',
    b'{"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2,"prompt_tokens_details":{"cached_tokens":1}}}',
    b'{"error":{"message":"overloaded","code":429}}',
    b"[DONE]",
]
WHOLE = [
    (
        b'{"id":"c","object":"chat.completion","choices":[{"index":0,"message":{"role":"assistant","content":"hi"},'
        b'"finish_reason":"stop"}],"usage":{"prompt_tokens":1,"completion_tokens":1}}'
    ),
    b'{"choices":[{"message":{"content":null,"tool_calls":[{"id":"1"}]},"finish_reason":"tool_calls"}],"usage":null}',
    b'{"choices":[{"message":{"content":"a","audio":null},"finish_reason":"length","logprobs":{"content":[]}}]}',
]
REFUSALS = [
    b'{"error":{"message":"no","type":"invalid_request_error","code":"context_length_exceeded","param":"messages"}}',
    b'{"error":"no"}',
    b'{"message":"no","object":"error"}',
    b'{"detail":[{"loc":["body","model"],"msg":"no"}]}',
    b"<html>502</html>",
]


@fuzzed
@given(st.lists(mutated(CHUNKS), max_size=6), st.lists(st.integers(0, 400), max_size=4))
def test_fuzz_a_stream_is_read_gathered_and_copied_or_is_the_upstreams_fault(
    chunks: list[bytes], cuts: list[int]
) -> None:
    stream = b"".join(data_event(chunk) for chunk in chunks)
    splitter, reader = EventSplitter("u"), ChatReader(keep_text=True)
    collector, copy = Collector("u"), StreamCopy("u")
    bounds = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
    events = [event for at, end in itertools.pairwise(bounds) for event in splitter.feed(stream[at:end])]
    is_broken = False
    for event in events:
        assert isinstance(reader.read(event), Kind)
        copy.add(event)
        try:
            collector.add(event)
        except UpstreamError:
            is_broken = True
    reader.text().encode("utf-8", "surrogatepass")
    assert reader.tokens is None or min(reader.tokens.input, reader.tokens.cached_input, reader.tokens.output) >= 0
    assert len(reader.finish_reason or "") <= 64
    try:
        whole = collector.body()
    except UpstreamError:
        assert copy.body() is None
        return
    assert is_broken or copy.body() == whole
    assert orjson.loads(whole)["object"] == "chat.completion"


@fuzzed
@given(mutated(WHOLE), st.integers(1, 2), st.booleans())
def test_fuzz_a_whole_answer_is_counted_and_kept_only_where_it_can_be_streamed(
    body: bytes, choices: int, wants_usage: bool
) -> None:
    read = read_completion(body)
    assert read is None or all(isinstance(text, str) for text in read.texts())
    if finish_reason_of(body, choices) is not None:
        events = EventSplitter("u").feed(stream_of(body, wants_usage=wants_usage))
        assert events[-1] == DONE
        assert all(isinstance(orjson.loads(event_data(event)), dict) for event in events[:-1])


def test_a_nesting_that_can_be_read_and_not_be_written_is_the_upstreams_fault() -> None:
    deep = b"[" * 300 + b"]" * 300
    collector, copy = Collector("u"), StreamCopy("u")
    event = data_event(b'{"choices":[{"index":0,"delta":{"x":' + deep + b"}}]}")
    collector.add(event)
    copy.add(event)
    with pytest.raises(UpstreamError):
        collector.body()
    assert copy.body() is None
    body = b'{"x":' + deep + b',"choices":[{"message":{"content":"a"},"finish_reason":"stop"}]}'
    assert finish_reason_of(body, 1) is None


@pytest.mark.parametrize("depth", [500, 5_000, 200_000])
async def test_deep_nesting_is_the_upstreams_fault(depth: int) -> None:
    """Not by Hypothesis, which allows deeper calls than there are without it."""
    deep = b"[" * depth + b"]" * depth
    reader = ChatReader(keep_text=True)
    for written in (b'{"usage":{"x":%b},"choices":[]}' % deep, b'{"error":%b}' % deep, b'{"error":"x","a":%b' % deep):
        assert isinstance(reader.read(data_event(written)), Kind)
        with pytest.raises(UpstreamError):
            _gathered(data_event(written))
        assert finish_reason_of(written, 1) is None
        assert (await refusal_of(_Answered(400, written, {}), "u")).http_status in {400, 502}
    assert read_completion(b'{"choices":%b}' % deep) is None


def _gathered(event: bytes) -> bytes:
    collector = Collector("u")
    collector.add(event)
    return collector.body()


class _Answered:
    """An `Answer` in memory."""

    is_event_stream = False
    request_id = None

    def __init__(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        self.status = status
        self.passed_headers = headers
        self._body = body

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield self._body


@fuzzed
@given(
    st.sampled_from([400, 401, 404, 409, 413, 422, 429, 500, 503, 302]),
    mutated(REFUSALS),
    mutated([b"5", b"Wed, 21 Oct 2026 07:28:00 GMT", b"-1", b"9" * 5000]).map(lambda value: value.decode("latin-1")),
)
async def test_fuzz_a_refusal_is_an_envelope_with_headers_that_can_be_sent(
    status: int, body: bytes, retry_after: str
) -> None:
    error = await refusal_of(_Answered(status, body, {"X-Tidegate-Upstream-retry-after": retry_after}), "u", key=SECRET)
    assert isinstance(error, TidegateError)
    assert 400 <= error.http_status <= 599
    told = orjson.loads(envelope(error, "r-1"))
    assert len(told["error"]["message"]) <= 2100
    for value in error.headers.values():
        value.encode("latin-1")


class _Nothing(httpx2.AsyncByteStream):
    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield b""


@fuzzed
@given(
    st.lists(
        st.tuples(
            st.sampled_from([b"X-Request-ID", b"Retry-After", b"x-ratelimit-remaining-tokens", b"Content-Type"]),
            mutated([b"req_1", b"12", b"1s", b"text/event-stream; charset=utf-8", SECRET.encode(), b"\xc3\xa9"]),
        ),
        max_size=5,
    )
)
def test_fuzz_headers_of_an_answer_are_told_without_the_key(headers: list[tuple[bytes, bytes]]) -> None:
    answer = HttpAnswer(httpx2.Response(200, headers=headers, stream=_Nothing()), "u", SECRET)
    told = [answer.request_id or "", *answer.passed_headers.values()]
    assert len(told[0]) <= 256
    assert not any(SECRET in value for value in told)
    assert answer.is_event_stream in (True, False)
    assert set(answer.passed_headers) <= {
        "X-Tidegate-Upstream-request-id",
        "X-Tidegate-Upstream-retry-after",
        "X-Tidegate-Upstream-ratelimit-remaining-tokens",
    }


HEADS = [
    b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\nX-Trailer: 1\r\n\r\n",
    b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 404 Not Found\r\nContent-Type: a/b\r\nConnection: close\r\n\r\nend",
    b"HTTP/1.0 200 OK\r\n\r\nuntil the end",
]


@fuzzed
@given(mutated(HEADS), st.lists(st.integers(0, 200), max_size=3))
def test_fuzz_a_broken_answer_is_the_upstreams_fault_alone(answer: bytes, cuts: list[int]) -> None:
    reader = AnswerReader()
    reader.begin("POST")
    bounds = sorted({0, len(answer), *(cut for cut in cuts if cut < len(answer))})
    body = b""
    try:
        for at, end in itertools.pairwise(bounds):
            reader.feed(answer[at:end])
            body += reader.take()
        reader.end()
        body += reader.take()
    except httpx2.RemoteProtocolError:
        assert not reader.keeps_alive
    assert len(body) <= len(answer)


@pytest.mark.parametrize("line", [b"X-A: b\r\n", b" folded\r\n", b"a"])
def test_fuzz_an_endless_head_is_bounded(line: bytes) -> None:
    reader = AnswerReader()
    reader.begin("POST")
    reader.feed(b"HTTP/1.1 200 OK\r\n")
    for _ in range(4 * LONGEST_HEAD // len(line)):
        reader.feed(line)
    with pytest.raises(httpx2.RemoteProtocolError):
        reader.check()
    assert sum(len(name) + len(value) for name, value in reader.headers) <= LONGEST_HEAD


@pytest.mark.parametrize("data", [b"data: 1\n\n", b"data: 1\r\r", b"\n", b"\r", b"\r\n", b"x"])
@pytest.mark.parametrize("at_once", [1, 64 * 1024])
def test_fuzz_streams_are_cut_in_linear_time(data: bytes, at_once: int) -> None:
    def cut(size: int) -> None:
        splitter = EventSplitter("u")
        stream = data * (size // len(data))
        for at in range(0, len(stream), at_once):
            splitter.feed(stream[at : at + at_once])

    assert_linear(cut, 16 * 1024 if at_once == 1 else 256 * 1024)


@pytest.mark.parametrize(
    "delta",
    [
        {"content": "word "},
        {"tool_calls": [{"index": 0, "function": {"arguments": "word word word word "}}]},
    ],
)
def test_fuzz_answers_are_gathered_in_linear_time(delta: dict[str, Any]) -> None:
    event = data_event(_chunk(**delta))
    logged = data_event(b'{"choices":[{"index":0,"logprobs":{"content":[{"token":"a"}]}}]}')

    def gather(count: int) -> None:
        collector = Collector("u")
        for _ in range(count):
            collector.add(event)
            collector.add(logged)
        collector.body()

    assert_linear(gather, 4000)


@pytest.mark.parametrize("piece", [b'"content": "', b'\\"', b'"usage": {', b'"choices" : [', b" ", b'"arguments":"a'])
def test_fuzz_an_event_is_read_in_linear_time(piece: bytes) -> None:
    def read(size: int) -> None:
        reader = ChatReader(keep_text=True)
        reader.read(data_event(b'{"choices": [{"delta": {"content": "' + piece * (size // len(piece))))
        reader.text()

    assert_linear(read, 128 * 1024)

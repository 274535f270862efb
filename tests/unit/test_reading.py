"""What is read of a chat stream, against a slow reader that parses every event as JSON."""

import json
from collections.abc import Callable

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.chat_streams import (
    WRITERS,
    Json,
    SlowReader,
    chunks,
    content_chunk,
    texts,
    unread_usages,
    usages,
    written,
)
from tidegate.inference.reading import ChatReader, Kind, read_completion
from tidegate.inference.sse import COMMENT, DONE, data_event
from tidegate.ledger.entry import Tokens


@settings(deadline=None, max_examples=200)
@given(st.lists(chunks, max_size=4), written, st.integers(1, 3), st.booleans())
def test_it_reads_what_a_parser_of_every_event_reads(
    stream: list[Json], write: Callable[[object], bytes], n: int, done: bool
) -> None:
    fast, slow = ChatReader(choices=n, keep_text=True), SlowReader(choices=n)
    for event in [*map(write, stream), *([DONE] if done else [])]:
        assert fast.read(event) == slow.read(event), event
    assert fast.deltas == slow.deltas
    assert fast.text() == slow.text
    assert fast.tokens == slow.tokens()
    assert fast.finish_reason == slow.finish_reason
    assert fast.complete == slow.complete


@settings(deadline=None)
@given(st.lists(texts, max_size=20), written, st.sampled_from(["content", "reasoning_content", "reasoning", "refusal"]))
def test_text_comes_back_and_deltas_that_are_not_empty_count(
    said: list[str], write: Callable[[object], bytes], name: str
) -> None:
    reader = ChatReader(keep_text=True)
    for text in said:
        reader.read(write({"choices": [{"index": 0, "delta": {"role": "assistant", "content": None, name: text}}]}))
    assert reader.text() == "".join(said)
    assert reader.deltas == sum(text != "" for text in said)
    assert not reader.complete


def test_text_of_many_events_comes_back_though_events_are_not_kept() -> None:
    said = [f'{n} "quoted" \U0001f600 ' for n in range(1000)]
    reader = ChatReader(keep_text=True)
    for text in said:
        reader.read(WRITERS["unspaced"](content_chunk(text)))
        assert len(reader._content_events) < 256
    assert reader.text() == "".join(said)
    assert reader.text() == "".join(said)


def test_a_character_whose_escapes_come_in_two_deltas_is_whole() -> None:
    reader = ChatReader(keep_text=True)
    for half in (b"\\ud83d", b"\\ude00"):
        reader.read(data_event(b'{"choices":[{"delta":{"content":"' + half + b'"}}]}'))
    assert (reader.text(), reader.deltas) == ("\U0001f600", 2)


def test_text_that_is_no_unicode_is_still_text() -> None:
    reader = ChatReader(keep_text=True)
    reader.read(data_event(b'{"choices":[{"delta":{"content":"a\\ud83d"}}]}'))
    reader.read(data_event(b'{"choices":[{"delta":{"content":"\xff"}}]}'))
    assert reader.text().startswith("a")


def test_without_keep_text_no_event_is_kept() -> None:
    reader = ChatReader()
    reader.read(data_event(orjson.dumps(content_chunk("x"))))
    assert (reader.deltas, reader.text()) == (1, "")


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_a_usage_of_zero_is_a_usage(write: Callable[[object], bytes]) -> None:
    reader = ChatReader()
    assert reader.read(write({"choices": [], "usage": {"prompt_tokens": 0, "completion_tokens": 0}})) is Kind.USAGE
    assert reader.tokens == Tokens()


@pytest.mark.parametrize(
    "usage",
    [
        {"prompt_tokens": -1},
        {"prompt_tokens": 1, "completion_tokens": -1},
        {"prompt_tokens": 10**12 + 1},
        {"prompt_tokens": 10**30},
        {"prompt_tokens": 1, "prompt_tokens_details": {"cached_tokens": -1}},
        {"prompt_tokens": 1.5},
    ],
)
def test_a_usage_that_cannot_be_is_none(usage: Json) -> None:
    reader = ChatReader()
    reader.read(WRITERS["unspaced"](content_chunk("a", usage=usage)))
    assert (reader.tokens, reader.deltas) == (None, 1)
    body = json.dumps({"choices": [{"message": {"content": "a"}}], "usage": usage}).encode()
    completion = read_completion(body)
    assert completion is not None
    assert completion.usage is None


def test_parts_of_a_usage_are_never_more_than_the_whole() -> None:
    usage = {"prompt_tokens": 3, "prompt_tokens_details": {"cached_tokens": 5}}
    usage |= {"completion_tokens": 2, "completion_tokens_details": {"reasoning_tokens": 9}}
    reader = ChatReader()
    reader.read(WRITERS["unspaced"](content_chunk("a", usage=usage)))
    assert reader.tokens == Tokens(cached_input=3, reasoning=2)


def test_a_finish_reason_is_bounded() -> None:
    reader = ChatReader()
    reader.read(WRITERS["unspaced"]({"choices": [{"index": 0, "delta": {}, "finish_reason": "x" * 1000}]}))
    assert (reader.finish_reason, reader.complete) == ("x" * 64, True)


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_usage_null_says_nothing_and_takes_nothing_back(write: Callable[[object], bytes]) -> None:
    reader = ChatReader()
    seen = []
    for text, usage in [("a", None), ("b", {"prompt_tokens": 1, "completion_tokens": 2}), ("c", None)]:
        assert reader.read(write(content_chunk(text, usage=usage))) is Kind.CONTENT
        seen.append(reader.tokens)
    assert seen == [None, Tokens(input=1, output=2), Tokens(input=1, output=2)]
    assert reader.deltas == 3


def test_usage_of_every_chunk_is_taken_from_the_last() -> None:
    reader = ChatReader()
    kinds = [
        reader.read(data_event(orjson.dumps(content_chunk(text, usage={"prompt_tokens": 7, "completion_tokens": n}))))
        for n, text in enumerate(["", "a", "b"])
    ]
    assert kinds == [Kind.CONTENT] * 3
    assert reader.tokens == Tokens(input=7, output=2)


def test_a_role_with_usage_still_says_nothing() -> None:
    chunk = {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}], "usage": {"prompt_tokens": 7}}
    assert ChatReader().read(data_event(orjson.dumps(chunk))) is Kind.OPENER


def test_content_of_a_later_choice_counts_where_the_first_is_empty() -> None:
    reader = ChatReader(choices=2)
    chunk = {"choices": [{"index": n, "delta": {"role": "assistant", "content": "x" * n}} for n in range(2)]}
    assert reader.read(data_event(orjson.dumps(chunk))) is Kind.CONTENT
    assert reader.deltas == 1


def test_a_stream_is_complete_once_every_choice_has_finished() -> None:
    reader = ChatReader(choices=2)
    finish = {
        n: data_event(orjson.dumps({"choices": [{"index": n, "delta": {}, "finish_reason": "stop"}]})) for n in range(2)
    }
    seen = []
    for n in (0, 0, 1):
        reader.read(finish[n])
        seen.append(reader.complete)
    assert seen == [False, False, True]


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_an_error_event_is_an_error_whatever_else_it_says(write: Callable[[object], bytes]) -> None:
    reader = ChatReader()
    assert reader.read(write({"error": {"message": "out of memory", "code": 500}})) is Kind.ERROR
    assert reader.error == {"message": "out of memory", "code": 500}
    assert not reader.complete
    assert ChatReader().read(write(content_chunk("a", error="overloaded"))) is Kind.ERROR


def test_an_error_that_is_no_unicode_is_an_error() -> None:
    reader = ChatReader()
    assert reader.read(data_event(b'{"error":{"message":"\xff"}}')) is Kind.ERROR
    assert "message" in reader.error


@pytest.mark.parametrize("none", [None, False, ""])
def test_an_error_that_says_nothing_is_none(none: object) -> None:
    reader = ChatReader()
    for write in WRITERS.values():
        assert reader.read(write(content_chunk("a", error=none))) is Kind.CONTENT
    assert reader.error is None


def test_a_comment_says_nothing() -> None:
    reader = ChatReader()
    assert reader.read(COMMENT) is Kind.OPENER
    assert reader.read(b"\n\n") is Kind.OPENER
    assert reader.read(b"event: ping\n\n") is Kind.OPENER
    assert reader.deltas == 0


def test_done_is_done_in_every_frame() -> None:
    for event in (b"data: [DONE]\n\n", b"data:[DONE]\r\n\r\n", b"data: [DONE]\r\r", b"\n: c\ndata: [DONE]\n\n"):
        reader = ChatReader()
        assert reader.read(event) is Kind.DONE
        assert reader.complete


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"hello",
        b"[1]",
        b'"error":{"',
        b'{"usage":{',
        b'{"choices":5,"usage":{"prompt_tokens":1}}',
        b'{"usage":{"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}}",
        b'{"content":"',
    ],
)
def test_what_is_no_chunk_passes_and_says_nothing(data: bytes) -> None:
    reader = ChatReader(keep_text=True)
    assert reader.read(data_event(data)) in (Kind.CONTENT, Kind.OPENER)
    assert (reader.tokens, reader.finish_reason, reader.error, reader.complete) == (None, None, None, False)
    reader.text()


@settings(deadline=None)
@given(st.lists(texts | st.none(), max_size=4), usages | unread_usages)
def test_a_whole_answer_gives_its_texts_and_usage(said: list[str | None], usage: Json | None) -> None:
    body = {
        "id": "c",
        "choices": [{"index": n, "message": {"content": text}, "finish_reason": "stop"} for n, text in enumerate(said)],
        "usage": usage,
    }
    completion = read_completion(orjson.dumps(body))
    assert completion is not None
    assert completion.texts() == [text for text in said if text]
    slow = SlowReader()
    slow.read(data_event(orjson.dumps({"choices": [], "usage": usage})))
    reader = ChatReader(keep_text=True)
    reader.read(data_event(orjson.dumps({"choices": [], "usage": usage})))
    assert (completion.usage is None) == (slow.usage is None)
    assert reader.tokens == slow.tokens()
    reader.keep(completion.texts())
    assert reader.text() == "".join(text for text in said if text)
    assert reader.deltas == len(completion.texts())


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b"[]",
        b"{}",
        b'{"choices":null}',
        b'{"choices":[{"message":{"content":5}}]}',
        b'{"choices":[{"message":{"content":"\xff"}}]}',
        b'{"choices":[],"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    ],
)
def test_what_is_no_chat_completion_is_none(body: bytes) -> None:
    assert read_completion(body) is None

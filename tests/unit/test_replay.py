"""A kept answer in both forms says the same, and what is not whole and plain is never kept."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.alphabet import CHARACTERS
from tidegate.inference.collect import Collector
from tidegate.inference.reading import ChatReader
from tidegate.inference.replay import MOST_BYTES, MOST_STREAMED_BYTES, StreamCopy, finish_reason_of, stream_of
from tidegate.inference.sse import EventSplitter, data_event, event_data

USAGE = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
HEAD = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "m", "system_fingerprint": "fp"}


def a_choice(index: int = 0, finish_reason: object = "stop", **message: Any) -> dict[str, Any]:
    said = {"role": "assistant", "content": "Hello", **message}
    return {"index": index, "message": said, "finish_reason": finish_reason}


def an_answer(*choices: dict[str, Any], **more: Any) -> bytes:
    return json.dumps({**HEAD, "choices": choices or [a_choice()], **more}).encode()


def events(stream: bytes) -> list[bytes]:
    return EventSplitter("a").feed(stream)


def collected(stream: bytes) -> Any:
    collector = Collector("a")
    for event in events(stream):
        collector.add(event)
    return json.loads(collector.body())


texts = st.text(CHARACTERS, max_size=40)
choices = st.builds(
    lambda content, reasoning, refusal, reason: {
        "message": {"role": "assistant", "content": content, **reasoning, **refusal},
        "finish_reason": reason,
    },
    texts,
    st.one_of(st.just({}), st.builds(lambda text: {"reasoning_content": text}, st.text(CHARACTERS, min_size=1))),
    st.one_of(st.just({}), st.builds(lambda text: {"refusal": text}, st.text(CHARACTERS, min_size=1))),
    st.sampled_from(["stop", "length"]),
)


@given(st.lists(choices, min_size=1, max_size=3))
def test_a_stream_of_a_whole_answer_says_what_the_answer_says(given: list[dict[str, Any]]) -> None:
    whole = [{"index": index, **choice} for index, choice in enumerate(given)]
    body = an_answer(*whole, usage=USAGE)
    assert finish_reason_of(body, len(whole)) == whole[0]["finish_reason"]
    assert collected(stream_of(body, wants_usage=True)) == json.loads(body)
    assert collected(stream_of(body, wants_usage=False)) == {**HEAD, "choices": whole}


def test_it_is_in_the_form_of_openais_streams() -> None:
    stream = stream_of(an_answer(usage=USAGE), wants_usage=True)
    assert stream.endswith(b"data: [DONE]\n\n")
    opening, text, ending, usage = [json.loads(event_data(event)) for event in events(stream)[:-1]]
    for chunk in (opening, text, ending, usage):
        assert chunk["object"] == "chat.completion.chunk"
        assert (chunk["id"], chunk["created"], chunk["model"]) == ("chatcmpl-1", 1, "m")
    assert opening["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert (text["choices"][0]["delta"], text["choices"][0]["finish_reason"]) == ({"content": "Hello"}, None)
    assert (ending["choices"][0]["delta"], ending["choices"][0]["finish_reason"]) == ({}, "stop")
    assert [chunk["usage"] for chunk in (opening, text, ending, usage)] == [None, None, None, USAGE]
    assert usage["choices"] == []
    unasked = events(stream_of(an_answer(usage=USAGE), wants_usage=False))
    assert len(unasked) == 4
    assert b"usage" not in b"".join(unasked)
    assert len(events(stream_of(an_answer(), wants_usage=True))) == 4


def test_our_own_reader_finds_it_complete() -> None:
    reader = ChatReader(choices=2, keep_text=True)
    for event in events(stream_of(an_answer(a_choice(), a_choice(1, "length"), usage=USAGE), wants_usage=True)):
        reader.read(event)
    assert (reader.complete, reader.done, reader.finish_reason) == (True, True, "length")
    assert reader.text() == "HelloHello"
    assert reader.tokens is not None
    assert reader.tokens.total == 10


def test_a_long_text_comes_in_lines_that_every_client_reads() -> None:
    text = "\u0001" * 100_000
    stream = stream_of(an_answer(a_choice(content=text)), wants_usage=False)
    assert max(len(line) for line in stream.split(b"\n")) < 32 * 1024
    assert collected(stream)["choices"][0]["message"]["content"] == text


def test_what_is_not_text_passes_as_it_is() -> None:
    annotated = a_choice(annotations=[{"url": "http://example.com"}], content=[{"type": "text", "text": "a"}])
    logprobs = {"content": [{"token": "a", "logprob": -1.5}], "refusal": None}
    body = an_answer({**annotated, "logprobs": logprobs})
    [first, *_] = [json.loads(event_data(event)) for event in events(stream_of(body, wants_usage=False))[:-1]]
    assert first["choices"][0]["delta"] == annotated["message"]
    assert first["choices"][0]["logprobs"] == logprobs


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"null",
        b"{",
        b'{"choices": {}}',
        b'{"choices": null}',
        b'{"choices": []}',
        b'{"choices": [null]}',
        b'{"choices": ["a"]}',
        b'{"choices": [{"finish_reason": "stop"}]}',
        b'{"choices": [{"message": null, "finish_reason": "stop"}]}',
        b'{"choices": [{"message": {"content": "\\ud800"}, "finish_reason": "stop"}]}',
        an_answer(a_choice(finish_reason=None)),
        an_answer(a_choice(finish_reason="tool_calls")),
        an_answer(a_choice(finish_reason="content_filter")),
        an_answer(a_choice(finish_reason=["stop"])),
        an_answer(a_choice(tool_calls=[{"id": "1"}])),
        an_answer(a_choice(function_call={"name": "f"})),
        an_answer(a_choice(audio={"id": "a"})),
        an_answer(a_choice(), a_choice(1)),
        an_answer(error={"message": "no"}),
        an_answer(a_choice(content="x" * MOST_BYTES)),
    ],
)
def test_what_is_not_whole_and_plain_is_not_worth_keeping(body: bytes) -> None:
    assert finish_reason_of(body, 1) is None


def test_every_choice_has_to_be() -> None:
    assert finish_reason_of(an_answer(a_choice(tool_calls=None), a_choice(1, "length")), 2) == "stop"
    assert finish_reason_of(an_answer(a_choice(), a_choice(1, None)), 2) is None
    assert finish_reason_of(an_answer(a_choice(), a_choice(1, tool_calls=[{}])), 2) is None


@given(st.binary(max_size=40))
def test_whatever_it_is_asked_about_it_says_yes_or_no(body: bytes) -> None:
    assert finish_reason_of(body, 1) is None


def test_a_copy_is_given_up_where_it_grows_too_large_or_is_not_understood() -> None:
    stream = stream_of(an_answer(usage=USAGE), wants_usage=True)
    copy = StreamCopy("a")
    for event in events(stream):
        copy.add(event)
    body = copy.body()
    assert body is not None
    assert json.loads(body) == json.loads(an_answer(usage=USAGE))
    for spoils in (data_event(b"{x"), data_event(b"7"), b": " + b"x" * MOST_STREAMED_BYTES + b"\n\n"):
        copy = StreamCopy("a")
        for event in (*events(stream)[:1], spoils, *events(stream)):
            copy.add(event)
        assert copy.body() is None

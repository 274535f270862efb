"""What is read of a chat stream, against a slow reader that parses every event as JSON."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tidegate.inference.reading import ChatReader, Kind, read_completion
from tidegate.inference.sse import COMMENT, DONE, data_event, event_data
from tidegate.ledger.entry import Tokens

Json = dict[str, Any]
SAID = ("content", "reasoning_content", "reasoning", "arguments", "refusal")

# The ways in which JSON is written: blanks or none, escapes or none, on one line or on several.
WRITERS: dict[str, Callable[[object], bytes]] = {
    "orjson": lambda chunk: data_event(orjson.dumps(chunk)),
    "unspaced": lambda chunk: data_event(json.dumps(chunk, separators=(",", ":")).encode()),
    "spaced": lambda chunk: data_event(json.dumps(chunk).encode()),
    "spaced, not escaped": lambda chunk: data_event(json.dumps(chunk, ensure_ascii=False).encode()),
    "wide": lambda chunk: data_event(json.dumps(chunk, separators=(" , ", " : ")).encode()),
    "blank before": lambda chunk: data_event(json.dumps(chunk, separators=(",", " :")).encode()),
    "several lines": lambda chunk: (
        b"".join(b"data: " + line.encode() + b"\r\n" for line in json.dumps(chunk, indent=2).splitlines()) + b"\r\n"
    ),
    "no blank behind data": lambda chunk: b"data:" + orjson.dumps(chunk) + b"\n\n",
}
written = st.sampled_from(sorted(WRITERS)).map(WRITERS.__getitem__)

# Text that looks like what the reader searches for.
FORGERIES = [
    '"usage":{"prompt_tokens":1}',
    '"content":"x"',
    '"content": "',
    '"error":{"message":"x"}',
    '"error": "',
    '"finish_reason":"stop"',
    '"role":"assistant"',
    '"choices":[]',
    "[DONE]",
    "data: [DONE]\n\n",
    '\\"content\\":\\"',
    "\\",
    '"',
    "\U0001f600é\u2028\x00",
]
texts = st.lists(st.sampled_from(FORGERIES) | st.text(max_size=8), max_size=3).map("".join)
counts = st.integers(0, 10**12)
usages = st.fixed_dictionaries(
    {"prompt_tokens": counts},
    optional={
        "completion_tokens": counts,
        "total_tokens": counts,
        "prompt_tokens_details": st.none() | st.fixed_dictionaries({}, optional={"cached_tokens": st.none() | counts}),
        "completion_tokens_details": st.none()
        | st.fixed_dictionaries({"audio_tokens": counts}, optional={"reasoning_tokens": st.none() | counts}),
    },
)
unread_usages = st.none() | st.sampled_from(
    [{}, {"total_tokens": 3}, {"prompt_tokens": None}, {"prompt_tokens": "3"}, {"prompt_tokens": -1}]
)
tool_calls = st.lists(
    st.fixed_dictionaries({"index": counts, "function": st.fixed_dictionaries({"name": texts, "arguments": texts})}),
    max_size=2,
)
deltas = st.fixed_dictionaries(
    {},
    optional={
        "role": st.just("assistant"),
        "content": texts | st.none(),
        "reasoning": texts | st.none(),
        "reasoning_content": texts,
        "refusal": texts | st.none(),
        "tool_calls": tool_calls,
    },
)
choices = st.fixed_dictionaries(
    {"index": st.integers(0, 3), "delta": deltas},
    optional={"finish_reason": st.sampled_from([None, "stop", "length"]), "logprobs": st.just({"content": []})},
)
chunks = st.fixed_dictionaries(
    {"id": texts, "choices": st.lists(choices, max_size=3)},
    optional={
        "usage": usages | unread_usages,
        "error": st.sampled_from([None, False, "", "broken", {"message": '"quoted"'}]),
        "obfuscation": texts,
    },
)


def is_count(value: object) -> bool:
    return isinstance(value, int) and value >= 0


@dataclass
class SlowReader:
    """Reads the same by `json.loads`, with nothing to be clever about."""

    choices: int = 1
    deltas: int = 0
    text: str = ""
    usage: Json | None = None
    finish_reason: str | None = None
    finished: set[int] = field(default_factory=set)
    done: bool = False

    @property
    def complete(self) -> bool:
        return self.done or len(self.finished) >= self.choices

    def read(self, event: bytes) -> Kind:
        data = event_data(event)
        if data == b"[DONE]":
            self.done = True
            return Kind.DONE
        chunk = json.loads(data)
        said = [value for name, value in members(chunk) if name in SAID and isinstance(value, str) and value]
        self.deltas += bool(said)
        self.text += "".join(said)
        if chunk.get("error"):
            return Kind.ERROR
        usage = chunk.get("usage")
        is_usage = isinstance(usage, dict) and is_count(usage.get("prompt_tokens"))
        if is_usage:
            self.usage = usage
        reasons = {
            choice["index"]: choice["finish_reason"] for choice in chunk["choices"] if choice.get("finish_reason")
        }
        self.finished |= set(reasons)
        for choice in chunk["choices"]:
            self.finish_reason = choice.get("finish_reason") or self.finish_reason
        if said or reasons:
            return Kind.CONTENT
        if is_usage and not chunk["choices"]:
            return Kind.USAGE
        says_role = any(name == "role" for name, _ in members(chunk))
        return Kind.OPENER if says_role or not chunk["choices"] else Kind.CONTENT

    def tokens(self) -> Tokens | None:
        if self.usage is None:
            return None
        prompt, completion = self.usage["prompt_tokens"], self.usage.get("completion_tokens", 0)
        cached = min((self.usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0, prompt)
        details = self.usage.get("completion_tokens_details") or {}
        reasoning = min(details.get("reasoning_tokens") or 0, completion)
        return Tokens(
            input=prompt - cached,
            cached_input=cached,
            output=completion - reasoning,
            reasoning=reasoning,
        )


def members(value: object) -> Iterator[tuple[str, object]]:
    """Every member of every object, in the order in which they are written."""
    if isinstance(value, dict):
        for name, held in value.items():
            yield name, held
            yield from members(held)
    elif isinstance(value, list):
        for held in value:
            yield from members(held)


def content_chunk(text: str, **more: object) -> Json:
    return {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}], **more}


@settings(deadline=None, max_examples=400)
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

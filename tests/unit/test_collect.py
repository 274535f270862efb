"""A whole answer gathered from a stream is the answer that was streamed."""

import json
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.alphabet import CHARACTERS
from tests.unit.samples import cut
from tidegate.errors import UpstreamError
from tidegate.inference.collect import Collector
from tidegate.inference.sse import COMMENT, DONE, data_event

Json = dict[str, Any]
HEAD = {"id": "c-1", "created": 5, "model": "m", "system_fingerprint": None}
texts = st.text(CHARACTERS, max_size=12)
said = st.none() | texts.filter(bool)
calls = st.lists(st.fixed_dictionaries({"id": texts.filter(bool), "name": texts, "arguments": texts}), max_size=3)
answers = st.lists(
    st.tuples(said, st.sampled_from([None, "reasoning_content", "reasoning", "refusal"]), texts.filter(bool), calls),
    min_size=1,
    max_size=3,
)


def in_pieces(draw: st.DrawFn, text: str) -> list[str]:
    """The text in deltas, empty ones among them."""
    units = text.encode("utf-32-le")
    places = sorted(draw(st.lists(st.integers(0, len(text)), max_size=3)))
    return [piece.decode("utf-32-le") for piece in cut(units, [4 * place for place in places])]


def tool_call(call: Json) -> Json:
    function = {"name": call["name"], "arguments": call["arguments"]}
    return {"type": "function", "id": call["id"], "function": function}


@st.composite
def streamed(draw: st.DrawFn) -> tuple[list[Json], list[Json]]:
    """The deltas of an answer, choices mixed as they come, and the choices that they are."""
    queues: list[list[Json]] = []
    whole = []
    for index, (content, other, other_text, tool_calls) in enumerate(draw(answers)):
        reason = "tool_calls" if tool_calls else "stop"
        message: Json = {"role": "assistant", "content": content}
        pieces: list[Json] = [{"role": "assistant", "content": draw(st.sampled_from(["", None]))}]
        if other is not None:
            message[other] = other_text
            pieces += [{other: piece} for piece in in_pieces(draw, other_text)]
        if content is not None:
            pieces += [{"content": piece} for piece in in_pieces(draw, content)]
        for n, call in enumerate(tool_calls):
            message.setdefault("tool_calls", []).append(tool_call(call))
            pieces.append({"tool_calls": [{"index": n, "id": call["id"], "function": {"name": call["name"]}}]})
            pieces += [
                {"tool_calls": [{"index": n, "function": {"arguments": piece}}]}
                for piece in in_pieces(draw, call["arguments"])
            ]
        parts: list[Json] = [{"index": index, "delta": piece, "finish_reason": None} for piece in pieces]
        queues.append([*parts, {"index": index, "delta": {}, "finish_reason": reason}])
        whole.append({"index": index, "message": message, "finish_reason": reason})
    order = draw(st.permutations([n for n, queue in enumerate(queues) for _ in queue]))
    return [queues[n].pop(0) for n in order], whole


def chunk(**more: object) -> bytes:
    return data_event(orjson.dumps({**HEAD, "object": "chat.completion.chunk", **more}))


def gathered(*events: bytes) -> Json:
    collector = Collector("scripted")
    for event in events:
        collector.add(event)
    body: Json = json.loads(collector.body())
    return body


@settings(deadline=None)
@given(streamed())
def test_the_gathered_answer_is_the_one_that_was_streamed(answer: tuple[list[Json], list[Json]]) -> None:
    deltas, choices = answer
    usage = {"prompt_tokens": 0, "completion_tokens": 0}
    events = [chunk(choices=[delta], usage=None) for delta in deltas]
    body = gathered(COMMENT, *events, chunk(choices=[], usage=usage), DONE)
    for choice in choices:
        # A first delta of "" is text of no length; OpenAI's whole answer says null for none.
        message = body["choices"][choice["index"]]["message"]
        message["content"] = message["content"] or choice["message"]["content"]
    assert body == {**HEAD, "object": "chat.completion", "choices": choices, "usage": usage}


def test_several_choices_in_one_chunk_are_told_apart() -> None:
    event = chunk(choices=[{"index": n, "delta": {"content": str(n)}} for n in (1, 0)])
    body = gathered(event, event)
    assert [choice["message"]["content"] for choice in body["choices"]] == ["00", "11"]
    assert "usage" not in body


def test_log_probabilities_are_joined() -> None:
    parts = [
        {"index": 0, "delta": {"content": t}, "logprobs": {"content": [{"token": t}], "refusal": None}} for t in "ab"
    ]
    body = gathered(*(chunk(choices=[part]) for part in parts), chunk(choices=[{"index": 0, "delta": {}}]))
    assert body["choices"][0]["logprobs"] == {"content": [{"token": "a"}, {"token": "b"}], "refusal": None}


def test_tool_calls_without_index_are_one_after_the_other() -> None:
    pieces = [{"id": name, "function": {"name": name, "arguments": "{}"}} for name in "ab"]
    body = gathered(*(chunk(choices=[{"index": 0, "delta": {"tool_calls": [piece]}}]) for piece in pieces))
    calls = body["choices"][0]["message"]["tool_calls"]
    assert [(call["id"], call["function"]["name"]) for call in calls] == [("a", "a"), ("b", "b")]


def test_an_index_out_of_all_bounds_takes_no_memory() -> None:
    event = chunk(choices=[{"index": 0, "delta": {"tool_calls": [{"index": 10**12}, {"index": 127}]}}])
    assert len(gathered(event)["choices"][0]["message"]["tool_calls"]) == 128


@pytest.mark.parametrize(
    "data",
    [
        b"hello",
        b"<html>",
        b'{"choices":[',
        b"[]",
        b"5",
        b'{"choices":5}',
        b'{"choices":[5]}',
        b'{"choices":[{"index":null,"delta":{}}]}',
        b'{"choices":[{"index":"0","delta":{}}]}',
        b'{"choices":[{"index":0,"delta":5}]}',
        b'{"choices":[{"index":0,"delta":{"tool_calls":[{"index":-1}]}}]}',
        b'{"choices":[{"index":0,"delta":{"tool_calls":[{"index":null}]}}]}',
        b'{"choices":[{"index":0,"delta":{"tool_calls":[{"function":{"name":5}}]}}]}',
        b'{"choices":[{"index":0,"delta":{"tool_calls":5}}]}',
        b'{"choices":[{"index":0,"delta":{},"logprobs":5}]}',
        b'{"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    ],
)
def test_what_is_no_chunk_is_the_upstreams_fault(data: bytes) -> None:
    with pytest.raises(UpstreamError, match="'scripted' sent something that is no chunk") as caught:
        gathered(data_event(data))
    assert caught.value.http_status == 502

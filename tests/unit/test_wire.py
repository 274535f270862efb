"""The chat request: what is refused by which name, and that nothing but what must differ differs in what goes on."""

import json
import time
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.alphabet import CHARACTERS
from tidegate.errors import InvalidRequest
from tidegate.inference.wire import ChatCall, ChatRequest, input_text, parse_chat

MESSAGES = [{"role": "user", "content": "Hello"}]
KNOWN = {"model": "m", "messages": MESSAGES}
DEEP = 100_000
LARGE = 300_000

# Any JSON, as some client writes it.
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(CHARACTERS, max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(CHARACTERS, max_size=4), inner, max_size=3),
    max_leaves=6,
)
blanks = st.sampled_from(["", " ", "\n  ", "\t"])
raw_values = st.tuples(values, st.sampled_from([None, (",", ":"), (" , ", " : ")]), st.booleans()).map(
    lambda given: json.dumps(given[0], separators=given[1], ensure_ascii=given[2])
)
unknown = st.dictionaries(
    st.text(CHARACTERS, max_size=6).filter(lambda name: name not in ChatRequest.model_fields),
    raw_values,
    max_size=4,
)
stream_values = st.sampled_from([None, "true", "false", "null"])
raw_options = st.sampled_from(
    [None, "null", "{}", '{"include_usage": false}', '{"x": 1.50}', '{"include_usage": true}']
)


@st.composite
def bodies(draw: st.DrawFn) -> tuple[bytes, dict[str, str]]:
    """A valid body, and its members as they are written, in order."""
    members = {"model": '"m"', "messages": json.dumps(MESSAGES), **draw(unknown)}
    for name, strategy in (("stream", stream_values), ("stream_options", raw_options)):
        raw = draw(strategy)
        if raw is not None:
            members[name] = raw
    ordered = dict(draw(st.permutations(list(members.items()))))
    blank = draw(blanks)
    written = f"{blank},{blank}".join(f"{json.dumps(name)}{blank}:{blank}{raw}" for name, raw in ordered.items())
    return f"{blank}{{{blank}{written}{blank}}}{blank}".encode("utf-8", "surrogatepass"), ordered


def body(**more: Any) -> bytes:
    return json.dumps({**KNOWN, **more}).encode()


def refused(sent: bytes) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        parse_chat(sent)
    assert caught.value.http_status == 400
    return caught.value


@settings(deadline=None, max_examples=120)
@given(bodies(), st.sampled_from(["m", "other/ñ\\"]), st.booleans(), st.booleans())
def test_only_what_must_differ_differs(
    given_body: tuple[bytes, dict[str, str]], model: str, ask_usage: bool, stream: bool
) -> None:
    sent, members = given_body
    call = parse_chat(sent)
    assert call.streamed == (members.get("stream") == "true")
    assert call.wants_usage == ("true" in members.get("stream_options", ""))
    asks = ask_usage and stream and not call.wants_usage
    goes_on = call.body_for(model, ask_usage=ask_usage, stream=stream)
    expected = dict(members)
    expected["model"] = json.dumps(model, ensure_ascii=False)
    if stream != call.streamed:
        expected["stream"] = json.dumps(stream)
    found = msgspec.json.decode(goes_on, type=dict[str, msgspec.Raw])
    assert list(found) == [*expected, *(["stream_options"] if asks and "stream_options" not in expected else [])]
    for name, raw in expected.items():
        if name != "stream_options" or not asks:
            assert bytes(found[name]).decode() == raw
    if asks:
        given = json.loads(expected.get("stream_options", "null")) or {}
        assert json.loads(bytes(found["stream_options"])) == {**given, "include_usage": True}


def test_what_stands_in_stream_options_keeps_its_bytes() -> None:
    sent = b'{"model":"m","messages":[{"role":"user"}],"stream":true,"stream_options":{"z":1.50e0,"y":1E999}}'
    goes_on = parse_chat(sent).body_for("m", ask_usage=True, stream=True)
    assert b'"stream_options":{"z":1.50e0,"y":1E999,"include_usage":true}' in goes_on


def test_a_body_is_read_once_for_several_attempts() -> None:
    call = parse_chat(body())
    first = call.body_for("a", ask_usage=False, stream=False)
    assert json.loads(first)["model"] == "a"
    assert json.loads(call.body_for("b", ask_usage=True, stream=True))["stream_options"] == {"include_usage": True}
    assert call.body_for("a", ask_usage=False, stream=False) == first
    assert json.loads(call.body_for("m", ask_usage=True, stream=False)) == json.loads(call.body)


def test_of_members_that_stand_twice_the_last_is_judged_and_the_only_one_that_goes_on() -> None:
    sent = b'{"model":"first","messages":[{"role":"user"}],"model":"last"}'
    call = parse_chat(sent)
    assert call.model == "last"
    assert call.body_for("x", ask_usage=False, stream=False) == b'{"model":"x","messages":[{"role":"user"}]}'
    assert call.body_for("last", ask_usage=False, stream=False) == b'{"model":"last","messages":[{"role":"user"}]}'


def test_the_call_says_what_the_road_needs() -> None:
    sent = body(
        stream=True,
        stream_options={"include_usage": True},
        n=3,
        max_tokens=5,
        max_completion_tokens=7,
        user="body",
        safety_identifier="safe",
    )
    assert parse_chat(sent) == ChatCall(
        body=sent,
        model="m",
        streamed=True,
        wants_usage=True,
        choices=3,
        max_output_tokens=7,
        input_bytes=len(sent),
        message_count=1,
        end_user="safe",
    )
    assert parse_chat(body(max_tokens=5, user="body")).max_output_tokens == 5
    assert parse_chat(body(user="body")).end_user == "body"


NULLABLE = [
    "stream",
    "stream_options",
    "max_tokens",
    "max_completion_tokens",
    "n",
    "temperature",
    "top_p",
    "presence_penalty",
    "frequency_penalty",
    "stop",
    "seed",
    "logprobs",
    "top_logprobs",
    "tools",
    "parallel_tool_calls",
    "user",
    "safety_identifier",
]


def test_fields_that_the_api_lets_be_null_may_be() -> None:
    call = parse_chat(body(**dict.fromkeys(NULLABLE)))
    assert (call.streamed, call.choices, call.max_output_tokens, call.end_user) == (False, 1, None, None)
    parse_chat(body(messages=[{"role": "assistant", "content": None, "name": None, "tool_call_id": None}]))
    parse_chat(body(stream_options={"include_usage": None}))


@pytest.mark.parametrize(
    ("field", "good"),
    [
        ("temperature", [0, 1, 2, 0.5]),
        ("top_p", [0, 1, 1e-3]),
        ("presence_penalty", [-2, 2]),
        ("frequency_penalty", [-2.0, 2]),
        ("stop", ["x", ["a", "b"], []]),
        ("seed", [-(2**63), 2**63 - 1]),
        ("n", [1, 128]),
        ("max_tokens", [1, 2**40]),
        ("top_logprobs", [0, 20]),
        ("model", ["x", "a" * 256, "openai/gpt:4.1 é"]),
        ("messages", [[{"role": role, "content": []}] for role in ("system", "developer", "tool", "function")]),
    ],
)
def test_what_the_api_allows_passes(field: str, good: list[object]) -> None:
    for value in good:
        parse_chat(body(**{field: value}))


@pytest.mark.parametrize(
    ("field", "bad", "param"),
    [
        ("model", [1, None, "", "a" * 257, ["m"]], "model"),
        ("messages", [None, "Hello", {}, [], 5], "messages"),
        ("messages", [["Hello"], [None]], "messages[0]"),
        ("messages", [[*MESSAGES, {"role": "robot"}], [*MESSAGES, {"content": "x"}]], "messages[1].role"),
        (
            "messages",
            [[{"role": "user", "content": 5}], [{"role": "user", "content": True}], [{"role": "user", "content": {}}]],
            "messages[0].content",
        ),
        ("messages", [[{"role": "user", "content": ["x"]}]], "messages[0].content[0]"),
        (
            "messages",
            [[{"role": "user", "content": [{"type": "text"}, part]}] for part in ({}, {"type": 1}, {"type": ""})],
            "messages[0].content[1].type",
        ),
        ("messages", [[{"role": "user", "content": [{"type": "text", "text": 1}]}]], "messages[0].content[0].text"),
        ("messages", [[{"role": "user", "name": 1}]], "messages[0].name"),
        ("stream", [1, 0, "true", []], "stream"),
        ("stream_options", [True, []], "stream_options"),
        ("stream_options", [{"include_usage": 1}, {"include_usage": "yes"}], "stream_options.include_usage"),
        ("max_tokens", [0, -1, True, 1.5, 1.0, "5"], "max_tokens"),
        ("max_completion_tokens", [0, False], "max_completion_tokens"),
        ("n", [0, 129, True, 1.0, "1"], "n"),
        ("temperature", [-0.1, 2.1, True, "1"], "temperature"),
        ("top_p", [-1, 1.1], "top_p"),
        ("presence_penalty", [-2.1, 2.1], "presence_penalty"),
        ("frequency_penalty", [-2.1, 2.1], "frequency_penalty"),
        ("stop", [5, True, "a" * 1025, ["a"] * 17], "stop"),
        ("stop", [["a", 1]], "stop[1]"),
        ("seed", [2**63, -(2**63) - 1, True, 0.5], "seed"),
        ("logprobs", [1, "true"], "logprobs"),
        ("top_logprobs", [-1, 21, False], "top_logprobs"),
        ("tools", [{}, "f"], "tools"),
        (
            "tools",
            [[{"type": "function", "function": {"name": ""}}], [{"type": "f", "function": {}}]],
            "tools[0].function.name",
        ),
        ("tools", [[{}]], "tools[0].type"),
        ("user", [1, "a" * 257], "user"),
        ("safety_identifier", ["a" * 257], "safety_identifier"),
    ],
)
def test_a_wrong_value_is_refused_by_its_name(field: str, bad: list[object], param: str) -> None:
    for value in bad:
        error = refused(body(**{field: value}))
        assert error.param == param
        assert error.message.startswith(param)


@pytest.mark.parametrize("missing", ["model", "messages"])
def test_what_is_missing_is_named(missing: str) -> None:
    error = refused(json.dumps({name: value for name, value in KNOWN.items() if name != missing}).encode())
    assert (error.param, error.message) == (missing, f"{missing}: Field required.")


def test_no_messages_is_said_plainly() -> None:
    assert refused(body(messages=[])).message == "messages must hold at least one message."


@pytest.mark.parametrize("sent", [b"[]", b"1", b"null", b'"text"', b"true", b'[{"model":"m"}]'])
def test_what_is_no_object_is_refused(sent: bytes) -> None:
    error = refused(sent)
    assert (error.param, error.message) == (None, "The request's body must be a JSON object.")


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"{",
        b'{"model":"m",}',
        b"{'model':'m'}",
        b'\xef\xbb\xbf{"model":"m"}',
        '{"model":"m"}'.encode("utf-16"),
        b'{"model":"\xff"}',
        b'{"model":"m","x":"\\ud800"}',
        body() + b"x",
        body()[:-1] + b',"x":' + b"9" * 5000 + b"}",
        body()[:-1] + b',"x":' + b"[" * DEEP + b"]" * DEEP + b"}",
        body()[:-1] + b',"x":' + b'{"a":' * DEEP + b"1" + b"}" * DEEP + b"}",
        # Large ones are skimmed before they are validated.
        body()[:-1] + b',"\xff":"' + b"x" * LARGE + b'"}',
        b'{"model":"m","messages":[{"\xff":1,"role":"user","content":"' + b"x" * LARGE + b'"}]}',
        b'{"model":"m","messages":[{"role":"user","content":' + b"[" * LARGE,
        b'{"model":"m","messages":[' + b"[" * LARGE + b"]" * LARGE + b"]}",
    ],
)
def test_what_cannot_be_read_is_refused_and_never_an_error_of_ours(sent: bytes) -> None:
    error = refused(sent)
    assert error.param is None
    assert error.message.startswith("The request's body cannot be read: ")
    assert len(error.message) < 200


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity"])
def test_numbers_that_are_no_json_are_refused_wherever_they_stand(number: str) -> None:
    for place in ('"x":%s', '"temperature":%s', '"stream_options":{"x":%s}', '"x":[{"y":%s}]'):
        refused(body()[:-1] + b"," + (place % number).encode() + b"}")
    call = parse_chat(body(messages=[{"role": "user", "content": f"What is {number}?"}], x=number))
    assert call.body_for("other", ask_usage=False, stream=False)


def test_a_body_of_nothing_but_faults_is_refused_at_the_first() -> None:
    many = b'{"model":"m","messages":[' + b",".join(
        [b'{"role":"user","content":[' + b",".join([b"{}"] * 60) + b"]}"] * 300
    )
    began = time.process_time()
    assert refused(many + b"]}").param == "messages[0].content[0].type"
    # Described one by one these faults would take 0.1 s for each 20,000; the first takes some 10 ms.
    assert time.process_time() - began < 1


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "user", "content": [{"type": "text", "text": "x"}] * 1000}] * 21,
        [{"role": "user", "content": "some words to make the body large"}] * 10_001,
    ],
    ids=["parts", "messages"],
)
def test_a_large_body_is_bounded_before_it_is_validated(messages: list[object]) -> None:
    refusal = refused(json.dumps({"model": "m", "messages": messages}).encode())
    assert refusal.param == "messages"
    assert "at most" in refusal.message


@settings(deadline=None)
@given(st.text(CHARACTERS, max_size=20), st.text(CHARACTERS, max_size=20))
def test_the_text_for_a_tokenizer_is_that_of_the_messages(one: str, two: str) -> None:
    parts = [{"type": "text", "text": two}, {"type": "image_url", "image_url": {"url": "x"}}, {"type": "text"}]
    sent = [{"role": "user", "content": one}, {"role": "user", "content": parts}, {"role": "assistant"}]
    assert input_text(parse_chat(body(messages=sent))) == "\n".join([one, *([two] if two else [])])

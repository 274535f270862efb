"""The echo provider says the last message back word by word, in the form of a model's server."""

from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.alphabet import CHARACTERS
from tests.unit.samples import a_call, a_plan
from tests.unit.virtual_time import in_virtual_time
from tidegate.admission.slots import Lease
from tidegate.inference.collect import Collector
from tidegate.inference.reading import ChatReader, Kind
from tidegate.inference.sse import EventSplitter, event_data
from tidegate.ledger.entry import Tokens
from tidegate.upstream.deadlines import Deadlines
from tidegate.upstream.echo import EchoProvider
from tidegate.upstream.provider import UpstreamRequest


async def echoed(**fields: Any) -> list[bytes]:
    """The events of an answer; each piece that comes is one."""
    call, plan = a_call(**fields), a_plan()
    provider = EchoProvider()
    provider.check(call.body)
    request = UpstreamRequest(
        attempt=plan.attempts[0],
        lease=Lease("one", 0),
        path="/chat/completions",
        body=call.body,
        streamed=True,
        asks_usage=True,
        headers=[],
        deadlines=Deadlines("one", total_s=600),
    )
    async with provider.open(request) as answer:
        assert request.was_sent
        assert (answer.status, answer.is_event_stream, answer.passed_headers) == (200, True, {})
        pieces = [piece async for piece in answer]
    assert EventSplitter("echo").feed(b"".join(pieces)) == pieces
    return pieces


def read(events: list[bytes], n: int = 1) -> tuple[ChatReader, list[Kind]]:
    reader = ChatReader(choices=n, keep_text=True)
    return reader, [reader.read(event) for event in events]


@settings(deadline=None)
@given(st.text(CHARACTERS, max_size=60), st.integers(1, 3))
@in_virtual_time
async def test_it_says_the_last_message_back_for_every_choice(text: str, n: int) -> None:
    events = await echoed(messages=[{"role": "user", "content": "not this"}, {"role": "user", "content": text}], n=n)
    words = text.split()
    collector = Collector("echo")
    for event in events:
        collector.add(event)
    choices = orjson.loads(collector.body())["choices"]
    assert [choice["message"]["content"] for choice in choices] == [" ".join(words)] * n
    assert [choice["finish_reason"] for choice in choices] == ["stop"] * n
    reader, kinds = read(events, n)
    assert reader.deltas == len(words) * n
    assert reader.tokens == Tokens(input=2 + len(words), output=len(words) * n)
    assert reader.complete
    assert kinds == (
        [Kind.OPENER] * n + [Kind.CONTENT] * (len(words) * n) + [Kind.CONTENT] * n + [Kind.USAGE, Kind.DONE]
    )


@pytest.mark.parametrize(
    ("limits", "said", "reason"),
    [
        ({"max_tokens": 2}, "one two", "length"),
        ({"max_completion_tokens": 1, "max_tokens": 3}, "one", "length"),
        ({"max_tokens": 3}, "one two three", "stop"),
        ({"max_tokens": 10**30}, "one two three", "stop"),
    ],
)
@in_virtual_time
async def test_it_stops_at_the_limit(limits: dict[str, int], said: str, reason: str) -> None:
    reader, _ = read(await echoed(messages=[{"role": "user", "content": "one two three"}], **limits))
    assert (reader.text(), reader.finish_reason) == (said, reason)
    assert reader.tokens == Tokens(input=3, output=len(said.split()))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, ""),
        ("", ""),
        ([], ""),
        ([{"type": "text", "text": "a b"}, {"type": "image_url"}, {"type": "text", "text": "c"}], "a b c"),
    ],
)
@in_virtual_time
async def test_every_form_of_content_is_read(content: object, said: str) -> None:
    reader, _ = read(await echoed(messages=[{"role": "user", "content": content}]))
    assert (reader.text(), reader.complete) == (said, True)


@in_virtual_time
async def test_the_same_request_gives_the_same_bytes_and_names_its_model() -> None:
    first = await echoed(model="some-model")
    assert first == await echoed(model="some-model")
    assert {orjson.loads(event_data(event))["model"] for event in first[:-1]} == {"some-model"}


@pytest.mark.parametrize("unknown", [{"x": 1e300}, {"x": [[[]]] * 3}, {"x": 10**30}, {"messages_": None}])
@in_virtual_time
async def test_fields_that_it_does_not_know_are_nothing_to_it(unknown: dict[str, Any]) -> None:
    assert read(await echoed(**unknown))[0].text() == "Hello"

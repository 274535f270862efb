"""Cutting a stream into events, against a slow reading of the HTML standard's section 9.2.6."""

import itertools
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.samples import cut, cuttings
from tidegate.errors import UpstreamError
from tidegate.inference.sse import COMMENT, DONE, MAX_EVENT_BYTES, EventSplitter, data_event, event_data

# Few letters, so that line ends meet in every order.
FRAGMENTS = st.sampled_from([b"\n", b"\r", b"\r\n", b"data: a", b"data:b", b"data", b": c", b"event: e", b"id", b"x"])
STREAMS = st.lists(FRAGMENTS, max_size=30).map(b"".join)
LINE_ENDS = [b"\n", b"\r\n", b"\r"]


def lines_of(stream: bytes) -> list[bytes]:
    """The lines that ended: at CRLF, LF or CR."""
    return re.split(rb"\r\n|\n|\r", stream)[:-1]


def dispatched(stream: bytes) -> list[bytes]:
    """The data of each event that a browser would dispatch, empty data and comments left out, as the standard says."""
    events: list[bytes] = []
    data: list[bytes] = []
    for line in lines_of(stream):
        if not line:
            if b"\n".join(data):
                events.append(b"\n".join(data))
            data = []
            continue
        name, _, value = line.partition(b":")
        if name == b"data":
            data.append(value.removeprefix(b" "))
    return events


def fed(pieces: list[bytes]) -> tuple[list[bytes], bytes]:
    """The events, and what was left."""
    splitter = EventSplitter("scripted")
    events = [event for piece in pieces for event in splitter.feed(piece)]
    return events, bytes(splitter._pending)


@settings(deadline=None, max_examples=150)
@given(STREAMS.flatmap(cuttings))
def test_events_and_the_rest_are_what_came_however_it_is_cut(pieces: list[bytes]) -> None:
    stream = b"".join(pieces)
    events, rest = fed(pieces)
    assert b"".join(events) + rest == stream
    assert (events, rest) == fed([stream])
    assert fed(cut(stream, range(1, len(stream)))) == (events, rest)


@settings(deadline=None, max_examples=150)
@given(STREAMS.flatmap(cuttings))
def test_events_are_those_that_a_browser_dispatches(pieces: list[bytes]) -> None:
    stream = b"".join(pieces)
    events, rest = fed(pieces)
    said = [data for event in events if (data := event_data(event))]
    # A CR at the very end may be half a CRLF: its event may wait, and is all that may.
    waits = rest.endswith(b"\n\r")
    assert said == dispatched(stream) or (waits and said == dispatched(stream[:-1]))


@settings(deadline=None)
@given(STREAMS.flatmap(cuttings))
def test_every_event_ends_at_its_first_empty_line(pieces: list[bytes]) -> None:
    events, rest = fed(pieces)
    for event in events:
        assert re.search(rb"(?:\n|\r)(?:\r\n|\n|\r)\Z", event), event
    for part in (*(event[:-1] for event in events), rest):
        # Nothing but line ends may stand before an empty line within an event: those that led it.
        said = part.lstrip(b"\r\n")
        assert not re.search(rb"\n\n|\r\r|\n\r[^\n]", said), part


@pytest.mark.parametrize("line_end", LINE_ENDS)
def test_a_stream_of_one_line_end_leaves_whole_bytewise(line_end: bytes) -> None:
    stream = b"".join(b"data: " + text + 2 * line_end for text in (b"one", b"two", b"[DONE]"))
    events, rest = fed(cut(stream, range(1, len(stream))))
    assert [event_data(event) for event in events] == [b"one", b"two", b"[DONE]"]
    assert rest == b""


@pytest.mark.parametrize("line_end", LINE_ENDS)
@pytest.mark.parametrize("size", [1, 2, 5])
def test_a_truncated_event_never_leaves(line_end: bytes, size: int) -> None:
    whole = b"data: one" + 2 * line_end
    truncated = b"data: two" + line_end
    for length in range(len(truncated) + 1):
        stream = whole + truncated[:length]
        events, rest = fed(cut(stream, range(size, len(stream), size)))
        assert (events, rest) == ([whole], truncated[:length])


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n"])
@pytest.mark.parametrize("piece", [64 * 1024, 64 * 1024 * 1024])
@pytest.mark.parametrize("ends", [True, False])
def test_an_event_over_the_bound_is_the_upstreams_fault(line_end: bytes, piece: int, ends: bool) -> None:
    big = b"data: " + b"x" * MAX_EVENT_BYTES + (2 * line_end if ends else b"")
    pieces = cut(big, range(piece, len(big), piece))
    with pytest.raises(UpstreamError, match="'scripted' sent an event of more than"):
        fed(pieces)
    # Until it is over the bound it waits; none of it leaves.
    assert fed(pieces[: MAX_EVENT_BYTES // piece])[0] == []


def test_an_event_at_the_bound_passes_whole() -> None:
    frame = len(b"data: \n\n")
    event = data_event(b"x" * (MAX_EVENT_BYTES - frame))
    assert len(event) == MAX_EVENT_BYTES
    assert EventSplitter("scripted").feed(event + event) == [event, event]


def test_small_events_may_come_in_a_large_piece() -> None:
    event = data_event(b"x" * 1024)
    many = MAX_EVENT_BYTES // len(event) + 2
    assert EventSplitter("scripted").feed(event * many) == [event] * many


@given(st.lists(st.binary(max_size=20).filter(lambda line: not re.search(rb"[\r\n]", line)), max_size=4))
def test_data_lines_are_joined_and_lose_one_space(values: list[bytes]) -> None:
    for name, line_end in itertools.product([b"data: ", b"data:"], LINE_ENDS):
        event = b"".join(name + value + line_end for value in values) + line_end
        expected = [value if name == b"data: " else value.removeprefix(b" ") for value in values]
        assert event_data(b": comment" + line_end + event) == b"\n".join(expected)


def test_the_events_that_we_make_are_whole() -> None:
    for event, data in [(COMMENT, b""), (DONE, b"[DONE]"), (data_event(b"{}"), b"{}")]:
        assert EventSplitter("scripted").feed(event) == [event]
        assert event_data(event) == data

"""An answer means the same however it was split on the way, and whatever is wrong with it is one kind of error."""

import itertools
from collections.abc import Sequence

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.upstream.answer_reader import LONGEST_HEAD, MOST_HEADERS, AnswerReader

OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
HELLO = OK + b"Content-Length: 5\r\n\r\nhello"
Told = tuple[int, list[tuple[bytes, bytes]], bytes, bool, bool, str | None]


def told(pieces: Sequence[bytes | memoryview], method: str = "POST", *, closed: bool = True) -> Told:
    """Status, headers, body, whether it is complete and its connection is kept, and the fault behind it."""
    reader = AnswerReader()
    reader.begin(method)
    body, fault = b"", None
    try:
        for piece in pieces:
            reader.feed(piece)
            if reader.has_head:
                body += reader.take()
        kept = reader.is_complete and reader.keeps_alive
        if closed:
            reader.end()
        body += reader.take()
    except httpx2.RemoteProtocolError as error:
        kept, fault = False, str(error)
    return reader.status, reader.headers if reader.has_head else [], body, reader.is_complete, kept, fault


def whole(answer: bytes, method: str = "POST") -> tuple[int, bytes, bool]:
    """Status, body, and whether the connection is kept."""
    status, _, body, is_complete, kept, fault = told([answer], method, closed=False)
    assert (is_complete, fault) == (True, None), fault
    return status, body, kept


@pytest.mark.parametrize(
    ("answer", "body", "kept"),
    [
        (HELLO, b"hello", True),
        (OK + b"content-length:5 \r\n\r\nhello", b"hello", True),
        (OK + b"Content-Length: 0\r\n\r\n", b"", True),
        (OK + b"Content-Length: 5\r\nConnection: close\r\n\r\nhello", b"hello", False),
        (OK + b"Content-Length: 5\r\nConnection: x, Close\r\n\r\nhello", b"hello", False),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello", b"hello", False),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\nConnection: keep-alive\r\n\r\nhello", b"hello", True),
        (CHUNKED + b"5\r\nhello\r\n0\r\n\r\n", b"hello", True),
        (CHUNKED + b"2;a=b\r\nhe\r\n003\r\nllo\r\n0\r\nExpires: now\r\nX: y\r\n\r\n", b"hello", True),
        (CHUNKED + b"5\r\nhello\r\n0\r\nConnection: close\r\n\r\n", b"hello", False),
        (b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", b"hello", False),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Hints\r\nLink: x\r\n\r\n" + HELLO, b"hello", True),
        (OK + b"Upgrade: h2c\r\nConnection: Upgrade\r\nContent-Length: 5\r\n\r\nhello", b"hello", True),
    ],
)
def test_a_body_is_framed_by_its_head(answer: bytes, body: bytes, kept: bool) -> None:
    assert whole(answer) == (200, body, kept)


@pytest.mark.parametrize("framing", [b"", b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n"])
def test_what_has_no_body_by_its_kind_has_none_whatever_it_says(framing: bytes) -> None:
    assert whole(OK + framing + b"\r\n", "HEAD") == (200, b"", False)
    for status in (204, 304):
        assert whole(b"HTTP/1.1 %d X\r\n%b\r\n" % (status, framing)) == (status, b"", True)


def test_a_body_without_framing_ends_with_the_connection() -> None:
    reader = AnswerReader()
    reader.begin("POST")
    reader.feed(OK + b"\r\nhel")
    reader.feed(b"lo")
    assert (reader.take(), reader.is_complete) == (b"hello", False)
    reader.end()
    assert (reader.take(), reader.is_complete, reader.keeps_alive) == (b"", True, False)


def test_fields_keep_their_order_their_case_and_their_number() -> None:
    answer = OK + b"Set-Cookie: a\r\nX-Empty:\r\nset-cookie: \t b c\t \r\nX-Bytes: \xff\r\nContent-Length: 0\r\n\r\n"
    _, headers, *_ = told([answer])
    assert headers == [
        (b"Set-Cookie", b"a"),
        (b"X-Empty", b""),
        (b"set-cookie", b"b c"),
        (b"X-Bytes", b"\xff"),
        (b"Content-Length", b"0"),
    ]


REFUSED = {
    "both framings": OK + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    "both framings, turned": OK + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    "two lengths": OK + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
    "a list of lengths": OK + b"Content-Length: 5, 5\r\n\r\nhello",
    "a signed length": OK + b"Content-Length: +5\r\n\r\nhello",
    "an empty length": OK + b"Content-Length:\r\n\r\nhello",
    "a huge length": OK + b"Content-Length: 99999999999999999999\r\n\r\nhello",
    "another coding": OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    "an unknown coding": OK + b"Transfer-Encoding: xchunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    "chunked twice": OK + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "a folded line": OK + b"A: b\r\n c\r\nContent-Length: 0\r\n\r\n",
    "a bare line feed": OK + b"Content-Length: 0\n\r\n",
    "a bare carriage return": OK + b"A: b\rc\r\nContent-Length: 0\r\n\r\n",
    "a NUL": OK + b"A: b\0c\r\nContent-Length: 0\r\n\r\n",
    "a space before the colon": OK + b"Content-Length : 5\r\n\r\nhello",
    "no colon": OK + b"Content-Length 5\r\n\r\nhello",
    "no name": OK + b": 5\r\n\r\nhello",
    "an upgrade": b"HTTP/1.1 101 X\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n",
    "an upgrade to nothing": b"HTTP/1.1 101 X\r\n\r\n",
    "no status": b"HTTP/1.1 000 X\r\nContent-Length: 0\r\n\r\n",
    "a long status": b"HTTP/1.1 2000 X\r\nContent-Length: 0\r\n\r\n",
    "HTTP/2": b"HTTP/2.0 200 OK\r\nContent-Length: 0\r\n\r\n",
    "HTTP/0.9": b"HTTP/0.9 200 OK\r\nContent-Length: 0\r\n\r\n",
    "another protocol": b"SSH-2.0-OpenSSH_9.9\r\n",
    "a request": b"GET / HTTP/1.1\r\n\r\n",
    "many headers": OK + b"A: b\r\n" * (MOST_HEADERS + 1) + b"\r\n",
    "a long header": OK + b"A: " + b"b" * LONGEST_HEAD + b"\r\n\r\n",
    "many informational answers": b"HTTP/1.1 100 Continue\r\n\r\n" * 3000 + HELLO,
    "nothing": b"",
    "half a head": OK,
    "an informational answer alone": b"HTTP/1.1 100 Continue\r\n\r\n",
}


@pytest.mark.parametrize("answer", REFUSED.values(), ids=REFUSED)
def test_a_head_that_may_be_read_in_two_ways_is_refused(answer: bytes) -> None:
    status, headers, body, is_complete, kept, fault = told([answer])
    assert (status, headers, body, is_complete, kept) == (0, [], b"", False, False)
    assert fault


BROKEN = {
    "a short body": OK + b"Content-Length: 6\r\n\r\nhello",
    "a cut chunk": CHUNKED + b"6\r\nhello",
    "no last chunk": CHUNKED + b"5\r\nhello\r\n",
    "a size that is none": CHUNKED + b"5\r\nhello\r\nZ\r\n",
    "a negative size": CHUNKED + b"5\r\nhello\r\n-1\r\n",
    "a size with a prefix": CHUNKED + b"5\r\nhello\r\n0x1\r\nx\r\n0\r\n\r\n",
    "a huge size": CHUNKED + b"5\r\nhello\r\n" + b"f" * 17 + b"\r\n",
    "a longer chunk": CHUNKED + b"5\r\nhello!\r\n0\r\n\r\n",
    "a bare line feed": CHUNKED + b"5\r\nhello\r\n0\n\n",
    "a length in the trailers": CHUNKED + b"5\r\nhello\r\n0\r\nContent-Length: 5\r\n\r\n",
}


@pytest.mark.parametrize("split", [False, True], ids=["whole", "bytewise"])
@pytest.mark.parametrize("answer", BROKEN.values(), ids=BROKEN)
def test_a_fault_comes_behind_what_came_before_it(answer: bytes, split: bool) -> None:
    pieces = [bytes([byte]) for byte in answer] if split else [answer]
    status, _, body, is_complete, kept, fault = told(pieces)
    assert (status, body[:5], is_complete, kept) == (200, b"hello", False, False)
    assert fault


@pytest.mark.parametrize("extra", [b"X", b"0", HELLO, b"HTTP/1.1 408 Request Timeout\r\n\r\n", b"\0"])
@pytest.mark.parametrize("answer", [HELLO, CHUNKED + b"5\r\nhello\r\n0\r\n\r\n"], ids=["length", "chunked"])
def test_what_follows_an_answer_is_no_part_of_it_and_ends_the_connection(answer: bytes, extra: bytes) -> None:
    assert whole(answer) == (200, b"hello", True)
    assert whole(answer + extra) == (200, b"hello", False)
    assert whole(b"HTTP/1.1 204 X\r\n\r\n" + extra) == (204, b"", False)
    assert whole(OK + b"Content-Length: 5\r\nConnection: close\r\n\r\nhello" + extra) == (200, b"hello", False)


def test_a_head_of_the_longest_length_is_read_and_one_more_byte_is_not() -> None:
    room = LONGEST_HEAD - len(OK + b"A: \r\nContent-Length: 5\r\n\r\n")
    for size, is_read in ((room, True), (room + 1, False)):
        answer = OK + b"A: " + b"b" * size + b"\r\nContent-Length: 5\r\n\r\nhello"
        for place in (0, 70, 1000):
            assert told([answer[:place], memoryview(answer)[place:]])[3] is is_read


@pytest.mark.parametrize("tail", [b"5;" + b"e" * 1000, b"0\r\nTrailer: " + b"t" * 1000])
def test_what_brings_no_body_does_not_come_for_ever(tail: bytes) -> None:
    endless = [CHUNKED + b"5\r\nhello\r\n" + tail, *[b"x" * 1000] * 100]
    assert "between two pieces" in str(told(endless)[-1])


def test_the_next_answer_has_nothing_of_the_one_before() -> None:
    reader = AnswerReader()
    reader.begin("POST")
    reader.feed(b"HTTP/1.1 201 X\r\nTransfer-Encoding: chunked\r\nA: b\r\n\r\n5\r\nfirst\r\n0\r\nT: t\r\n\r\n")
    assert reader.is_complete
    first = reader.headers
    # Nobody took its body.
    reader.begin("POST")
    assert not reader.has_begun
    assert not reader.has_head
    reader.feed(HELLO)
    assert (reader.status, reader.headers, reader.take()) == (200, [(b"Content-Length", b"5")], b"hello")
    assert len(first) == 2


heads = st.lists(
    st.sampled_from([b"Server: x\r\n", b"X-A:\r\n", b"Connection: keep-alive\r\n", b"Date: a, b: c\r\n"]), max_size=4
).map(b"".join)
bodies = st.lists(st.binary(min_size=1, max_size=40), max_size=5)


@st.composite
def answers(draw: st.DrawFn) -> bytes:
    head, pieces = draw(heads), draw(bodies)
    informational = draw(st.sampled_from([b"", b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 103 X\r\nA: b\r\n\r\n"]))
    line = draw(st.sampled_from([OK, b"HTTP/1.0 200\r\n", b"HTTP/1.1 500 a b\r\n", b"HTTP/1.1 204 No\r\n"]))
    framing = draw(st.sampled_from(["chunked", "length", "none"]))
    if framing == "chunked":
        chunks = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)
        trailers = draw(st.sampled_from([b"", b"T: t\r\n"]))
        return (
            informational + line + head + b"Transfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n" + trailers + b"\r\n"
        )
    body = b"".join(pieces)
    length = b"Content-Length: %d\r\n" % len(body) if framing == "length" else b""
    return informational + line + length + head + b"\r\n" + body


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """An answer with some bytes changed, left out, doubled or put in."""
    answer = bytearray(draw(answers()))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(answer)))
        length = draw(st.integers(0, 3))
        answer[at : at + length] = draw(
            st.one_of(st.binary(max_size=3), st.sampled_from([b"\r\n", b"\n", b"\r\n\r\n", b"0", b" ", b":", HELLO]))
        )
    return bytes(answer)


def split(answer: bytes, places: Sequence[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(answer) + 1) for place in places), len(answer)]
    return [answer[start:end] for start, end in itertools.pairwise(edges) if start < end]


@given(answers(), st.lists(st.integers(0, 10_000), max_size=12))
def test_an_answer_means_the_same_however_it_is_split(answer: bytes, places: list[int]) -> None:
    once = told([answer])
    assert once[-1] is None
    assert told(split(answer, places)) == once
    assert told([bytes([byte]) for byte in answer]) == once


@given(mutated(), st.lists(st.integers(0, 10_000), max_size=12), st.sampled_from(["POST", "HEAD"]))
def test_a_broken_answer_means_the_same_however_it_is_split(answer: bytes, places: list[int], method: str) -> None:
    once = told([answer], method)
    assert told(split(answer, places), method) == once
    assert told([bytes([byte]) for byte in answer], method) == once
    status, _, _, is_complete, kept, fault = once
    # It has an end, and one alone: complete, or a fault of the upstream.
    assert is_complete is (fault is None)
    assert not (kept and fault)
    assert status == 0 or status >= 200


@given(st.binary(max_size=300), st.integers(0, 300))
def test_noise_is_the_upstreams_fault_wherever_it_is_cut(noise: bytes, place: int) -> None:
    for prefix in (b"", OK, CHUNKED, b"HTTP/1.1 200 OK\r\nA"):
        answer = prefix + noise
        assert told(split(answer, [place])) == told(split(answer, []))

"""What a request's head is, and that nothing in it can end a line or frame its body twice."""

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.upstream.request_head import RequestHead, request_head

HOST = (b"Host", b"up:1")
Headers = list[tuple[bytes, bytes]]


def test_a_head_is_written_as_it_is_given() -> None:
    headers = [HOST, (b"x-a", b"1"), (b"X-a", b""), (b"Content-Length", b"12"), (b"x-b", b"a \xff\tb")]
    assert request_head("POST", b"/v1/chat?a=b", headers) == RequestHead(
        b"POST /v1/chat?a=b HTTP/1.1\r\nHost: up:1\r\nx-a: 1\r\nX-a: \r\nContent-Length: 12\r\nx-b: a \xff\tb\r\n\r\n",
        length=12,
        keeps_alive=True,
    )


@pytest.mark.parametrize(
    ("headers", "length", "keeps_alive"),
    [
        ([], 0, True),
        ([(b"transfer-encoding", b"Chunked")], None, True),
        ([(b"Connection", b"Close")], 0, False),
        ([(b"connection", b"x, close"), (b"content-length", b"0")], 0, False),
    ],
)
def test_it_says_what_follows_it(headers: Headers, length: int | None, keeps_alive: bool) -> None:
    head = request_head("GET", b"/", [HOST, *headers])
    assert (head.length, head.keeps_alive) == (length, keeps_alive)


@pytest.mark.parametrize(
    ("method", "target", "headers"),
    [
        *[("GET", b"/", [HOST, (b"x", bad)]) for bad in (b"a\rb", b"a\nb", b"a\0b", b"a\x0bb", b"a\x7f", b" a", b"a ")],
        *[("GET", b"/", [HOST, (bad, b"a")]) for bad in (b"", b"a b", b"a:", b"a\r\nb", b"\xffa", b"a\0")],
        *[("GET", bad, [HOST]) for bad in (b"", b"/a b", b"/a\r\nb", b"/\0", b"/\xff", b"/\t")],
        *[(bad, b"/", [HOST]) for bad in ("", "GET /", "G\r\nT", "G\N{LATIN SMALL LETTER E WITH ACUTE} T", "CONNECT")],
        ("GET", b"/", []),
        ("GET", b"/", [HOST, (b"host", b"other")]),
        ("POST", b"/", [HOST, (b"content-length", b"5"), (b"Content-Length", b"5")]),
        ("POST", b"/", [HOST, (b"content-length", b"5"), (b"transfer-encoding", b"chunked")]),
        ("POST", b"/", [HOST, (b"transfer-encoding", b"gzip, chunked")]),
        ("POST", b"/", [HOST, (b"transfer-encoding", b"chunked"), (b"transfer-encoding", b"chunked")]),
        *[("POST", b"/", [HOST, (b"content-length", bad)]) for bad in (b"", b"+5", b"-5", b"5,5", b"0x5", b"9" * 30)],
    ],
)
def test_what_may_be_read_in_two_ways_is_not_sent(method: str, target: bytes, headers: Headers) -> None:
    with pytest.raises(httpx2.LocalProtocolError):
        request_head(method, target, headers)


def test_a_value_that_cannot_be_sent_is_not_shown() -> None:
    with pytest.raises(httpx2.LocalProtocolError, match="authorization") as caught:
        request_head("GET", b"/", [HOST, (b"authorization", b"Bearer sk-secret\n")])
    assert "sk-secret" not in str(caught.value)


@given(st.binary(max_size=20), st.binary(max_size=20), st.binary(max_size=20))
def test_a_head_has_the_lines_that_it_was_given_and_no_more(target: bytes, name: bytes, value: bytes) -> None:
    try:
        head = request_head("GET", b"/" + target, [HOST, (b"x" + name, value)])
    except httpx2.LocalProtocolError:
        return
    assert head.data.count(b"\r") == head.data.count(b"\n") == 4
    assert b"\0" not in head.data

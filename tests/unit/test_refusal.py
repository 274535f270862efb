"""An upstream's refusal as the caller sees it: its own where it is of the request, else a 502."""

import json
from collections.abc import AsyncIterator, Mapping
from types import MappingProxyType

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.alphabet import CHARACTERS
from tidegate.errors import UpstreamError, UpstreamRefused, envelope
from tidegate.inference.refusal import is_about_usage_request, read_bounded, refusal_of

OWN = [400, 404, 409, 413, 422]
OTHERS = [201, 204, 301, 402, 405, 408, 418, 500, 502, 503, 529]
NONE: Mapping[str, str] = MappingProxyType({})


class Said:
    """An answer in memory; `taken` counts the bytes that were read of it."""

    is_event_stream = False
    request_id = None

    def __init__(self, status: int, *pieces: bytes, headers: Mapping[str, str] = NONE) -> None:
        self.status = status
        self.passed_headers = headers
        self.taken = 0
        self._pieces = pieces

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self._pieces:
            self.taken += len(piece)
            yield piece


async def refused(status: int, body: object, **headers: str) -> UpstreamError:
    sent = body if isinstance(body, bytes) else json.dumps(body).encode()
    return await refusal_of(Said(status, sent, headers=headers), "scripted")


async def test_the_key_that_was_sent_never_comes_back_in_its_words() -> None:
    key = "sk-of-the-operator"
    error = {"message": f"bad header: Bearer {key}", "code": f"for-{key}", "param": key}
    answer = Said(400, json.dumps({"error": error}).encode())
    refusal = await refusal_of(answer, "scripted", key=key)
    assert refusal.message == "bad header: Bearer [key]"
    assert key.encode() not in envelope(refusal, None)


@pytest.mark.parametrize("status", OWN)
async def test_a_refusal_of_the_request_passes_on_with_its_words(status: int) -> None:
    error = {"message": "no such thing", "type": "t", "code": "its_code", "param": "messages"}
    refusal = await refused(status, {"error": error})
    assert isinstance(refusal, UpstreamRefused)
    assert refusal.http_status == refusal.upstream_status == status
    assert (refusal.http_code, refusal.message, refusal.param) == ("its_code", "no such thing", "messages")


@pytest.mark.parametrize("status", OWN)
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>Bad request</html>",
        b"{}",
        b"[]",
        b"null",
        b'{"error":',
        b"\xff",
        b'{"error":{"message":"\xff"}}',
        b"[" * 60_000,
    ],
)
async def test_a_refusal_without_a_readable_error_is_a_502(status: int, body: bytes) -> None:
    refusal = await refused(status, body)
    assert not isinstance(refusal, UpstreamRefused)
    assert (refusal.http_status, refusal.upstream_status) == (502, status)
    assert "html" not in refusal.message


async def test_what_an_upstream_says_is_bounded() -> None:
    long = "x" * 5000
    refusal = await refused(400, {"error": {"message": long, "code": long, "param": long}})
    assert isinstance(refusal, UpstreamRefused)
    assert (len(refusal.message), len(refusal.http_code), len(refusal.param or "")) == (2000, 64, 2000)


@pytest.mark.parametrize("status", [401, 403])
async def test_refused_credentials_are_the_operators_and_their_text_is_not_shown(status: int) -> None:
    refusal = await refused(status, {"error": {"message": "Incorrect API key provided: sk-secret"}})
    assert (refusal.http_status, refusal.http_code, refusal.upstream_status) == (502, "upstream_error", status)
    assert "secret" not in envelope(refusal, "r").decode()
    assert "credentials" in refusal.message


async def test_a_rate_limit_of_the_gateway_is_a_502_that_says_when_to_come_back() -> None:
    refusal = await refused(429, {"error": {"message": "slow down"}}, **{"X-Tidegate-Upstream-retry-after": "7"})
    assert (refusal.http_status, refusal.headers) == (502, {"Retry-After": "7"})
    assert (await refused(429, b"")).headers == {}
    # As an answer's header it could not be written.
    assert (await refused(429, b"", **{"X-Tidegate-Upstream-retry-after": "5 €"})).headers == {}


@pytest.mark.parametrize("status", OTHERS)
async def test_every_other_status_is_a_502(status: int) -> None:
    refusal = await refused(status, {"error": {"message": "internal detail"}})
    assert (refusal.http_status, refusal.upstream_status) == (502, status)
    assert refusal.message == f"The upstream 'scripted' answered with status {status}."


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"error": "plain"}, "plain"),
        ({"message": "at the top"}, "at the top"),
        ({"error": None, "message": "at the top"}, "at the top"),
        ({"detail": 'FastAPI says "no"'}, 'FastAPI says "no"'),
        ({"detail": [{"loc": ["body"]}]}, '[{"loc": ["body"]}]'),
        ({"error": {}}, "The upstream refused the request (400)."),
        ({"error": {"message": "x" * 5000}}, "x" * 2000),
    ],
)
async def test_the_message_is_found_in_every_known_form(body: object, message: str) -> None:
    refusal = await refused(400, body)
    assert isinstance(refusal, UpstreamRefused)
    assert refusal.message == message


@pytest.mark.parametrize(
    "error",
    [
        {"code": "context_length_exceeded", "message": "m"},
        {"code": 400, "type": "exceed_context_size_error", "message": "m"},
        {"type": "context_length_exceeded", "message": "m"},
    ],
)
async def test_a_prompt_too_long_has_one_code(error: object) -> None:
    assert (await refused(400, {"error": error})).http_code == "context_length_exceeded"


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (400, "invalid_request"),
        (404, "not_found"),
        (409, "conflict"),
        (413, "request_too_large"),
        (422, "invalid_request"),
    ],
)
async def test_a_refusal_without_a_code_gets_ours(status: int, code: str) -> None:
    assert (await refused(status, {"error": {"message": "m"}})).http_code == code


async def test_the_usage_request_is_recognised_in_a_refusal_of_it_alone() -> None:
    for message, param in [("Unknown field: stream_options", None), ("no", "stream_options.INCLUDE_USAGE")]:
        for status in (400, 422):
            refusal = await refused(status, {"error": {"message": message, "param": param}})
            assert is_about_usage_request(refusal)
    assert not is_about_usage_request(await refused(400, {"error": {"message": "messages are wrong"}}))
    assert not is_about_usage_request(await refused(500, {"error": {"message": "stream_options broke me"}}))


@settings(deadline=None)
@given(st.lists(st.binary(max_size=40), max_size=12), st.integers(0, 300))
async def test_a_body_is_read_whole_up_to_its_bound(pieces: list[bytes], most: int) -> None:
    body = b"".join(pieces)
    if len(body) > most:
        with pytest.raises(UpstreamError, match=f"sent more than {most} bytes"):
            await read_bounded(Said(200, *pieces), "scripted", most)
    else:
        assert await read_bounded(Said(200, *pieces), "scripted", most) == body
    # Where it need not be complete, it is the beginning, and what is behind the bound is not waited for.
    answer = Said(200, *pieces)
    begun = await read_bounded(answer, "scripted", most, complete=False)
    assert body.startswith(begun)
    assert len(begun) == answer.taken
    assert len(begun) == len(body) or len(begun) > most


async def test_of_an_endless_refusal_little_is_read() -> None:
    answer = Said(400, *[b"x" * 1024] * 1000)
    assert (await refusal_of(answer, "scripted")).http_status == 502
    assert answer.taken <= 65 * 1024


@settings(deadline=None)
@given(
    st.sampled_from([*OWN, *OTHERS, 401, 403, 429]),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(CHARACTERS, max_size=5),
        lambda inner: (
            st.lists(inner, max_size=2)
            | st.dictionaries(
                st.sampled_from(["error", "message", "detail", "code", "type", "param"]), inner, max_size=4
            )
        ),
    ),
)
async def test_whatever_it_says_the_answer_is_an_envelope_with_an_error_status(status: int, body: object) -> None:
    refusal = await refused(status, body)
    assert refusal.upstream == "scripted"
    assert refusal.http_status >= 400
    assert orjson.loads(envelope(refusal, "r"))["error"]["message"]

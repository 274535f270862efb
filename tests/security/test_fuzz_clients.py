"""Whatever a client sends: every reader of its bytes gives a value of its kind or a refusal of the errors' tree.

What is fuzzed where it is tested: `X-Tidegate-Cache` (`unit/test_caching.py`), the deadline's and the tags' headers
(`unit/test_exchange.py`), secrets in texts (`unit/test_telemetry_redaction.py`).
"""

import base64
import contextlib
import hmac
import ipaddress
import json
import uuid
from typing import Any

import jwt
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import Request

from tests.security.fuzzing import assert_linear, fuzzed, mutated
from tests.support.credentials import keyrings
from tidegate.accounts.mailed import tokens as mailed_tokens
from tidegate.accounts.sign_ins import refresh_tokens
from tidegate.accounts.tries import network_of
from tidegate.auth.addresses import AllowedAddresses, canonical_range, parse_range
from tidegate.auth.api_keys import generate_key, hash_key, prefix_of, verify_key
from tidegate.auth.credentials import MAXIMUM_BYTES, read_credential
from tidegate.auth.keyring import Keyring
from tidegate.auth.page_session import CSRF_HEADER, access_cookie, refresh_cookie
from tidegate.auth.signing_keys import Algorithm
from tidegate.auth.tokens import AccessTokens
from tidegate.errors import AuthenticationError, InvalidRequest, PermissionDenied, TidegateError
from tidegate.http.authority import parse_authority
from tidegate.http.context import RequestContext
from tidegate.http.entrance import Entrance
from tidegate.http.json_bodies import judge_json
from tidegate.http.proxies import behind_trusted_proxies
from tidegate.inference.caching import is_repeatable
from tidegate.inference.exchange import RoadHeaders
from tidegate.inference.wire import input_text, parse_chat
from tidegate.settings import Settings
from tidegate.upstream.addresses import fault_of_url, refusal_of

Headers = list[tuple[bytes, bytes]]

CHATS = [
    b'{"model":"m","messages":[{"role":"user","content":"hi"}]}',
    (
        b'{"model":"m","messages":[{"role":"user","content":[{"type":"text","text":"\\u00e9\\ud83d\\ude00"},'
        b'{"type":"image_url","image_url":{"url":"x"}}]}],"stream":true,"stream_options":{"include_usage":true},"n":2}'
    ),
    (
        b'{"messages":[{"role":"tool","tool_call_id":"1","content":null}],"model":"a/b","temperature":0,"seed":1,'
        b'"tools":[{"type":"function","function":{"name":"f","parameters":{"a":[1.5e3,-0.0,true]}}}],"stop":["a","b"]}'
    ),
    (
        b'{"model":"m","messages":[{"role":"user","content":"a","name":"n"}],"max_tokens":5,"top_p":0.5,"user":"u",'
        b'"logprobs":true,"top_logprobs":3,"max_completion_tokens":9,"store":true,"web_search_options":{}}'
    ),
]


@fuzzed
@given(mutated(CHATS))
def test_fuzz_a_chat_request_is_read_and_goes_on_or_is_refused(body: bytes) -> None:
    try:
        call = parse_chat(body)
    except InvalidRequest:
        return
    for stream in (True, False):
        sent = call.body_for("other", ask_usage=True, stream=stream)
        assert orjson.loads(sent)["model"] == "other"
        # What was taken is taken again, and means the same.
        assert parse_chat(sent).message_count == call.message_count
    assert isinstance(input_text(call), str)
    assert is_repeatable(call) in (True, False)


@fuzzed
@given(mutated([*CHATS, b'{"email":"a@example.com","password":"x"}', b"[1,2.5,-3e2,null,true]", b'"\\u0000"', b"1"]))
def test_fuzz_a_json_body_that_passes_is_read_by_every_parser_behind(body: bytes) -> None:
    try:
        judge_json(body)
    except InvalidRequest as error:
        error.message.encode()
        return
    value = json.loads(body)
    assert "\x00" not in json.dumps(value, ensure_ascii=False)
    json.dumps(value, allow_nan=False, ensure_ascii=False).encode()


@pytest.mark.parametrize(
    "piece", [b"[", b'{"a":', b'"\\u0000",', b"9", b'"\\ud800', b"\\", b"1e999,", b'{"a":1,"a":2},', b" "]
)
def test_fuzz_json_is_judged_in_linear_time(piece: bytes) -> None:
    def judge(size: int) -> None:
        with contextlib.suppress(InvalidRequest):
            judge_json(b"[" + piece * (size // len(piece)))

    assert_linear(judge, 32 * 1024)


@pytest.mark.parametrize("piece", [b"[", b'{"role":"user"},', b'{"role":"user","content":[', b'"', b"\\\\", b"9"])
def test_fuzz_chat_requests_are_read_in_linear_time(piece: bytes) -> None:
    def read(size: int) -> None:
        with contextlib.suppress(InvalidRequest):
            parse_chat(b'{"model":"m","messages":[' + piece * (size // len(piece)))

    assert_linear(read, 64 * 1024)


_KEY = generate_key().secret.encode()
_names = st.sampled_from([b"authorization", b"x-api-key", b"cookie", b"host", b"x-request-id", b"user-agent"])
_values = mutated([b"Bearer " + _KEY, b"bearer  x", _KEY, b"Basic YTpi", b"Bearer", b"", b"tidegate_access=a.b.c"])
_headers = st.lists(st.tuples(_names, _values), max_size=6)


@fuzzed
@given(_headers)
def test_fuzz_headers_hold_one_credential_or_are_refused(headers: Headers) -> None:
    try:
        credential = read_credential(headers)
    except AuthenticationError:
        return
    assert 0 < len(credential) <= MAXIMUM_BYTES
    assert any(credential in value for _, value in headers)


@fuzzed
@given(_headers, st.binary(max_size=300))
def test_fuzz_a_request_has_a_label_and_bounded_words_whatever_its_head_says(headers: Headers, client: bytes) -> None:
    scope = {"method": "GET", "path": client.decode("latin-1"), "headers": headers, "query_string": client}
    scope["client"] = (client.decode("latin-1"), 1)
    context = RequestContext.of(scope)
    assert 1 <= len(context.request_id) <= 128
    assert context.request_id.isascii()
    assert context.request_id.isprintable()
    assert len(context.user_agent or "") <= 512
    assert len(context.client_address or "") <= 64
    with contextlib.suppress(InvalidRequest):
        Entrance(["gateway.example.com", "*.example.org:8443"]).judge(
            {**scope, "scheme": "http", "server": ("127.0.0.1", 80)}, context
        )


@fuzzed
@given(
    mutated([b"tidegate_access=a.b.c; tidegate_refresh=tgr_x", b'a="b;c"; tidegate_access=tg_x', b"tidegate_access="]),
    mutated([b"http://gateway", b"https://gateway:443", b"null", b"http://[::1]:80", b"http://a@gateway"]),
    st.sampled_from(["GET", "POST"]),
    st.booleans(),
)
def test_fuzz_cookies_give_a_token_or_a_refusal(cookie: bytes, origin: bytes, method: str, has_header: bool) -> None:
    headers = [(b"host", b"gateway"), (b"cookie", cookie), (b"origin", origin)]
    if has_header:
        headers.append((CSRF_HEADER.lower().encode(), b"1"))
    request = Request(
        {
            "type": "http",
            "method": method,
            "path": "/api/keys",
            "query_string": b"",
            "scheme": "http",
            "server": ("gateway", 80),
            "headers": headers,
            "state": {"settings": Settings(environment="test")},
        }
    )
    with contextlib.suppress(AuthenticationError, PermissionDenied):
        token = access_cookie(request)
        assert token is None or (token and not token.startswith(b"tg_"))
        assert method == "GET" or token is None or has_header
    assert refresh_cookie(request) != ""


def _encoded(part: bytes) -> bytes:
    return base64.urlsafe_b64encode(part).rstrip(b"=")


_HEADERS = [b'{"alg":"HS256","kid":"1","typ":"JWT"}', b'{"alg":"none"}', b'{"alg":"EdDSA","kid":"1","crit":["x"]}']
_CLAIMS = [
    b'{"iss":"tidegate","aud":"tidegate","sub":"%s","sid":"%s","iat":1,"nbf":1,"exp":9e99,"jti":"j"}' % (b"0", b"1")
]


@fuzzed
@given(mutated(_HEADERS), mutated(_CLAIMS), st.sampled_from(["HS256", "EdDSA"]), st.booleans())
def test_fuzz_a_token_that_was_not_issued_here_is_refused(
    header: bytes, claims: bytes, algorithm: Algorithm, is_cut: bool
) -> None:
    token = b".".join((_encoded(header), _encoded(claims), _encoded(bytes(32)))).decode()
    with pytest.raises(AuthenticationError):
        AccessTokens(keyrings().jwt, minutes=15, algorithm=algorithm).verify(token[:-1] if is_cut else token)


@pytest.mark.parametrize("depth", [400, 1_300, 100_000])
def test_deep_nesting_is_refused(depth: int) -> None:
    """Not by Hypothesis, which allows deeper calls than there are without it."""
    deep = b"[" * depth + b"]" * depth
    tokens = AccessTokens(keyrings().jwt, minutes=15)
    for header, claims in ((b'{"alg":"HS256","kid":"1","x":%b}' % deep, b"{}"), (_HEADERS[0], b'{"x":%b}' % deep)):
        signed = _encoded(header) + b"." + _encoded(claims)
        signature = _encoded(hmac.digest(tokens.keys.signing_key, signed, "sha256"))
        with pytest.raises(AuthenticationError):
            tokens.verify((signed + b"." + signature).decode())
    for body in (
        b'{"model":"m","messages":[{"role":"user","content":%b}]}' % deep,
        b'{"model":"m","x":%b}' % deep,
        deep,
    ):
        with pytest.raises(InvalidRequest):
            judge_json(body)
        with pytest.raises(InvalidRequest):
            parse_chat(body)


@fuzzed
@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=40),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
        max_leaves=6,
    ),
    st.sampled_from(["iss", "aud", "sub", "sid", "iat", "nbf", "exp", "jti"]),
)
def test_fuzz_claims_that_our_own_key_signed_are_judged_all_the_same(value: Any, name: str) -> None:
    """As a key that leaked, or another of our deployments, would. PyJWT itself would not sign some of these."""
    tokens = AccessTokens(keyrings().jwt, minutes=15)
    issued = jwt.decode(tokens.issue(uuid.uuid4(), uuid.uuid4()), options={"verify_signature": False})
    claims = json.dumps({**issued, name: value}).encode()
    signed = jwt.PyJWS().encode(claims, tokens.keys.signing_key, "HS256", headers={"kid": "1"})
    with contextlib.suppress(AuthenticationError):
        verified = tokens.verify(signed)
        assert verified.expires_at > 0


@fuzzed
@given(mutated([AccessTokens(Keyring({"1": b"x" * 32}), minutes=15).issue(uuid.uuid4(), uuid.uuid4()).encode()]))
def test_fuzz_a_changed_token_is_as_it_was_or_refused(token: bytes) -> None:
    tokens = AccessTokens(Keyring({"1": b"x" * 32}), minutes=15)
    with contextlib.suppress(UnicodeDecodeError, AuthenticationError):
        assert tokens.verify(token.decode("ascii")).expires_at > 0


@fuzzed
@given(mutated([_KEY, b"tgr_" + b"a" * 43, b"tgm_" + b"a" * 43]).map(lambda value: value.decode("utf-8", "replace")))
def test_fuzz_only_the_whole_of_a_secret_is_one(text: str) -> None:
    peppers = keyrings().peppers
    prefix = prefix_of(text)
    assert prefix is None or len(text) == len(_KEY)
    if prefix is not None:
        assert verify_key(text, hash_key(_KEY.decode(), peppers), peppers) is (text == _KEY.decode())
    digest = refresh_tokens.hash_of(text)
    assert digest is None or (text.startswith("tgr_") and len(text) == 47 and text.isascii())
    with contextlib.suppress(InvalidRequest):
        assert len(mailed_tokens.hash_of(text)) == 32


_RANGES = [b"192.0.2.7", b"192.0.2.0/24", b"2001:db8::/32", b"::ffff:192.0.2.7", b"::/0", b"fe80::1%eth0", b"0/0"]
_addresses = mutated(_RANGES).map(lambda value: value.decode("utf-8", "replace"))


@fuzzed
@given(st.lists(_addresses, max_size=4), _addresses)
def test_fuzz_a_list_of_addresses_admits_only_what_is_in_it(ranges: list[str], address: str) -> None:
    admitted = AllowedAddresses(ranges).admits(address)
    assert not admitted or any(_is_in(address, text) for text in ranges)
    assert isinstance(network_of(address), str)
    assert refusal_of(address) is None or isinstance(refusal_of(address), str)
    for text in ranges:
        with contextlib.suppress(ValueError):
            written = canonical_range(text)
            assert canonical_range(written) == written
            assert parse_range(written) == parse_range(text)


def _is_in(address: str, text: str) -> bool:
    """The same by the standard library alone."""
    try:
        network = parse_range(text)
        found: Any = ipaddress.ip_address(address)
    except ValueError:
        return False
    return (getattr(found, "ipv4_mapped", None) or found) in network


@fuzzed
@given(mutated([b"203.0.113.9, 10.0.0.1", b"unknown", b"[2001:db8::1]:80, 10.0.0.2", b"10.0.0.1:1234", b"_hid, ,,"]))
async def test_fuzz_a_forwarded_address_is_the_first_that_no_proxy_of_ours_wrote(forwarded: bytes) -> None:
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["client"])

    scope = {"type": "http", "client": ("10.0.0.7", 1), "scheme": "http", "headers": [(b"x-forwarded-for", forwarded)]}
    trusted = behind_trusted_proxies(app, ["10.0.0.0/8"])
    await trusted(dict(scope), None, None)  # type: ignore[arg-type]
    # Who is not listed is believed nothing.
    await trusted({**scope, "client": ("192.0.2.1", 1)}, None, None)  # type: ignore[arg-type]
    assert seen[1] == ("192.0.2.1", 1)
    host = seen[0][0]
    assert isinstance(host, str)
    assert str(ipaddress.ip_address(host)) == host
    if host != "10.0.0.7":
        words = forwarded.decode("latin-1").replace("[", ",").replace("]", ",").split(",")
        assert host in {written for word in words for written in _addresses_in(word.strip())}


def _addresses_in(word: str) -> set[str]:
    found = set()
    for written in (word, word.partition(":")[0]):
        with contextlib.suppress(ValueError):
            address = ipaddress.ip_address(written)
            found.add(str(getattr(address, "ipv4_mapped", None) or address))
    return found


@fuzzed
@given(mutated([b"gateway.example.com:8443", b"[::1]:80", b"192.0.2.1", b"a..b", b"http://x/", b"https://u:p@h/"]))
def test_fuzz_a_host_and_a_url_are_read_or_refused(written: bytes) -> None:
    found = parse_authority(written)
    assert found is None or (found.name == found.name.lower() and (found.port is None or found.port <= 99999))
    fault = fault_of_url(written.decode("utf-8", "replace"))
    assert fault is None or isinstance(fault, str)


@fuzzed
@given(st.dictionaries(st.sampled_from([b"x-tidegate-end-user", b"x-tidegate-session", b"anthropic-beta"]), _values))
def test_fuzz_labels_of_a_request_are_bounded(values: dict[bytes, bytes]) -> None:
    headers = RoadHeaders(values)
    with contextlib.suppress(TidegateError):
        said = headers.attribution(parse_chat(CHATS[3]), ())
        assert len(said.end_user or "") <= 256
        assert len(said.session_id or "") <= 256
    assert len(headers.forwarded("r-1")) <= len(values) + 1

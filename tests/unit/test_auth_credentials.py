"""The credential of a request: where it may stand, and what is refused before anything is looked up."""

import pytest

from tidegate.auth.credentials import MAXIMUM_BYTES, is_api_key, read_credential
from tidegate.errors import AuthenticationError, InvalidApiKey, InvalidToken, MissingCredentials

KEY = b"tg_abcdefgh_" + b"x" * 43
OTHER = b"tg_12345678_" + b"y" * 43
TOKEN = b"eyJhbGciOiJIUzI1NiJ9.e30.c2ln"
NOISE = [(b"host", b"gateway"), (b"content-type", b"application/json"), (b"user-agent", b"test")]


@pytest.mark.parametrize(
    "headers",
    [
        [(b"authorization", b"Bearer " + KEY)],
        [(b"authorization", b"bearer " + KEY)],
        [(b"authorization", b"BEARER   " + KEY + b" ")],
        [(b"x-api-key", KEY)],
        [(b"x-api-key", b" " + KEY + b" ")],
        [(b"authorization", b"Bearer " + KEY), (b"x-api-key", KEY)],
        [(b"x-api-key", KEY), (b"authorization", b"Bearer " + KEY)],
        [(b"x-api-key", b""), (b"authorization", b"Bearer " + KEY)],
        [(b"authorization", b"Bearer "), (b"x-api-key", KEY)],
        [(b"authorization", b"Basic dXNlcjpwYXNz"), (b"x-api-key", KEY)],
    ],
)
def test_a_credential_is_found_in_either_header(headers: list[tuple[bytes, bytes]]) -> None:
    assert read_credential([*NOISE, *headers, *NOISE]) == KEY


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [(b"authorization", b"")],
        [(b"authorization", b"Bearer")],
        [(b"authorization", b"Bearer   ")],
        [(b"x-api-key", b"  ")],
        [(b"cookie", b"key=" + KEY)],
    ],
)
def test_no_credential_is_missing_credentials_and_says_how_to_send_one(headers: list[tuple[bytes, bytes]]) -> None:
    with pytest.raises(MissingCredentials, match=r"No credentials were sent: send 'Authorization: Bearer") as refused:
        read_credential([*NOISE, *headers])
    assert refused.value.headers["WWW-Authenticate"] == "Bearer"


@pytest.mark.parametrize("value", [b"Basic dXNlcjpwYXNz", KEY, b"Token " + KEY])
def test_another_scheme_is_missing_credentials_and_says_so(value: bytes) -> None:
    with pytest.raises(MissingCredentials, match="not of the form Bearer") as refused:
        read_credential([(b"authorization", value)])
    assert value.decode() not in refused.value.message


@pytest.mark.parametrize(
    ("headers", "error"),
    [
        ([(b"authorization", b"Bearer " + KEY), (b"x-api-key", OTHER)], InvalidApiKey),
        ([(b"authorization", b"Bearer " + TOKEN), (b"x-api-key", KEY)], InvalidApiKey),
        ([(b"authorization", b"Bearer " + TOKEN), (b"x-api-key", b"eyJ.other.token")], InvalidToken),
        ([(b"x-api-key", KEY), (b"x-api-key", OTHER)], InvalidApiKey),
        ([(b"authorization", b"Bearer " + KEY), (b"authorization", b"Bearer " + OTHER)], InvalidApiKey),
    ],
)
def test_two_different_credentials_are_refused(
    headers: list[tuple[bytes, bytes]], error: type[AuthenticationError]
) -> None:
    with pytest.raises(error, match="two different credentials"):
        read_credential(headers)


def test_a_credential_longer_than_any_is_refused_unread() -> None:
    with pytest.raises(InvalidToken, match="longer than any"):
        read_credential([(b"authorization", b"Bearer " + b"a" * (MAXIMUM_BYTES + 1))])
    with pytest.raises(InvalidApiKey, match="longer than any"):
        read_credential([(b"x-api-key", b"tg_" + b"a" * MAXIMUM_BYTES)])


def test_only_what_begins_with_the_mark_is_judged_as_a_key() -> None:
    assert is_api_key(KEY)
    assert is_api_key(b"tg_")
    assert not is_api_key(TOKEN)
    assert not is_api_key(b"TG_abcdefgh_")

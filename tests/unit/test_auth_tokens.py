"""Access tokens: what is required of one, and how keys are rotated without a log-out."""

import base64
import json
import uuid
from typing import Any

import jwt
import pytest

from tidegate.auth.keyring import Keyring
from tidegate.auth.tokens import CLOCK_SKEW_S, AccessTokens
from tidegate.errors import AuthenticationError, InvalidToken, TokenExpired

SECRET = b"0123456789abcdef0123456789abcdef"
OTHER_SECRET = b"fedcba9876543210fedcba9876543210"
USER = uuid.UUID(int=7)
NOW = 1_800_000_000.0


class Clock:
    def __init__(self, now: float = NOW) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def _tokens(keyring: Keyring | None = None, clock: Clock | None = None) -> AccessTokens:
    return AccessTokens(keyring or Keyring({"1": SECRET}), minutes=15, clock=clock or Clock())


def _claims(**changed: Any) -> dict[str, Any]:
    now = int(NOW)
    claims = {
        "iss": "tidegate",
        "aud": "tidegate",
        "sub": str(USER),
        "iat": now,
        "nbf": now,
        "exp": now + 60,
        "jti": "j",
    }
    return {name: value for name, value in (claims | changed).items() if value is not None}


def _signed(claims: dict[str, Any], *, secret: bytes = SECRET, kid: str | None = "1", algorithm: str = "HS256") -> str:
    return jwt.encode(claims, secret, algorithm=algorithm, headers={"kid": kid} if kid else None)


def test_a_token_says_who_and_until_when_in_the_contracts_form() -> None:
    tokens = _tokens()
    token = tokens.issue(USER)
    verified = tokens.verify(token)
    assert (verified.user_id, verified.expires_at) == (USER, NOW + 15 * 60)
    assert jwt.get_unverified_header(token) == {"alg": "HS256", "typ": "JWT", "kid": "1"}
    claims = jwt.decode(token, options={"verify_signature": False})
    assert claims == {
        "iss": "tidegate",
        "aud": "tidegate",
        "sub": str(USER),
        "iat": NOW,
        "nbf": NOW,
        "exp": NOW + 900,
        "jti": verified.token_id,
    }


def test_no_two_tokens_share_an_id() -> None:
    tokens = _tokens()
    assert len({tokens.verify(tokens.issue(USER)).token_id for _ in range(10)}) == 10


def test_a_token_ends_at_its_second() -> None:
    clock = Clock()
    tokens = _tokens(clock=clock)
    token = tokens.issue(USER)
    clock.now = NOW + 900 - 0.001
    tokens.verify(token)
    clock.now = NOW + 900
    with pytest.raises(TokenExpired, match="sign in again"):
        tokens.verify(token)


def test_a_new_key_signs_while_the_old_one_still_verifies() -> None:
    old = _tokens(Keyring({"1": SECRET})).issue(USER)
    rotated = _tokens(Keyring({"2": OTHER_SECRET, "1": SECRET}))
    assert rotated.verify(old).user_id == USER
    assert jwt.get_unverified_header(rotated.issue(USER))["kid"] == "2"
    with pytest.raises(InvalidToken, match="not known here"):
        _tokens(Keyring({"2": OTHER_SECRET})).verify(old)


@pytest.mark.parametrize("name", ["iss", "aud", "sub", "iat", "nbf", "exp", "jti"])
def test_every_claim_is_required(name: str) -> None:
    with pytest.raises(InvalidToken):
        _tokens().verify(_signed(_claims(**{name: None})))


@pytest.mark.parametrize(
    "changed",
    [
        {"iss": "elsewhere"},
        {"aud": "elsewhere"},
        {"sub": "nobody"},
        {"sub": 7},
        {"jti": 7},
        {"exp": "soon"},
        {"exp": [1]},
        {"iat": NOW + CLOCK_SKEW_S + 1},
        {"nbf": NOW + CLOCK_SKEW_S + 1},
    ],
)
def test_a_claim_of_another_value_is_refused(changed: dict[str, Any]) -> None:
    _tokens().verify(_signed(_claims()))
    with pytest.raises(InvalidToken):
        _tokens().verify(_signed(_claims(**changed)))


def test_a_token_of_a_clock_slightly_ahead_is_accepted() -> None:
    ahead = NOW + CLOCK_SKEW_S
    assert _tokens().verify(_signed(_claims(iat=ahead, nbf=ahead))).user_id == USER


@pytest.mark.parametrize(
    "token",
    [
        "",
        "x",
        "a.b.c",
        "eyJ.eyJ.",
        "é.é.é",
        "." * 100,
        _signed(_claims(), secret=OTHER_SECRET),
        _signed(_claims(), kid=None),
        _signed(_claims(), kid="2"),
        _signed(_claims(), secret=SECRET * 2, algorithm="HS512"),
    ],
)
def test_what_no_known_key_signed_by_hs256_is_refused_without_a_trace_of_it(token: str) -> None:
    with pytest.raises(InvalidToken) as refused:
        _tokens().verify(token)
    assert refused.value.__cause__ is None
    assert not token or token not in refused.value.message


def test_an_unsigned_token_is_refused() -> None:
    header, claims = ({"alg": "none", "typ": "JWT", "kid": "1"}, _claims())
    parts = [base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode() for part in (header, claims)]
    with pytest.raises(AuthenticationError):
        _tokens().verify(".".join([*parts, ""]))


def test_a_changed_token_is_refused() -> None:
    token = _tokens().issue(USER)
    header, _, signature = token.split(".")
    forged = base64.urlsafe_b64encode(json.dumps(_claims(sub=str(uuid.uuid4()))).encode()).rstrip(b"=").decode()
    with pytest.raises(InvalidToken):
        _tokens().verify(f"{header}.{forged}.{signature}")

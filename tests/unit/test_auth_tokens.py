"""Access tokens: what is required of one, and how keys are rotated without a log-out."""

import base64
import hmac
import json
import uuid
from typing import Any

import jwt
import pytest

from tidegate.auth.keyring import Keyring
from tidegate.auth.signing_keys import Algorithm, SigningKeys
from tidegate.auth.tokens import CLOCK_SKEW_S, AccessTokens
from tidegate.errors import AuthenticationError, InvalidToken, TokenExpired

SECRET = b"0123456789abcdef0123456789abcdef"
OTHER_SECRET = b"fedcba9876543210fedcba9876543210"
USER = uuid.UUID(int=7)
SIGN_IN = uuid.UUID(int=8)
ALGORITHMS: list[Algorithm] = ["HS256", "EdDSA"]
NOW = 1_800_000_000.0


class Clock:
    def __init__(self, now: float = NOW) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def _tokens(keyring: Keyring | None = None, clock: Clock | None = None, algorithm: Algorithm = "HS256") -> AccessTokens:
    keyring = keyring or Keyring({"1": SECRET})
    return AccessTokens(keyring, minutes=15, algorithm=algorithm, clock=clock or Clock())


def _claims(**changed: Any) -> dict[str, Any]:
    now = int(NOW)
    claims = {
        "iss": "tidegate",
        "aud": "tidegate",
        "sub": str(USER),
        "sid": str(SIGN_IN),
        "iat": now,
        "nbf": now,
        "exp": now + 60,
        "jti": "j",
    }
    return {name: value for name, value in (claims | changed).items() if value is not None}


def _signed(
    claims: dict[str, Any],
    *,
    secret: bytes = SECRET,
    kid: str | None = "1",
    algorithm: str = "HS256",
    header: dict[str, Any] | None = None,
) -> str:
    headers = ({"kid": kid} if kid else {}) | (header or {})
    return jwt.encode(claims, secret, algorithm=algorithm, headers=headers)


def test_a_token_says_who_and_until_when_in_the_contracts_form() -> None:
    tokens = _tokens()
    token = tokens.issue(USER, SIGN_IN)
    verified = tokens.verify(token)
    assert (verified.user_id, verified.sign_in_id, verified.expires_at) == (USER, SIGN_IN, NOW + 15 * 60)
    assert jwt.get_unverified_header(token) == {"alg": "HS256", "typ": "JWT", "kid": "1"}
    claims = jwt.decode(token, options={"verify_signature": False})
    assert claims == {
        "iss": "tidegate",
        "aud": "tidegate",
        "sub": str(USER),
        "sid": str(SIGN_IN),
        "iat": NOW,
        "nbf": NOW,
        "exp": NOW + 900,
        "jti": verified.token_id,
    }


def test_no_two_tokens_share_an_id() -> None:
    tokens = _tokens()
    assert len({tokens.verify(tokens.issue(USER, SIGN_IN)).token_id for _ in range(10)}) == 10


def test_a_token_ends_at_its_second() -> None:
    clock = Clock()
    tokens = _tokens(clock=clock)
    token = tokens.issue(USER, SIGN_IN)
    clock.now = NOW + 900 - 0.001
    tokens.verify(token)
    clock.now = NOW + 900
    with pytest.raises(TokenExpired, match="sign in again"):
        tokens.verify(token)


def test_a_token_may_be_given_less_time() -> None:
    tokens = _tokens()
    assert tokens.verify(tokens.issue(USER, SIGN_IN, lifetime_s=20)).expires_at == NOW + 20


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_new_key_signs_while_the_old_one_still_verifies(algorithm: Algorithm) -> None:
    old = _tokens(Keyring({"1": SECRET}), algorithm=algorithm).issue(USER, SIGN_IN)
    rotated = _tokens(Keyring({"2": OTHER_SECRET, "1": SECRET}), algorithm=algorithm)
    assert rotated.verify(old).user_id == USER
    assert jwt.get_unverified_header(rotated.issue(USER, SIGN_IN))["kid"] == "2"
    with pytest.raises(InvalidToken, match="not known here"):
        _tokens(Keyring({"2": OTHER_SECRET}), algorithm=algorithm).verify(old)
    # A kid that stands for another secret by now.
    with pytest.raises(InvalidToken, match="not one of this gateway"):
        _tokens(Keyring({"1": OTHER_SECRET}), algorithm=algorithm).verify(old)


@pytest.mark.parametrize("name", ["iss", "aud", "sub", "sid", "iat", "nbf", "exp", "jti"])
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
        {"sid": "none"},
        {"sid": 7},
        {"aud": ["tidegate", "elsewhere"]},
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
    token = _tokens().issue(USER, SIGN_IN)
    header, _, signature = token.split(".")
    forged = base64.urlsafe_b64encode(json.dumps(_claims(sub=str(uuid.uuid4()))).encode()).rstrip(b"=").decode()
    with pytest.raises(InvalidToken):
        _tokens().verify(f"{header}.{forged}.{signature}")


@pytest.mark.parametrize(
    "header",
    [
        {"crit": ["exp"], "exp": 1},
        {"crit": ["b64"], "b64": True},
        {"crit": []},
        {"typ": "at+jwt"},
        {"typ": 7},
        {"kid": "../1"},
    ],
)
def test_a_header_that_asks_for_more_is_refused(header: dict[str, Any]) -> None:
    _tokens().verify(_signed(_claims(), header={"x": "y"}))
    with pytest.raises(InvalidToken):
        _tokens().verify(_signed(_claims(), header=header))


def test_an_extension_that_the_library_knows_is_refused_too() -> None:
    # What the library would not write itself: RFC 7797's b64, named as critical and harmless.
    def by_hand(**header: Any) -> str:
        parts = ({"alg": "HS256", "kid": "1", **header}, _claims())
        signed = ".".join(base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode() for part in parts)
        mac = hmac.digest(SECRET, signed.encode(), "sha256")
        return f"{signed}.{base64.urlsafe_b64encode(mac).rstrip(b'=').decode()}"

    _tokens().verify(by_hand())
    with pytest.raises(InvalidToken):
        _tokens().verify(by_hand(crit=["b64"], b64=True))


def test_a_type_may_be_left_out() -> None:
    assert _tokens().verify(_signed(_claims(), header={"typ": None})).user_id == USER


def test_an_algorithm_is_the_settings_and_never_the_tokens_own() -> None:
    by_secret, by_pair = _tokens(), _tokens(algorithm="EdDSA")
    assert by_pair.verify(by_pair.issue(USER, SIGN_IN)).sign_in_id == SIGN_IN
    assert jwt.get_unverified_header(by_pair.issue(USER, SIGN_IN)) == {"alg": "EdDSA", "typ": "JWT", "kid": "1"}
    for verifier, issuer in ((by_secret, by_pair), (by_pair, by_secret)):
        with pytest.raises(InvalidToken):
            verifier.verify(issuer.issue(USER, SIGN_IN))
    # The oldest trick: a public key, which everybody has, taken for an HMAC's secret (RFC 8725, 2.1).
    (published,) = by_pair.keys.jwks()["keys"]
    public = base64.urlsafe_b64decode(published["x"] + "=")
    for secret in (public, published["x"].encode(), SECRET):
        with pytest.raises(InvalidToken):
            by_pair.verify(_signed(_claims(), secret=secret))


def test_a_pair_is_made_of_its_secret_alone_and_its_secret_half_is_shown_nowhere() -> None:
    ring = Keyring({"2": OTHER_SECRET, "1": SECRET})
    keys = SigningKeys(ring, "EdDSA").jwks()["keys"]
    assert SigningKeys(ring, "EdDSA").jwks()["keys"] == keys
    assert [key["kid"] for key in keys] == ["2", "1"]
    assert all(key.keys() == {"kty", "crv", "x", "kid", "use", "alg"} for key in keys)
    assert {(key["kty"], key["crv"], key["alg"], key["use"]) for key in keys} == {("OKP", "Ed25519", "EdDSA", "sig")}
    # One secret under two kids is two pairs.
    assert SigningKeys(Keyring({"3": SECRET}), "EdDSA").jwks()["keys"][0]["x"] not in {key["x"] for key in keys}
    assert SigningKeys(ring, "HS256").jwks() == {"keys": []}
    assert SECRET.decode() not in repr(SigningKeys(ring, "HS256"))


def test_the_pair_of_a_secret_never_changes() -> None:
    # Else an update of this program would void every token that is out.
    (key,) = SigningKeys(Keyring({"1": SECRET}), "EdDSA").jwks()["keys"]
    assert key["x"] == "vY4vh1DLNuV4j-fOt8m0aQBSlifFF1KcmItjC5rWyGA"

"""Access tokens and API keys that are not ours, or not any more: refused by the real gateway, all with a 401.

Each is a real token of a sign-in that stands, changed in one place, so that nothing else is what it is refused for.
"""

import base64
import hashlib
import hmac
import json
import time
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tests.security.attacked import JWT_SECRET, Attacked, plan_for, with_variables
from tests.support.client import RawClient
from tests.support.upstream import ScriptedUpstream
from tests.support.waiting import eventually
from tidegate.auth.keyring import Keyring
from tidegate.auth.tokens import ISSUER, AccessTokens

Json = dict[str, Any]
# One of each way to be asked who one is: the framework's, the road's, a scope, a signed-in user.
ASKING: Final = (
    ("GET", "/auth/me"),
    ("POST", "/v1/chat/completions"),
    ("GET", "/api/audit"),
    ("GET", "/auth/sign-ins"),
)
REFUSED: Final = {"invalid_token", "token_expired", "missing_credentials", "invalid_api_key"}
NOW: Final = int(time.time())
ABSENT: Final = object()


def part(said: Any) -> str:
    text = said if isinstance(said, bytes) else json.dumps(said).encode()
    return base64.urlsafe_b64encode(text).rstrip(b"=").decode()


def signed(header: Any, claims: Any, secret: bytes = JWT_SECRET, digest: str = "sha256") -> str:
    """What no library would sign. Fields that are ABSENT are left out."""
    kept = [
        {name: value for name, value in said.items() if value is not ABSENT} if isinstance(said, dict) else said
        for said in (header, claims)
    ]
    text = ".".join(part(said) for said in kept)
    return f"{text}.{part(hmac.new(secret, text.encode(), digest).digest())}"


HEADER: Final[Json] = {"alg": "HS256", "typ": "JWT", "kid": "1"}
HEADERS: Final[dict[str, Json]] = {
    "no kid": {"kid": ABSENT},
    "an empty kid": {"kid": ""},
    "another kid": {"kid": "2"},
    "a kid that is a file": {"kid": "../../../../dev/null"},
    "a kid that is SQL": {"kid": "1' OR '1'='1"},
    "a kid with a NUL": {"kid": "1\0"},
    "a kid that is a number": {"kid": 1},
    "a kid that is a list": {"kid": ["1"]},
    "no algorithm": {"alg": ABSENT},
    "none": {"alg": "none"},
    "None": {"alg": "None"},
    "nOnE": {"alg": "nOnE"},
    "another algorithm": {"alg": "HS512"},
    "an asymmetric algorithm": {"alg": "RS256"},
    "the other algorithm of this gateway": {"alg": "EdDSA"},
    "a list of algorithms": {"alg": ["HS256", "none"]},
    "another type": {"typ": "at+jwt"},
    "an extension that must be understood": {"crit": ["exp"], "exp": NOW},
    "a payload that is not encoded": {"crit": ["b64"], "b64": False},
}
CLAIMS: Final[dict[str, Json]] = {
    "expired": {"exp": NOW - 1},
    "expired long ago": {"exp": 1},
    "an end that is text": {"exp": str(NOW + 600)},
    "an end that is no number": {"exp": float("nan")},
    "an end that is a list": {"exp": [NOW + 600]},
    "an end past any time": {"exp": 10**400},
    "no end": {"exp": ABSENT},
    "not valid yet": {"nbf": NOW + 3600},
    "issued in the future": {"iat": NOW + 3600},
    "no beginning": {"nbf": ABSENT},
    "no time of issue": {"iat": ABSENT},
    "another audience": {"aud": "https://elsewhere.example.com"},
    "an audience among others": {"aud": [ISSUER, "elsewhere"]},
    "no audience": {"aud": ABSENT},
    "another issuer": {"iss": "elsewhere"},
    "no issuer": {"iss": ABSENT},
    "no id": {"jti": ABSENT},
    "nobody": {"sub": str(uuid.uuid4())},
    "no subject": {"sub": ABSENT},
    "a subject that is no id": {"sub": "admin"},
    "a subject that is a list": {"sub": ["admin"]},
    "no sign-in": {"sid": ABSENT},
    "a sign-in of nobody's": {"sid": str(uuid.uuid4())},
}


def wrong_tokens(genuine: str, other: str) -> dict[str, str]:
    """By what is wrong. `other` is another user's token."""
    claims, others = (jwt.decode(token, options={"verify_signature": False}) for token in (genuine, other))
    wrong = {name: signed(HEADER | changed, claims) for name, changed in HEADERS.items()}
    wrong |= {name: signed(HEADER, claims | changed) for name, changed in CLAIMS.items()}
    head, body, signature = genuine.split(".")
    none = part({"alg": "none", "typ": "JWT", "kid": "1"})
    rsa = generate_private_key(65537, 2048)
    wrong |= {
        "none, without a signature": f"{none}.{body}.",
        "none, without its dot": f"{none}.{body}",
        "none, with the old signature": f"{none}.{body}.{signature}",
        "no signature": f"{head}.{body}.",
        "the signature cut": f"{head}.{body}.{signature[:-4]}",
        "another's signature": f"{head}.{body}.{other.rpartition('.')[2]}",
        "another's claims": f"{head}.{other.split('.')[1]}.{signature}",
        "another's sign-in": signed(HEADER, claims | {"sid": others["sid"]}),
        "an admin's subject in one's own sign-in": signed(HEADER, others | {"sub": claims["sub"]}),
        "an empty secret": signed(HEADER, claims, b""),
        "another secret": signed(HEADER, claims, b"x" * 32),
        "HS512 by the right secret": signed(HEADER | {"alg": "HS512"}, claims, digest="sha512"),
        "a key that it brings along": signed(HEADER | {"jwk": {"kty": "oct", "k": part(b"x" * 32)}}, claims, b"x" * 32),
        "a key at an address": jwt.encode(
            claims, rsa, "RS256", headers={"kid": "1", "jku": "https://elsewhere.example.com/jwks"}
        ),
        "claims that are a list": signed(HEADER, [claims]),
        "a header that is a list": signed([HEADER], claims),
        "claims that are text": signed(HEADER, b"claims"),
        "claims nested too deep": signed(HEADER, b"[" * 2000 + b"]" * 2000),
        "one claim twice": signed(HEADER, json.dumps(others)[:-1].encode() + b', "sub": "admin"}'),
        "more parts": f"{genuine}.{signature}",
        "no parts": "eyJ",
        "dots": "..",
        "a comma and another": f"{genuine},{genuine}",
        "what is no base64": f"{head}.{body}!.{signature}",
        "longer than any": genuine + "A" * 5000,
    }
    return wrong


WRONG_KEYS: Final = (
    "tg_",
    "tg_abcd2345_",
    "tg_' OR '1'='1_QhX4c0m8Tn2vKp6wRz9bLd3fJs7gYu1eAi5oVk0xWqE",
    "tg_%_QhX4c0m8Tn2vKp6wRz9bLd3fJs7gYu1eAi5oVk0xWqE",
    "tg_________QhX4c0m8Tn2vKp6wRz9bLd3fJs7gYu1eAi5oVk0xWqE",
)


async def assert_refused(attacked: Attacked, credential: str, what: str) -> None:
    for method, path in ASKING:
        answer = await attacked.call(method, path, by=credential)
        assert answer.status_code == 401, f"{what}: {method} {path} {answer.status_code} {answer.text}"
        assert answer.json()["error"]["code"] in REFUSED, what


async def test_a_token_that_is_wrong_in_one_place_opens_nothing(attacked: Attacked) -> None:
    genuine, other = (attacked.credentials[name] for name in ("admin", "member"))
    again = signed(HEADER, jwt.decode(genuine, options={"verify_signature": False}))
    for token in (genuine, again):
        assert (await attacked.call("GET", "/auth/me", by=token)).json()["role"] == "admin"
    wrong = wrong_tokens(genuine, other)
    assert len(wrong) > 60
    for what, token in wrong.items():
        await assert_refused(attacked, token, what)


async def test_a_key_that_is_wrong_in_one_place_opens_nothing(attacked: Attacked) -> None:
    genuine, other = (attacked.keys[name].secret for name in ("keeper", "warden"))
    assert (await attacked.call("GET", "/auth/me", by=genuine)).status_code == 200
    wrong = [
        genuine[:-1],
        genuine + "A",
        genuine[:-1] + ("A" if genuine[-1] != "A" else "B"),
        genuine.upper(),
        genuine.replace("tg_", "TG_"),
        genuine[:12] + other[12:],
        other[:12] + genuine[12:],
        genuine.rpartition("_")[2],
        *WRONG_KEYS,
    ]
    for credential in wrong:
        if credential != other:
            await assert_refused(attacked, credential, f"key {wrong.index(credential)}")


async def test_a_credential_counts_in_its_place_alone_and_once(attacked: Attacked) -> None:
    admin, member = attacked.credentials["admin"], attacked.credentials["member"]
    key, other = attacked.credentials["keeper"], attacked.credentials["warden"]
    places: tuple[tuple[str, dict[str, str]], ...] = (
        (f"?access_token={admin}", {}),
        (f"?api_key={key}", {}),
        ("", {"cookie": f"tidegate_access={key}"}),
        ("", {"cookie": f"__Host-tidegate_access={admin}"}),
        ("", {"authorization": f"Basic {base64.b64encode(f'admin:{admin}'.encode()).decode()}"}),
        ("", {"authorization": f"Token {admin}"}),
        ("", {"authorization": admin}),
        ("", {"proxy-authorization": f"Bearer {admin}"}),
        ("", {"x-forwarded-authorization": f"Bearer {admin}"}),
        ("", {"x-forwarded-user": "admin@example.com", "x-remote-user": "admin"}),
        ("", {"authorization": f"Bearer {admin}", "x-api-key": key}),
        ("", {"authorization": f"Bearer {key}", "x-api-key": other}),
    )
    for query, headers in places:
        answer = await attacked.call("GET", f"/auth/me{query}", headers=headers)
        assert answer.status_code == 401, f"{query} {list(headers)}: {answer.text}"
    for one, two in ((admin, member), (member, admin), (key, other)):
        async with RawClient(attacked.gateway.base_url) as client:
            pair = f"authorization: Bearer {one}\r\nauthorization: Bearer {two}\r\n"
            await client.send_raw(f"GET /auth/me HTTP/1.1\r\nhost: x\r\n{pair}\r\n".encode())
            assert (await client.head()).status == 401


async def test_a_token_ends_with_its_sign_in_whatever_it_says_of_its_end(attacked: Attacked) -> None:
    token = (await attacked.begin("other")).access_token
    claims = jwt.decode(token, options={"verify_signature": False})
    longer = signed(HEADER, claims | {"exp": NOW + 10**6})
    for one in (token, longer):
        assert (await attacked.call("GET", "/auth/me", by=one)).status_code == 200
    await attacked.call("DELETE", f"/auth/sign-ins/{claims['sid']}", by=token)

    async def is_over() -> bool:
        return [(await attacked.call("GET", "/auth/me", by=one)).status_code for one in (token, longer)] == [401, 401]

    await eventually(is_over)


@pytest.fixture(scope="module")
async def with_public_keys(
    models: ScriptedUpstream, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Attacked]:
    plan = with_variables(plan_for(models), TIDEGATE_AUTH__JWT_ALGORITHM="EdDSA")
    folder: Path = tmp_path_factory.mktemp("eddsa")
    async with Attacked.open(folder, plan) as attacked:
        yield attacked


async def test_a_public_key_is_no_secret_to_sign_by(with_public_keys: Attacked) -> None:
    attacked = with_public_keys
    hmac_token = attacked.credentials["admin"]
    claims = jwt.decode(hmac_token, options={"verify_signature": False})
    (published,) = (await attacked.call("GET", "/.well-known/jwks.json")).json()["keys"]
    raw = base64.urlsafe_b64decode(published["x"] + "=")
    public = Ed25519PublicKey.from_public_bytes(raw)
    forms = {
        "its bytes": raw,
        "its text": published["x"].encode(),
        "PEM": public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
        "DER": public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
        "OpenSSH": public.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH),
        "JSON": json.dumps(published).encode(),
    }
    header = HEADER | {"kid": published["kid"]}
    wrong = {f"HS256 by {name}": signed(header, claims, secret) for name, secret in forms.items()}
    wrong |= {f"EdDSA by {name}": signed(header | {"alg": "EdDSA"}, claims, secret) for name, secret in forms.items()}
    wrong["HS256 by the secret"] = hmac_token
    wrong["somebody's own key"] = jwt.encode(claims, Ed25519PrivateKey.generate(), "EdDSA", headers={"kid": "1"})
    wrong["none"] = f"{part(header | {'alg': 'none'})}.{part(claims)}."
    for what, token in wrong.items():
        await assert_refused(attacked, token, what)
    genuine = AccessTokens(Keyring({"1": JWT_SECRET}), minutes=15, algorithm="EdDSA")
    token = genuine.issue(uuid.UUID(claims["sub"]), uuid.UUID(claims["sid"]))
    assert (await attacked.call("GET", "/auth/me", by=token)).status_code == 200
    assert hashlib.sha256(JWT_SECRET).hexdigest() not in json.dumps(published)

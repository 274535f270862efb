"""What a second factor stands on: the codes of RFC 6238, recovery codes, and the sealing of secrets."""

import base64
import uuid
from collections.abc import Mapping
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
from pydantic import SecretStr, ValidationError

from tidegate.accounts.schemas import Login
from tidegate.accounts.second_factor import totp
from tidegate.accounts.second_factor.recovery_codes import hash_of, new_code
from tidegate.accounts.second_factor.sealing import Sealed, Sealing
from tidegate.auth.keyring import Keyring, Keyrings
from tidegate.errors import Unavailable
from tidegate.settings import Settings
from tidegate.settings.groups import AuthSettings

# RFC 6238, appendix B, for SHA-1: its codes have 8 digits, of which 6 are the last.
SECRET = b"12345678901234567890"
VECTORS = {
    59: "94287082",
    1111111109: "07081804",
    1111111111: "14050471",
    1234567890: "89005924",
    2000000000: "69279037",
    20000000000: "65353130",
}
NOW = 1_800_000_000.0
STEP = int(NOW // totp.STEP_S)
ADA, GRACE = uuid.uuid4(), uuid.uuid4()
OLD, NEW = b"o" * 32, b"n" * 32
LONG = "secret-0123456789-abcdefghijklmnopqrs"


@pytest.mark.parametrize(("moment", "code"), VECTORS.items())
def test_codes_are_those_of_the_standard(moment: int, code: str) -> None:
    assert totp.code_at(SECRET, moment // totp.STEP_S) == code[-6:]


def test_a_code_is_taken_in_its_step_and_in_those_beside_it() -> None:
    taken = {beside: totp.step_of(SECRET, totp.code_at(SECRET, STEP + beside), NOW, after=0) for beside in range(-3, 4)}
    assert taken == {-3: None, -2: None, -1: STEP - 1, 0: STEP, 1: STEP + 1, 2: None, 3: None}


def test_the_edges_of_a_step_are_exact() -> None:
    code = totp.code_at(SECRET, STEP)
    begins = STEP * totp.STEP_S
    # A step before its own, its own, and one after: 90 seconds.
    for moment, is_taken in (
        (begins - 30.001, False),
        (begins - 30, True),
        (begins + 59.999, True),
        (begins + 60, False),
    ):
        assert (totp.step_of(SECRET, code, moment, after=0) is not None) == is_taken, moment
    # The first steps of all have none before them.
    assert totp.step_of(SECRET, totp.code_at(SECRET, 0), 0.0, after=-1) == 0


def test_no_code_is_taken_up_to_the_last_step_that_was_used() -> None:
    for beside in (-1, 0, 1):
        code = totp.code_at(SECRET, STEP + beside)
        assert totp.step_of(SECRET, code, NOW, after=STEP + beside) is None
        assert totp.step_of(SECRET, code, NOW, after=STEP + beside - 1) == STEP + beside


@pytest.mark.parametrize(
    "text",
    [
        "",
        "12345",
        "1234567",
        "12345a",
        "１２３４５６",
        "١٢٣٤٥٦",
        "12345²",
        "12345\n",
        "\x00123456",
        "-12345",
        "+12345",
        "1e1000",
    ],
)
def test_what_is_no_six_digits_of_ascii_is_no_code(text: str) -> None:
    assert not totp.is_code(text)


def test_a_secret_has_160_random_bits_and_an_app_reads_it() -> None:
    secret = totp.new_secret()
    assert len(secret) == 20
    assert secret != totp.new_secret()
    address = urlsplit(totp.uri(secret, "a+b&c=d?e/f@example.com", "Tide gate"))
    assert (address.scheme, address.netloc) == ("otpauth", "totp")
    assert unquote(address.path) == "/Tide gate:a+b&c=d?e/f@example.com"
    told = {name: value for name, (value,) in parse_qs(address.query).items()}
    assert told == {
        "secret": totp.as_text(secret),
        "issuer": "Tide gate",
        "algorithm": "SHA1",
        "digits": "6",
        "period": "30",
    }
    assert base64.b32decode(told["secret"]) == secret


def test_a_recovery_code_is_known_however_it_is_written() -> None:
    code = new_code()
    assert len(code.replace("-", "")) * 5 >= 112
    assert len({new_code() for _ in range(100)}) == 100
    known = hash_of(code)
    assert known is not None
    assert {hash_of(code.upper()), hash_of(code.replace("-", "")), hash_of(code.replace("-", " "))} == {known}
    assert hash_of(new_code()) != known


@pytest.mark.parametrize("written", ["{0}0", "{0}\x00", "\u212a{0}", "{0}\n", "1234", "123456", "", "{0}{0}"])
def test_what_is_not_its_form_is_no_recovery_code(written: str) -> None:
    assert hash_of(written.format(new_code())) is None
    # The Kelvin sign is a k to `str.lower`.
    assert hash_of("\u212a" * 24) is None


def test_a_sealed_secret_opens_for_its_user_under_any_key_that_is_kept() -> None:
    old = Sealing(Keyring({"1": OLD}))
    sealed = old.seal(SECRET, ADA)
    assert SECRET not in sealed.sealed
    assert sealed.sealed != old.seal(SECRET, ADA).sealed
    rotated = Sealing(Keyring({"2": NEW, "1": OLD}))
    assert rotated.open(sealed, ADA) == SECRET
    assert not rotated.is_current(sealed.kid)
    assert rotated.seal(SECRET, ADA).kid == "2"


def test_a_sealed_secret_opens_for_nobody_else_and_not_when_it_was_changed() -> None:
    sealing = Sealing(Keyring({"1": OLD}))
    sealed = sealing.seal(SECRET, ADA)
    assert sealing.open(sealed, GRACE) is None
    for n in range(len(sealed.sealed)):
        changed = bytearray(sealed.sealed)
        changed[n] ^= 1
        assert sealing.open(Sealed(bytes(changed), "1"), ADA) is None
    for cut in (b"", sealed.sealed[:12], sealed.sealed[:-1]):
        assert sealing.open(Sealed(cut, "1"), ADA) is None
    # The same secret under another kid is another key.
    assert Sealing(Keyring({"2": OLD})).open(Sealed(sealed.sealed, "2"), ADA) is None
    assert Sealing(Keyring({"2": OLD})).open(sealed, ADA) is None
    assert "1234" not in repr(sealed)


def test_without_a_key_none_is_sealed_and_the_setting_is_named() -> None:
    with pytest.raises(Unavailable, match="TIDEGATE_AUTH__ENCRYPTION_KEYS"):
        Sealing(None).seal(SECRET, ADA)
    assert Sealing(None).open(Sealing(Keyring({"1": OLD})).seal(SECRET, ADA), ADA) is None


def test_keys_to_encrypt_by_are_the_settings_and_outside_production_derived_of_the_peppers() -> None:
    pairs = {name: (("1", SecretStr(f"{name}-{LONG}")),) for name in ("jwt_keys", "api_key_peppers")}
    named = {**pairs, "encryption_keys": (("1", SecretStr(LONG)),)}

    def ring(environment: str, auth: Mapping[str, object]) -> Keyring | None:
        settings = Settings.model_validate({"environment": environment, "auth": AuthSettings.model_validate(auth)})
        return Keyrings.load(settings).encryption

    derived = ring("test", pairs)
    assert derived is not None
    assert derived.current_kid == "generated-1"
    assert LONG.encode() not in derived.current
    assert ring("production", pairs) is None
    in_production, beside = ring("production", named), ring("test", named)
    assert in_production is not None
    assert beside is not None
    assert [kid for kid, _ in in_production.items()] == ["1"]
    # What was encrypted before the settings named any still opens.
    assert list(beside.items()) == [("1", LONG.encode()), ("generated-1", derived.current)]


@pytest.mark.parametrize("code", ["", "1" * 65, 123456, ["123456"], {"code": "123456"}])
def test_a_code_is_a_short_text(code: object) -> None:
    with pytest.raises(ValidationError):
        Login.model_validate({"email": "ada@example.com", "password": "x", "code": code})

"""No secret is read in a log, wherever it stands; what is none stays as it is."""

import string
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.alphabet import CHARACTERS
from tidegate.telemetry.redaction import may_hold_secret, redact, redact_fields, redact_value

SECRET = "S3cretS3cretS3cret"
API_KEY = "tg_abcdefgh_" + "Ab-_" * 10 + "xyz"
JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0." + SECRET


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"key {API_KEY} was used", "key tg_abcdefgh_[redacted] was used"),
        ("the token tgr_" + "Ab-_" * 10 + "xyz came twice", "the token tgr_[redacted] came twice"),
        ("/reset/tgm_" + "Ab-_" * 10 + "xyz", "/reset/tgm_[redacted]"),
        (f"Authorization: Bearer {SECRET}", "Authorization: Bearer [redacted]"),
        (f"bearer   {SECRET}", "bearer [redacted]"),
        ("Authorization: Basic dXNlcjpwYXNzd29yZA==", "Authorization: Basic [redacted]"),
        (f"sk-proj-{SECRET}", "sk-[redacted]"),
        (f"using sk-ant-api03-{SECRET}.", "using sk-[redacted]."),
        ("AIza" + "x" * 35, "AIza[redacted]"),
        (f"token={JWT};", "token=[redacted];"),
        (f"postgresql+asyncpg://app:{SECRET}@db:5432/x", "postgresql+asyncpg://app:[redacted]@db:5432/x"),
        (f"redis://:{SECRET}@cache/0", "redis://:[redacted]@cache/0"),
        (f"postgresql://app:a/b@{SECRET}@db/x", "postgresql://app:[redacted]@db/x"),
        (f"smtp://tide%40example.com:{SECRET}@mail:587", "smtp://tide%40example.com:[redacted]@mail:587"),
        (f"https://ghp_{SECRET}@git.example.com/x", "https://[redacted]@git.example.com/x"),
        (
            f"got -----BEGIN PRIVATE KEY-----\n{SECRET}\n-----END PRIVATE KEY----- !",
            "got -----BEGIN PRIVATE KEY-----[redacted] !",
        ),
        (f"-----BEGIN EC PRIVATE KEY-----\n{SECRET}", "-----BEGIN EC PRIVATE KEY-----[redacted]"),
        (f"{{'password': '{SECRET}', 'n': 1}}", "{'password': '[redacted]', 'n': 1}"),
        (f'{{"api_key": "{SECRET}"}}', "{\"api_key\": '[redacted]'}"),
        (f'{{"refresh_token":"a\\"{SECRET}"}}', "{\"refresh_token\":'[redacted]'}"),
        (f"?password={SECRET}&x=1", "?password=[redacted]&x=1"),
        (f"x-api-key: '{SECRET}'", "x-api-key: '[redacted]'"),
        ("password: hunter2 was tried", "password: [redacted] was tried"),
        ("Password:hunter", "Password:[redacted]"),
        ("/files/API_KEY:hunter2", "/files/API_KEY:[redacted]"),
        ("/as/basic dXNlcjpwYXNzd29yZA", "/as/basic [redacted]"),
        ("smtp_password: correcthorse\nuser: ada", "smtp_password: [redacted]\nuser: ada"),
        ("{client_secret: correcthorse, n: 1}", "{client_secret: [redacted], n: 1}"),
        ("x-api-key: " + "correct-horse-" * 20 + "1", "x-api-key: [redacted]"),
    ],
)
def test_secret_is_taken_out_of_text(text: str, shown: str) -> None:
    assert redact(text) == shown
    assert may_hold_secret(text)


@pytest.mark.parametrize(
    "text",
    [
        "Uvicorn running on http://127.0.0.1:8000 (Press CTRL+C to quit)",
        "http://localhost:11434/v1/models",
        "task-scheduling and risk-assessment",
        "tg_abcdefgh",
        "TIDEGATE_BOOTSTRAP__ADMIN_PASSWORD: must have at least 12 characters",
        "password: this one is of those that are guessed first",
        "the API key is missing: send Authorization: Bearer <key>",
        "eyJ",
        "input_tokens=5",
        "GET /v1/chat/completions",
        "postgresql+asyncpg://db:5432/x",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert redact(text) == text


def test_field_that_is_named_for_a_secret_is_taken_out_whole() -> None:
    fields = {
        "password": "a",
        "admin_password": "b",
        "X-API-Key": "c",
        "Authorization": "d",
        "set-cookie": "e",
        "client_secret": b"f",
        "access_token": "g",
        "input_tokens": 5,
        "key": "tg_abcdefgh",
        "password_set": True,
    }
    shown = redact_fields(fields)
    assert [name for name, value in shown.items() if value == "[redacted]"] == list(fields)[:7]
    assert (shown["input_tokens"], shown["key"], shown["password_set"]) == (5, "tg_abcdefgh", True)


def test_containers_are_walked_and_anything_else_is_its_text() -> None:
    class Client:
        def __str__(self) -> str:
            return f"<Client redis://:{SECRET}@h>"

    class Unprintable:
        def __str__(self) -> str:
            raise RuntimeError

    value = {
        "a": [({"password": SECRET},)],
        "b": Client(),
        "c": Unprintable(),
        1: {SECRET: 2},
        "d": f"x{API_KEY}".encode(),
    }
    shown = redact_value(value)
    assert shown == {
        "a": [[{"password": "[redacted]"}]],
        "b": "<Client redis://:[redacted]@h>",
        "c": "<Unprintable>",
        "1": {SECRET: 2},
        "d": "b'xtg_abcdefgh_[redacted]'",
    }


def test_depth_is_bounded() -> None:
    deep: object = SECRET
    for _ in range(500):
        deep = [deep]
    assert isinstance(redact_value(deep), list)


@given(
    before=st.text(alphabet=string.printable, max_size=20),
    secret=st.text(alphabet=string.ascii_letters + string.digits + "_-", min_size=43, max_size=43),
    after=st.sampled_from(["", " ", '"', "'", "\n", ",", "}", "/x", "&y=1"]),
)
def test_api_key_never_survives(before: str, secret: str, after: str) -> None:
    text = f"{before}tg_abcdefgh_{secret}{after}"
    assert secret not in redact(text)
    assert may_hold_secret(text)


@given(st.text(CHARACTERS, max_size=200))
def test_any_text_can_be_redacted_and_twice_is_once(text: str) -> None:
    once = redact(text)
    assert redact(once) == once


@pytest.mark.parametrize(
    "text", ["://:", "://a:b", "https://", "password=", 'secret="', "-----BEGIN ", "bearer ", "eyJ."]
)
def test_a_long_text_is_redacted_in_linear_time(text: str) -> None:
    began = time.process_time()
    redact(text * (64 * 1024 // len(text)))
    assert time.process_time() - began < 1

"""Settings: every fault named at once, nothing weak in production, no secret shown."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tidegate.cli.reference import ENV_EXAMPLE, SETTINGS_PAGE, env_example, settings_page
from tidegate.settings import Settings, unknown_variables, variable_names
from tidegate.settings.references import resolve_secret

_SECRET = "6f1d2c3b4a59687786a5b4c3d2e1f0ff0112233445566778899aabbccddeeff0"
_OTHER_SECRET = "a1b2c3d4e5f60718293a4b5c6d7e8f90112233445566778899aabbccddeeff01"
_PRODUCTION = {
    "TIDEGATE_ENVIRONMENT": "production",
    "TIDEGATE_DATABASE__URL": "postgresql+asyncpg://u:hidden-word@127.0.0.1/x",
    "TIDEGATE_REDIS__URL": "redis://127.0.0.1/0",
    "TIDEGATE_AUTH__JWT_KEYS": f"1:{_SECRET}",
    "TIDEGATE_AUTH__API_KEY_PEPPERS": f"1:{_OTHER_SECRET}",
}
# Settings belong to a process. Each is a fork of one that has imported them and read none: 0.4 s of CPU less for each.
_PROGRAM = """
import json, os, sys
from tidegate.settings import SettingsError, load_settings

def load(environment, folder):
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), number)
    try:
        settings = load_settings()
    except SettingsError as error:
        print("\\n".join(error.faults))
        return 1
    print(repr(settings))
    return 0

for line in sys.stdin:
    child = os.fork()
    if child == 0:
        code = 70
        try:
            code = load(*json.loads(line))
        except BaseException as error:
            print(repr(error), file=sys.stderr)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
Load = Callable[..., tuple[int, str]]


@pytest.fixture(scope="module")
def program() -> Iterator["subprocess.Popen[str]"]:
    with subprocess.Popen(
        [sys.executable, "-c", _PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as running:
        yield running
    assert running.returncode == 0


@pytest.fixture
def load(program: "subprocess.Popen[str]", tmp_path: Path) -> Load:
    """What a program with just these variables gets, in `tmp_path`: its exit code and what it prints."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("TIDEGATE_")}

    def ask(**variables: str) -> tuple[int, str]:
        assert program.stdin is not None
        assert program.stdout is not None
        program.stdin.write(json.dumps([{**clean, **variables}, str(tmp_path)]) + "\n")
        program.stdin.flush()
        code = int(program.stdout.readline())
        assert not (tmp_path / "stderr").read_text()
        return code, (tmp_path / "stdout").read_text()

    return ask


def test_every_fault_is_named_at_once(load: Load) -> None:
    code, faults = load(
        TIDEGATE_HTTP__MAX_BODY_BYTES="many",
        TIDEGATE_AUTH__ACCESS_TOKEN_MINUTES="61",
        TIDEGATE_AUTH__JWT_KEYS="1:short",
        TIDEGATE_DATABSE__URL="x",
        TIDEGATE_SERVER__PROT="1",
    )
    assert code == 1
    assert len(faults.splitlines()) == 5
    for name in (
        "TIDEGATE_HTTP__MAX_BODY_BYTES",
        "TIDEGATE_AUTH__ACCESS_TOKEN_MINUTES",
        "TIDEGATE_AUTH__JWT_KEYS",
        "did you mean TIDEGATE_DATABASE__URL",
        "did you mean TIDEGATE_SERVER__PORT",
    ):
        assert name in faults


def test_a_whole_production_environment_is_taken(load: Load) -> None:
    code, printed = load(**_PRODUCTION)
    assert code == 0
    assert _SECRET not in printed
    assert "hidden-word" not in printed


@pytest.mark.parametrize(
    ("variable", "value", "told"),
    [
        ("TIDEGATE_DATABASE__URL", "", "needed in production"),
        ("TIDEGATE_AUTH__JWT_KEYS", "", "needed in production"),
        ("TIDEGATE_AUTH__API_KEY_PEPPERS", "", "needed in production"),
        ("TIDEGATE_AUTH__API_KEY_PEPPERS", f"1:{_SECRET}", "used twice"),
        ("TIDEGATE_AUTH__JWT_KEYS", "1:" + "ab" * 40, "repeats itself"),
        ("TIDEGATE_AUTH__JWT_KEYS", f"1:{_SECRET},1:{_OTHER_SECRET}", "one kid"),
        ("TIDEGATE_HTTP__CORS_ORIGINS", "*", "exact origin"),
        ("TIDEGATE_HTTP__CORS_ORIGINS", "https://a.example.com/path", "exact origin"),
        ("TIDEGATE_HTTP__TRUSTED_PROXIES", "0.0.0.0/0", "everyone"),
        ("TIDEGATE_REDIS__URL", "", "more than one worker"),
        ("TIDEGATE_DATABASE__URL", "sqlite+aiosqlite:////tmp/x.db", "SQLite serves one worker"),
        ("TIDEGATE_DATABASE__URL", "postgresql://u@h/x", "postgresql+asyncpg://"),
        ("TIDEGATE_BOOTSTRAP__ADMIN_PASSWORD", "long enough, but no e-mail", "ADMIN_EMAIL"),
        ("TIDEGATE_BOOTSTRAP__API_KEY", "tg_short", "tg_ + 8"),
    ],
)
def test_production_refuses(load: Load, variable: str, value: str, told: str) -> None:
    code, faults = load(**{**_PRODUCTION, variable: value})
    assert code == 1
    assert told in faults
    assert variable.rpartition("__")[0] in faults
    assert not value or value not in faults or len(value) < 40


def test_the_env_file_is_read_below_the_environment(load: Load, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("TIDEGATE_SERVER__PORT=9001\nTIDEGATE_LOG_LEVEL=debug\nOTHER=x\n")
    code, printed = load(TIDEGATE_SERVER__PORT="9002")
    assert code == 0
    assert "port=9002" in printed
    assert "log_level='debug'" in printed


def test_production_reads_no_env_file_that_it_was_not_given(load: Load, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("TIDEGATE_SERVER__PORT=9001\n")
    assert "port=8000" in load(**_PRODUCTION)[1]
    assert "port=9001" in load(**_PRODUCTION, TIDEGATE_ENV_FILE=".env")[1]
    assert load(TIDEGATE_ENV_FILE="none") == (1, "TIDEGATE_ENV_FILE: there is no file none\n")


def test_names_outside_groups_are_only_worth_a_warning() -> None:
    told = unknown_variables(
        {"TIDEGATE_ENVIROMENT": "production", "TIDEGATE_SERVICE_HOST": "10.0.0.1", "TIDEGATE_PORT_8000_TCP": "x"}
    )
    assert told == ["TIDEGATE_ENVIROMENT: there is no such setting; did you mean TIDEGATE_ENVIRONMENT?"]


def test_secrets_are_found_where_a_reference_says(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("from-a-file\n")
    assert resolve_secret(f"file:{tmp_path / 'key'}") == "from-a-file"
    assert resolve_secret("a literal") == "a literal"
    (tmp_path / "bytes").write_bytes(b"\xff")
    for reference, told in (
        (f"file:{tmp_path / 'none'}", "there is nothing at"),
        ("env:TIDEGATE_THERE_IS_NO_SUCH_VARIABLE", "there is nothing at"),
        (f"file:{tmp_path / 'bytes'}", "not UTF-8"),
    ):
        with pytest.raises(ValueError, match=told) as refused:
            resolve_secret(reference)
        assert reference in str(refused.value)


def test_settings_are_frozen_and_typed() -> None:
    settings = Settings(environment="test")
    with pytest.raises(ValueError, match="frozen"):
        settings.server.port = 1  # type: ignore[misc]
    assert settings.http.cors_origins == ()


def test_every_setting_has_a_description() -> None:
    assert all(variable_names().values())


@pytest.mark.parametrize(("path", "text"), [(ENV_EXAMPLE, env_example()), (SETTINGS_PAGE, settings_page())])
def test_the_generated_pages_are_what_the_settings_say(path: Path, text: str) -> None:
    assert path.read_text("utf-8") == text, "run make docs"

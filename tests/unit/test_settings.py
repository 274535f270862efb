"""Settings: every fault named at once, nothing weak in production, no secret shown."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tidegate.cli.reference import ENV_EXAMPLE, SETTINGS_PAGE, env_example, settings_page
from tidegate.settings import Settings, resolve_secret, unknown_variables, variable_names

_SECRET = "6f1d2c3b4a59687786a5b4c3d2e1f0ff0112233445566778899aabbccddeeff0"
_OTHER_SECRET = "a1b2c3d4e5f60718293a4b5c6d7e8f90112233445566778899aabbccddeeff01"
_PRODUCTION = {
    "TIDEGATE_ENVIRONMENT": "production",
    "TIDEGATE_DATABASE__URL": "postgresql+asyncpg://u:hidden-word@127.0.0.1/x",
    "TIDEGATE_REDIS__URL": "redis://127.0.0.1/0",
    "TIDEGATE_AUTH__JWT_KEYS": f"1:{_SECRET}",
    "TIDEGATE_AUTH__API_KEY_PEPPERS": f"1:{_OTHER_SECRET}",
}
_PROGRAM = """
import sys
from tidegate.settings import SettingsError, load_settings
try:
    settings = load_settings()
except SettingsError as error:
    print("\\n".join(error.faults))
    sys.exit(1)
print(repr(settings))
"""


def load(tmp_path: Path, **variables: str) -> tuple[int, str]:
    """What a program with just these variables gets: settings belong to a process."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("TIDEGATE_")}
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM],
        check=False,
        env={**clean, **variables},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert not done.stderr
    return done.returncode, done.stdout


def test_every_fault_is_named_at_once(tmp_path: Path) -> None:
    code, faults = load(
        tmp_path,
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


def test_a_whole_production_environment_is_taken(tmp_path: Path) -> None:
    code, printed = load(tmp_path, **_PRODUCTION)
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
def test_production_refuses(tmp_path: Path, variable: str, value: str, told: str) -> None:
    code, faults = load(tmp_path, **{**_PRODUCTION, variable: value})
    assert code == 1
    assert told in faults
    assert variable.rpartition("__")[0] in faults
    assert not value or value not in faults or len(value) < 40


def test_the_env_file_is_read_below_the_environment(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("TIDEGATE_SERVER__PORT=9001\nTIDEGATE_LOG_LEVEL=debug\nOTHER=x\n")
    code, printed = load(tmp_path, TIDEGATE_SERVER__PORT="9002")
    assert code == 0
    assert "port=9002" in printed
    assert "log_level='debug'" in printed


def test_production_reads_no_env_file_that_it_was_not_given(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("TIDEGATE_SERVER__PORT=9001\n")
    assert "port=8000" in load(tmp_path, **_PRODUCTION)[1]
    assert "port=9001" in load(tmp_path, **_PRODUCTION, TIDEGATE_ENV_FILE=".env")[1]
    assert load(tmp_path, TIDEGATE_ENV_FILE="none") == (1, "TIDEGATE_ENV_FILE: there is no file none\n")


def test_names_outside_groups_are_only_worth_a_warning() -> None:
    told = unknown_variables(
        {"TIDEGATE_ENVIROMENT": "production", "TIDEGATE_SERVICE_HOST": "10.0.0.1", "TIDEGATE_PORT_8000_TCP": "x"}
    )
    assert told == ["TIDEGATE_ENVIROMENT: there is no such setting; did you mean TIDEGATE_ENVIRONMENT?"]


def test_secrets_are_found_where_a_reference_says(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("from-a-file\n")
    assert resolve_secret(f"file:{tmp_path / 'key'}") == "from-a-file"
    assert resolve_secret(f"file:{tmp_path / 'none'}") is None
    assert resolve_secret("env:TIDEGATE_THERE_IS_NO_SUCH_VARIABLE") is None
    assert resolve_secret("a literal") == "a literal"


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

"""`tidegate config export`: what it prints configures another gateway in the same way, and holds no secret."""

import json
import os
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from dotenv import dotenv_values

from tests.support.credentials import JWT_SECRET, PEPPER
from tidegate.cli.export import env_value
from tidegate.cli.main import root

CATALOGUE = """
default_model = "m"
[upstreams."a.b"]
provider = "openai"
base_url = "http://127.0.0.1:1/v1"
api_key = "{key}"
max_concurrency = 7
breaker = "off"
[upstreams.echo]
provider = "echo"
queue = {{ length = 3, deadline_s = 0.5 }}
[[models]]
name = "m"
attempts = ["a.b/it's/\\"quoted\\" ${{HOME}} \\\\ ü 😀 \\u007f", "echo/x"]
groups = ["one", "two"]
price = {{ input = "0.000001", output = "2.50" }}
cache = {{ ttl_s = 60 }}
[[models]]
name = "open/*"
attempts = ["echo/*"]
"""
SECRETS = ("k" + JWT_SECRET[1:], PEPPER, "literal-key-of-an-upstream", "hunter2-of-the-database")
NAMES = {
    "TIDEGATE_AUTH__JWT_KEYS": f"1:{JWT_SECRET}",
    "TIDEGATE_HTTP__CORS_ORIGINS": "https://a.example.com,https://b.example.com",
    "TIDEGATE_HTTP__END_USER_HEADERS": "x-user",
    "TIDEGATE_SERVER__WORKERS": "3",
    "TIDEGATE_SERVER__LINGER_S": "0.25",
    "TIDEGATE_SINGLE_SIGN_ON__LABEL": "it's us, ${HOME} \\ #1",
    "TIDEGATE_AUTH__PASSWORD_LOG_IN": "true",
}


@pytest.fixture(autouse=True)
def environment_as_it_was() -> Iterator[None]:
    """The command takes its environment file into the process's own environment, which here is that of all tests."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


def run(*arguments: str, **variables: str) -> Result:
    """The command with these variables alone."""
    others: dict[str, str | None] = {name: None for name in os.environ if name.startswith("TIDEGATE_")}
    environment = {**others, "TIDEGATE_ENVIRONMENT": "test", **variables}
    result = CliRunner().invoke(root, ["config", *arguments], env=environment)
    assert result.exit_code == 0, result.output
    return result


def shown(**variables: str) -> Any:
    return json.loads(run("show", **variables).stdout)


def without_secrets(tmp_path: Path) -> dict[str, str]:
    """Variables of which none holds a secret itself."""
    key = tmp_path / "key"
    key.write_text("the-key")
    key.chmod(0o600)
    (tmp_path / "jwt").write_text(NAMES["TIDEGATE_AUTH__JWT_KEYS"])
    catalogue = tmp_path / "t.toml"
    catalogue.write_text(CATALOGUE.format(key=f"file:{key}"))
    jwt = f"file:{tmp_path / 'jwt'}"
    return {**NAMES, "TIDEGATE_AUTH__JWT_KEYS": jwt, "TIDEGATE_DATA_DIR": "d", "TIDEGATE_CONFIG": str(catalogue)}


def test_where_nothing_is_masked_it_is_read_again_as_it_was(tmp_path: Path) -> None:
    variables = without_secrets(tmp_path)
    exported = tmp_path / "exported.env"
    exported.write_text(run("export", **variables).stdout, "utf-8")
    before, after = shown(**variables), shown(TIDEGATE_ENV_FILE=str(exported))
    assert before["catalogue"] == after["catalogue"]
    for of in (before, after):
        # Where the catalogue stands is what an export changes.
        del of["settings"]["config"], of["settings"]["config_toml"]
    assert before["settings"] == after["settings"]
    again = run("export", TIDEGATE_ENV_FILE=str(exported)).stdout
    assert again == exported.read_text("utf-8")


def test_the_catalogue_alone_is_a_file_to_configure_by(tmp_path: Path) -> None:
    variables = without_secrets(tmp_path)
    text = run("export", "--catalogue", **variables).stdout
    assert tomllib.loads(text)["models"][0]["attempts"][0] == 'a.b/it\'s/"quoted" ${HOME} \\ ü 😀 \x7f'
    assert tomllib.loads(text)["upstreams"]["echo"]["timeouts"]["idle_s"] == 30
    (tmp_path / "again.toml").write_text(text, "utf-8")
    again = {**variables, "TIDEGATE_CONFIG": str(tmp_path / "again.toml")}
    assert shown(**again)["catalogue"] == shown(**variables)["catalogue"]
    settings = run("export", "--settings", **variables).stdout
    assert "TIDEGATE_SERVER__WORKERS=3\n" in settings
    assert "CONFIG_TOML" not in settings
    assert json.loads(run("export", "--json", **variables).stdout)["catalogue"] == text


def test_a_secret_is_a_reference_to_what_is_to_be_set(tmp_path: Path) -> None:
    variables = {
        "TIDEGATE_AUTH__JWT_KEYS": NAMES["TIDEGATE_AUTH__JWT_KEYS"],
        "TIDEGATE_AUTH__API_KEY_PEPPERS": f"1:{PEPPER}",
        "TIDEGATE_DATABASE__URL": "postgresql+asyncpg://u:hunter2-of-the-database@db/t",
        "TIDEGATE_CONFIG_TOML": CATALOGUE.format(key="literal-key-of-an-upstream"),
    }
    printed = run("export", **variables).stdout
    assert not [secret for secret in (JWT_SECRET, *SECRETS[1:]) if secret in printed]
    assert "TIDEGATE_DATABASE__URL=env:DATABASE_URL\n" in printed
    assert "TIDEGATE_AUTH__JWT_KEYS=env:AUTH_JWT_KEYS\n" in printed
    assert 'api_key = "env:A_B_API_KEY"' in printed
    # Read again, what is missing is named; once it is set, all is as it was.
    exported = tmp_path / "exported.env"
    exported.write_text(printed, "utf-8")
    environment = {"TIDEGATE_ENVIRONMENT": "test", "TIDEGATE_ENV_FILE": str(exported)}
    missing = CliRunner().invoke(root, ["config", "validate"], env={**dict.fromkeys(variables), **environment})
    assert missing.exit_code == 1
    assert "TIDEGATE_DATABASE__URL: there is nothing at env:DATABASE_URL" in missing.stderr
    set_now = {
        "AUTH_JWT_KEYS": variables["TIDEGATE_AUTH__JWT_KEYS"],
        "AUTH_API_KEY_PEPPERS": variables["TIDEGATE_AUTH__API_KEY_PEPPERS"],
        "DATABASE_URL": variables["TIDEGATE_DATABASE__URL"],
        "A_B_API_KEY": "literal-key-of-an-upstream",
    }
    assert shown(**environment, **set_now)["catalogue"]["upstreams"] == shown(**variables)["catalogue"]["upstreams"]


def test_embedded_modes_own_catalogue_is_exported_too(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    here = request.config.rootpath
    request.addfinalizer(lambda: os.chdir(here))
    os.chdir(tmp_path)
    exported = tomllib.loads(run("export", "--catalogue").stdout)
    assert exported["upstreams"]["local"]["provider"] == "local"


@pytest.mark.parametrize(
    "text", ["", "plain", "a b", "it's", "\\", "\\'", "${HOME}", "$HOME", "a#b", 'say "x"', "ü\n😀"]
)
def test_a_line_is_read_back_as_it_was(text: str, tmp_path: Path) -> None:
    path = tmp_path / "env"
    path.write_text(f"NAME={env_value(text)}\nNEXT=1\n", "utf-8")
    assert dotenv_values(path) == {"NAME": text, "NEXT": "1"}

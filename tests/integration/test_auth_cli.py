"""`tidegate auth rotate-key`: what it prints can be set as it stands, and logs nobody out."""

import json
import os
import uuid
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from pydantic import SecretStr

from tests.support.credentials import JWT_SECRET, PEPPER
from tests.support.sign_in_api import SignInApi
from tidegate.auth.api_keys import generate_key, hash_key, verify_key
from tidegate.auth.keyring import SECRETS_FILE, Keyrings
from tidegate.auth.tokens import AccessTokens
from tidegate.cli.main import root
from tidegate.settings import Settings
from tidegate.settings.groups import AuthSettings


class Shell:
    """Runs the command in this process, with an environment of its own."""

    def __init__(self, data_dir: Path, **variables: str) -> None:
        self.data_dir = data_dir
        self.environment: dict[str, str | None] = {
            **dict.fromkeys((name for name in os.environ if name.startswith("TIDEGATE_")), None),
            "TIDEGATE_ENVIRONMENT": "test",
            "TIDEGATE_DATA_DIR": str(data_dir),
            **variables,
        }

    def run(self, *arguments: str) -> Result:
        return CliRunner().invoke(root, ["auth", "rotate-key", *arguments], env=self.environment)

    def line(self, *arguments: str) -> str:
        """What `$(tidegate auth rotate-key …)` is in a shell."""
        result = self.run(*arguments)
        assert result.exit_code == 0, result.output
        line, end, rest = result.stdout.partition("\n")
        assert (end, rest) == ("\n", "")
        assert line not in result.stderr
        return line

    def kids(self, *arguments: str) -> list[str]:
        return [part.partition(":")[0] for part in self.line(*arguments).split(",")]


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(
        tmp_path / "data",
        TIDEGATE_AUTH__JWT_KEYS=f"1:{JWT_SECRET}",
        TIDEGATE_AUTH__API_KEY_PEPPERS=f"1:{PEPPER}",
    )


def test_the_new_key_comes_first_and_the_old_ones_after_it(shell: Shell) -> None:
    line = shell.line()
    new, old = line.split(",")
    assert old == f"1:{JWT_SECRET}"
    assert len(new.partition(":")[2]) == 43
    assert shell.line() != line
    assert not shell.data_dir.exists()


def test_the_line_is_a_setting_as_it_stands_again_and_again(shell: Shell) -> None:
    for n in range(2, 5):
        shell.environment["TIDEGATE_AUTH__JWT_KEYS"] = line = shell.line()
        assert len(AuthSettings.model_validate({"jwt_keys": line}).jwt_keys) == n


def test_so_many_old_keys_stay_as_are_asked_for(shell: Shell) -> None:
    shell.environment["TIDEGATE_AUTH__JWT_KEYS"] = ",".join(f"{n}:{JWT_SECRET}{n}" for n in "321")
    assert shell.kids()[1:] == ["3", "2", "1"]
    assert shell.kids("--keep", "1")[1:] == ["3"]
    assert shell.kids("--keep", "0")[1:] == []
    assert shell.run("--keep", "-1").exit_code == 2


def test_peppers_are_rotated_apart(shell: Shell) -> None:
    assert shell.line("--peppers").endswith(f",1:{PEPPER}")
    assert "TIDEGATE_AUTH__API_KEY_PEPPERS" in shell.run("--peppers").stderr
    assert "TIDEGATE_AUTH__JWT_KEYS" in shell.run().stderr


def test_keys_that_encrypt_are_rotated_apart(shell: Shell) -> None:
    # Where the settings name none, those that are derived outside production go on.
    new, old = shell.line("--encryption").split(",")
    assert old.startswith("generated-1:")
    assert not new.startswith("generated")
    shell.environment["TIDEGATE_AUTH__ENCRYPTION_KEYS"] = new
    assert shell.kids("--encryption")[1:] == [new.partition(":")[0], "generated-1"]
    assert "TIDEGATE_AUTH__ENCRYPTION_KEYS" in shell.run("--encryption").stderr
    assert shell.run("--encryption", "--peppers").exit_code == 2


def test_json_says_which_variable_and_which_kids(shell: Shell) -> None:
    printed = json.loads(shell.run("--json").stdout)
    assert printed.keys() == {"variable", "value", "kids"}
    assert printed["variable"] == "TIDEGATE_AUTH__JWT_KEYS"
    assert [part.partition(":")[0] for part in printed["value"].split(",")] == printed["kids"]


def test_generated_keys_are_rotated_into_the_settings_and_lose_nothing(tmp_path: Path) -> None:
    shell = Shell(tmp_path)
    before = Keyrings.load(Settings(environment="test", data_dir=tmp_path))
    file = (tmp_path / SECRETS_FILE).read_bytes()
    token = AccessTokens(before.jwt, minutes=15).issue(_id(1), _id(2))
    key = generate_key().secret
    stored = hash_key(key, before.peppers)
    auth = {"jwt_keys": shell.line(), "api_key_peppers": shell.line("--peppers")}
    assert SECRETS_FILE in shell.run().stderr
    assert (tmp_path / SECRETS_FILE).read_bytes() == file
    for value in (auth, {name: line.partition(",")[0] for name, line in auth.items()}):
        # The second leaves the generated ones out: their file still stands.
        after = Keyrings.load(Settings(environment="test", data_dir=tmp_path, auth=AuthSettings.model_validate(value)))
        assert after.jwt.current_kid != before.jwt.current_kid
        assert AccessTokens(after.jwt, minutes=15).verify(token).sign_in_id == _id(2)
        assert verify_key(key, stored, after.peppers)


def test_production_without_keys_says_which_are_missing(tmp_path: Path) -> None:
    result = Shell(tmp_path, TIDEGATE_ENVIRONMENT="production").run()
    assert (result.exit_code, result.stdout) == (1, "")
    assert "TIDEGATE_AUTH__JWT_KEYS" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("algorithm", ["HS256", "EdDSA"])
async def test_a_rotation_logs_nobody_out(sqlite_url: str, tmp_path: Path, shell: Shell, algorithm: str) -> None:
    async with SignInApi.open(sqlite_url, tmp_path / "before", jwt_algorithm=algorithm) as before:
        tokens = await before.log_in()
        key = (await _create_key(before, tokens["access_token"]))["key"]
    rotated: dict[str, Any] = {
        "jwt_keys": _pairs(shell.line()),
        "api_key_peppers": _pairs(shell.line("--peppers")),
        "jwt_algorithm": algorithm,
    }
    async with SignInApi.open(sqlite_url, tmp_path / "after", **rotated) as after:
        assert await after.status_of(tokens) == 200
        assert await after.status_of({"access_token": key}) == 200
        answer = await after.refresh(tokens)
        assert answer.status_code == 200, answer.text
        renewed = answer.json()
        assert await after.status_of(renewed) == 200
        published = (await after.client.get("/.well-known/jwks.json")).json()["keys"]
        assert len(published) == (2 if algorithm == "EdDSA" else 0)
    dropped: dict[str, Any] = {name: pairs[:1] if name != "jwt_algorithm" else pairs for name, pairs in rotated.items()}
    async with SignInApi.open(sqlite_url, tmp_path / "dropped", **dropped) as later:
        assert await later.status_of(tokens) == 401
        assert await later.status_of(renewed) == 200
        assert (await later.refresh(renewed)).status_code == 200


def _pairs(line: str) -> tuple[tuple[str, SecretStr], ...]:
    return tuple((kid, SecretStr(secret)) for kid, _, secret in (part.partition(":") for part in line.split(",")))


def _id(number: int) -> uuid.UUID:
    return uuid.UUID(int=number)


async def _create_key(api: SignInApi, token: str) -> dict[str, str]:
    headers = {"Authorization": f"Bearer {token}"}
    answer = await api.client.post("/api/keys", json={"name": "k"}, headers=headers)
    assert answer.status_code == 201, answer.text
    created: dict[str, str] = answer.json()
    return created

"""`tidegate users` and `tidegate keys`, as a person and as a script use them."""

import asyncio
import json
import os
import re
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from tests.support.credentials import JWT_SECRET, PEPPER, bearer, database_at_head, keyrings
from tests.support.schema import bring_to_head
from tidegate.accounts.models import User
from tidegate.accounts.service import Accounts
from tidegate.auth.authenticator import Authenticator
from tidegate.auth.passwords import Passwords
from tidegate.auth.principal import Principal
from tidegate.auth.principal_cache import CacheBounds
from tidegate.cli.main import COMMANDS, root
from tidegate.errors import InvalidApiKey, PermissionDenied

EMAIL = "ada@example.com"
PASSWORD = "correct horse battery"
NEW_PEPPER = "next-pepper-9876543210-zyxwvutsrqponmlkj"


class Shell:
    """Runs the command in this process, with an environment of its own."""

    def __init__(self, url: str, data_dir: Path) -> None:
        self.url = url
        self.environment: dict[str, str | None] = {
            **dict.fromkeys((name for name in os.environ if name.startswith("TIDEGATE_")), None),
            "TIDEGATE_ENVIRONMENT": "test",
            "TIDEGATE_DATA_DIR": str(data_dir),
            "TIDEGATE_DATABASE__URL": url,
            "TIDEGATE_AUTH__JWT_KEYS": f"1:{JWT_SECRET}",
            "TIDEGATE_AUTH__API_KEY_PEPPERS": f"1:{PEPPER}",
        }

    def run(self, *arguments: str, stdin: str = "") -> Result:
        return CliRunner().invoke(root, list(arguments), input=stdin, env=self.environment)

    def printed(self, *arguments: str, stdin: str = "") -> str:
        result = self.run(*arguments, stdin=stdin)
        assert result.exit_code == 0, result.output
        assert result.stderr == ""
        return result.stdout

    def json(self, *arguments: str, stdin: str = "") -> Any:
        return json.loads(self.printed(*arguments, "--json", stdin=stdin))

    def refusal(self, *arguments: str, code: int = 1) -> str:
        result = self.run(*arguments)
        assert result.exit_code == code, result.output
        assert result.stdout == ""
        assert "Traceback" not in result.stderr
        return result.stderr

    def principal_of(self, key: str) -> Principal:
        async def ask() -> Principal:
            async with database_at_head(self.url) as database:
                authenticator = Authenticator(database, keyrings(), bounds=CacheBounds(answer_s=30))
                try:
                    return await authenticator.authenticate(bearer(key))
                finally:
                    await authenticator.aclose()

        return asyncio.run(ask())

    def signed_in(self, email: str, password: str) -> User:
        async def ask() -> User:
            async with database_at_head(self.url) as database:
                return await Accounts(database, Passwords()).sign_in(email, password)

        return asyncio.run(ask())


@pytest.fixture
def shell(database_url: str, tmp_path: Path) -> Shell:
    if not database_url.startswith("sqlite"):
        asyncio.run(bring_to_head(database_url))
    return Shell(database_url, tmp_path / "var")


@pytest.fixture
def on_sqlite(sqlite_url: str, tmp_path: Path) -> Shell:
    return Shell(sqlite_url, tmp_path / "var")


def test_a_new_database_has_nothing_and_says_what_to_do(shell: Shell) -> None:
    assert "tidegate keys create --name" in shell.printed("keys", "list")
    assert "tidegate users create --email" in shell.printed("users", "list")
    assert shell.json("keys", "list") == []
    assert shell.json("users", "list") == []


def test_a_key_is_printed_once_and_opens_the_gateway(shell: Shell) -> None:
    printed = shell.printed("keys", "create", "--name", "search app")
    key = printed.splitlines()[-1]
    assert re.fullmatch(r"tg_[a-z0-9]{8}_[A-Za-z0-9_-]{43}", key)
    principal = shell.principal_of(key)
    assert (principal.user_id, principal.models, principal.expires_at) == (None, None, None)
    assert principal.scopes == {"inference"}
    listed = shell.printed("keys", "list")
    assert "service account search app" in listed
    assert key[12:] not in listed
    assert key[3:11] in listed


def test_a_script_gets_the_key_its_prefix_and_its_id(shell: Shell) -> None:
    created = shell.json("keys", "create", "--name", "script")
    assert set(created) == {"key", "prefix", "id"}
    assert created["key"].startswith(f"tg_{created['prefix']}_")
    assert str(shell.principal_of(created["key"]).key_id) == created["id"]
    assert created["key"][12:] not in json.dumps(shell.json("keys", "list"))


def test_what_a_key_may_do_is_what_was_asked_for(shell: Shell) -> None:
    shell.printed("users", "create", "--email", EMAIL, "--password-stdin", stdin=f"{PASSWORD}\n")
    options = ["--owner", EMAIL, "--models", "gpt-*, small", "--expires", "30d", "--scopes", "usage,inference"]
    principal = shell.principal_of(shell.json("keys", "create", "--name", "app", *options)["key"])
    assert principal.models == ("gpt-*", "small")
    assert principal.scopes == {"inference", "usage"}
    assert principal.role == "member"
    assert principal.expires_at is not None
    left = datetime.fromtimestamp(principal.expires_at, UTC) - datetime.now(UTC)
    assert timedelta(days=29, hours=23) < left <= timedelta(days=30)
    (listed,) = shell.json("keys", "list")
    assert (listed["owner"], listed["state"], listed["models"]) == (EMAIL, "active", ["gpt-*", "small"])


def test_a_revoked_key_is_refused_and_listed_as_such(shell: Shell) -> None:
    created = shell.json("keys", "create", "--name", "app")
    assert "is revoked" in shell.printed("keys", "revoke", created["prefix"])
    assert shell.json("keys", "revoke", created["key"])["prefix"] == created["prefix"]
    assert shell.json("keys", "list")[0]["state"] == "revoked"
    with pytest.raises(Exception, match="was revoked"):
        shell.principal_of(created["key"])


def test_a_rotated_key_keeps_its_id_under_a_new_secret(shell: Shell) -> None:
    created = shell.json("keys", "create", "--name", "app", "--models", "small")
    rotated = shell.json("keys", "rotate", f"tg_{created['prefix']}")
    assert rotated["id"] == created["id"]
    assert rotated["prefix"] != created["prefix"]
    assert shell.principal_of(rotated["key"]).models == ("small",)
    with pytest.raises(Exception, match="no such API key"):
        shell.principal_of(created["key"])


def test_a_key_is_held_to_the_addresses_that_were_named(shell: Shell) -> None:
    options = ["--allow-from", "192.0.2.0/24, 2001:DB8::1,::ffff:198.51.100.9"]
    created = shell.json("keys", "create", "--name", "app", *options)
    with pytest.raises(PermissionDenied, match="an address that is not known"):
        shell.principal_of(created["key"])
    (listed,) = shell.json("keys", "list")
    assert listed["allowed_addresses"] == ["192.0.2.0/24", "2001:db8::1", "198.51.100.9"]
    assert "192.0.2.0/24,2001:db8::1,198.51.100.9" in shell.printed("keys", "list")
    shell.json("keys", "create", "--name", "free")
    assert "anywhere" in shell.printed("keys", "list")


def test_an_old_secret_goes_on_for_its_overlap_and_is_ended_by_its_prefix(shell: Shell) -> None:
    created = shell.json("keys", "create", "--name", "app")
    rotated = shell.json("keys", "rotate", created["prefix"], "--overlap", "24h")
    for key in (created, rotated):
        assert str(shell.principal_of(key["key"]).key_id) == created["id"]
    (listed,) = shell.json("keys", "list")
    assert [secret["prefix"] for secret in listed["retiring"]] == [created["prefix"]]
    assert f"{created['prefix']} until 20" in shell.printed("keys", "list")
    assert f"goes on as tg_{rotated['prefix']}" in shell.printed("keys", "revoke", f"tg_{created['prefix']}")
    with pytest.raises(InvalidApiKey, match="no such API key"):
        shell.principal_of(created["key"])
    assert shell.principal_of(rotated["key"]).key_prefix == rotated["prefix"]
    assert shell.json("keys", "list")[0]["retiring"] == []


def test_the_list_says_which_pepper_is_still_needed(shell: Shell) -> None:
    first, _, revoked = [shell.json("keys", "create", "--name", name) for name in ("a", "b", "c")]
    shell.printed("keys", "revoke", revoked["prefix"])
    shell.environment["TIDEGATE_AUTH__API_KEY_PEPPERS"] = f"2:{NEW_PEPPER},1:{PEPPER}"
    listed = shell.run("keys", "list")
    assert (
        listed.stderr
        == "2 secrets are under the pepper '1', until each is used: then under '2'. Keep '1' for so long.\n"
    )
    assert {key["pepper_kid"] for key in shell.json("keys", "list")} == {"1"}
    shell.json("keys", "rotate", first["prefix"])
    shell.environment["TIDEGATE_AUTH__API_KEY_PEPPERS"] = f"2:{NEW_PEPPER}"
    listed = shell.run("keys", "list")
    assert (listed.exit_code, listed.stderr) == (
        0,
        "1 secret is under the pepper '1', which TIDEGATE_AUTH__API_KEY_PEPPERS lacks, and refused.\n",
    )


def test_a_user_is_created_with_the_password_of_standard_input(shell: Shell) -> None:
    created = shell.json(
        "users", "create", "--email", "Ada@Example.com", "--role", "admin", "--password-stdin", stdin=PASSWORD
    )
    assert (created["email"], created["role"], created["workspace"]) == (EMAIL, "admin", "default")
    assert "password" not in created
    assert str(shell.signed_in(EMAIL, PASSWORD).id) == created["id"]


def test_a_password_that_nobody_gave_is_made_up_and_printed_once(shell: Shell) -> None:
    printed = shell.printed("users", "create", "--email", EMAIL)
    told = "Password, shown once: "
    password = next(line for line in printed.splitlines() if line.startswith(told)).removeprefix(told)
    assert shell.signed_in(EMAIL, password).role == "member"
    made_up = shell.json("users", "create", "--email", "b@example.com")["password"]
    assert shell.signed_in("b@example.com", made_up).email == "b@example.com"


def test_a_disabled_user_is_listed_as_such_and_cannot_sign_in(shell: Shell) -> None:
    shell.printed("users", "create", "--email", EMAIL, "--password-stdin", stdin=PASSWORD)
    assert f"{EMAIL} is disabled" in shell.printed("users", "disable", "ADA@example.com")
    assert "disabled" in shell.printed("users", "list")
    with pytest.raises(Exception, match="account is disabled"):
        shell.signed_in(EMAIL, PASSWORD)


def test_what_is_not_there_is_one_line_and_exit_1(shell: Shell) -> None:
    assert "tidegate keys list" in shell.refusal("keys", "revoke", "abcdefgh")
    assert "tidegate keys list" in shell.refusal("keys", "rotate", "tg_abcdefgh")
    assert "tidegate users list" in shell.refusal("users", "disable", "nobody@example.com")
    assert "tidegate users list" in shell.refusal("keys", "create", "--name", "k", "--owner", "nobody@example.com")
    assert "'research'" in shell.refusal("keys", "create", "--name", "k", "--workspace", "research")
    shell.printed("users", "create", "--email", EMAIL)
    refusal = shell.refusal("users", "create", "--email", EMAIL)
    assert refusal == f"There is a user {EMAIL} already.\n"
    assert shell.json("keys", "list") == []


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["keys", "create"], "--name"),
        (["keys", "create", "--name", ""], "--name"),
        (["keys", "create", "--name", "a\x1b[2Jb"], "--name"),
        (["keys", "create", "--name", "k", "--expires", "30"], "90m, 12h, 30d or 4w"),
        (["keys", "create", "--name", "k", "--expires", "0d"], "90m, 12h, 30d or 4w"),
        (["keys", "create", "--name", "k", "--expires", "99999w"], "36500d"),
        (["keys", "create", "--name", "k", "--scopes", "everything"], "--scopes"),
        (["keys", "create", "--name", "k", "--models", ","], "--models"),
        (["keys", "create", "--name", "k", "--owner", "nobody"], "--owner"),
        (["keys", "create", "--name", "k", "--allow-from", "192.0.2.7/24"], "--allow-from"),
        (["keys", "create", "--name", "k", "--allow-from", ","], "--allow-from"),
        (["keys", "rotate", "abcdefgh", "--overlap", "8d"], "--overlap"),
        (["keys", "rotate", "abcdefgh", "--overlap", "soon"], "--overlap"),
        (["audit", "--since", "soon"], "--since"),
        (["audit", "--action", "keys"], "--action"),
        (["audit", "--limit", "0"], "--limit"),
        (["users", "create", "--email", "nobody"], "--email"),
        (["users", "create", "--email", EMAIL, "--role", "root"], "--role"),
        (["users", "create", "--email", EMAIL, "--password-stdin"], "--password-stdin"),
        (["keys", "revoke"], "PREFIX"),
        (["nonsense"], "nonsense"),
    ],
)
def test_a_wrong_call_is_exit_2_and_names_what_is_wrong(on_sqlite: Shell, arguments: list[str], names: str) -> None:
    assert names in on_sqlite.refusal(*arguments, code=2)


def test_a_password_that_is_too_short_is_refused_without_being_repeated(on_sqlite: Shell) -> None:
    result = on_sqlite.run("users", "create", "--email", EMAIL, "--password-stdin", stdin="hunter2\n")
    assert result.exit_code == 2
    assert "at least 12" in result.stderr
    assert "hunter2" not in result.output


def test_faulty_settings_are_each_one_line(on_sqlite: Shell) -> None:
    on_sqlite.environment |= {"TIDEGATE_AUTH__JWT_KEYS": "1:hunter2", "TIDEGATE_AUTH__ACCESS_TOKEN_MINUTES": "61"}
    lines = on_sqlite.refusal("keys", "list").splitlines()
    names = ["TIDEGATE_AUTH__ACCESS_TOKEN_MINUTES", "TIDEGATE_AUTH__JWT_KEYS"]
    assert [line.partition(":")[0] for line in lines] == names
    assert "hunter2" not in str(lines)


def test_a_data_dir_that_cannot_be_made_is_one_line(on_sqlite: Shell, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    on_sqlite.environment["TIDEGATE_DATA_DIR"] = str(tmp_path / "file")
    assert on_sqlite.refusal("keys", "list").startswith("TIDEGATE_DATA_DIR: ")


def test_a_database_that_cannot_be_reached_is_one_line_without_its_password(on_sqlite: Shell) -> None:
    on_sqlite.environment["TIDEGATE_DATABASE__URL"] = "postgresql+asyncpg://tide:s3cret-word@127.0.0.1:1/none"
    (line,) = on_sqlite.refusal("keys", "list").splitlines()
    assert "check TIDEGATE_DATABASE__URL" in line
    assert "s3cret-word" not in line


def test_a_database_that_does_not_exist_is_one_line(on_sqlite: Shell, postgres_url: str) -> None:
    on_sqlite.environment["TIDEGATE_DATABASE__URL"] = f"{postgres_url}_not"
    (line,) = on_sqlite.refusal("keys", "list").splitlines()
    assert "does not exist" in line


def test_a_database_that_is_behind_says_to_migrate(on_sqlite: Shell, postgres_url: str) -> None:
    on_sqlite.environment["TIDEGATE_DATABASE__URL"] = postgres_url
    (line,) = on_sqlite.refusal("keys", "list").splitlines()
    assert "tidegate migrate" in line


@pytest.fixture
def clean_environment(tmp_path: Path) -> dict[str, str]:
    names = {name: value for name, value in os.environ.items() if not name.startswith("TIDEGATE_")}
    return names | {"TIDEGATE_ENVIRONMENT": "test", "TIDEGATE_DATA_DIR": str(tmp_path)}


def test_help_names_every_command_and_imports_none(clean_environment: dict[str, str]) -> None:
    program = (
        "import sys; from tidegate.cli.main import root; root(['--help'], standalone_mode=False); "
        "print([name for name in ('pydantic', 'sqlalchemy', 'fastapi', 'uvicorn') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env=clean_environment, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"
    for name, command in COMMANDS.items():
        assert re.search(rf"^  {name} +{re.escape(command.short_help)}$", done.stdout, re.MULTILINE)


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_has_help(on_sqlite: Shell, name: str) -> None:
    assert f"Usage: root {name}" in on_sqlite.printed(name, "--help")


def test_the_installed_command_says_its_version_and_refuses_without_a_traceback(
    clean_environment: dict[str, str],
) -> None:
    program = [sys.executable, "-m", "tidegate.cli.main"]
    version = subprocess.run(
        [*program, "--version"], env=clean_environment, capture_output=True, text=True, timeout=60, check=True
    )
    assert re.fullmatch(r"tidegate, version \d+\.\d+\.\d+\n", version.stdout)
    clean_environment["TIDEGATE_AUTH__ACCESS_TOKEN_MINUTES"] = "61"
    refused = subprocess.run(
        [*program, "keys", "list"], env=clean_environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert (refused.returncode, refused.stdout) == (1, "")
    assert re.fullmatch(r"TIDEGATE_AUTH__ACCESS_TOKEN_MINUTES: .*60\n", refused.stderr)

"""`tidegate limits`, and the limits of `tidegate keys create`, as a person and as a script use them."""

import asyncio
import json
import os
import uuid
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from tests.support.credentials import JWT_SECRET, PEPPER, bearer, database_at_head, keyrings
from tests.support.schema import bring_to_head
from tidegate.auth.authenticator import Authenticator
from tidegate.auth.principal_cache import CacheBounds
from tidegate.cli.main import root

SLOTS = ("limits", "create", "--meter", "concurrency")
CATALOGUE = """
[upstreams.openai]
provider = "openai"
base_url = "https://api.openai.com/v1"
api_key = "env:NO_SUCH_KEY"
[[models]]
name = "gpt-4.1"
attempts = ["openai/gpt-4.1"]
"""


class Shell:
    """Runs the command in this process, with an environment of its own."""

    def __init__(self, url: str, data_dir: Path) -> None:
        self.url = url
        self.environment: dict[str, str | None] = {
            **dict.fromkeys((name for name in os.environ if name.startswith("TIDEGATE_")), None),
            "TIDEGATE_ENVIRONMENT": "test",
            "TIDEGATE_DATA_DIR": str(data_dir),
            "TIDEGATE_DATABASE__URL": url,
            "TIDEGATE_CONFIG_TOML": CATALOGUE,
            "TIDEGATE_AUTH__JWT_KEYS": f"1:{JWT_SECRET}",
            "TIDEGATE_AUTH__API_KEY_PEPPERS": f"1:{PEPPER}",
            "NO_SUCH_KEY": "sk-none",
        }

    def run(self, *arguments: str) -> Result:
        return CliRunner().invoke(root, list(arguments), env=self.environment)

    def printed(self, *arguments: str) -> str:
        result = self.run(*arguments)
        assert result.exit_code == 0, result.output
        return result.stdout

    def json(self, *arguments: str) -> Any:
        return json.loads(self.printed(*arguments, "--json"))

    def refusal(self, *arguments: str, code: int) -> str:
        result = self.run(*arguments)
        assert (result.exit_code, result.stdout) == (code, ""), result.output
        assert "Traceback" not in result.stderr
        return result.stderr

    def limits(self, *arguments: str) -> list[tuple[Any, ...]]:
        """Label, subject and amount of what is listed."""
        return [(one["label"], one["subject"], one["amount"]) for one in self.json("limits", "list", *arguments)]

    def weight_of(self, key: str) -> int:
        async def ask() -> int:
            async with database_at_head(self.url) as database:
                authenticator = Authenticator(database, keyrings(), bounds=CacheBounds(answer_s=30))
                try:
                    return (await authenticator.authenticate(bearer(key))).queue_weight
                finally:
                    await authenticator.aclose()

        return asyncio.run(ask())


@pytest.fixture
def shell(database_url: str, tmp_path: Path) -> Shell:
    if not database_url.startswith("sqlite"):
        asyncio.run(bring_to_head(database_url))
    return Shell(database_url, tmp_path / "var")


@pytest.fixture
def on_sqlite(sqlite_url: str, tmp_path: Path) -> Shell:
    return Shell(sqlite_url, tmp_path / "var")


def test_a_key_is_created_with_its_limits(shell: Shell) -> None:
    options = ["--rpm", "60", "--tpm", "100000", "--concurrency", "4", "--budget", "10.00", "--weight", "7"]
    key = shell.json("keys", "create", "--name", "app", *options)
    shell.printed("keys", "create", "--name", "other", "--rpm", "1")
    assert sorted(shell.limits("--key", key["prefix"])) == [
        ("key-concurrency", key["id"], 4),
        ("key-cost-month", key["id"], "10"),
        ("key-requests-minute", key["id"], 60),
        ("key-tokens-minute", key["id"], 100000),
    ]
    assert shell.weight_of(key["key"]) == 7
    assert f"tg_{key['prefix']}" in shell.printed("limits", "list")
    assert len(shell.limits()) == 5


def test_a_budget_is_for_its_period(shell: Shell) -> None:
    for period in ("day", "week", "total"):
        key = shell.json("keys", "create", "--name", "app", "--budget", "0.5", "--period", period)
        assert shell.limits("--key", key["key"]) == [(f"key-cost-{period}", key["id"], "0.5")]


def test_a_key_without_limits_has_none(shell: Shell) -> None:
    key = shell.json("keys", "create", "--name", "app")
    assert shell.limits() == []
    assert shell.weight_of(key["key"]) == 1


def test_a_key_that_cannot_be_made_leaves_no_limits(shell: Shell) -> None:
    shell.refusal("keys", "create", "--name", "k", "--rpm", "5", "--workspace", "research", code=1)
    assert shell.limits() == []


def test_limits_are_created_listed_and_deleted(shell: Shell) -> None:
    key = shell.json("keys", "create", "--name", "app")
    shell.printed("users", "create", "--email", "ada@example.com")
    create = ("limits", "create", "--meter", "cost", "--window", "day", "--amount", "5.00")
    made = shell.json(*create, "--scope", "key", "--subject", key["prefix"], "--zone", "Europe/Berlin")
    assert (made["subject"], made["amount"], made["workspace"]) == (key["id"], "5", "default")
    shell.printed(*create, "--scope", "user", "--subject", "ada@example.com", "--model", "gpt-*")
    shell.printed(*create, "--scope", "upstream", "--subject", "openai", "--action", "alert")
    assert "end-user-cost-day of 5 USD" in shell.printed(*create, "--scope", "end_user")
    listed = shell.printed("limits", "list")
    assert all(name in listed for name in ("each", "ada@example.com", "openai"))
    assert "key-cost-day Europe/Berlin" in listed
    assert [scope for scope, *_ in shell.limits("--scope", "user")] == ["user-cost-day"]
    assert len(shell.limits("--workspace", "default")) == 4
    assert "is deleted" in shell.printed("limits", "delete", made["id"])
    assert len(shell.limits()) == 3
    assert made["id"] in shell.refusal("limits", "delete", made["id"], code=1)


def test_where_there_is_nothing_it_says_what_to_do(shell: Shell) -> None:
    assert "tidegate limits create" in shell.printed("limits", "list")
    assert "of that kind" in shell.printed("limits", "list", "--scope", "tag")
    assert shell.json("limits", "list") == []


def test_what_is_not_there_is_one_line_and_exit_1(on_sqlite: Shell) -> None:
    assert "'abcdefgh'" in on_sqlite.refusal("limits", "list", "--key", "abcdefgh", code=1)
    assert "'research'" in on_sqlite.refusal("limits", "list", "--workspace", "research", code=1)
    create = ("limits", "create", "--meter", "concurrency", "--amount", "1")
    assert "nobody" in on_sqlite.refusal(*create, "--scope", "user", "--subject", "nobody@example.com", code=1)
    assert on_sqlite.limits() == []


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["keys", "create", "--name", "k", "--rpm", "0"], "--rpm: must be from 1"),
        (["keys", "create", "--name", "k", "--rpm", "1.5"], "--rpm: must be a whole number of requests"),
        (["keys", "create", "--name", "k", "--tpm", "many"], "--tpm: must be a whole number of tokens"),
        (["keys", "create", "--name", "k", "--concurrency", "-1"], "--concurrency: must be a whole number"),
        (["keys", "create", "--name", "k", "--budget", "10 USD"], "--budget: must be USD"),
        (["keys", "create", "--name", "k", "--budget", "9000001"], "--budget: must be from 0.000000001 to 9000000"),
        (["keys", "create", "--name", "k", "--budget", "1", "--period", "year"], "--period"),
        (["keys", "create", "--name", "k", "--period", "day"], "--period: says what a --budget is for"),
        (["keys", "create", "--name", "k", "--weight", "101"], "--weight"),
        ([*SLOTS, "--amount", "5", "--scope", "key", "--meter", "cost"], "--window"),
        ([*SLOTS, "--amount", "0.5", "--scope", "key"], "--amount"),
        ([*SLOTS, "--amount", "5", "--scope", "tag", "--subject", "x"], "--subject"),
        ([*SLOTS, "--amount", "5", "--scope", "key", "--subject", str(uuid.UUID(int=1))], "--subject: there is no"),
        ([*SLOTS, "--amount", "5", "--scope", "upstream", "--subject", "azure"], "openai"),
        (["limits", "delete", "first"], "ID"),
    ],
)
def test_a_wrong_value_is_exit_2_and_a_sentence(on_sqlite: Shell, arguments: list[str], says: str) -> None:
    assert says in on_sqlite.refusal(*arguments, code=2)
    assert on_sqlite.limits() == []


def test_help_says_what_a_budget_is_for(on_sqlite: Shell) -> None:
    assert "[month]" in on_sqlite.printed("keys", "create", "--help")
    assert "each counted apart" in " ".join(on_sqlite.printed("limits", "create", "--help").split())

"""What a command changes is told to the workers over Redis, and the command is done whether or not that can be."""

import asyncio
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from redis import Redis
from redis.client import PubSub

from tests.support.credentials import JWT_SECRET, PEPPER
from tests.support.schema import bring_to_head
from tests.support.waiting import eventually
from tidegate.accounts.models import DEFAULT_WORKSPACE_ID
from tidegate.cli.main import root
from tidegate.storage.changes import key_topic, limits_topic, user_topic


class Shell:
    """Runs the command in this process, with an environment of its own."""

    def __init__(self, url: str, data_dir: Path, redis_url: str, redis_prefix: str) -> None:
        self.environment: dict[str, str | None] = {
            **dict.fromkeys((name for name in os.environ if name.startswith("TIDEGATE_")), None),
            "TIDEGATE_ENVIRONMENT": "test",
            "TIDEGATE_DATA_DIR": str(data_dir),
            "TIDEGATE_DATABASE__URL": url,
            "TIDEGATE_REDIS__URL": redis_url,
            "TIDEGATE_REDIS__KEY_PREFIX": redis_prefix,
            "TIDEGATE_AUTH__JWT_KEYS": f"1:{JWT_SECRET}",
            "TIDEGATE_AUTH__API_KEY_PEPPERS": f"1:{PEPPER}",
        }

    def json(self, *arguments: str) -> Any:
        result = CliRunner().invoke(root, [*arguments, "--json"], env=self.environment)
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)


class Ears:
    """Hears the topics that are told under a prefix."""

    def __init__(self, pubsub: PubSub) -> None:
        self._pubsub = pubsub
        self._heard: list[str] = []

    def heard(self, *expected: object) -> None:
        """Waits for these and nothing else."""

        def has_come() -> bool:
            while (message := self._pubsub.get_message(ignore_subscribe_messages=True)) is not None:
                self._heard.append(message["data"].decode())
            return len(self._heard) >= len(expected)

        asyncio.run(eventually(has_come))
        assert self._heard == list(expected)
        self._heard.clear()


@pytest.fixture
def shell(sqlite_url: str, tmp_path: Path, redis_url: str, redis_prefix: str) -> Shell:
    asyncio.run(bring_to_head(sqlite_url))
    return Shell(sqlite_url, tmp_path / "var", redis_url, redis_prefix)


@pytest.fixture
def ears(redis_url: str, redis_prefix: str) -> Iterator[Ears]:
    with Redis.from_url(redis_url) as redis, redis.pubsub() as pubsub:
        pubsub.subscribe(f"{redis_prefix}:changes")
        confirmed = pubsub.get_message(timeout=5)
        assert confirmed is not None
        yield Ears(pubsub)


def test_what_becomes_of_a_key_is_told(shell: Shell, ears: Ears) -> None:
    key = shell.json("keys", "create", "--name", "plain")
    shell.json("keys", "list")
    rotated = shell.json("keys", "rotate", key["prefix"])
    ears.heard(key_topic(key["id"]))
    shell.json("keys", "revoke", rotated["prefix"])
    ears.heard(key_topic(key["id"]))


def test_that_a_user_is_disabled_is_told(shell: Shell, ears: Ears) -> None:
    user = shell.json("users", "create", "--email", "ada@example.com")
    shell.json("users", "disable", "ada@example.com")
    ears.heard(user_topic(user["id"]))


def test_changed_limits_are_told_with_their_workspace(shell: Shell, ears: Ears) -> None:
    topic = limits_topic(DEFAULT_WORKSPACE_ID)
    shell.json("keys", "create", "--name", "limited", "--rpm", "5")
    ears.heard(topic)
    limit = shell.json("limits", "create", "--scope", "workspace", "--meter", "concurrency", "--amount", "4")
    ears.heard(topic)
    shell.json("limits", "list")
    shell.json("limits", "delete", limit["id"])
    ears.heard(topic)


def test_a_command_is_done_without_redis_and_says_so_once(shell: Shell, caplog: pytest.LogCaptureFixture) -> None:
    # Port 1 is nobody's.
    shell.environment["TIDEGATE_REDIS__URL"] = "redis://127.0.0.1:1/0"
    key = shell.json("keys", "create", "--name", "limited", "--rpm", "5")
    other = shell.json("keys", "create", "--name", "plain")
    shell.json("users", "create", "--email", "ada@example.com")
    for command in (
        ("keys", "rotate", key["prefix"]),
        ("users", "disable", "ada@example.com"),
        ("limits", "create", "--scope", "workspace", "--meter", "concurrency", "--amount", "4"),
        ("keys", "revoke", other["prefix"]),
    ):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            shell.json(*command)
        assert [record for record in caplog.messages if "not told" in record], command
        assert len(caplog.messages) == 1
    assert shell.json("keys", "list")[0]["state"] == "revoked"

"""`tidegate audit`, and who a command is in the trail."""

import asyncio
import os
import pwd
from pathlib import Path

import pytest

from tests.integration.test_keys_cli import Shell
from tests.support.credentials import database_at_head
from tests.support.schema import bring_to_head
from tidegate.accounts.models import Workspace
from tidegate.audit.trail import Actor, Event, Subject, write

ME = pwd.getpwuid(os.getuid()).pw_name


@pytest.fixture
def shell(database_url: str, tmp_path: Path) -> Shell:
    if not database_url.startswith("sqlite"):
        asyncio.run(bring_to_head(database_url))
    return Shell(database_url, tmp_path / "var")


@pytest.fixture
def on_sqlite(sqlite_url: str, tmp_path: Path) -> Shell:
    return Shell(sqlite_url, tmp_path / "var")


def test_a_new_database_has_no_trail_and_says_so(shell: Shell) -> None:
    assert shell.printed("audit") == "The audit trail has nothing since 7d.\n"
    assert shell.printed("audit", "--action", "key.") == "The audit trail has nothing of that kind since 7d.\n"
    assert shell.json("audit") == []


def test_what_commands_do_is_in_the_trail_under_the_system_s_user(shell: Shell) -> None:
    created = shell.json("keys", "create", "--name", "app", "--rpm", "60")
    rotated = shell.json("keys", "rotate", created["prefix"])
    limit = ("--scope", "workspace", "--meter", "requests", "--window", "minute", "--amount", "9")
    made = shell.json("limits", "create", *limit)
    shell.printed("limits", "delete", made["id"])
    shell.printed("keys", "revoke", rotated["prefix"])
    events = shell.json("audit", "--actor", ME)
    assert [event["action"] for event in events] == [
        "key.revoked",
        "limit.deleted",
        "limit.created",
        "key.rotated",
        "key.created",
    ]
    assert all(event["actor"] == {"kind": "command", "id": None, "name": ME} for event in events)
    assert events[0]["workspace"] == "default"
    assert events[-1]["details"]["limits"] == {"key-requests-minute": 60}
    table = shell.printed("audit", "--action", "key.")
    assert [line.split()[2] for line in table.splitlines()[1:]] == ["key.revoked", "key.rotated", "key.created"]
    assert f"prefix: tg_{created['prefix']} -> tg_{rotated['prefix']}" in table
    assert f"command {ME}" in table
    assert not any(key["key"][12:] in table for key in (created, rotated))


def test_the_trail_is_filtered_and_its_end_is_said(on_sqlite: Shell) -> None:
    for name in ("a", "b", "c"):
        on_sqlite.printed("keys", "create", "--name", name)
    result = on_sqlite.run("audit", "--limit", "2")
    assert len(result.stdout.splitlines()) == 3
    assert result.stderr == "There are more; these are the newest 2.\n"
    assert on_sqlite.json("audit", "--actor", "system") == []
    assert len(on_sqlite.json("audit", "--workspace", "default", "--since", "1h")) == 3
    assert "'research'" in on_sqlite.refusal("audit", "--workspace", "research")


def test_what_others_chose_does_not_reach_the_terminal_raw(on_sqlite: Shell) -> None:
    async def write_it() -> None:
        async with database_at_head(on_sqlite.url) as database:
            async with database.transaction() as session:
                research = Workspace(name="research")
                session.add(research)
            actor = Actor("nobody", client_address="192.0.2.7\x1b[2J")
            subject = Subject("user", None, "a\nb@example.com")
            event = Event("account.sign_in_refused", research.id, subject, "refused", {"why": "no\x07pe"})
            await write(database, actor, event)

    asyncio.run(write_it())
    printed = on_sqlite.printed("audit", "--workspace", "research")
    (line,) = printed.splitlines()[1:]
    assert line.split()[2:] == [
        "account.sign_in_refused",
        "refused",
        "nobody",
        "192.0.2.7?[2J",
        "a?b@example.com",
        "research",
        "why:",
        "no?pe",
    ]

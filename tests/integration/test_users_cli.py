"""`tidegate users` and `tidegate workspaces`: inviting, enabling, setting passwords, and what the audit trail says."""

import asyncio
import json
import os
import pwd
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from tests.integration.test_keys_cli import Shell
from tests.support.credentials import database_at_head
from tests.support.smtp import mail_server
from tidegate.accounts.models import MailedToken, RecoveryCode, SecondFactor, SignIn, User
from tidegate.accounts.service import Accounts
from tidegate.audit.models import AuditEvent
from tidegate.auth.passwords import Passwords
from tidegate.errors import AuthenticationError
from tidegate.ledger.entry import utc_now
from tidegate.storage.migrate import migrate

EMAIL = "ada@example.com"
PASSWORD = "correct horse battery"
BETTER = "quite another horse stable"


@pytest.fixture
def shell(database_url: str, tmp_path: Path) -> Shell:
    asyncio.run(migrate(database_url))
    return Shell(database_url, tmp_path / "var")


def _rows(shell: Shell, model: Any) -> list[Any]:
    async def read() -> list[Any]:
        async with database_at_head(shell.url) as database, database.session() as session:
            return list(await session.scalars(select(model).order_by(model.id)))

    return asyncio.run(read())


def _create(shell: Shell, *options: str) -> None:
    shell.printed("users", "create", "--email", EMAIL, "--password-stdin", *options, stdin=PASSWORD)


def _add_sign_in(shell: Shell) -> None:
    async def add() -> None:
        async with database_at_head(shell.url) as database, database.transaction() as session:
            user = (await session.scalars(select(User))).one()
            given = {"user_id": user.id, "workspace_id": user.workspace_id}
            session.add(SignIn(method="password", expires_at=utc_now(), **given))
            session.add(
                MailedToken(purpose="password_reset", email=user.email, token_hash=b"1", expires_at=utc_now(), **given)
            )

    asyncio.run(add())


def _opens(shell: Shell, password: str) -> bool:
    async def ask() -> bool:
        async with database_at_head(shell.url) as database:
            try:
                await Accounts(database, Passwords()).sign_in(EMAIL, password)
            except AuthenticationError:
                return False
            return True

    return asyncio.run(ask())


def _trail(shell: Shell) -> list[tuple[str, str | None, str | None]]:
    events: list[AuditEvent] = _rows(shell, AuditEvent)
    assert {(one.actor_kind, one.actor) for one in events} == {("command", pwd.getpwuid(os.getuid()).pw_name)}
    return [(one.action, one.outcome, one.subject) for one in events]


def test_who_is_invited_reads_a_link_that_a_developer_sees_on_standard_error(shell: Shell) -> None:
    done = shell.run("users", "invite", "--email", "Ada@example.com", "--role", "admin")
    assert done.exit_code == 0, done.output
    assert done.stdout == f"Invited {EMAIL} to the workspace default as admin.\n"
    assert "http://127.0.0.1:8000/invitation#token=tgm_" in done.stderr
    (row,) = _rows(shell, MailedToken)
    assert (row.email, row.role, row.purpose, row.made_by) == (EMAIL, "admin", "invitation", None)
    assert _trail(shell) == [("user.invited", "done", EMAIL)]


def test_an_invitation_goes_by_the_mail_server(shell: Shell) -> None:
    async def invite() -> tuple[str, str]:
        async with mail_server() as server:
            shell.environment |= {
                "TIDEGATE_MAIL__SMTP_HOST": "127.0.0.1",
                "TIDEGATE_MAIL__SMTP_PORT": str(server.port),
                "TIDEGATE_MAIL__SMTP_SECURITY": "none",
                "TIDEGATE_MAIL__SENDER": "tidegate@example.com",
                "TIDEGATE_HTTP__PUBLIC_URL": "https://gateway.example.com",
            }
            printed = await asyncio.to_thread(shell.printed, "users", "invite", "--email", EMAIL)
            (received,) = server.received
            body = received.message.get_body(("plain",))
            assert body is not None
            return printed, body.get_content()

    printed, text = asyncio.run(invite())
    assert "tgm_" not in printed
    assert "https://gateway.example.com/invitation#token=tgm_" in text


def test_an_invitation_to_nowhere_or_without_mail_says_what_to_do(shell: Shell) -> None:
    assert "no workspace 'sales'" in shell.refusal("users", "invite", "--email", EMAIL, "--workspace", "sales")
    assert "--email" in shell.refusal("users", "invite", "--email", "nobody", code=2)
    shell.environment["TIDEGATE_ENVIRONMENT"] = "production"
    shell.environment["TIDEGATE_SERVER__WORKERS"] = "1"
    refused = shell.run("users", "invite", "--email", EMAIL)
    assert refused.exit_code == 1
    assert "tgm_" not in refused.output
    assert _rows(shell, MailedToken) == []


def test_who_is_disabled_is_enabled_again_without_the_sign_ins_of_before(shell: Shell) -> None:
    _create(shell)
    _add_sign_in(shell)
    shell.printed("users", "disable", EMAIL)
    assert not _opens(shell, PASSWORD)
    assert shell.printed("users", "enable", EMAIL) == f"{EMAIL} is enabled.\n"
    assert _opens(shell, PASSWORD)
    assert shell.json("users", "enable", EMAIL)["disabled_at"] is None
    (sign_in,) = _rows(shell, SignIn)
    (token,) = _rows(shell, MailedToken)
    assert sign_in.ended_because == "disabled"
    assert token.withdrawn_at is not None
    assert "no user" in shell.refusal("users", "enable", "nobody@example.com")
    assert _trail(shell) == [(f"user.{what}", "done", EMAIL) for what in ("created", "disabled", "enabled")]


def test_a_password_that_is_set_ends_sign_ins_and_links(shell: Shell) -> None:
    _create(shell)
    _add_sign_in(shell)
    printed = shell.printed("users", "set-password", EMAIL, "--password-stdin", stdin=f"{BETTER}\n")
    assert printed.splitlines() == [
        f"The password of {EMAIL} is set; their sign-ins have ended.",
        "It opens log-ins for 7 days: its user chooses their own by then.",
    ]
    assert (_opens(shell, PASSWORD), _opens(shell, BETTER)) == (False, True)
    (sign_in,) = _rows(shell, SignIn)
    (token,) = _rows(shell, MailedToken)
    assert sign_in.ended_because == "password_changed"
    assert token.withdrawn_at is not None
    made_up = shell.json("users", "set-password", EMAIL)["password"]
    assert _opens(shell, made_up)
    assert _trail(shell)[1:] == [("account.password_changed", "done", EMAIL)] * 2


@pytest.mark.parametrize("password", ["password1234", "short", "ada@example.com"])
def test_a_password_that_is_guessed_first_is_refused(shell: Shell, password: str) -> None:
    refused = shell.run("users", "create", "--email", EMAIL, "--password-stdin", stdin=password)
    assert refused.exit_code in {1, 2}
    assert password not in refused.stderr.replace(EMAIL, "") or password == EMAIL
    assert _rows(shell, User) == []
    _create(shell)
    assert shell.run("users", "set-password", EMAIL, "--password-stdin", stdin=password).exit_code == 1
    assert _opens(shell, PASSWORD)


def test_a_lost_second_factor_is_taken_away_and_its_user_told(shell: Shell) -> None:
    _create(shell)
    _add_sign_in(shell)
    assert shell.run("users", "reset-second-factor", "nobody@example.com").exit_code == 1
    # Without one it is nothing to do.
    assert json.loads(shell.run("users", "reset-second-factor", EMAIL, "--json").stdout)["email"] == EMAIL
    assert _rows(shell, SignIn)[0].ended_at is None

    async def add() -> None:
        async with database_at_head(shell.url) as database, database.transaction() as session:
            user = (await session.scalars(select(User))).one()
            given = {"user_id": user.id, "workspace_id": user.workspace_id}
            session.add(SecondFactor(sealed_secret=b"1", secret_kid="1", confirmed_at=utc_now(), **given))
            session.add(RecoveryCode(code_hash=b"1", **given))

    asyncio.run(add())
    done = shell.run("users", "reset-second-factor", EMAIL)
    assert (done.exit_code, done.stdout) == (0, f"{EMAIL} has no second factor.\n")
    assert "was reset" in done.stderr
    assert [*_rows(shell, SecondFactor), *_rows(shell, RecoveryCode)] == []
    assert _rows(shell, SignIn)[0].ended_because == "second_factor_changed"
    assert _trail(shell)[-1] == ("account.second_factor_reset", "done", EMAIL)


def test_workspaces_are_made_and_listed(shell: Shell) -> None:
    made = shell.json("workspaces", "create", "--name", "sales")
    assert made["name"] == "sales"
    assert shell.printed("workspaces", "create", "--name", "trade") == "Created the workspace trade.\n"
    assert [one["name"] for one in shell.json("workspaces", "list")] == ["trade", "sales", "default"]
    assert shell.printed("workspaces", "list").splitlines()[0].split() == ["NAME", "ID", "CREATED"]
    assert "'sales' already" in shell.refusal("workspaces", "create", "--name", "sales")
    _create(shell, "--workspace", "sales")
    assert _trail(shell)[0] == ("workspace.created", "done", "sales")

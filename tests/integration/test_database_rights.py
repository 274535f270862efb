"""A role that reads and writes rows is all that the gateway needs to serve, and it cannot touch the audit trail."""

import secrets
from collections.abc import AsyncIterator
from pathlib import Path

import httpx2
import pytest
from pydantic import SecretStr
from sqlalchemy import text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError
from starlette.types import Receive, Scope, Send

from tests.support.credentials import EMAIL, PASSWORD, database_at_head, quick_passwords, secret_settings
from tests.support.stand_in import ECHO
from tidegate.accounts.schemas import NewUser
from tidegate.accounts.service import Accounts
from tidegate.app import create_app
from tidegate.settings import Settings
from tidegate.settings.groups import AuthSettings, DatabaseSettings
from tidegate.storage.database import Database
from tidegate.storage.migrate import require_head
from tidegate.storage.rights import may_change_tables

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "guide" / "configuration.md"


def _grants(role: str) -> list[str]:
    """What the guide says, for a role of this test."""
    told = GUIDE.read_text("utf-8").partition("```sql\n")[2].partition("```")[0]
    lines = [line for line in told.splitlines() if line.startswith(("GRANT", "ALTER"))]
    assert len(lines) == 5, lines
    return [line.replace("tidegate_serve", role).replace("tidegate_owner", "postgres") for line in lines]


@pytest.fixture
async def owner(postgres_url: str) -> AsyncIterator[Database]:
    async with database_at_head(postgres_url) as database:
        yield database


@pytest.fixture
async def serving_url(owner: Database, postgres_url: str) -> AsyncIterator[str]:
    role = f"tg_test_{secrets.token_hex(4)}"
    async with owner.transaction() as session:
        for statement in (f"CREATE ROLE {role} LOGIN PASSWORD '{secrets.token_hex(8)}'", *_grants(role)):
            await session.execute(text(statement))
    yield make_url(postgres_url).set(username=role).render_as_string(hide_password=False)
    async with owner.transaction() as session:
        await session.execute(text(f"DROP OWNED BY {role}"))
        await session.execute(text(f"DROP ROLE {role}"))


@pytest.fixture
async def serving(serving_url: str) -> AsyncIterator[Database]:
    database = await Database.open(serving_url)
    yield database
    await database.aclose()


async def test_it_is_known_who_owns_the_tables(owner: Database, serving: Database) -> None:
    assert (await may_change_tables(owner), await may_change_tables(serving)) == (True, False)
    await require_head(serving)


@pytest.mark.parametrize(
    "statement",
    [
        "ALTER TABLE audit_events DISABLE TRIGGER ALL",
        "DROP TABLE audit_events",
        "TRUNCATE audit_events",
        "CREATE TABLE of_its_own (id int)",
        "CREATE OR REPLACE FUNCTION refuse_audit_change() RETURNS trigger AS 'BEGIN RETURN OLD; END' LANGUAGE plpgsql",
    ],
)
async def test_it_changes_no_table_and_no_trigger(serving: Database, statement: str) -> None:
    with pytest.raises(DBAPIError) as refused:
        async with serving.transaction() as session:
            await session.execute(text(statement))
    assert getattr(refused.value.orig, "sqlstate", None) == "42501"


async def test_the_gateway_serves_by_it(owner: Database, serving_url: str, tmp_path: Path) -> None:
    await Accounts(owner, quick_passwords()).create(NewUser(email=EMAIL, password=SecretStr(PASSWORD), role="admin"))
    settings = Settings(
        environment="test",
        data_dir=tmp_path,
        config_toml=ECHO,
        database=DatabaseSettings(url=SecretStr(serving_url)),
        auth=AuthSettings(**secret_settings()),
    )
    app = create_app(settings)
    async with app.router.lifespan_context(app) as state:
        assert state is not None

        async def with_state(scope: Scope, receive: Receive, send: Send) -> None:
            await app({**scope, "state": dict(state)}, receive, send)

        transport = httpx2.ASGITransport(with_state)
        async with httpx2.AsyncClient(transport=transport, base_url="http://gateway") as client:
            tokens = await client.post("/auth/login", json={"email": EMAIL, "password": PASSWORD})
            assert tokens.status_code == 200, tokens.text
            client.headers["Authorization"] = f"Bearer {tokens.json()['access_token']}"
            made = await client.post("/api/keys", json={"name": "k"})
            assert made.status_code == 201, made.text
            assert (await client.delete(f"/api/keys/{made.json()['id']}")).is_success
            refreshed = {"refresh_token": tokens.json()["refresh_token"]}
            assert (await client.post("/auth/refresh", json=refreshed)).status_code == 200
            trail = await client.get("/api/audit")
            assert {"account.signed_in", "key.created", "key.revoked"} <= {
                event["action"] for event in trail.json()["data"]
            }

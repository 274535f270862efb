"""The schema changes by migrations alone: all or nothing, once whoever asks, and it is what the models say."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path

import anyio
import pytest
from alembic import command
from click.testing import CliRunner
from sqlalchemy import Column, Connection, Index, Integer, MetaData, Text, inspect, select, text
from sqlalchemy.engine import make_url

from tidegate.accounts.models import DEFAULT_WORKSPACE_ID, Workspace
from tidegate.cli.migrate import migrate_command
from tidegate.storage import migrate as migration
from tidegate.storage.base import Base
from tidegate.storage.database import Database
from tidegate.storage.migrate import (
    MigrationFailed,
    SchemaBehind,
    drift,
    is_at_head,
    migrate,
    newer_revision,
    pending,
    require_head,
)
from tidegate.storage.migrations.tables import all_tables

REVISIONS = sorted(file.name[:4] for file in (migration.SCRIPTS / "versions").glob("[0-9]*.py"))
BEHIND = f"behind by {', '.join(REVISIONS)}: run `tidegate migrate`"


async def with_database(url: str, use: Callable[[Database], Awaitable[None]]) -> None:
    database = await Database.open(url)
    try:
        await use(database)
    finally:
        await database.aclose()


async def execute(url: str, *statements: str) -> None:
    async def run(database: Database) -> None:
        async with database.transaction() as session:
            for statement in statements:
                await session.execute(text(statement))

    await with_database(url, run)


async def tables(url: str) -> set[str]:
    found: set[str] = set()

    def names(connection: Connection) -> list[str]:
        return inspect(connection).get_table_names()

    async def look(database: Database) -> None:
        async with database.session() as session:
            found.update(await (await session.connection()).run_sync(names))

    await with_database(url, look)
    return found


async def test_an_empty_database_is_brought_to_head_once(database_url: str) -> None:
    assert await pending(database_url) == REVISIONS
    assert await migrate(database_url) == REVISIONS
    assert await pending(database_url) == []
    assert await migrate(database_url) == []


async def test_looking_changes_nothing(database_url: str) -> None:
    await pending(database_url)
    assert await tables(database_url) == set()


async def test_looking_makes_no_file(sqlite_url: str, tmp_path: Path) -> None:
    assert await pending(sqlite_url) == REVISIONS
    assert list(tmp_path.iterdir()) == []


async def test_the_default_workspace_is_there_from_the_first_migration(database_url: str) -> None:
    await migrate(database_url)

    async def look(database: Database) -> None:
        async with database.session() as session:
            workspace = (await session.scalars(select(Workspace))).one()
        assert (workspace.id, workspace.name) == (DEFAULT_WORKSPACE_ID, "default")
        assert workspace.created_at.tzinfo is not None

    await with_database(database_url, look)


async def test_the_schema_at_head_is_what_the_models_say(database_url: str) -> None:
    await migrate(database_url)
    assert await drift(database_url, all_tables()) == []


def _column_added(metadata: MetaData) -> None:
    metadata.tables["ledger_entries"].append_column(Column("mood", Text))


def _column_removed(metadata: MetaData) -> None:
    table = metadata.tables["ledger_entries"]
    table._columns.remove(table.c.user_agent)


def _type_changed(metadata: MetaData) -> None:
    metadata.tables["api_keys"].c.secret_hash.type = Integer()


def _null_allowed(metadata: MetaData) -> None:
    metadata.tables["refusals"].c["count"].nullable = True


def _default_removed(metadata: MetaData) -> None:
    metadata.tables["users"].c.created_at.server_default = None


def _index_added(metadata: MetaData) -> None:
    Index("ix_users_role", metadata.tables["users"].c.role)


def _check_removed(metadata: MetaData) -> None:
    table = metadata.tables["api_keys"]
    table.constraints = {one for one in table.constraints if not str(one.name).endswith("owner_is_one")}


async def test_a_model_that_was_changed_without_a_migration_is_drift(database_url: str) -> None:
    await migrate(database_url)
    changes = (
        _column_added,
        _column_removed,
        _type_changed,
        _null_allowed,
        _default_removed,
        _index_added,
        _check_removed,
    )
    for change in changes:
        changed = MetaData(naming_convention=Base.metadata.naming_convention)
        for table in all_tables().sorted_tables:
            table.to_metadata(changed)
        assert await drift(database_url, changed) == []
        change(changed)
        assert len(await drift(database_url, changed)) == 1, change.__name__


def test_every_table_belongs_to_a_workspace() -> None:
    found = all_tables().tables
    assert {"workspaces", "users", "service_accounts", "api_keys", "ledger_entries", "ledger_attempts"} <= set(found)
    for name, table in found.items():
        # The one row of `store_epochs` is the deployment's.
        assert name in ("workspaces", "store_epochs") or not table.c.workspace_id.nullable


async def test_migrations_at_once_apply_each_revision_once(database_url: str) -> None:
    applied: list[list[str]] = []

    async def run() -> None:
        applied.append(await migrate(database_url))

    async with anyio.create_task_group() as group:
        for _ in range(4):
            group.start_soon(run)
    assert sorted(applied) == [[], [], [], REVISIONS]
    assert await drift(database_url, all_tables()) == []


async def test_a_migration_that_cannot_get_the_lock_says_so_and_changes_nothing(database_url: str) -> None:
    async def hold(database: Database) -> None:
        async with database.transaction() as session:
            if database.dialect_name == "postgresql":
                await session.execute(text(f"SELECT pg_advisory_xact_lock({migration._ADVISORY_LOCK})"))
            else:
                await session.execute(text("SELECT 1"))
            with pytest.raises(MigrationFailed, match="locked"):
                await migrate(database_url, lock_timeout_s=0.1)

    await with_database(database_url, hold)
    assert await tables(database_url) == set()
    assert await migrate(database_url) == REVISIONS


async def test_a_migration_that_fails_leaves_nothing(database_url: str) -> None:
    def upgrade_and_fail(connection: Connection) -> None:
        command.upgrade(migration._configuration(connection), "head")
        raise LookupError

    with pytest.raises(LookupError):
        await migration._on(make_url(database_url), upgrade_and_fail, begin="BEGIN IMMEDIATE")
    assert await tables(database_url) == set()


async def test_each_revision_can_be_taken_back(database_url: str) -> None:
    def downgrade(connection: Connection) -> None:
        command.downgrade(migration._configuration(connection), "base")

    await migrate(database_url)
    await migration._on(make_url(database_url), downgrade)
    assert await tables(database_url) == {"alembic_version"}
    assert await migrate(database_url) == REVISIONS


async def test_a_table_is_rebuilt_without_losing_what_refers_to_it(sqlite_url: str) -> None:
    """SQLite changes a table by copying and dropping it; with its checks on, the drop deletes what refers to it."""
    await migrate(sqlite_url)
    zero = "'00000000000000000000000000000000'"
    counts = ", ".join(["0"] * 6)
    await execute(
        sqlite_url,
        f"INSERT INTO ledger_entries VALUES ({zero}, 1, {zero}, null, null, 'r', null, null, '{{}}', 'chat', 'm', null,"
        f" 0, 'completed', 200, null, null, null, {counts}, '{{}}', 'none', null, null, null, null, null, null, null,"
        " 0, '2026-11-22', '2026-11-22')",
        f"INSERT INTO ledger_attempts VALUES ({zero}, 1, {zero}, 'u', 'm', null, 'completed', 200, {counts}, 'none',"
        " null, null, '2026-11-22', '2026-11-22')",
    )

    def rebuild(connection: Connection) -> int:
        connection.execute(text("CREATE TABLE copied AS SELECT * FROM ledger_entries"))
        connection.execute(text("DROP TABLE ledger_entries"))
        connection.execute(text("ALTER TABLE copied RENAME TO ledger_entries"))
        return int(connection.scalar(text("SELECT count(*) FROM ledger_attempts")) or 0)

    assert await migration._on(make_url(sqlite_url), rebuild) == 1


async def test_a_database_that_is_behind_is_refused_with_the_remedy(database_url: str) -> None:
    async def look(database: Database) -> None:
        assert not await is_at_head(database)
        with pytest.raises(SchemaBehind, match=BEHIND):
            await require_head(database)
        await migrate(database_url)
        assert await is_at_head(database)
        await require_head(database)

    await with_database(database_url, look)


async def test_a_newer_versions_database_is_not_behind_and_is_left_alone(
    database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    await migrate(database_url)
    await execute(database_url, "UPDATE alembic_version SET version_num = '9999'")
    assert await pending(database_url) == []
    assert await migrate(database_url) == []
    assert await newer_revision(database_url) == "9999"

    async def look(database: Database) -> None:
        caplog.clear()
        await require_head(database)
        assert "newer version's" in caplog.text
        assert "9999" in caplog.text
        async with database.session() as session:
            assert await session.scalar(text("SELECT version_num FROM alembic_version")) == "9999"

    await with_database(database_url, look)


def test_the_command_checks_and_migrates(database_url: str) -> None:
    # In production everything but the database's URL is missing here: the command needs nothing else.
    environment = {"TIDEGATE_DATABASE__URL": database_url, "TIDEGATE_ENVIRONMENT": "production"}
    runner = CliRunner(env=environment)

    def run(*arguments: str) -> tuple[int, str]:
        result = runner.invoke(migrate_command, arguments)
        return result.exit_code, result.stdout

    assert run("--check") == (1, f"The database is {BEHIND}.\n")
    code, printed = run("--json")
    assert (code, json.loads(printed)) == (0, {"applied": REVISIONS, "pending": []})
    assert run() == (0, "The database is at head.\n")
    code, printed = run("--check", "--json")
    assert (code, json.loads(printed)) == (0, {"applied": [], "pending": []})
    assert asyncio.run(pending(database_url)) == []
    asyncio.run(execute(database_url, "UPDATE alembic_version SET version_num = '9999'"))
    newer = "The database is at revision 9999, a newer version's: it was left alone.\n"
    assert run("--check") == (0, newer)
    assert run() == (0, newer)
    code, printed = run("--json")
    assert (code, json.loads(printed)) == (0, {"applied": [], "pending": [], "newer": "9999"})

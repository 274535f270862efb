"""An empty database brought to head by Alembic, at a price that every test can pay: what it did once is done again."""

import asyncio
import functools
import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path
from typing import Any

import asyncpg  # type: ignore[import-untyped]
from sqlalchemy import Engine, event
from sqlalchemy.engine import URL, make_url

from tidegate.storage.migrate import migrate

_HEAD = "SELECT version_num FROM alembic_version"
_Statements = list[tuple[str, Any]]
# One entry, of this process's first empty PostgreSQL.
_recorded: list[_Statements] = []


async def bring_to_head(url: str) -> None:
    """An empty database gets what a migration made of another one; any other that is not at head is migrated."""
    location = make_url(url)
    if location.get_backend_name() == "sqlite":
        await _bring_file(url, location)
    else:
        await _bring_database(url, location)


async def _bring_file(url: str, location: URL) -> None:
    assert location.database, "a database in memory is nobody else's"
    file = Path(location.database)
    if not file.exists():
        file.write_bytes((await asyncio.to_thread(_at_head))[0])
    elif _revision_of(file) != (await asyncio.to_thread(_at_head))[1]:
        await migrate(url)


@functools.cache
def _at_head() -> tuple[bytes, str | None]:
    """A file at head, and its revision."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "head.db"
        asyncio.run(migrate(f"sqlite+aiosqlite:///{file}"))
        assert list(Path(folder).iterdir()) == [file], "what is in the write-ahead log would be missing"
        held = file.read_bytes()
        return held, _revision_of(file)


def _revision_of(file: Path) -> str | None:
    with closing(sqlite3.connect(file, timeout=30)) as connection:
        try:
            found = connection.execute(_HEAD).fetchone()
        except sqlite3.OperationalError:
            return None
    return found[0] if found else None


async def _bring_database(url: str, location: URL) -> None:
    plain = location.set(drivername="postgresql").render_as_string(hide_password=False)
    connection = await asyncpg.connect(plain, timeout=10)
    try:
        if not await connection.fetchval("SELECT count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace"):
            if _recorded:
                await _repeat(connection, _recorded[0])
                return
            is_empty = True
        else:
            is_empty = False
    finally:
        await connection.close()
    statements = await _recording(url, location)
    if is_empty and not _recorded:
        _recorded.append(statements)


async def _recording(url: str, location: URL) -> _Statements:
    """Migrates, and returns the statements that changed something."""
    statements: _Statements = []

    def note(connection: Any, cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        if connection.engine.url == location and not statement.lstrip().upper().startswith(("SELECT", "SHOW")):
            statements.append((statement, parameters))

    event.listen(Engine, "before_cursor_execute", note)
    try:
        await migrate(url)
    finally:
        event.remove(Engine, "before_cursor_execute", note)
    return statements


async def _repeat(connection: "asyncpg.Connection", statements: _Statements) -> None:
    """In one transaction, as the migration; what has no parameters goes together."""
    async with connection.transaction():
        plain: list[str] = []
        for statement, parameters in statements:
            if not parameters:
                plain.append(statement)
                continue
            await connection.execute(";\n".join(plain))
            plain.clear()
            await connection.execute(statement, *parameters)
        if plain:
            await connection.execute(";\n".join(plain))

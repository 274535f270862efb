"""Judges a migration: may the release before it go on working while it is applied, and after?

It may where the migration only expands the schema. What the migration does is read off the SQL that it writes for
PostgreSQL, so that nothing hides in a string of its own. A migration that takes something away names the revision since
which no release uses that any more: `contracts = "0007"`.
"""

import io
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace

from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from tidegate.storage.migrate import _configuration

Module = ModuleType | SimpleNamespace

_TABLE = re.compile(r"CREATE TABLE (\w+) \((.*)\)$", re.DOTALL)
_INDEX = re.compile(r"CREATE (UNIQUE )?INDEX \w+ ON (\w+) ")
_ADDED_COLUMN = re.compile(r'ALTER TABLE (\w+) ADD COLUMN "?(\w+)"? (.*)$', re.DOTALL)
_ADDED_CONSTRAINT = re.compile(r"ALTER TABLE (\w+) ADD CONSTRAINT \w+ (.*)$", re.DOTALL)
_TRIGGER = re.compile(r"CREATE TRIGGER \w+ .*? ON (\w+) ", re.DOTALL)
_UPDATE = re.compile(r"UPDATE (\w+) SET (.*?)(?: WHERE .*)?$", re.DOTALL)
# Relaxed, or of no effect on who writes and reads: a check or a reference less, a plain index less, a default more.
_HARMLESS = re.compile(
    r"INSERT INTO |CREATE FUNCTION |DROP INDEX ix_|ALTER TABLE \w+ DROP CONSTRAINT (ck|fk)_"
    r'|ALTER TABLE \w+ ALTER COLUMN "?\w+"? (DROP NOT NULL|SET DEFAULT|TYPE (TEXT|BIGINT)\b)|COMMENT ON '
)


@dataclass
class _Known:
    """The columns of each table, and of the present revision those that are its own."""

    columns: dict[str, set[str]] = field(default_factory=dict)
    new: dict[str, set[str]] = field(default_factory=dict)

    def older(self, table: str) -> set[str]:
        return self.columns.get(table, set()) - self.new.get(table, set())


def faults_of_all() -> list[str]:
    """Of every revision of this version."""
    scripts = ScriptDirectory.from_config(_configuration())
    return faults(script.module for script in reversed(list(scripts.walk_revisions())))


def faults(revisions: Iterable[Module]) -> list[str]:
    """What takes something away and does not say since when it is unused; a line each. `revisions` from the oldest."""
    known, seen, found = _Known(), [], []
    for module in revisions:
        known.new = {}
        contracts = getattr(module, "contracts", None)
        if contracts is not None and contracts not in seen:
            found.append(f"{module.revision}: contracts = {contracts!r} is no earlier revision")
        for statement in _statements(module):
            fault = _fault(statement, known)
            if fault is not None and contracts is None:
                found.append(f"{module.revision}: {fault}: {' '.join(statement.split())[:120]}")
        seen.append(module.revision)
    return found


def _statements(module: Module) -> Iterator[str]:
    written = io.StringIO()
    offline = {"as_sql": True, "output_buffer": written, "literal_binds": True}
    with Operations.context(MigrationContext.configure(dialect_name="postgresql", opts=offline)):
        module.upgrade()
    for statement in written.getvalue().split(";\n"):
        if plain := re.sub(r"^--.*$", "", statement, flags=re.MULTILINE).strip():
            yield plain


def _fault(statement: str, known: _Known) -> str | None:
    if table := _TABLE.match(statement):
        columns = {line.split()[0].strip('"') for line in table[2].splitlines() if line.strip()}
        known.columns[table[1]] = known.new[table[1]] = columns
        return None
    if index := _INDEX.match(statement):
        is_of_older = bool(index[1]) and bool(known.older(index[2]))
        return "what the release before writes may not be unique" if is_of_older else None
    if column := _ADDED_COLUMN.match(statement):
        known.columns.setdefault(column[1], set()).add(column[2])
        known.new.setdefault(column[1], set()).add(column[2])
        is_demanded = "NOT NULL" in column[3] and "DEFAULT" not in column[3]
        return "the release before does not write this column" if is_demanded else None
    if constraint := _ADDED_CONSTRAINT.match(statement):
        named = set(re.findall(r"\w+", constraint[2].partition("REFERENCES")[0]))
        is_of_older = bool(named & known.older(constraint[1]))
        return "what the release before writes may break this constraint" if is_of_older else None
    if trigger := _TRIGGER.match(statement):
        return "it meddles with what the release before writes" if known.older(trigger[1]) else None
    if update := _UPDATE.match(statement):
        written = set(re.findall(r'"?(\w+)"?\s*=', update[2]))
        return None if written <= known.new.get(update[1], set()) else "it changes what the release before reads"
    return None if _HARMLESS.match(statement) else "the release before may need what this changes"

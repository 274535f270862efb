"""What the database lets this process do: no more than it needs, where who runs the gateway has two roles.

`tidegate migrate` takes the role that owns the tables; `serve` needs to read and write rows and nothing else. A role
that owns them can take away the triggers that keep the audit trail.
"""

from sqlalchemy import text

from tidegate.storage.database import Database

_OWNS = text(
    "SELECT pg_has_role(current_user, relowner, 'USAGE') FROM pg_class WHERE oid = to_regclass('audit_events')"
)


async def may_change_tables(database: Database) -> bool:
    """Whether this role owns the tables, itself or by another, or is above all. False on SQLite, which has no roles."""
    if database.dialect_name != "postgresql":
        return False
    async with database.session() as session:
        return bool(await session.scalar(_OWNS))

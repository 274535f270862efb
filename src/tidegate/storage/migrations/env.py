"""What Alembic runs for every command: it works on the connection, and in the transaction, that `migrate.py` opened."""

from typing import Literal

from alembic import context
from alembic.autogenerate.api import AutogenContext

from tidegate.storage import types


def render_own_type(kind: str, item: object, autogenerate: AutogenContext) -> str | Literal[False]:
    """Columns of the types of `storage/types.py` are written as such in a draft."""
    if kind == "type" and type(item).__module__ == types.__name__:
        autogenerate.imports.add("from tidegate.storage import types")
        return f"types.{type(item).__name__}()"
    return False


context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=context.config.attributes["metadata"],
    render_as_batch=True,
    compare_type=True,
    compare_server_default=True,
    render_item=render_own_type,
    autogenerate_plugins=["alembic.autogenerate.*", "alembic.ext.checkconstraint_byname"],
)
with context.begin_transaction():
    context.run_migrations()

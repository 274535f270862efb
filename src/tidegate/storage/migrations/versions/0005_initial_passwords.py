"""When a password that somebody else chose, or that was made up, opens no log-in any more.

Revision ID: 0005
Revises: 0004

Adds a nullable column: the release before it works on this schema as on its own. A password that is changed by such a
worker while both run keeps the end of the one before it.
"""

import sqlalchemy as sa
from alembic import op

from tidegate.storage import types

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("users", sa.Column("password_ends_at", types.UtcDateTime(), nullable=True))


def downgrade() -> None:
    op.drop_column("users", "password_ends_at")

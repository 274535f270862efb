"""Which life of the shared store a deployment is in.

Revision ID: 0003
Revises: 0002
"""

import sqlalchemy as sa
from alembic import op

from tidegate.storage import types

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "store_epochs",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("run_id", sa.Text(), nullable=False),
        sa.Column("changed_at", types.UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_store_epochs"),
    )


def downgrade() -> None:
    op.drop_table("store_epochs")

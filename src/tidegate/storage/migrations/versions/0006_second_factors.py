"""Second factors of users, and the recovery codes beside them.

Revision ID: 0006
Revises: 0005

Adds tables: the release before it works on this schema as on its own. Its workers ask nobody for a second factor, so
set them up once all workers are of this release.
"""

import sqlalchemy as sa
from alembic import op

from tidegate.storage import types

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

NOW = sa.text("CURRENT_TIMESTAMP")


def upgrade() -> None:
    op.create_table(
        "second_factors",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("user_id", sa.Uuid(), nullable=False),
        sa.Column("sealed_secret", sa.LargeBinary(), nullable=False),
        sa.Column("secret_kid", sa.Text(), nullable=False),
        sa.Column("created_at", types.UtcDateTime(), server_default=NOW, nullable=False),
        sa.Column("confirmed_at", types.UtcDateTime(), nullable=True),
        sa.Column("last_step", types.Count, server_default=sa.text("0"), nullable=False),
        sa.Column("wrong_codes", types.Count, server_default=sa.text("0"), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_second_factors"),
        sa.UniqueConstraint("user_id", name="uq_second_factors_user_id"),
        *_of_a_user("second_factors"),
    )
    op.create_table(
        "recovery_codes",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("user_id", sa.Uuid(), nullable=False),
        sa.Column("code_hash", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", types.UtcDateTime(), server_default=NOW, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_recovery_codes"),
        sa.UniqueConstraint("code_hash", name="uq_recovery_codes_code_hash"),
        *_of_a_user("recovery_codes"),
    )
    op.create_index("ix_second_factors_workspace_id", "second_factors", ["workspace_id"])
    op.create_index("ix_recovery_codes_workspace_id", "recovery_codes", ["workspace_id"])
    op.create_index("ix_recovery_codes_user_id", "recovery_codes", ["user_id"])


def downgrade() -> None:
    op.drop_table("recovery_codes")
    op.drop_table("second_factors")


def _of_a_user(table: str) -> tuple[sa.Column[object], sa.ForeignKeyConstraint, sa.ForeignKeyConstraint]:
    return (
        sa.Column("workspace_id", sa.Uuid(), nullable=False),
        sa.ForeignKeyConstraint(["workspace_id"], ["workspaces.id"], name=f"fk_{table}_workspace_id_workspaces"),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name=f"fk_{table}_user_id_users"),
    )

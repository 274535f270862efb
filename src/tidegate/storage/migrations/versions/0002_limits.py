"""Limits as rows, the policies for keys that members make, and the weight of a key in the queue.

It only adds: the version before this one works on.
"""

import sqlalchemy as sa
from alembic import op

from tidegate.storage import types

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

NOW = sa.text("CURRENT_TIMESTAMP")
METER = "meter IN ('requests', 'tokens', 'cost', 'concurrency')"
WINDOW = "\"window\" IN ('minute', 'hour', 'day', 'week', 'month', 'total')"
CONCURRENCY = "(meter = 'concurrency') = (\"window\" IS NULL)"
WEIGHT = "queue_weight BETWEEN 1 AND 100"


def upgrade() -> None:
    create_limits()
    create_key_policies()
    weight = sa.Column("queue_weight", sa.SmallInteger(), server_default=sa.text("1"), nullable=False)
    with op.batch_alter_table("api_keys") as table:
        table.add_column(weight)
        table.create_check_constraint(op.f("ck_api_keys_queue_weight_is_in_range"), WEIGHT)


def downgrade() -> None:
    with op.batch_alter_table("api_keys") as table:
        table.drop_constraint(op.f("ck_api_keys_queue_weight_is_in_range"), type_="check")
        table.drop_column("queue_weight")
    op.drop_table("key_policies")
    op.drop_table("limits")


def create_limits() -> None:
    op.create_table(
        "limits",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("workspace_id", sa.Uuid(), nullable=False),
        sa.Column("scope", sa.Text(), nullable=False),
        sa.Column("subject", sa.Text(), nullable=True),
        sa.Column("model", sa.Text(), nullable=True),
        sa.Column("meter", sa.Text(), nullable=False),
        sa.Column("window", sa.Text(), nullable=True),
        sa.Column("zone", sa.Text(), nullable=True),
        sa.Column("amount", types.Count, nullable=False),
        sa.Column("action", sa.Text(), server_default=sa.text("'refuse'"), nullable=False),
        sa.Column("on_overrun", sa.Text(), server_default=sa.text("'finish'"), nullable=False),
        sa.Column("created_at", types.UtcDateTime(), server_default=NOW, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_limits"),
        sa.ForeignKeyConstraint(["workspace_id"], ["workspaces.id"], name="fk_limits_workspace_id_workspaces"),
        sa.CheckConstraint(
            "scope IN ('deployment', 'workspace', 'user', 'key', 'end_user', 'tag', 'upstream')",
            name=op.f("ck_limits_scope_is_known"),
        ),
        sa.CheckConstraint(METER, name=op.f("ck_limits_meter_is_known")),
        sa.CheckConstraint(WINDOW, name=op.f("ck_limits_window_is_known")),
        sa.CheckConstraint(CONCURRENCY, name=op.f("ck_limits_concurrency_has_no_window")),
        sa.CheckConstraint("amount > 0", name=op.f("ck_limits_amount_is_positive")),
        sa.CheckConstraint("action IN ('refuse', 'alert')", name=op.f("ck_limits_action_is_known")),
        sa.CheckConstraint("on_overrun IN ('finish', 'cut')", name=op.f("ck_limits_on_overrun_is_known")),
    )
    op.create_index("ix_limits_workspace_id_scope_subject", "limits", ["workspace_id", "scope", "subject"])


def create_key_policies() -> None:
    op.create_table(
        "key_policies",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("workspace_id", sa.Uuid(), nullable=False),
        sa.Column("meter", sa.Text(), nullable=False),
        sa.Column("window", sa.Text(), nullable=True),
        sa.Column("default_amount", types.Count, nullable=True),
        sa.Column("most_amount", types.Count, nullable=True),
        sa.Column("created_at", types.UtcDateTime(), server_default=NOW, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_key_policies"),
        sa.ForeignKeyConstraint(["workspace_id"], ["workspaces.id"], name="fk_key_policies_workspace_id_workspaces"),
        sa.UniqueConstraint("workspace_id", "meter", "window", name="uq_key_policies_workspace_id_meter_window"),
        sa.CheckConstraint(METER, name=op.f("ck_key_policies_meter_is_known")),
        sa.CheckConstraint(WINDOW, name=op.f("ck_key_policies_window_is_known")),
        sa.CheckConstraint(CONCURRENCY, name=op.f("ck_key_policies_concurrency_has_no_window")),
        sa.CheckConstraint("default_amount > 0", name=op.f("ck_key_policies_default_amount_is_positive")),
        sa.CheckConstraint("most_amount > 0", name=op.f("ck_key_policies_most_amount_is_positive")),
        sa.CheckConstraint(
            "default_amount IS NOT NULL OR most_amount IS NOT NULL", name=op.f("ck_key_policies_says_something")
        ),
        sa.CheckConstraint("default_amount <= most_amount", name=op.f("ck_key_policies_default_amount_is_allowed")),
    )
    op.create_index(
        "uq_key_policies_workspace_id_concurrency",
        "key_policies",
        ["workspace_id"],
        unique=True,
        sqlite_where=sa.text('"window" IS NULL'),
        postgresql_where=sa.text('"window" IS NULL'),
    )

"""The first tables: workspaces, users, service accounts, API keys, the ledger and its refusals.

The workspace `default` is made here: every later row can rely on it.
"""

import uuid

import sqlalchemy as sa
from alembic import op

from tidegate.storage import types

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

DEFAULT_WORKSPACE_ID = uuid.UUID("00000000-0000-7000-8000-000000000001")
NOW = sa.text("CURRENT_TIMESTAMP")


def upgrade() -> None:
    create_accounts()
    create_api_keys()
    create_ledger_entries()
    create_ledger_attempts()
    create_refusals()
    op.bulk_insert(
        sa.table("workspaces", sa.column("id", sa.Uuid()), sa.column("name", sa.Text())),
        [{"id": DEFAULT_WORKSPACE_ID, "name": "default"}],
    )


def downgrade() -> None:
    for table in (
        "refusals",
        "ledger_attempts",
        "ledger_entries",
        "api_keys",
        "service_accounts",
        "users",
        "workspaces",
    ):
        op.drop_table(table)


def create_accounts() -> None:
    op.create_table(
        "workspaces",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("created_at", types.UtcDateTime(), server_default=NOW, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_workspaces"),
        sa.UniqueConstraint("name", name="uq_workspaces_name"),
    )
    op.create_table(
        "users",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("workspace_id", sa.Uuid(), nullable=False),
        sa.Column("email", types.LowerCaseText(), nullable=False),
        sa.Column("password_hash", sa.Text(), nullable=True),
        sa.Column("role", sa.Text(), nullable=False),
        sa.Column("disabled_at", types.UtcDateTime(), nullable=True),
        sa.Column("created_at", types.UtcDateTime(), server_default=NOW, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_users"),
        sa.ForeignKeyConstraint(["workspace_id"], ["workspaces.id"], name="fk_users_workspace_id_workspaces"),
        sa.UniqueConstraint("email", name="uq_users_email"),
        sa.CheckConstraint("role IN ('admin', 'member')", name=op.f("ck_users_role_is_known")),
    )
    op.create_index("ix_users_workspace_id", "users", ["workspace_id"])
    op.create_table(
        "service_accounts",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("workspace_id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("created_at", types.UtcDateTime(), server_default=NOW, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_service_accounts"),
        sa.ForeignKeyConstraint(
            ["workspace_id"], ["workspaces.id"], name="fk_service_accounts_workspace_id_workspaces"
        ),
    )
    op.create_index("ix_service_accounts_workspace_id", "service_accounts", ["workspace_id"])


def create_api_keys() -> None:
    op.create_table(
        "api_keys",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("workspace_id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("prefix", sa.Text(), nullable=False),
        sa.Column("secret_hash", sa.LargeBinary(), nullable=False),
        sa.Column("hash_scheme", sa.Text(), nullable=False),
        sa.Column("pepper_kid", sa.Text(), nullable=True),
        sa.Column("owner_user_id", sa.Uuid(), nullable=True),
        sa.Column("owner_service_account_id", sa.Uuid(), nullable=True),
        sa.Column("scopes", types.JsonDocument, nullable=False),
        sa.Column("models", types.JsonDocument, nullable=True),
        sa.Column("trusts_attribution", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("created_at", types.UtcDateTime(), server_default=NOW, nullable=False),
        sa.Column("expires_at", types.UtcDateTime(), nullable=True),
        sa.Column("revoked_at", types.UtcDateTime(), nullable=True),
        sa.Column("last_used_at", types.UtcDateTime(), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_api_keys"),
        sa.ForeignKeyConstraint(["workspace_id"], ["workspaces.id"], name="fk_api_keys_workspace_id_workspaces"),
        sa.ForeignKeyConstraint(["owner_user_id"], ["users.id"], name="fk_api_keys_owner_user_id_users"),
        sa.ForeignKeyConstraint(
            ["owner_service_account_id"],
            ["service_accounts.id"],
            name="fk_api_keys_owner_service_account_id_service_accounts",
        ),
        sa.UniqueConstraint("prefix", name="uq_api_keys_prefix"),
        sa.CheckConstraint(
            "(owner_user_id IS NULL) <> (owner_service_account_id IS NULL)", name=op.f("ck_api_keys_owner_is_one")
        ),
    )
    for column in ("workspace_id", "owner_user_id", "owner_service_account_id"):
        op.create_index(f"ix_api_keys_{column}", "api_keys", [column])


def create_ledger_entries() -> None:
    op.create_table(
        "ledger_entries",
        sa.Column("entry_id", sa.Uuid(), nullable=False),
        sa.Column("schema", sa.SmallInteger(), nullable=False),
        sa.Column("workspace_id", sa.Uuid(), nullable=False),
        sa.Column("key_id", sa.Uuid(), nullable=True),
        sa.Column("user_id", sa.Uuid(), nullable=True),
        sa.Column("request_id", sa.Text(), nullable=False),
        sa.Column("end_user", sa.Text(), nullable=True),
        sa.Column("session_id", sa.Text(), nullable=True),
        sa.Column("tags", types.JsonDocument, nullable=False),
        sa.Column("protocol", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("upstream", sa.Text(), nullable=True),
        sa.Column("streamed", sa.Boolean(), nullable=False),
        sa.Column("outcome", sa.Text(), nullable=False),
        sa.Column("status", sa.SmallInteger(), nullable=True),
        sa.Column("error_code", sa.Text(), nullable=True),
        sa.Column("finish_reason", sa.Text(), nullable=True),
        sa.Column("cache", sa.Text(), nullable=True),
        *token_columns(),
        sa.Column("units", types.JsonDocument, nullable=False),
        sa.Column("usage_source", sa.Text(), nullable=False),
        sa.Column("reserved_cost", types.Usd(), nullable=True),
        sa.Column("cost", types.Usd(), nullable=True),
        sa.Column("price_version", sa.Text(), nullable=True),
        sa.Column("client_address", sa.Text(), nullable=True),
        sa.Column("user_agent", sa.Text(), nullable=True),
        sa.Column("queue_ms", types.Count, nullable=True),
        sa.Column("ttft_ms", types.Count, nullable=True),
        sa.Column("duration_ms", types.Count, nullable=False),
        sa.Column("started_at", types.UtcDateTime(), nullable=False),
        sa.Column("ended_at", types.UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("entry_id", name="pk_ledger_entries"),
    )
    for columns in (
        ("workspace_id", "entry_id"),
        ("workspace_id", "started_at"),
        ("key_id", "started_at"),
        ("request_id",),
    ):
        op.create_index(f"ix_ledger_entries_{'_'.join(columns)}", "ledger_entries", columns)


def create_ledger_attempts() -> None:
    op.create_table(
        "ledger_attempts",
        sa.Column("entry_id", sa.Uuid(), nullable=False),
        sa.Column("n", sa.SmallInteger(), autoincrement=False, nullable=False),
        sa.Column("workspace_id", sa.Uuid(), nullable=False),
        sa.Column("upstream", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("upstream_request_id", sa.Text(), nullable=True),
        sa.Column("outcome", sa.Text(), nullable=False),
        sa.Column("status", sa.SmallInteger(), nullable=True),
        *token_columns(),
        sa.Column("usage_source", sa.Text(), nullable=False),
        sa.Column("cost", types.Usd(), nullable=True),
        sa.Column("price_version", sa.Text(), nullable=True),
        sa.Column("started_at", types.UtcDateTime(), nullable=False),
        sa.Column("ended_at", types.UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("entry_id", "n", name="pk_ledger_attempts"),
        sa.ForeignKeyConstraint(
            ["entry_id"],
            ["ledger_entries.entry_id"],
            name="fk_ledger_attempts_entry_id_ledger_entries",
            ondelete="CASCADE",
        ),
    )


def create_refusals() -> None:
    op.create_table(
        "refusals",
        sa.Column("workspace_id", sa.Uuid(), nullable=False),
        sa.Column("key_id", sa.Uuid(), nullable=False),
        sa.Column("code", sa.Text(), nullable=False),
        sa.Column("minute", types.UtcDateTime(), nullable=False),
        sa.Column("count", types.Count, nullable=False),
        sa.PrimaryKeyConstraint("workspace_id", "key_id", "code", "minute", name="pk_refusals"),
    )


def token_columns() -> list[sa.Column[int]]:
    classes = ("input", "cached_input", "cache_write", "cache_write_1h", "output", "reasoning")
    return [sa.Column(f"{name}_tokens", types.Count, nullable=False) for name in classes]

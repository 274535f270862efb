"""Sign-ins and refresh tokens, tokens by e-mail, identities, addresses and retiring secrets of keys, the audit trail.

Revision ID: 0004
Revises: 0003

Adds tables and a nullable column: the release before it works on this schema as on its own.
"""

import sqlalchemy as sa
from alembic import op

from tidegate.storage import types

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

NOW = sa.text("CURRENT_TIMESTAMP")
APPEND_ONLY = "the audit trail is append-only"


def upgrade() -> None:
    create_sign_ins()
    create_refresh_tokens()
    create_mailed_tokens()
    create_identities()
    create_retiring_secrets()
    create_audit_events()
    op.add_column("api_keys", sa.Column("allowed_addresses", types.JsonDocument, nullable=True))


def downgrade() -> None:
    op.drop_column("api_keys", "allowed_addresses")
    for table in ("audit_events", "retiring_secrets", "identities", "mailed_tokens", "refresh_tokens", "sign_ins"):
        op.drop_table(table)
    if op.get_bind().dialect.name == "postgresql":
        op.execute("DROP FUNCTION refuse_audit_change()")


def _workspace(table: str) -> tuple[sa.Column[object], sa.ForeignKeyConstraint]:
    return (
        sa.Column("workspace_id", sa.Uuid(), nullable=False),
        sa.ForeignKeyConstraint(["workspace_id"], ["workspaces.id"], name=f"fk_{table}_workspace_id_workspaces"),
    )


def _user(table: str) -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint(["user_id"], ["users.id"], name=f"fk_{table}_user_id_users")


def _indexes(table: str, *columns: str) -> None:
    for column in columns:
        op.create_index(f"ix_{table}_{column}", table, [column])


def create_sign_ins() -> None:
    op.create_table(
        "sign_ins",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("user_id", sa.Uuid(), nullable=False),
        sa.Column("method", sa.Text(), nullable=False),
        sa.Column("created_at", types.UtcDateTime(), server_default=NOW, nullable=False),
        sa.Column("expires_at", types.UtcDateTime(), nullable=False),
        sa.Column("last_used_at", types.UtcDateTime(), nullable=True),
        sa.Column("ended_at", types.UtcDateTime(), nullable=True),
        sa.Column("ended_because", sa.Text(), nullable=True),
        sa.Column("client_address", sa.Text(), nullable=True),
        sa.Column("user_agent", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_sign_ins"),
        _user("sign_ins"),
        *_workspace("sign_ins"),
    )
    _indexes("sign_ins", "workspace_id", "user_id")


def create_refresh_tokens() -> None:
    op.create_table(
        "refresh_tokens",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("sign_in_id", sa.Uuid(), nullable=False),
        sa.Column("token_hash", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", types.UtcDateTime(), server_default=NOW, nullable=False),
        sa.Column("expires_at", types.UtcDateTime(), nullable=False),
        sa.Column("used_at", types.UtcDateTime(), nullable=True),
        sa.Column("successor_id", sa.Uuid(), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_refresh_tokens"),
        sa.ForeignKeyConstraint(["sign_in_id"], ["sign_ins.id"], name="fk_refresh_tokens_sign_in_id_sign_ins"),
        sa.UniqueConstraint("token_hash", name="uq_refresh_tokens_token_hash"),
        *_workspace("refresh_tokens"),
    )
    _indexes("refresh_tokens", "workspace_id", "sign_in_id")


def create_mailed_tokens() -> None:
    op.create_table(
        "mailed_tokens",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("purpose", sa.Text(), nullable=False),
        sa.Column("user_id", sa.Uuid(), nullable=True),
        sa.Column("email", types.LowerCaseText(), nullable=False),
        sa.Column("role", sa.Text(), nullable=True),
        sa.Column("made_by", sa.Text(), nullable=True),
        sa.Column("token_hash", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", types.UtcDateTime(), server_default=NOW, nullable=False),
        sa.Column("expires_at", types.UtcDateTime(), nullable=False),
        sa.Column("used_at", types.UtcDateTime(), nullable=True),
        sa.Column("withdrawn_at", types.UtcDateTime(), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_mailed_tokens"),
        sa.UniqueConstraint("token_hash", name="uq_mailed_tokens_token_hash"),
        sa.CheckConstraint(
            "purpose IN ('invitation', 'password_reset', 'email_change')",
            name=op.f("ck_mailed_tokens_purpose_is_known"),
        ),
        sa.CheckConstraint(
            "(user_id IS NULL) = (purpose = 'invitation')", name=op.f("ck_mailed_tokens_invitation_has_no_user")
        ),
        _user("mailed_tokens"),
        *_workspace("mailed_tokens"),
    )
    _indexes("mailed_tokens", "workspace_id", "user_id", "email")


def create_identities() -> None:
    op.create_table(
        "identities",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("user_id", sa.Uuid(), nullable=False),
        sa.Column("issuer", sa.Text(), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("created_at", types.UtcDateTime(), server_default=NOW, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_identities"),
        sa.UniqueConstraint("issuer", "subject", name="uq_identities_issuer_subject"),
        _user("identities"),
        *_workspace("identities"),
    )
    _indexes("identities", "workspace_id", "user_id")


def create_retiring_secrets() -> None:
    op.create_table(
        "retiring_secrets",
        sa.Column("prefix", sa.Text(), nullable=False),
        sa.Column("key_id", sa.Uuid(), nullable=False),
        sa.Column("secret_hash", sa.LargeBinary(), nullable=False),
        sa.Column("hash_scheme", sa.Text(), nullable=False),
        sa.Column("pepper_kid", sa.Text(), nullable=True),
        sa.Column("ends_at", types.UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("prefix", name="pk_retiring_secrets"),
        sa.ForeignKeyConstraint(["key_id"], ["api_keys.id"], name="fk_retiring_secrets_key_id_api_keys"),
        *_workspace("retiring_secrets"),
    )
    _indexes("retiring_secrets", "workspace_id", "key_id")


def create_audit_events() -> None:
    op.create_table(
        "audit_events",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("at", types.UtcDateTime(), server_default=NOW, nullable=False),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("outcome", sa.Text(), nullable=False),
        sa.Column("actor_kind", sa.Text(), nullable=False),
        sa.Column("actor_id", sa.Uuid(), nullable=True),
        sa.Column("actor", sa.Text(), nullable=True),
        sa.Column("subject_kind", sa.Text(), nullable=True),
        sa.Column("subject_id", sa.Text(), nullable=True),
        sa.Column("subject", sa.Text(), nullable=True),
        sa.Column("client_address", sa.Text(), nullable=True),
        sa.Column("user_agent", sa.Text(), nullable=True),
        sa.Column("request_id", sa.Text(), nullable=True),
        sa.Column("details", types.JsonDocument, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_audit_events"),
        *_workspace("audit_events"),
    )
    op.create_index("ix_audit_events_workspace_id_id", "audit_events", ["workspace_id", "id"])
    op.create_index("ix_audit_events_action_id", "audit_events", ["action", "id"])
    if op.get_bind().dialect.name == "postgresql":
        op.execute(
            "CREATE FUNCTION refuse_audit_change() RETURNS trigger LANGUAGE plpgsql AS "
            f"$$ BEGIN RAISE EXCEPTION '{APPEND_ONLY}'; END $$"
        )
        op.execute(
            "CREATE TRIGGER audit_events_append_only BEFORE UPDATE OR DELETE ON audit_events "
            "FOR EACH ROW EXECUTE FUNCTION refuse_audit_change()"
        )
        op.execute(
            "CREATE TRIGGER audit_events_append_only_truncate BEFORE TRUNCATE ON audit_events "
            "FOR EACH STATEMENT EXECUTE FUNCTION refuse_audit_change()"
        )
        return
    for change in ("UPDATE", "DELETE"):
        op.execute(
            f"CREATE TRIGGER audit_events_append_only_{change.lower()} BEFORE {change} ON audit_events "
            f"BEGIN SELECT RAISE(ABORT, '{APPEND_ONLY}'); END"
        )
    # REPLACE deletes without asking the trigger above.
    op.execute(
        "CREATE TRIGGER audit_events_append_only_replace BEFORE INSERT ON audit_events "
        "WHEN EXISTS (SELECT 1 FROM audit_events WHERE id = NEW.id) "
        "BEGIN SELECT RAISE(ABORT, 'the audit trail is append-only'); END"
    )

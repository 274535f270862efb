"""A migration only expands, or says since when what it takes away is unused: the release before it works on."""

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import sqlalchemy as sa
from alembic import op

from tests.support.expanding import faults, faults_of_all


def first() -> None:
    op.create_table(
        "things",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("size", sa.Integer(), server_default=sa.text("1"), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_things"),
        sa.UniqueConstraint("name", name="uq_things_name"),
    )
    op.create_index("ix_things_size", "things", ["size"])


def expands() -> None:
    op.create_table("others", sa.Column("id", sa.Uuid(), nullable=False), sa.PrimaryKeyConstraint("id", name="pk"))
    op.create_index("uq_others_id", "others", ["id"], unique=True)
    op.create_index("ix_things_name", "things", ["name"])
    op.add_column("things", sa.Column("weight", sa.Integer(), server_default=sa.text("1"), nullable=False))
    op.add_column("things", sa.Column("other_id", sa.Uuid(), nullable=True))
    op.create_check_constraint("ck_things_weight", "things", "weight > 0")
    op.create_foreign_key("fk_things_other", "things", "others", ["other_id"], ["id"])
    op.execute("UPDATE things SET weight = size WHERE size > 0")
    op.alter_column("things", "size", nullable=True)
    op.drop_index("ix_things_size")


CONTRACTIONS: dict[str, Callable[[], None]] = {
    "drops a column": lambda: op.drop_column("things", "size"),
    "drops a table": lambda: op.drop_table("things"),
    "renames a column": lambda: op.alter_column("things", "size", new_column_name="width"),
    "renames a table": lambda: op.rename_table("things", "stuff"),
    "demands a column": lambda: op.add_column("things", sa.Column("weight", sa.Integer(), nullable=False)),
    "forbids null": lambda: op.alter_column("things", "size", nullable=False),
    "drops a default": lambda: op.alter_column("things", "size", server_default=None),
    "narrows a type": lambda: op.alter_column("things", "name", type_=sa.String(20)),
    "checks what is there": lambda: op.create_check_constraint("ck_things_size", "things", "size > 1"),
    "makes what is there unique": lambda: op.create_unique_constraint("uq_things_size", "things", ["size"]),
    "indexes what is there as unique": lambda: op.create_index("uq_things_size", "things", ["size"], unique=True),
    "refers from what is there": lambda: op.create_foreign_key("fk_things", "things", "things", ["id"], ["id"]),
    "drops what an upsert needs": lambda: op.drop_constraint("uq_things_name", "things"),
    "drops a column in its own words": lambda: op.execute("ALTER TABLE things DROP COLUMN size"),
    "meddles with what is there": lambda: op.execute(
        "CREATE TRIGGER refuse BEFORE UPDATE ON things FOR EACH ROW EXECUTE FUNCTION refuse()"
    ),
    "changes what is there": lambda: op.execute("UPDATE things SET size = size * 1000"),
    "deletes what is there": lambda: op.execute("DELETE FROM things"),
}


def judged(upgrade: Callable[[], None], **more: str) -> list[str]:
    before = SimpleNamespace(revision="0001", upgrade=first)
    return faults([before, SimpleNamespace(revision="0002", upgrade=upgrade, **more)])


def test_every_migration_expands_or_says_since_when_what_it_takes_away_is_unused() -> None:
    assert faults_of_all() == []


def test_what_only_adds_is_let_through() -> None:
    assert judged(expands) == []


@pytest.mark.parametrize("what", CONTRACTIONS)
def test_what_takes_something_away_is_found(what: str) -> None:
    (fault,) = judged(CONTRACTIONS[what])
    assert fault.startswith("0002: ")


def test_what_says_since_when_it_is_unused_is_let_through() -> None:
    drop = CONTRACTIONS["drops a column"]
    assert judged(drop, contracts="0001") == []
    for revision in ("0002", "0007"):
        assert judged(drop, contracts=revision) == [f"0002: contracts = '{revision}' is no earlier revision"]

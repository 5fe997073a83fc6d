"""Adapters of runs that still train.

Revision: 0008, after 0007. An older registry serves on: it knows nothing of them, and gives their files up with those
that a run has announced before.
"""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

# SQLite numbers rows by itself only in a column of type INTEGER.
IDENTIFIER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "interim_adapters",
        sa.Column("run_id", IDENTIFIER, nullable=False),
        sa.Column("step", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("attempt", sa.BigInteger(), nullable=False),
        sa.Column("train_loss", sa.String(length=64), nullable=True),
        sa.Column("evaluation_loss", sa.String(length=64), nullable=False),
        sa.Column("base_evaluation_loss", sa.String(length=64), nullable=True),
        sa.Column("created_time", sa.DateTime(timezone=True), nullable=False),
        sa.Column("stored", sa.Boolean(), nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name=op.f("fk_interim_adapters_run_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("run_id", "step", name=op.f("pk_interim_adapters")),
    )

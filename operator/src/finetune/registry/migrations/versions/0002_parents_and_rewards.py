"""Parents of runs; what preference training measures.

Revision: 0002, after 0001.
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


# SQLite numbers rows by itself only in a column of type INTEGER.
IDENTIFIER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "run_parents",
        sa.Column("run_id", IDENTIFIER, nullable=False),
        sa.Column("adapter_version_id", IDENTIFIER, nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name=op.f("fk_run_parents_run_id")),
        sa.ForeignKeyConstraint(
            ["adapter_version_id"], ["adapter_versions.id"], name=op.f("fk_run_parents_adapter_version_id")
        ),
        sa.PrimaryKeyConstraint("run_id", name=op.f("pk_run_parents")),
    )
    op.create_index(op.f("ix_run_parents_adapter_version_id"), "run_parents", ["adapter_version_id"])
    op.add_column("adapter_versions", sa.Column("reward_accuracy", sa.String(length=64), nullable=True))
    op.add_column("adapter_versions", sa.Column("reward_margin", sa.String(length=64), nullable=True))
    op.add_column("adapter_versions", sa.Column("best_step", sa.BigInteger(), nullable=True))

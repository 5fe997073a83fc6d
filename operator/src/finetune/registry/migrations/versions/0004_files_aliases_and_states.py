"""Adapters' files in a store, states and aliases of their versions; deleted versions.

Revision: 0004, after 0003. An older registry serves on: all of it is added.
"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


# SQLite numbers rows by itself only in a column of type INTEGER.
IDENTIFIER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "blobs",
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("touched_time", TIME, nullable=False),
        sa.Column("stored", sa.Boolean(), nullable=False),
        sa.Column("deleting", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("sha256", name=op.f("pk_blobs")),
    )
    op.create_index(op.f("ix_blobs_touched_time"), "blobs", ["touched_time"])
    op.create_table(
        "run_files",
        sa.Column("run_id", IDENTIFIER, nullable=False),
        sa.Column("path", sa.String(length=512), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("held", sa.Boolean(), nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name=op.f("fk_run_files_run_id")),
        sa.PrimaryKeyConstraint("run_id", "path", name=op.f("pk_run_files")),
    )
    op.create_index(op.f("ix_run_files_sha256"), "run_files", ["sha256"])
    for column in (
        sa.Column("stored_time", TIME, nullable=True),
        sa.Column("mark", sa.String(length=16), nullable=True),
        sa.Column("mark_reason", sa.Text(), nullable=True),
        sa.Column("marked_time", TIME, nullable=True),
        sa.Column("tags", sa.JSON(), nullable=False, server_default="{}"),
        sa.Column("notes", sa.Text(), nullable=False, server_default=""),
    ):
        op.add_column("adapter_versions", column)
    op.create_table(
        "adapter_aliases",
        sa.Column("adapter_id", IDENTIFIER, nullable=False),
        sa.Column("alias", sa.String(length=63), nullable=False),
        sa.Column("adapter_version_id", IDENTIFIER, nullable=False),
        sa.Column("protected", sa.Boolean(), nullable=False),
        sa.Column("moved_time", TIME, nullable=False),
        sa.ForeignKeyConstraint(["adapter_id"], ["adapters.id"], name=op.f("fk_adapter_aliases_adapter_id")),
        sa.ForeignKeyConstraint(
            ["adapter_version_id"], ["adapter_versions.id"], name=op.f("fk_adapter_aliases_adapter_version_id")
        ),
        sa.PrimaryKeyConstraint("adapter_id", "alias", name=op.f("pk_adapter_aliases")),
    )
    op.create_index(op.f("ix_adapter_aliases_adapter_version_id"), "adapter_aliases", ["adapter_version_id"])
    op.add_column("dataset_versions", sa.Column("deleted_time", TIME, nullable=True))

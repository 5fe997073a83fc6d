"""Datasets' rows in the store of files.

Revision: 0006, after 0005. An older registry serves on until the first rows are in the store, see `store/contents.py`.
"""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

# SQLite numbers rows by itself only in a column of type INTEGER.
IDENTIFIER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "content_blobs",
        sa.Column("content_id", IDENTIFIER, nullable=False),
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["content_id"], ["contents.id"], name=op.f("fk_content_blobs_content_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("content_id", "number", name=op.f("pk_content_blobs")),
    )
    op.create_index(op.f("ix_content_blobs_sha256"), "content_blobs", ["sha256"])

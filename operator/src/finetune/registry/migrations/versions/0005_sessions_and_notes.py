"""Sessions of people in a browser; what people say of runs.

Revision: 0005, after 0004. An older registry serves on: all of it is added.
"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "sessions",
        sa.Column("key_sha256", sa.String(length=64), nullable=False),
        sa.Column("person", sa.JSON(), nullable=False),
        sa.Column("expires_time", TIME, nullable=False),
        sa.PrimaryKeyConstraint("key_sha256", name=op.f("pk_sessions")),
    )
    op.create_index(op.f("ix_sessions_expires_time"), "sessions", ["expires_time"])
    for column in (
        sa.Column("archived_time", TIME, nullable=True),
        sa.Column("tags", sa.JSON(), nullable=True),
        sa.Column("notes", sa.Text(), nullable=True),
    ):
        op.add_column("runs", column)

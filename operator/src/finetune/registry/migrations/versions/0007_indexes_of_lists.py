"""Indexes for lists: runs by when they finished, the audit trail of all namespaces by time.

Revision: 0007, after 0006. An older registry serves on.
"""

from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index(op.f("ix_runs_namespace_finished_time_id"), "runs", ["namespace", "finished_time", "id"])
    op.create_index(op.f("ix_audit_time"), "audit", ["time"])

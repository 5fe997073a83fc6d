"""Datasets, runs and adapters.

Revision: 0001, the first.
"""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


# SQLite numbers rows by itself only in a column of type INTEGER.
IDENTIFIER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "adapters",
        sa.Column("id", IDENTIFIER, autoincrement=True, nullable=False),
        sa.Column("namespace", sa.String(length=63), nullable=False),
        sa.Column("name", sa.String(length=63), nullable=False),
        sa.Column("last_version", sa.Integer(), nullable=False),
        sa.Column("created_time", TIME, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_adapters")),
        sa.UniqueConstraint("namespace", "name", name=op.f("uq_adapters_namespace_name")),
    )
    op.create_table(
        "audit",
        sa.Column("id", IDENTIFIER, autoincrement=True, nullable=False),
        sa.Column("time", TIME, nullable=False),
        sa.Column("actor", sa.String(length=512), nullable=False),
        sa.Column("action", sa.String(length=64), nullable=False),
        sa.Column("namespace", sa.String(length=63), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("details", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit")),
    )
    op.create_index(op.f("ix_audit_namespace_time"), "audit", ["namespace", "time"])

    op.create_table(
        "contents",
        sa.Column("id", IDENTIFIER, autoincrement=True, nullable=False),
        sa.Column("touched_time", TIME, nullable=False),
        sa.Column("attached", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_contents")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_contents_touched_time"), "contents", ["touched_time"])

    op.create_table(
        "datasets",
        sa.Column("id", IDENTIFIER, autoincrement=True, nullable=False),
        sa.Column("namespace", sa.String(length=63), nullable=False),
        sa.Column("name", sa.String(length=63), nullable=False),
        sa.Column("last_version", sa.Integer(), nullable=False),
        sa.Column("created_time", TIME, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_datasets")),
        sa.UniqueConstraint("namespace", "name", name=op.f("uq_datasets_namespace_name")),
    )
    op.create_table(
        "experiments",
        sa.Column("id", IDENTIFIER, autoincrement=True, nullable=False),
        sa.Column("namespace", sa.String(length=63), nullable=False),
        sa.Column("name", sa.String(length=63), nullable=False),
        sa.Column("created_time", TIME, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_experiments")),
        sa.UniqueConstraint("namespace", "name", name=op.f("uq_experiments_namespace_name")),
    )
    op.create_table(
        "content_chunks",
        sa.Column("content_id", IDENTIFIER, nullable=False),
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("data", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(
            ["content_id"], ["contents.id"], name=op.f("fk_content_chunks_content_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("content_id", "number", name=op.f("pk_content_chunks")),
    )
    op.create_table(
        "dataset_versions",
        sa.Column("id", IDENTIFIER, autoincrement=True, nullable=False),
        sa.Column("dataset_id", IDENTIFIER, nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("content_id", IDENTIFIER, nullable=False),
        sa.Column("rows", sa.BigInteger(), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("shape", sa.String(length=20), nullable=False),
        sa.Column("created_time", TIME, nullable=False),
        sa.CheckConstraint("version > 0", name=op.f("ck_dataset_versions_version_positive")),
        sa.ForeignKeyConstraint(["content_id"], ["contents.id"], name=op.f("fk_dataset_versions_content_id")),
        sa.ForeignKeyConstraint(["dataset_id"], ["datasets.id"], name=op.f("fk_dataset_versions_dataset_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_dataset_versions")),
        sa.UniqueConstraint("content_id", name=op.f("uq_dataset_versions_content_id")),
        sa.UniqueConstraint("dataset_id", "sha256", name=op.f("uq_dataset_versions_dataset_id_sha256")),
        sa.UniqueConstraint("dataset_id", "version", name=op.f("uq_dataset_versions_dataset_id_version")),
    )
    op.create_table(
        "runs",
        sa.Column("id", IDENTIFIER, autoincrement=True, nullable=False),
        sa.Column("uid", sa.String(length=63), nullable=False),
        sa.Column("namespace", sa.String(length=63), nullable=False),
        sa.Column("name", sa.String(length=63), nullable=False),
        sa.Column("experiment_id", IDENTIFIER, nullable=False),
        sa.Column("method", sa.String(length=16), nullable=False),
        sa.Column("dataset_version_id", IDENTIFIER, nullable=True),
        sa.Column("spec", sa.JSON(), nullable=False),
        sa.Column("created_time", TIME, nullable=False),
        sa.ForeignKeyConstraint(
            ["dataset_version_id"], ["dataset_versions.id"], name=op.f("fk_runs_dataset_version_id")
        ),
        sa.ForeignKeyConstraint(["experiment_id"], ["experiments.id"], name=op.f("fk_runs_experiment_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_runs")),
        sa.UniqueConstraint("uid", name=op.f("uq_runs_uid")),
    )
    op.create_index(op.f("ix_runs_dataset_version_id"), "runs", ["dataset_version_id"])
    op.create_index(op.f("ix_runs_experiment_id"), "runs", ["experiment_id"])
    op.create_index(op.f("ix_runs_namespace_id"), "runs", ["namespace", "id"])

    op.create_table(
        "adapter_versions",
        sa.Column("id", IDENTIFIER, autoincrement=True, nullable=False),
        sa.Column("public_id", sa.String(length=36), nullable=False),
        sa.Column("adapter_id", IDENTIFIER, nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("run_id", IDENTIFIER, nullable=False),
        sa.Column("claim_name", sa.String(length=253), nullable=False),
        sa.Column("base_model_name", sa.String(length=512), nullable=False),
        sa.Column("base_model_revision", sa.String(length=128), nullable=True),
        sa.Column("dataset_sha256", sa.String(length=64), nullable=False),
        sa.Column("dataset", sa.JSON(), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("final_loss", sa.String(length=64), nullable=False),
        sa.Column("evaluation_loss", sa.String(length=64), nullable=True),
        sa.Column("base_evaluation_loss", sa.String(length=64), nullable=True),
        sa.Column("steps", sa.BigInteger(), nullable=False),
        sa.Column("tokens", sa.BigInteger(), nullable=True),
        sa.Column("resumed_from_step", sa.BigInteger(), nullable=False),
        sa.Column("created_time", TIME, nullable=False),
        sa.CheckConstraint("version > 0", name=op.f("ck_adapter_versions_version_positive")),
        sa.ForeignKeyConstraint(["adapter_id"], ["adapters.id"], name=op.f("fk_adapter_versions_adapter_id")),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name=op.f("fk_adapter_versions_run_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_adapter_versions")),
        sa.UniqueConstraint("adapter_id", "version", name=op.f("uq_adapter_versions_adapter_id_version")),
        sa.UniqueConstraint("public_id", name=op.f("uq_adapter_versions_public_id")),
        sa.UniqueConstraint("run_id", name=op.f("uq_adapter_versions_run_id")),
    )
    op.create_index(op.f("ix_adapter_versions_dataset_sha256"), "adapter_versions", ["dataset_sha256"])

    op.create_table(
        "metric_points",
        sa.Column("run_id", IDENTIFIER, nullable=False),
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("time", TIME, nullable=False),
        sa.Column("step", sa.BigInteger(), nullable=True),
        sa.Column("value", sa.Float(precision=53), nullable=True),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name=op.f("fk_metric_points_run_id")),
        sa.PrimaryKeyConstraint("run_id", "name", "time", name=op.f("pk_metric_points")),
    )
    op.create_table(
        "run_progress",
        sa.Column("run_id", IDENTIFIER, nullable=False),
        sa.Column("trainer_status", sa.JSON(), nullable=False),
        sa.Column("updated_time", TIME, nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name=op.f("fk_run_progress_run_id")),
        sa.PrimaryKeyConstraint("run_id", name=op.f("pk_run_progress")),
    )
    op.create_table(
        "run_results",
        sa.Column("run_id", IDENTIFIER, nullable=False),
        sa.Column("document", sa.LargeBinary(), nullable=False),
        sa.Column("stored_time", TIME, nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name=op.f("fk_run_results_run_id")),
        sa.PrimaryKeyConstraint("run_id", name=op.f("pk_run_results")),
    )
    op.create_table(
        "adapter_files",
        sa.Column("adapter_version_id", IDENTIFIER, nullable=False),
        sa.Column("path", sa.String(length=512), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.ForeignKeyConstraint(
            ["adapter_version_id"], ["adapter_versions.id"], name=op.f("fk_adapter_files_adapter_version_id")
        ),
        sa.PrimaryKeyConstraint("adapter_version_id", "path", name=op.f("pk_adapter_files")),
    )
    _make_audit_append_only()


def _make_audit_append_only() -> None:
    if op.get_bind().dialect.name == "sqlite":
        for verb in ("UPDATE", "DELETE"):
            op.execute(
                f"CREATE TRIGGER audit_no_{verb.lower()} BEFORE {verb} ON audit "
                "BEGIN SELECT RAISE(ABORT, 'the audit table is append-only'); END"
            )
        return
    op.execute(
        "CREATE FUNCTION refuse_audit_change() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE EXCEPTION 'the audit table is append-only'; END $$"
    )
    op.execute(
        "CREATE TRIGGER audit_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON audit "
        "FOR EACH STATEMENT EXECUTE FUNCTION refuse_audit_change()"
    )

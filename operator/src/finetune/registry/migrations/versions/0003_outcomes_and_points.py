"""Outcomes of runs; points by attempt and step, bounded; namespaces by uid; how old a registry may be.

Revision: 0003, after 0002.
"""

import math
from itertools import groupby

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


# SQLite numbers rows by itself only in a column of type INTEGER.
IDENTIFIER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
TIME = sa.DateTime(timezone=True)

NOT_POINTS = "'step', 'totalSteps', 'epoch', 'checkpointStep', 'current_step', 'total_steps', 'current_epoch'"
"""What was stored with each post beside the numbers that make a curve."""


def upgrade() -> None:
    compatibility = op.create_table("compatibility", sa.Column("oldest_code", sa.String(length=32), primary_key=True))
    op.bulk_insert(compatibility, [{"oldest_code": "0003"}])
    op.create_table(
        "namespaces",
        sa.Column("id", IDENTIFIER, autoincrement=True, nullable=False),
        sa.Column("key", sa.String(length=63), nullable=False),
        sa.Column("name", sa.String(length=63), nullable=False),
        sa.Column("uid", sa.String(length=63), nullable=False),
        sa.Column("seen_time", TIME, nullable=False),
        sa.Column("retired_time", TIME, nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_namespaces")),
        sa.UniqueConstraint("key", name=op.f("uq_namespaces_key")),
    )
    op.create_index(op.f("ix_namespaces_name"), "namespaces", ["name"])
    _add_outcomes()
    _add_points()


def _add_outcomes() -> None:
    for column in (
        sa.Column("base_model", sa.String(length=512), nullable=True),
        sa.Column("phase", sa.String(length=32), nullable=True),
        sa.Column("reason", sa.String(length=64), nullable=True),
        sa.Column("message", sa.Text(), nullable=True),
        sa.Column("hint", sa.Text(), nullable=True),
        sa.Column("failed_row", sa.BigInteger(), nullable=True),
        sa.Column("attempts", sa.BigInteger(), nullable=True),
        sa.Column("gpu_seconds", sa.BigInteger(), nullable=True),
        sa.Column("resumed_from_step", sa.BigInteger(), nullable=True),
        sa.Column("started_time", TIME, nullable=True),
        sa.Column("finished_time", TIME, nullable=True),
        sa.Column("evaluation_loss", sa.Float(precision=53), nullable=True),
        sa.Column("base_evaluation_loss", sa.Float(precision=53), nullable=True),
        sa.Column("status_version", sa.BigInteger(), nullable=True),
        sa.Column("ended", sa.Boolean(), nullable=False, server_default=sa.false()),
    ):
        op.add_column("runs", column)
    # A run with an adapter has succeeded; of the others the operator tells when it asks what is unfinished.
    op.execute(
        "UPDATE runs SET phase = 'Succeeded', ended = (1 = 1), "
        "finished_time = (SELECT created_time FROM adapter_versions WHERE run_id = runs.id), "
        "resumed_from_step = (SELECT resumed_from_step FROM adapter_versions WHERE run_id = runs.id) "
        "WHERE id IN (SELECT run_id FROM adapter_versions)"
    )
    _fill_losses()
    _fill_base_models()
    for columns in (
        ["namespace", "name", "id"],
        ["namespace", "phase", "id"],
        ["namespace", "base_model", "id"],
        ["namespace", "evaluation_loss", "id"],
        ["ended", "id"],
    ):
        op.create_index(op.f(f"ix_runs_{'_'.join(columns)}"), "runs", columns)


def _fill_losses() -> None:
    """In Python: the databases differ in what they make of a decimal text that is too large for a number."""
    names = ("evaluation_loss", "base_evaluation_loss")
    stored = sa.table("adapter_versions", sa.column("run_id"), *(sa.column(name) for name in names))
    runs = sa.table("runs", sa.column("id"), *(sa.column(name) for name in names))
    connection = op.get_bind()
    rows = connection.execute(sa.select(stored)).all()
    told = [{"run": row.run_id, **{f"new_{name}": _number(getattr(row, name)) for name in names}} for row in rows]
    if told:
        change = sa.update(runs).where(runs.c.id == sa.bindparam("run"))
        connection.execute(change.values({name: sa.bindparam(f"new_{name}") for name in names}), told)


def _number(text: str | None) -> float | None:
    value = float(text) if text is not None else None
    return value if value is not None and math.isfinite(value) else None


def _fill_base_models() -> None:
    runs = sa.table("runs", sa.column("id", IDENTIFIER), sa.column("spec", sa.JSON()), sa.column("base_model"))
    connection = op.get_bind()
    after = 0
    while True:
        query = sa.select(runs.c.id, runs.c.spec).where(runs.c.id > after).order_by(runs.c.id).limit(500)
        rows = connection.execute(query).all()
        if not rows:
            return
        after = rows[-1].id
        named = [{"run": row.id, "model": model} for row in rows if (model := _base_model(row.spec))]
        if named:
            change = sa.update(runs).where(runs.c.id == sa.bindparam("run")).values(base_model=sa.bindparam("model"))
            connection.execute(change, named)


def _base_model(spec: object) -> str | None:
    base = spec.get("baseModel") if isinstance(spec, dict) else None
    if not isinstance(base, dict):
        return None
    for source, fields in (("hub", ("repository",)), ("volume", ("path", "claimName"))):
        found = base.get(source)
        for field in fields:
            value = found.get(field) if isinstance(found, dict) else None
            if isinstance(value, str) and value:
                return value[:512]
    return None


def _add_points() -> None:
    op.create_table(
        "metrics",
        sa.Column("id", IDENTIFIER, autoincrement=True, nullable=False),
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_metrics")),
        sa.UniqueConstraint("name", name=op.f("uq_metrics_name")),
    )
    op.rename_table("metric_points", "old_points")
    if op.get_bind().dialect.name == "postgresql":  # the names of constraints are the schema's there
        op.execute("ALTER TABLE old_points DROP CONSTRAINT pk_metric_points")
        op.execute("ALTER TABLE old_points DROP CONSTRAINT fk_metric_points_run_id")
    op.create_table(
        "metric_points",
        sa.Column("run_id", IDENTIFIER, nullable=False),
        sa.Column("metric_id", IDENTIFIER, nullable=False),
        sa.Column("step", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("attempt", sa.BigInteger(), nullable=False),
        sa.Column("seconds", sa.BigInteger(), nullable=False),
        sa.Column("value", sa.Float(precision=53), nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name=op.f("fk_metric_points_run_id")),
        sa.ForeignKeyConstraint(["metric_id"], ["metrics.id"], name=op.f("fk_metric_points_metric_id")),
        sa.PrimaryKeyConstraint("run_id", "metric_id", "step", name=op.f("pk_metric_points")),
        sqlite_with_rowid=False,
    )
    op.execute(f"INSERT INTO metrics (name) SELECT DISTINCT name FROM old_points WHERE name NOT IN ({NOT_POINTS})")
    op.execute(_move_points(op.get_bind().dialect.name))
    op.drop_table("old_points")
    op.add_column("run_progress", sa.Column("attempt", sa.BigInteger(), nullable=False, server_default="0"))
    op.add_column("run_progress", sa.Column("step", sa.BigInteger(), nullable=True))
    op.add_column("run_progress", sa.Column("attempt_step", sa.BigInteger(), nullable=True))
    op.add_column("run_progress", sa.Column("attempt_time", TIME, nullable=True))
    op.add_column("run_progress", sa.Column("since_thinning", sa.Integer(), nullable=False, server_default="0"))
    op.add_column("run_progress", sa.Column("metric_names", sa.JSON(), nullable=False, server_default="[]"))
    _name_metrics()
    op.execute(
        "UPDATE run_progress SET step = (SELECT max(step) FROM metric_points WHERE run_id = run_progress.run_id)"
    )


def _name_metrics() -> None:
    progress = sa.table("run_progress", sa.column("run_id"), sa.column("metric_names", sa.JSON()))
    query = (
        "SELECT DISTINCT run_id, name FROM metric_points JOIN metrics ON metrics.id = metric_id ORDER BY run_id, name"
    )
    rows = op.get_bind().execute(sa.text(query)).all()
    named = [
        {"run": run, "names": [row.name for row in points]} for run, points in groupby(rows, lambda row: row.run_id)
    ]
    if named:
        change = sa.update(progress).where(progress.c.run_id == sa.bindparam("run"))
        op.get_bind().execute(change.values(metric_names=sa.bindparam("names", type_=sa.JSON())), named)


def _move_points(dialect: str) -> str:
    """One point a step, the newest; of long curves the first, the last, and the extremes of each five hundredth."""
    elapsed = (
        "CAST(ROUND(86400 * (julianday(time) - julianday(created_time))) AS INTEGER)"
        if dialect == "sqlite"
        else "CAST(EXTRACT(EPOCH FROM (time - created_time)) AS BIGINT)"
    )
    return f"""
        INSERT INTO metric_points (run_id, metric_id, step, attempt, seconds, value)
        WITH newest AS (
            SELECT old_points.*,
                row_number() OVER (PARTITION BY run_id, name, step ORDER BY time DESC) AS age
            FROM old_points
            WHERE step IS NOT NULL AND value IS NOT NULL AND name NOT IN ({NOT_POINTS})
        ), spread AS (
            SELECT newest.*,
                ntile(499) OVER (PARTITION BY run_id, name ORDER BY step) AS bucket,
                count(*) OVER (PARTITION BY run_id, name) AS points
            FROM newest WHERE age = 1
        ), ranked AS (
            SELECT spread.*,
                row_number() OVER (PARTITION BY run_id, name, bucket ORDER BY value, step) AS lowest,
                row_number() OVER (PARTITION BY run_id, name, bucket ORDER BY value DESC, step) AS highest,
                row_number() OVER (PARTITION BY run_id, name ORDER BY step) AS first,
                row_number() OVER (PARTITION BY run_id, name ORDER BY step DESC) AS last
            FROM spread
        )
        SELECT run_id, metrics.id, step, 0, {elapsed}, value
        FROM ranked JOIN metrics ON metrics.name = ranked.name JOIN runs ON runs.id = ranked.run_id
        WHERE points <= 2000 OR lowest = 1 OR highest = 1 OR first = 1 OR last = 1
    """  # noqa: S608 - made of constants

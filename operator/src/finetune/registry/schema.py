"""The tables. A change here needs a migration in migrations/versions; a test compares the two.

Everything that belongs to users is scoped by namespace: by its key, which is the name as long as the namespace is the
one that the rows were made in (see `namespaces`). Version numbers come from a counter that only goes up, so a number is
never given twice. Times are UTC.
"""

from __future__ import annotations

from datetime import UTC, datetime

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    Dialect,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
)

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)


class UtcTime(TypeDecorator[datetime]):
    """An aware UTC time; SQLite, which knows no zones, stores it without one."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Refuse naive times, which would mean something else on each machine."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"a time without a zone cannot be stored: {value!r}")
        value = value.astimezone(UTC)
        return value.replace(tzinfo=None) if dialect.name == "sqlite" else value

    def process_result_value(self, value: datetime | None, _dialect: Dialect) -> datetime | None:
        """Give back UTC, whatever zone the database session has."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


# SQLite numbers rows by itself only in a column of type INTEGER.
Identifier = BigInteger().with_variant(Integer, "sqlite")


def _identifier() -> Column[int]:
    return Column("id", Identifier, primary_key=True, autoincrement=True)


# One row: the oldest registry that can work with this schema. An older one than the newest migration's serves on,
# so that a release can be taken back; a migration that it could not live with raises the number.
compatibility = Table(
    "compatibility",
    metadata,
    Column("oldest_code", String(32), primary_key=True),
)

# Which namespace of the cluster the rows of a key belong to. A name that comes back with another uid is another tenant:
# the rows of the old one then get a key that no request can name.
namespaces = Table(
    "namespaces",
    metadata,
    _identifier(),
    Column("key", String(63), nullable=False, unique=True),
    Column("name", String(63), nullable=False, index=True),
    Column("uid", String(63), nullable=False),
    Column("seen_time", UtcTime, nullable=False),
    Column("retired_time", UtcTime, nullable=True),
)

contents = Table(
    "contents",
    metadata,
    _identifier(),
    # An upload in progress is touched with every chunk; one that belongs to no version and was not
    # touched for an hour was abandoned.
    Column("touched_time", UtcTime, nullable=False, index=True),
    Column("attached", Boolean, nullable=False),
    # Without it SQLite gives the number of a deleted upload to the next one, while the first may still be
    # writing.
    sqlite_autoincrement=True,
)

content_chunks = Table(
    "content_chunks",
    metadata,
    Column("content_id", ForeignKey("contents.id", ondelete="CASCADE"), primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("data", LargeBinary, nullable=False),  # zlib, about 1 MiB before compression
)

# The chunks that are in the store, each a blob of zlib's bytes; as long as a row is there, the store keeps its blob.
content_blobs = Table(
    "content_blobs",
    metadata,
    Column("content_id", ForeignKey("contents.id", ondelete="CASCADE"), primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("sha256", String(64), nullable=False, index=True),
    Column("bytes", BigInteger, nullable=False),
)

datasets = Table(
    "datasets",
    metadata,
    _identifier(),
    Column("namespace", String(63), nullable=False),
    Column("name", String(63), nullable=False),
    Column("last_version", Integer, nullable=False),
    Column("created_time", UtcTime, nullable=False),
    UniqueConstraint("namespace", "name"),
)

dataset_versions = Table(
    "dataset_versions",
    metadata,
    _identifier(),
    Column("dataset_id", ForeignKey("datasets.id"), nullable=False),
    Column("version", Integer, nullable=False),
    Column("content_id", ForeignKey("contents.id"), nullable=False, unique=True),
    Column("rows", BigInteger, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("sha256", String(64), nullable=False),
    Column("shape", String(20), nullable=False),
    Column("created_time", UtcTime, nullable=False),
    Column("deleted_time", UtcTime, nullable=True),  # the rows are gone; the number stays what it was
    UniqueConstraint("dataset_id", "version"),
    UniqueConstraint("dataset_id", "sha256"),
    CheckConstraint("version > 0", name="version_positive"),
)

experiments = Table(
    "experiments",
    metadata,
    _identifier(),
    Column("namespace", String(63), nullable=False),
    Column("name", String(63), nullable=False),
    Column("created_time", UtcTime, nullable=False),
    UniqueConstraint("namespace", "name"),
)

runs = Table(
    "runs",
    metadata,
    _identifier(),
    Column("uid", String(63), nullable=False, unique=True),
    Column("namespace", String(63), nullable=False),
    Column("name", String(63), nullable=False),
    Column("experiment_id", ForeignKey("experiments.id"), nullable=False, index=True),
    Column("method", String(16), nullable=False),
    Column("dataset_version_id", ForeignKey("dataset_versions.id"), nullable=True, index=True),
    Column("spec", JSON, nullable=False),
    Column("created_time", UtcTime, nullable=False),
    Column("base_model", String(512), nullable=True),
    # What became of it, in the operator's words; all null until it has said something.
    Column("phase", String(32), nullable=True),
    Column("reason", String(64), nullable=True),
    Column("message", Text, nullable=True),
    Column("hint", Text, nullable=True),
    Column("failed_row", BigInteger, nullable=True),
    Column("attempts", BigInteger, nullable=True),
    Column("gpu_seconds", BigInteger, nullable=True),
    Column("resumed_from_step", BigInteger, nullable=True),
    Column("started_time", UtcTime, nullable=True),
    Column("finished_time", UtcTime, nullable=True),
    Column("evaluation_loss", Float(53), nullable=True),  # to sort by; the adapter has it digit for digit
    Column("base_evaluation_loss", Float(53), nullable=True),
    Column("status_version", BigInteger, nullable=True),  # of the object that says so: an older one changes nothing
    Column("ended", Boolean, nullable=False),
    # What people say of it.
    Column("archived_time", UtcTime, nullable=True),  # lists leave it out unless they are asked for it
    Column("tags", JSON(none_as_null=True), nullable=True),
    Column("notes", Text, nullable=True),
    Index(None, "namespace", "id"),
    Index(None, "namespace", "name", "id"),
    Index(None, "namespace", "phase", "id"),
    Index(None, "namespace", "base_model", "id"),
    Index(None, "namespace", "evaluation_loss", "id"),
    Index(None, "namespace", "finished_time", "id"),
    Index(None, "ended", "id"),
)

# A table of its own: adapter versions refer to runs, and runs to the adapter version that they go on from.
run_parents = Table(
    "run_parents",
    metadata,
    Column("run_id", ForeignKey("runs.id"), primary_key=True),
    Column("adapter_version_id", ForeignKey("adapter_versions.id"), nullable=False, index=True),
)

run_progress = Table(
    "run_progress",
    metadata,
    Column("run_id", ForeignKey("runs.id"), primary_key=True),
    Column("trainer_status", JSON, nullable=False),
    Column("updated_time", UtcTime, nullable=False),
    # What orders points, all by the registry's own clock: which attempt speaks, how far it is, since when it is seen.
    Column("attempt", BigInteger, nullable=False),
    Column("step", BigInteger, nullable=True),
    Column("attempt_step", BigInteger, nullable=True),
    Column("attempt_time", UtcTime, nullable=True),
    Column("since_thinning", Integer, nullable=False),
    Column("metric_names", JSON, nullable=False),
)

metrics = Table(
    "metrics",
    metadata,
    _identifier(),
    Column("name", String(64), nullable=False, unique=True),
)

metric_points = Table(
    "metric_points",
    metadata,
    Column("run_id", ForeignKey("runs.id"), primary_key=True),
    Column("metric_id", ForeignKey("metrics.id"), primary_key=True),
    Column("step", BigInteger, primary_key=True, autoincrement=False),
    Column("attempt", BigInteger, nullable=False),
    Column("seconds", BigInteger, nullable=False),  # since the run was recorded, by the registry's clock
    Column("value", Float(53), nullable=False),
    sqlite_with_rowid=False,  # the key is the row: a fifth of the size
)

run_results = Table(
    "run_results",
    metadata,
    Column("run_id", ForeignKey("runs.id"), primary_key=True),
    Column("document", LargeBinary, nullable=False),  # the trainer's bytes, kept as they are
    Column("stored_time", UtcTime, nullable=False),
)

adapters = Table(
    "adapters",
    metadata,
    _identifier(),
    Column("namespace", String(63), nullable=False),
    Column("name", String(63), nullable=False),
    Column("last_version", Integer, nullable=False),
    Column("created_time", UtcTime, nullable=False),
    UniqueConstraint("namespace", "name"),
)

adapter_versions = Table(
    "adapter_versions",
    metadata,
    _identifier(),
    Column("public_id", String(36), nullable=False, unique=True),
    Column("adapter_id", ForeignKey("adapters.id"), nullable=False),
    Column("version", Integer, nullable=False),
    Column("run_id", ForeignKey("runs.id"), nullable=False, unique=True),
    Column("claim_name", String(253), nullable=False),
    Column("base_model_name", String(512), nullable=False),
    Column("base_model_revision", String(128), nullable=True),
    Column("dataset_sha256", String(64), nullable=False, index=True),
    Column("dataset", JSON, nullable=False),
    Column("sha256", String(64), nullable=False),
    Column("bytes", BigInteger, nullable=False),
    # Decimal text: what the trainer wrote, digit for digit.
    Column("final_loss", String(64), nullable=False),
    Column("evaluation_loss", String(64), nullable=True),
    Column("base_evaluation_loss", String(64), nullable=True),
    Column("reward_accuracy", String(64), nullable=True),
    Column("reward_margin", String(64), nullable=True),
    Column("steps", BigInteger, nullable=False),
    Column("best_step", BigInteger, nullable=True),
    Column("tokens", BigInteger, nullable=True),
    Column("resumed_from_step", BigInteger, nullable=False),
    Column("created_time", UtcTime, nullable=False),
    Column("stored_time", UtcTime, nullable=True),  # since then the store has all files
    # What somebody has said of it: Deprecated, Archived, Quarantined or Deleted, and why.
    Column("mark", String(16), nullable=True),
    Column("mark_reason", Text, nullable=True),
    Column("marked_time", UtcTime, nullable=True),
    Column("tags", JSON, nullable=False),
    Column("notes", Text, nullable=False),
    UniqueConstraint("adapter_id", "version"),
    CheckConstraint("version > 0", name="version_positive"),
)

adapter_files = Table(
    "adapter_files",
    metadata,
    Column("adapter_version_id", ForeignKey("adapter_versions.id"), primary_key=True),
    Column("path", String(512), primary_key=True),
    Column("bytes", BigInteger, nullable=False),
    Column("sha256", String(64), nullable=False),
)

adapter_aliases = Table(
    "adapter_aliases",
    metadata,
    Column("adapter_id", ForeignKey("adapters.id"), primary_key=True),
    Column("alias", String(63), primary_key=True),
    Column("adapter_version_id", ForeignKey("adapter_versions.id"), nullable=False, index=True),
    Column("protected", Boolean, nullable=False),
    Column("moved_time", UtcTime, nullable=False),
)

# Every object of the store has its row here before it is written, and until it is gone.
blobs = Table(
    "blobs",
    metadata,
    Column("sha256", String(64), primary_key=True),
    Column("bytes", BigInteger, nullable=False),
    Column("touched_time", UtcTime, nullable=False, index=True),
    Column("stored", Boolean, nullable=False),
    Column("deleting", Boolean, nullable=False),  # nobody may refer to it any more
)

# The files that a run's trainer has announced. As long as a row is there, the store keeps its blob.
run_files = Table(
    "run_files",
    metadata,
    Column("run_id", ForeignKey("runs.id"), primary_key=True),
    Column("path", String(512), primary_key=True),  # of the finished adapter; of an interim one below steps/<step>/
    Column("bytes", BigInteger, nullable=False),
    Column("sha256", String(64), nullable=False, index=True),
    # Whether a run of the namespace has sent these bytes: who only knows the digest of others' gets nothing.
    Column("held", Boolean, nullable=False),
)

# The adapters of runs that still train, one for each evaluation that is kept; their files are rows of `run_files`.
interim_adapters = Table(
    "interim_adapters",
    metadata,
    Column("run_id", ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True),
    Column("step", BigInteger, primary_key=True, autoincrement=False),
    Column("attempt", BigInteger, nullable=False),
    # Decimal text, as of finished adapters.
    Column("train_loss", String(64), nullable=True),
    Column("evaluation_loss", String(64), nullable=False),
    Column("base_evaluation_loss", String(64), nullable=True),
    Column("created_time", UtcTime, nullable=False),
    Column("stored", Boolean, nullable=False),  # the store has all files
)

# People in a browser. The cookie's value is not stored, only its digest; nor is the token that it was given for.
sessions = Table(
    "sessions",
    metadata,
    Column("key_sha256", String(64), primary_key=True),
    Column("person", JSON, nullable=False),
    Column("expires_time", UtcTime, nullable=False, index=True),
)

audit = Table(
    "audit",
    metadata,
    _identifier(),
    Column("time", UtcTime, nullable=False),
    Column("actor", String(512), nullable=False),
    Column("action", String(64), nullable=False),
    Column("namespace", String(63), nullable=False),
    Column("subject", Text, nullable=False),
    Column("details", JSON, nullable=False),
    Index(None, "namespace", "time"),
    Index(None, "time"),
)

"""Bring a database to the newest schema, once, whoever else tries at the same time.

A whole upgrade is one transaction on both databases: after a crash the old schema is there, or the new
one. Two registries that start together wait for each other: on PostgreSQL by an advisory lock, on SQLite
by the write lock of the file.
"""

from __future__ import annotations

import functools
import logging
import sqlite3
import time
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import URL, Connection, Engine, create_engine, event, inspect, text
from sqlalchemy.pool import NullPool

log = logging.getLogger(__name__)

ADVISORY_LOCK = 0x66696E6574756E65  # "finetune" as a number: one lock for all registries of a database
LOCK_TIMEOUT_SECONDS = 300
SWITCH_RETRY_SECONDS = 0.02


class UnknownRevision(RuntimeError):  # noqa: N818 - reads as the condition that it is
    """The database was made by a newer registry."""


def alembic_config() -> Config:
    """Alembic's configuration, without a file."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.set_main_option("path_separator", "os")
    return config


@functools.cache
def head() -> str:
    """The revision that this code expects."""
    revision = ScriptDirectory.from_config(alembic_config()).get_current_head()
    if revision is None:
        raise RuntimeError("the package holds no migrations: it was built without registry/migrations/versions")
    return revision


def migrate(url: URL) -> tuple[str | None, str]:
    """Upgrade the database at `url` to the newest schema; returns the revision before and after.

    A newer schema that this code can work with is left as it is: so a release can be taken back. Raises
    `UnknownRevision` when the database is too new for this code, and SQLAlchemy's errors when it does not answer.
    """
    engine = synchronous_engine(url)
    try:
        with engine.connect() as connection, connection.begin():
            wait_for_turn(connection)
            return _upgrade(connection)
    finally:
        engine.dispose()


def wait_for_turn(connection: Connection) -> None:
    """Let nobody else change the schema until the transaction ends; on SQLite it has begun with the write lock."""
    if connection.dialect.name == "postgresql":
        connection.execute(text(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT_SECONDS}s'"))
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": ADVISORY_LOCK})


def _upgrade(connection: Connection) -> tuple[str | None, str]:
    config = alembic_config()
    wanted = head()
    before = MigrationContext.configure(connection).get_current_revision()
    if before == wanted:
        return before, wanted
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    if before is not None and before not in known:
        if is_new_enough(connection):
            log.warning(
                "the database has schema %s, newer than this registry's %s, which it can work with", before, wanted
            )
            return before, before
        raise UnknownRevision(
            f"the database has schema {before}, which is newer than this registry (it knows up to {wanted}): "
            "run the newer image, or restore the backup from before the upgrade"
        )
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
    if connection.dialect.name == "sqlite":
        broken = connection.exec_driver_sql("PRAGMA foreign_key_check").first()
        if broken is not None:
            raise RuntimeError(f"schema {wanted} would break a reference: {tuple(broken)}; nothing was changed")
    log.info("database schema migrated from %s to %s", before or "nothing", wanted)
    return before, wanted


def is_new_enough(connection: Connection) -> bool:
    """Whether the schema, which is newer than this code, says that this code can work with it."""
    if not inspect(connection).has_table("compatibility"):
        return False
    oldest = connection.execute(text("SELECT oldest_code FROM compatibility")).scalar()
    return oldest is not None and oldest <= head()


def _use_write_ahead_log(connection: sqlite3.Connection) -> None:
    """Switch the file to its write-ahead log, for good.

    SQLite answers "locked" at once, without the busy timeout, to whoever switches while another does.
    """
    deadline = time.monotonic() + LOCK_TIMEOUT_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(SWITCH_RETRY_SECONDS)
        else:
            return


def synchronous_engine(url: URL) -> Engine:
    """A synchronous engine for the same database: Alembic knows no other."""
    if url.get_backend_name() != "sqlite":
        return create_engine(url, poolclass=NullPool)
    if url.database:
        Path(url.database).parent.mkdir(parents=True, exist_ok=True)
    engine = create_engine(url.set(drivername="sqlite+pysqlite"), poolclass=NullPool)

    @event.listens_for(engine, "connect")
    def prepare(connection: Any, _entry: Any) -> None:
        connection.isolation_level = None
        # Changing a table means copying it; with foreign keys on, dropping the old one deletes what
        # refers to it.
        connection.execute("PRAGMA foreign_keys=OFF")
        connection.execute(f"PRAGMA busy_timeout={LOCK_TIMEOUT_SECONDS * 1000}")
        _use_write_ahead_log(connection)

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine

"""A registry in one file, whatever its database: every row, and if wanted the store's files. And back.

The file is a ZIP: `backup.json` says what it is, `tables/<name>.jsonl` has a table's rows, `blobs/<sha256>` the store's
files. Rows are read in one snapshot, before the files: a file that no row knows does no harm. A restore goes into an
empty database of either kind, first with the schema that the backup has, then migrated to this version's.
"""

from __future__ import annotations

import base64
import json
import os
import zipfile
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from alembic import command
from sqlalchemy import (
    JSON,
    URL,
    Connection,
    DateTime,
    Engine,
    LargeBinary,
    MetaData,
    Table,
    create_engine,
    event,
    func,
    insert,
    select,
    text,
)
from sqlalchemy.pool import NullPool

from .blobs import BlobStore
from .blobs.base import BLOCK_BYTES
from .migrate import alembic_config, head, migrate, synchronous_engine
from .schema import metadata

FORMAT = 1
LEFT_OUT = frozenset({"sessions"})
"""Tables that die with their registry: who was logged in logs in again."""
ROWS_AT_ONCE = 500


class BackupError(Exception):
    """A backup cannot be made, or this file cannot be restored here."""


def back_up(url: URL, path: Path) -> dict[str, int]:
    """Write the rows of a migrated database into `path`; returns how many there are of each table.

    The file appears whole or not at all, and only its owner can read it. Raises `BackupError` when it is there.
    """
    if path.exists():
        raise BackupError(f"{path} is there already: name another file")
    temporary = path.with_name(f".{path.name}.tmp")
    counts: dict[str, int] = {}
    engine = _reading_engine(url)
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as raw:
            with zipfile.ZipFile(raw, "w", zipfile.ZIP_DEFLATED) as file, engine.connect() as connection:
                for table in _tables():
                    with file.open(f"tables/{table.name}.jsonl", "w", force_zip64=True) as member:
                        counts[table.name] = _dump(connection, table, member.write)
                about = {"format": FORMAT, "schema": head(), "time": datetime.now(UTC).isoformat(), "rows": counts}
                file.writestr("backup.json", json.dumps(about))
            raw.flush()
            os.fsync(raw.fileno())
        temporary.replace(path)
    finally:
        engine.dispose()
        temporary.unlink(missing_ok=True)
    return counts


async def back_up_files(store: BlobStore, path: Path) -> int:
    """Add the files of the store to a backup; returns how many there are. Raises the errors of the store."""
    count = 0
    with zipfile.ZipFile(path, "a", zipfile.ZIP_STORED) as file:
        async for blob in store.list():
            with file.open(f"blobs/{blob.sha256}", "w", force_zip64=True) as member:
                async for block in await store.read(blob.sha256):
                    member.write(block)
            count += 1
    return count


async def restore_files(path: Path, store: BlobStore) -> int:
    """Put the files of a backup into the store, before its rows; returns how many there are.

    Raises the errors of the store, `DigestMismatch` for a file that is not what its name says, and `BackupError`.
    """
    with _opened(path) as file:
        names = [name for name in file.namelist() if name.startswith("blobs/")]
        for name in names:
            with file.open(name) as member:
                blocks = _blocks(partial(member.read, BLOCK_BYTES))
                await store.put(name.removeprefix("blobs/"), blocks, size=file.getinfo(name).file_size)
    return len(names)


async def _blocks(read: Callable[[], bytes]) -> AsyncIterator[bytes]:
    while block := read():
        yield block


def restore(path: Path, url: URL) -> dict[str, int]:
    """Fill an empty database with the rows of a backup; returns how many there are of each table.

    All of it is one transaction: a restore that is cut leaves an empty database. Raises `BackupError`.
    """
    with _opened(path) as file:
        about = json.loads(file.read("backup.json"))
        if about.get("format") != FORMAT or about["schema"] > head():
            raise BackupError(
                f"{path} was made by a newer registry (schema {about.get('schema')}, this one knows up to {head()})"
            )
        engine = synchronous_engine(url)
        try:
            with engine.connect() as connection, connection.begin():
                _make_schema(connection, about["schema"])
                counts = _load(connection, file)
                if connection.dialect.name == "postgresql":
                    _count_on(connection)
        finally:
            engine.dispose()
    migrate(url)
    return counts


def _make_schema(connection: Connection, revision: str) -> None:
    """Give an empty database the schema of that revision. Raises `BackupError` when it has rows."""
    found = MetaData()
    found.reflect(connection)
    full = [
        table.name
        for table in found.sorted_tables
        if table.name not in {"alembic_version", "compatibility"} | LEFT_OUT
        and connection.execute(select(func.count()).select_from(table)).scalar_one()
    ]
    if full:
        raise BackupError(f"the database has rows already ({', '.join(full)}): restore into an empty one")
    if "alembic_version" in found.tables:
        present = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
        if present != revision:
            raise BackupError(
                f"the database has schema {present} and the backup {revision}: restore into a database without tables"
            )
        return
    config = alembic_config()
    config.attributes["connection"] = connection
    command.upgrade(config, revision)


def _load(connection: Connection, file: zipfile.ZipFile) -> dict[str, int]:
    tables = MetaData()
    tables.reflect(connection)
    if "compatibility" in tables.tables:  # one row, which the migration has made
        connection.execute(tables.tables["compatibility"].delete())
    counts: dict[str, int] = {}
    # In the order of the references, as they are in this version's schema.
    for name in [table.name for table in _tables() if f"tables/{table.name}.jsonl" in file.namelist()]:
        table = tables.tables[name]
        for column in table.c:
            if isinstance(column.type, JSON):  # else a missing value would become the JSON value null
                column.type = JSON(none_as_null=True)
        counts[name] = 0
        with file.open(f"tables/{name}.jsonl") as member:
            while lines := list(islice(member, ROWS_AT_ONCE)):
                rows = [_decoded(table, json.loads(line), naive=connection.dialect.name == "sqlite") for line in lines]
                connection.execute(insert(table), rows)
                counts[name] += len(rows)
    return counts


def _count_on(connection: Connection) -> None:
    """Let PostgreSQL number the next rows after those that came with their numbers."""
    for table in _tables():
        if "id" in table.c and table.c.id.autoincrement is True:
            highest = connection.execute(select(func.max(table.c.id))).scalar()
            if highest is not None:
                sequence = func.pg_get_serial_sequence(table.name, "id")
                connection.execute(select(func.setval(sequence, highest)))


def _tables() -> list[Table]:
    return [table for table in metadata.sorted_tables if table.name not in LEFT_OUT]


def _dump(connection: Connection, table: Table, write: Callable[[bytes], Any]) -> int:
    count = 0
    query = select(table).execution_options(yield_per=ROWS_AT_ONCE)
    for row in connection.execute(query):
        document = {key: _encoded(value) for key, value in row._mapping.items()}  # noqa: SLF001 - documented API
        write(json.dumps(document, ensure_ascii=False).encode() + b"\n")
        count += 1
    return count


def _encoded(value: Any) -> Any:
    if isinstance(value, (bytes, memoryview)):
        return base64.b64encode(value).decode()
    return value.isoformat() if isinstance(value, datetime) else value


def _decoded(table: Table, row: dict[str, Any], *, naive: bool) -> dict[str, Any]:
    for name, value in row.items():
        kind = table.c[name].type
        if value is not None and isinstance(kind, DateTime):
            time = datetime.fromisoformat(value)
            row[name] = time.replace(tzinfo=None) if naive else time
        elif value is not None and isinstance(kind, LargeBinary):
            row[name] = base64.b64decode(value)
    return row


def _reading_engine(url: URL) -> Engine:
    """An engine whose transaction sees one moment of the database, and keeps nobody from writing."""
    if url.get_backend_name() != "sqlite":
        return create_engine(url, poolclass=NullPool, isolation_level="REPEATABLE READ")
    engine = create_engine(url.set(drivername="sqlite+pysqlite"), poolclass=NullPool)

    @event.listens_for(engine, "connect")
    def prepare(connection: Any, _entry: Any) -> None:
        connection.isolation_level = None

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN")

    return engine


def _opened(path: Path) -> zipfile.ZipFile:
    try:
        file = zipfile.ZipFile(path)
        file.getinfo("backup.json")
    except FileNotFoundError:
        raise BackupError(f"{path} does not exist") from None
    except (zipfile.BadZipFile, KeyError, OSError) as error:
        raise BackupError(f"{path} is no backup of a registry: {error}") from error
    return file

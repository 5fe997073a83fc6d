"""A registry in one file, whatever its database: every row, and if wanted the store's files. And back.

The file is a ZIP: `backup.json` says what it is, `tables/<name>.jsonl` has a table's rows, `blobs/<sha256>` the store's
files that the rows name. Rows are read in one snapshot, before the files. A restore goes into an
empty database of either kind, first with the schema that the backup has, then migrated to this version's.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import re
import zipfile
import zlib
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
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
from sqlalchemy.exc import IntegrityError
from sqlalchemy.pool import NullPool

from .blobs import BlobStore
from .blobs.base import BLOCK_BYTES
from .blobs.errors import BlobMissing
from .migrate import alembic_config, head, migrate, synchronous_engine, wait_for_turn
from .schema import blobs, metadata

FORMAT = 1
LEFT_OUT = frozenset({"sessions"})
"""Tables that die with their registry: who was logged in logs in again."""
ROWS_AT_ONCE = 500
FILES = "blobs/"
_FILE = re.compile(f"{FILES}[0-9a-f]{{64}}")


class BackupError(Exception):
    """A backup cannot be made, or this file cannot be restored here."""


@dataclass(frozen=True, kw_only=True)
class Counts:
    """What is in a backup, or came back from it."""

    rows: dict[str, int]
    """Of each table."""
    files: int = 0
    missing: tuple[str, ...] = ()
    """SHA-256 of the files that rows name and the store does not have: deleted meanwhile, or lost."""


def back_up(url: URL, path: Path, store: BlobStore | None = None) -> Counts:
    """Write the rows of a migrated database into `path`, and the files that they name if there is a `store`.

    The file appears whole or not at all, and only its owner can read it. Raises `BackupError` when it is there, and the
    errors of the store.
    """
    if path.exists():
        raise BackupError(f"{path} is there already: name another file")
    temporary = path.with_name(f".{path.name}.tmp")
    engine = _reading_engine(url)
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as raw:
            with zipfile.ZipFile(raw, "w", zipfile.ZIP_DEFLATED) as file:
                with engine.connect() as connection:
                    counts, digests = _write_rows(connection, file)
                if store is not None:
                    counts = asyncio.run(_write_files(store, digests, file, counts))
            raw.flush()
            os.fsync(raw.fileno())
        temporary.replace(path)
    except OSError as error:
        raise BackupError(f"{path} cannot be written: {error.strerror or error}") from error
    finally:
        engine.dispose()
        with suppress(OSError):
            temporary.unlink()
    return counts


def _write_rows(connection: Connection, file: zipfile.ZipFile) -> tuple[Counts, list[str]]:
    """Write all tables; gives the digests of the files that the store has at that moment, too."""
    present = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
    if present != head():  # what an older registry does not know it would leave out
        raise BackupError(f"the database has schema {present}, this registry knows {head()}: use the newer image")
    rows: dict[str, int] = {}
    for table in _tables():
        with file.open(f"tables/{table.name}.jsonl", "w", force_zip64=True) as member:
            rows[table.name] = _dump(connection, table, member.write)
    about = {"format": FORMAT, "schema": head(), "time": datetime.now(UTC).isoformat(), "rows": rows}
    file.writestr("backup.json", json.dumps(about))
    kept = select(blobs.c.sha256).where(blobs.c.stored.is_(True), blobs.c.deleting.is_(False))
    return Counts(rows=rows), list(connection.execute(kept.order_by(blobs.c.sha256)).scalars())


async def _write_files(store: BlobStore, digests: Sequence[str], file: zipfile.ZipFile, counts: Counts) -> Counts:
    missing = []
    for sha256 in digests:
        try:
            blocks = await store.read(sha256)
        except BlobMissing:
            missing.append(sha256)
            continue
        with file.open(zipfile.ZipInfo(f"{FILES}{sha256}"), "w", force_zip64=True) as member:  # is compressed as it is
            async for block in blocks:
                member.write(block)
    return replace(counts, files=len(digests) - len(missing), missing=tuple(missing))


def restore(path: Path, url: URL, store: BlobStore | None = None) -> Counts:
    """Fill an empty database with the rows of a backup, after the store got its files.

    All rows are one transaction: a restore that is cut leaves an empty database, and can be done again. Raises
    `BackupError`, the errors of the store, and `DigestMismatch` for a file that is not what its name says.
    """
    engine = synchronous_engine(url)
    try:
        with _opened(path) as file:
            revision = _revision(path, file)
            files = [name for name in file.namelist() if _FILE.fullmatch(name)]
            if files and store is None:
                raise BackupError(f"{path} has {len(files)} files, and there is no store for them: give --store")
            with engine.connect() as connection:  # before anything is in the store that nobody wants there
                _refuse_full(connection)
            if store is not None:
                asyncio.run(_restore_files(file, files, store))
            with engine.connect() as connection, connection.begin():
                wait_for_turn(connection)
                _make_schema(connection, revision)
                rows = _load(connection, file)
                if connection.dialect.name == "postgresql":
                    _count_on(connection)
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError) as error:
        raise BackupError(f"{path} is damaged: {error}") from error
    except IntegrityError as error:
        raise BackupError(f"the rows of {path} do not fit together: {error.orig}") from error
    finally:
        engine.dispose()
    migrate(url)
    return Counts(rows=rows, files=len(files))


def _revision(path: Path, file: zipfile.ZipFile) -> str:
    about = json.loads(file.read("backup.json"))
    if about.get("format") != FORMAT or about["schema"] > head():
        raise BackupError(
            f"{path} was made by a newer registry (schema {about.get('schema')}, this one knows up to {head()})"
        )
    return str(about["schema"])


async def _restore_files(file: zipfile.ZipFile, names: Sequence[str], store: BlobStore) -> None:
    for name in names:
        with file.open(name) as member:
            blocks = _blocks(partial(member.read, BLOCK_BYTES))
            await store.put(name.removeprefix(FILES), blocks, size=file.getinfo(name).file_size)


async def _blocks(read: Callable[[], bytes]) -> AsyncIterator[bytes]:
    while block := read():
        yield block


def _refuse_full(connection: Connection) -> MetaData:
    """The tables of a database, which may be none. Raises `BackupError` when they have rows."""
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
    return found


def _make_schema(connection: Connection, revision: str) -> None:
    """Give an empty database the schema of that revision. Raises `BackupError` when it has rows."""
    if "alembic_version" in _refuse_full(connection).tables:
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
            while lines := list(islice(member, _rows_at_once(table))):
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


def _rows_at_once(table: Table) -> int:
    """As many as fit into little memory: a row of bytes may have a MiB, and a third more in its words."""
    return 4 if any(isinstance(column.type, LargeBinary) for column in table.c) else ROWS_AT_ONCE


def _dump(connection: Connection, table: Table, write: Callable[[bytes], Any]) -> int:
    count = 0
    query = select(table).execution_options(yield_per=_rows_at_once(table))
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

"""Datasets: named series of immutable versions; the rows are kept as compressed chunks of bytes."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterator
from datetime import timedelta
from functools import partial
from typing import Any

from sqlalchemy import Select, delete, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from finetune.api.registry import DatasetVersion, DatasetVersions
from finetune.registry.blobs.errors import StorageFull
from finetune.registry.blobs.folder import room
from finetune.registry.database import Database
from finetune.registry.errors import Conflict
from finetune.registry.jsonlines import JsonLinesReader, RowFacts
from finetune.registry.metrics import sqlite_folder
from finetune.registry.schema import content_chunks, contents, dataset_versions, datasets, runs

from .common import named, now, record
from .series import Series
from .turns import turn

CHUNK_BYTES = 1024 * 1024
WRITE_AHEAD_BYTES = 16 * 1024 * 1024
"""What is written twice for a while: to SQLite's write-ahead log, and from there to its file."""
ABANDONED_AFTER = timedelta(hours=1)
UPLOADS_AT_ONCE = 8
"""Each holds the begun line in memory."""
DROPPED_AT_ONCE = 64
MAX_NAMED = 5
"""Runs that a refusal names."""


class DatasetStore:
    """Stores datasets and gives them back."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._checking = asyncio.Lock()
        self._uploads = asyncio.Semaphore(UPLOADS_AT_ONCE)

    async def add_version(
        self, namespace: str, name: str, blocks: AsyncIterator[bytes], *, actor: str
    ) -> tuple[DatasetVersion, bool]:
        """Store JSON lines as a new version of a dataset; the dataset is made when missing.

        Returns the version and whether it is new: content that the dataset already has gives the old version.
        Raises `InvalidRows` naming the line, `TooManyUploads` and `StorageFull`. Whatever goes wrong, nothing is left.

        The chunks go in by short transactions of their own, because a slow upload must not keep others from
        writing; nobody sees them before the last transaction attaches them to a version.
        """
        async with turn(self._uploads, UPLOADS_AT_ONCE):
            return await self._add(namespace, name, blocks, actor=actor)

    async def _add(
        self, namespace: str, name: str, blocks: AsyncIterator[bytes], *, actor: str
    ) -> tuple[DatasetVersion, bool]:
        content = await self._database.write(_new_content)
        attached = False
        try:
            facts = await self._store_rows(content, blocks)
            version, attached = await self._attach(namespace, name, content, facts, actor=actor)
        finally:
            if not attached:
                await asyncio.shield(self._drop(content))
        return version, attached

    async def _store_rows(self, content: int, blocks: AsyncIterator[bytes]) -> RowFacts:
        reader = JsonLinesReader()

        def check(chunk: bytes) -> bytes:
            _refuse_full(self._database)
            reader.feed(chunk)
            return zlib.compress(chunk, level=1)

        number = 0
        async for chunk in _regroup(blocks, CHUNK_BYTES):
            # In a thread: checking and compressing a chunk takes milliseconds that other requests need. One at a time:
            # what a line takes of memory while it is parsed does not grow with the uploads.
            async with self._checking:
                data = await asyncio.to_thread(check, chunk)
            await self._store_chunk(content, number, data)
            number += 1
        async with self._checking:
            return await asyncio.to_thread(reader.finish)

    async def _store_chunk(self, content: int, number: int, data: bytes) -> None:
        async def transaction(connection: AsyncConnection) -> None:
            await _touch(connection, content, attached=False)
            await connection.execute(insert(content_chunks).values(content_id=content, number=number, data=data))

        await self._database.write(transaction)

    async def _attach(
        self, namespace: str, name: str, content: int, facts: RowFacts, *, actor: str
    ) -> tuple[DatasetVersion, bool]:
        async def transaction(connection: AsyncConnection) -> tuple[DatasetVersion, bool]:
            dataset = await DATASETS.locked(connection, namespace, name)
            same = _versions().where(
                dataset_versions.c.dataset_id == dataset.id, dataset_versions.c.sha256 == facts.sha256
            )
            existing = (await connection.execute(same)).first()
            if existing is not None and existing.deleted_time is None:
                return _version(existing), False
            await _touch(connection, content, attached=True)
            if existing is not None:
                await _bring_back(connection, existing, content, namespace=namespace, actor=actor)
                return _version((await connection.execute(same)).one()), True
            version = await DATASETS.take_number(connection, dataset)
            await connection.execute(
                insert(dataset_versions).values(
                    dataset_id=dataset.id,
                    version=version,
                    content_id=content,
                    rows=facts.rows,
                    bytes=facts.bytes,
                    sha256=facts.sha256,
                    shape=facts.shape,
                    created_time=now(),
                )
            )
            await record(
                connection,
                actor=actor,
                action="CreateDatasetVersion",
                namespace=namespace,
                subject=f"{name}/{version}",
                details={"sha256": facts.sha256, "rows": facts.rows},
            )
            return _version((await connection.execute(same)).one()), True

        return await self._database.write(transaction)

    async def delete(self, namespace: str, name: str, version: int, *, actor: str) -> None:
        """Delete the rows of a version; its number and digest are kept. Idempotent.

        Raises `NotFound`, and `Conflict` while a run that has not ended trains on it.
        """

        async def transaction(connection: AsyncConnection) -> int | None:
            query = select(datasets.c.id).where(named(datasets, namespace, name)).with_for_update(key_share=True)
            await connection.execute(query)
            gone = _versions().where(named(datasets, namespace, name), dataset_versions.c.version == version)
            row = (await connection.execute(gone)).first()
            if row is not None and row.deleted_time is not None:
                return None
            row = await DATASETS.find(connection, namespace, name, version)
            await _refuse_needed(connection, row)
            change = update(dataset_versions).where(dataset_versions.c.id == row.id)
            await connection.execute(change.values(deleted_time=now()))
            await _record_version(connection, "DeleteDatasetVersion", row, namespace=namespace, actor=actor)
            return int(row.content_id)

        content = await self._database.write(transaction)
        while content is not None and await self._database.write(partial(_drop_chunks, content=content)):
            pass

    async def _drop(self, content: int) -> None:
        async def transaction(connection: AsyncConnection) -> None:
            await connection.execute(delete(contents).where(contents.c.id == content, contents.c.attached.is_(False)))

        await self._database.write(transaction)

    async def drop_abandoned(self) -> int:
        """Remove the chunks of uploads that a crash has cut short; returns how many uploads there were."""

        async def transaction(connection: AsyncConnection) -> int:
            result = await connection.execute(
                delete(contents).where(
                    contents.c.attached.is_(False), contents.c.touched_time < now() - ABANDONED_AFTER
                )
            )
            return result.rowcount

        return await self._database.write(transaction)

    async def newest(self, namespace: str, *, after: str | None = None) -> DatasetVersions:
        """The newest version of each dataset, sorted by name."""
        async with self._database.reading() as connection:
            rows, more = await DATASETS.newest(connection, namespace, after)
        return DatasetVersions(items=[_version(row) for row in rows], continue_=more)

    async def versions(self, namespace: str, name: str, *, before: int | None = None) -> DatasetVersions:
        """The versions of a dataset, newest first. Raises `NotFound`."""
        async with self._database.reading() as connection:
            rows, more = await DATASETS.all_of(connection, namespace, name, before)
        return DatasetVersions(items=[_version(row) for row in rows], continue_=more)

    async def version(self, namespace: str, name: str, version: int | None) -> DatasetVersion:
        """One version; the newest when `version` is None. Raises `NotFound`."""
        async with self._database.reading() as connection:
            return _version(await DATASETS.find(connection, namespace, name, version))

    async def rows(self, namespace: str, name: str, version: int | None) -> tuple[DatasetVersion, AsyncIterator[bytes]]:
        """One version and its rows, byte for byte, in blocks. Raises `NotFound` before the first block."""
        async with self._database.reading() as connection:
            row = await DATASETS.find(connection, namespace, name, version)
        return _version(row), self._chunks(row.content_id)

    async def _chunks(self, content: int) -> AsyncIterator[bytes]:
        # One short transaction per chunk: a slow reader must hold neither a connection nor a snapshot.
        number = 0
        while True:
            query = select(content_chunks.c.data).where(
                content_chunks.c.content_id == content, content_chunks.c.number == number
            )
            async with self._database.reading() as connection:
                data = (await connection.execute(query)).scalar_one_or_none()
            if data is None:
                return
            yield await asyncio.to_thread(zlib.decompress, data)
            number += 1


def _refuse_full(database: Database) -> None:
    """On a full disk nothing can be deleted any more, nor any run's progress be taken. Raises `StorageFull`."""
    folder = sqlite_folder(database)
    if folder is None:
        return
    free, reserve = room(folder)
    if free < reserve + WRITE_AHEAD_BYTES:
        raise StorageFull(str(folder), f"{free} bytes are free, of which {reserve} are kept for deleting")


async def _new_content(connection: AsyncConnection) -> int:
    values = {"touched_time": now(), "attached": False}
    result = await connection.execute(insert(contents).values(**values).returning(contents.c.id))
    return int(result.scalar_one())


async def _touch(connection: AsyncConnection, content: int, *, attached: bool) -> None:
    query = update(contents).where(contents.c.id == content)
    result = await connection.execute(query.values(attached=attached, touched_time=now()))
    if result.rowcount != 1:
        raise Conflict(
            "the upload stood still for an hour and was given up",
            hint="upload again; check the connection when it stops again",
        )


async def _bring_back(connection: AsyncConnection, row: Any, content: int, *, namespace: str, actor: str) -> None:
    """The content of a deleted version was pushed again: it is that version."""
    change = update(dataset_versions).where(dataset_versions.c.id == row.id)
    await connection.execute(change.values(content_id=content, deleted_time=None))
    await connection.execute(delete(contents).where(contents.c.id == row.content_id))
    await _record_version(connection, "RestoreDatasetVersion", row, namespace=namespace, actor=actor)


async def _refuse_needed(connection: AsyncConnection, row: Any) -> None:
    query = select(runs.c.name).where(runs.c.dataset_version_id == row.id, runs.c.ended.is_(False))
    names = (await connection.execute(query.order_by(runs.c.id).limit(MAX_NAMED))).scalars().all()
    if names:
        raise Conflict(
            f"version {row.version} of dataset {row.name!r} is what a run trains on that has not ended: "
            f"{', '.join(names)}",
            hint="wait for the run, or delete it",
        )


async def _drop_chunks(connection: AsyncConnection, *, content: int) -> bool:
    """Delete some chunks of a content; whether there were any. A long deletion would keep others from writing."""
    chunk = content_chunks.c
    some = select(chunk.number).where(chunk.content_id == content).order_by(chunk.number).limit(DROPPED_AT_ONCE)
    query = delete(content_chunks).where(chunk.content_id == content, chunk.number.in_(some))
    return (await connection.execute(query)).rowcount > 0


async def _record_version(connection: AsyncConnection, action: str, row: Any, *, namespace: str, actor: str) -> None:
    await record(
        connection,
        actor=actor,
        action=action,
        namespace=namespace,
        subject=f"{row.name}/{row.version}",
        details={"sha256": row.sha256},
    )


def _versions() -> Select[Any]:
    return select(dataset_versions, datasets.c.name).join(datasets)


def _offered() -> Select[Any]:
    """Without those that were deleted."""
    return _versions().where(dataset_versions.c.deleted_time.is_(None))


DATASETS = Series(
    noun="dataset",
    names=datasets,
    versions=dataset_versions,
    owner=dataset_versions.c.dataset_id,
    offered=dataset_versions.c.deleted_time.is_(None),
    query=_offered,
    how_to_make=lambda namespace, name: f"create it with: finetune datasets push {name} FILE -n {namespace}",
)


def _version(row: Any) -> DatasetVersion:
    return DatasetVersion(
        name=row.name,
        version=row.version,
        rows=row.rows,
        bytes=row.bytes,
        sha256=row.sha256,
        shape=row.shape,
        created_time=row.created_time,
    )


async def _regroup(blocks: AsyncIterator[bytes], size: int) -> AsyncIterator[bytes]:
    """The same bytes in chunks of `size`; the last one is shorter."""
    waiting = bytearray()
    async for block in blocks:
        waiting += block
        while len(waiting) >= size:
            yield bytes(waiting[:size])
            del waiting[:size]
    if waiting:
        yield bytes(waiting)

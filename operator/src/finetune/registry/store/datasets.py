"""Datasets: named series of immutable versions. Their rows are in `contents`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from sqlalchemy import Select, delete, exists, insert, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from finetune.api.registry import DatasetVersion, DatasetVersions
from finetune.registry.blobs.base import regrouped
from finetune.registry.database import Database
from finetune.registry.errors import Conflict
from finetune.registry.jsonlines import JsonLinesReader, RowFacts
from finetune.registry.schema import content_blobs, content_chunks, contents, dataset_versions, datasets, runs

from .common import named, now, record
from .contents import Contents, touch
from .files import FileLimits
from .quota import Quota
from .series import Series
from .turns import turn

UPLOADS_AT_ONCE = 8
"""Each holds the begun line in memory."""
MAX_NAMED = 5
"""Runs that a refusal names."""


class DatasetStore:
    """Stores datasets and gives them back."""

    def __init__(self, database: Database, contents: Contents, limits: FileLimits | None = None) -> None:
        self._database = database
        self._contents = contents
        self._limits = limits or FileLimits()
        self._quota = Quota(database, self._limits.namespace_bytes, self._limits.namespace_quotas)
        self._checking = asyncio.Lock()
        self._uploads = asyncio.Semaphore(UPLOADS_AT_ONCE)

    async def add_version(
        self, namespace: str, name: str, blocks: AsyncIterator[bytes], *, actor: str
    ) -> tuple[DatasetVersion, bool]:
        """Store JSON lines as a new version of a dataset; the dataset is made when missing.

        Returns the version and whether it is new: content that the dataset already has gives the old version.
        Raises `InvalidRows` naming the line, `TooManyUploads`, `QuotaExceeded` and `StorageFull`. Whatever goes wrong,
        nothing is left. Nobody sees the chunks before the last transaction attaches them to a version.
        """
        async with turn(self._uploads, UPLOADS_AT_ONCE):
            return await self._add(namespace, name, self._quota.within(namespace, blocks), actor=actor)

    async def _add(
        self, namespace: str, name: str, blocks: AsyncIterator[bytes], *, actor: str
    ) -> tuple[DatasetVersion, bool]:
        content = await self._contents.begin()
        attached = False
        try:
            facts = await self._store_rows(content, blocks)
            version, is_new = await self._attach(namespace, name, content, facts, actor=actor)
            attached = is_new or await self._repair(namespace, version, content, actor=actor)
        finally:
            if not attached:
                await asyncio.shield(self._contents.drop(content))
        return version, is_new

    async def _repair(self, namespace: str, version: DatasetVersion, content: int, *, actor: str) -> bool:
        """Let a content take the place of a version's whose rows the store has lost; whether it was so."""
        async with self._database.reading() as connection:
            old = (await DATASETS.find(connection, namespace, version.name, version.version)).content_id
        if await self._contents.is_whole(old):
            return False

        async def transaction(connection: AsyncConnection) -> bool:
            await DATASETS.locked(connection, namespace, version.name)
            row = await DATASETS.find(connection, namespace, version.name, version.version)
            if row.content_id != old:
                return False  # somebody else has done it
            await touch(connection, content, attached=True)
            await _bring_back(connection, row, content, namespace=namespace, actor=actor)
            return True

        return await self._database.write(transaction)

    async def _store_rows(self, content: int, blocks: AsyncIterator[bytes]) -> RowFacts:
        reader = JsonLinesReader(line_bytes=self._limits.line_bytes, line_values=self._limits.line_values)
        number = 0
        async for chunk in regrouped(blocks, self._contents.chunk_bytes):
            # In a thread: checking a chunk takes milliseconds that other requests need. One at a time: what a line
            # takes of memory while it is parsed does not grow with the uploads.
            async with self._checking:
                await asyncio.to_thread(reader.feed, chunk)
            await self._contents.append(content, number, chunk)
            number += 1
        async with self._checking:
            return await asyncio.to_thread(reader.finish)

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
            await touch(connection, content, attached=True)
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
        if content is not None:
            await self._contents.empty(content)

    async def drop_abandoned(self) -> int:
        """Remove the chunks of uploads that a crash has cut short; returns how many uploads there were."""
        return await self._contents.drop_abandoned()

    async def finish_deletions(self) -> int:
        """Remove the rows of deleted versions that a kill, or a move at the same time, has left; returns how many."""
        version = dataset_versions.c
        left = or_(
            *(exists().where(table.c.content_id == version.content_id) for table in (content_chunks, content_blobs))
        )
        async with self._database.reading() as connection:
            query = select(version.content_id).where(version.deleted_time.is_not(None), left)
            found = (await connection.execute(query)).scalars().all()
        for content in found:
            await self._contents.empty(content)
        return len(found)

    async def move_into_store(self) -> int:
        """See `Contents.move_into_store`."""
        return await self._contents.move_into_store()

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
        """One version and its rows, byte for byte, in blocks. Raises `NotFound` and `BlobMissing` before the first."""
        async with self._database.reading() as connection:
            row = await DATASETS.find(connection, namespace, name, version)
        await self._contents.check(row.content_id)
        return _version(row), self._contents.read(row.content_id)


async def _bring_back(connection: AsyncConnection, row: Any, content: int, *, namespace: str, actor: str) -> None:
    """The content of a version that was deleted, or lost, was pushed again: it is that version."""
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

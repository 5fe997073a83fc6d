"""The bytes of adapters' files: announced by a run, sent once, held as long as a version needs them.

A blob has its row before it has its object, and loses its object before its row. So whatever is killed, every object
has a row, and a row without an object is only one that was never said to be stored. A run's row in `run_files` keeps
its blob: garbage is what no such row names, and what nobody has touched for a day.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from time import monotonic
from typing import Any

from sqlalchemy import ColumnElement, and_, delete, exists, func, insert, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from finetune.api.files import ADAPTER_FILE_NAMES, MissingFiles, RunFiles
from finetune.api.registry import AdapterFile
from finetune.registry.blobs import BlobStore
from finetune.registry.blobs.errors import NoStore, StoreBusy, TooLarge
from finetune.registry.database import Database
from finetune.registry.errors import Conflict, DigestMismatch, Invalid, NotFound
from finetune.registry.schema import adapter_files, adapter_versions, blobs, run_files, runs

from .common import insert_missing, now, record, run_missing
from .turns import turn

GARBAGE_AFTER = timedelta(hours=24)
LEFTOVERS_AFTER = timedelta(hours=24)
GARBAGE_BATCH = 500
CLAIM = timedelta(minutes=10)
"""How long marked garbage is its collector's: one that was killed, or stands still, leaves it to others after that."""
UPLOADS_AT_ONCE = 8
"""Each holds a few blocks in memory; the next ones wait for their turn."""


@dataclass(frozen=True, kw_only=True)
class FileLimits:
    """What one file, and all files of one run, may have at most, in bytes."""

    file_bytes: int = 2 * 1024**3
    run_bytes: int = 4 * 1024**3


@dataclass(frozen=True, kw_only=True)
class Garbage:
    """What was, or would be, removed."""

    blobs: int
    bytes: int
    leftovers: int = 0


class FileStore:
    """Takes the files of runs and gives them back. `store` is None where none is configured: then it refuses both."""

    def __init__(self, database: Database, store: BlobStore | None, limits: FileLimits | None = None) -> None:
        self._database = database
        self._store = store
        self._limits = limits or FileLimits()
        self._uploads = asyncio.Semaphore(UPLOADS_AT_ONCE)

    @property
    def is_kept(self) -> bool:
        """Whether there is a store."""
        return self._store is not None

    @property
    def store(self) -> BlobStore:
        """The store. Raises `NoStore`."""
        if self._store is None:
            raise NoStore
        return self._store

    async def close(self) -> None:
        """Close the store."""
        if self._store is not None:
            await self._store.close()

    async def announce(self, namespace: str, uid: str, request: RunFiles, *, actor: str) -> MissingFiles:
        """Take note of the files that a run has made; returns which of them are to be sent.

        Idempotent; other files take the place of those that were announced before. What a run of the same namespace
        has sent is not sent again. Raises `NotFound`, `Invalid`, `TooLarge`, and `Conflict` when the run's adapter is
        registered with other files.
        """
        self._check(self.store, request.files)

        async def transaction(connection: AsyncConnection) -> MissingFiles:
            run = await _locked_run(connection, namespace, uid)
            await _refuse_others(connection, run, request.files)
            held = await _held(connection, namespace, {file.sha256 for file in request.files})
            await connection.execute(delete(run_files).where(run_files.c.run_id == run.id))
            rows = [
                {**file.model_dump(), "run_id": run.id, "held": (file.sha256, file.bytes) in held}
                for file in request.files
            ]
            await connection.execute(insert(run_files), rows)
            stored = await settle(connection, run, actor=actor)
            return MissingFiles(missing=sorted({row["sha256"] for row in rows if not row["held"]}), stored=stored)

        return await self._database.write(transaction)

    def _check(self, store: BlobStore, files: list[AdapterFile]) -> None:
        paths = [file.path for file in files]
        if len(set(paths)) != len(paths):
            raise Invalid("a file is listed twice", hint="list every file once")
        for file in files:
            if not ADAPTER_FILE_NAMES.fullmatch(file.path):
                raise Invalid(
                    f"{file.path!r} is no file of an adapter that the registry keeps",
                    hint="weights as .safetensors, adapter_config.json, README.md, and the tokenizer's files",
                )
            if file.bytes > self._limits.file_bytes:
                raise TooLarge(
                    f"{file.path} has {file.bytes} bytes; a file may have {self._limits.file_bytes} in {store.name}",
                    hint="an administrator can raise the registry's --max-file-bytes",
                )
        size = sum(file.bytes for file in files)
        if size > self._limits.run_bytes:
            raise TooLarge(
                f"the files have {size} bytes; those of a run may have {self._limits.run_bytes} in {store.name}",
                hint="an administrator can raise the registry's --max-run-bytes",
            )

    async def awaited(self, namespace: str, uid: str, sha256: str) -> AdapterFile | None:
        """The file of that digest that a run is to send; None when the store has it. Raises `NotFound`."""
        async with self._database.reading() as connection:
            query = (
                select(run_files)
                .join(runs, runs.c.id == run_files.c.run_id)
                .where(runs.c.uid == uid, runs.c.namespace == namespace, run_files.c.sha256 == sha256)
                .order_by(run_files.c.path)
            )
            rows = (await connection.execute(query)).all()
        if not rows:
            raise NotFound(
                f"run {uid} has announced no file with the SHA-256 {sha256}",
                hint=f"PUT runs/{uid}/files with the list of all files comes first",
            )
        if all(row.held for row in rows):
            return None
        # Of two names for the same bytes the one whose content is looked at.
        row = next((row for row in rows if row.path.endswith(".safetensors")), rows[0])
        return AdapterFile(path=row.path, bytes=row.bytes, sha256=row.sha256)

    async def put(
        self, namespace: str, uid: str, file: AdapterFile, blocks: AsyncIterator[bytes], *, size: int, actor: str
    ) -> None:
        """Store the bytes of a file that `awaited` gave; `size` is what the sender says of them.

        Raises `DigestMismatch`, `TooManyUploads`, the errors of the store, and what `blocks` raises: nothing is stored.
        """
        if size != file.bytes:
            raise DigestMismatch(
                f"{file.path} was announced with {file.bytes} bytes, and {size} are to come",
                hint="has the file changed? announce the files again",
            )
        store = self.store

        async def begin(connection: AsyncConnection) -> None:
            values = {"bytes": size, "touched_time": now(), "stored": False, "deleting": False}
            if await insert_missing(connection, blobs, {"sha256": file.sha256, **values}):
                return
            this = update(blobs).where(blobs.c.sha256 == file.sha256)
            kept = this.where(blobs.c.deleting.is_(False)).values(touched_time=now())
            left = this.where(_left(now())).values(touched_time=now(), stored=False, deleting=False)
            if not (await connection.execute(kept)).rowcount and not (await connection.execute(left)).rowcount:
                raise StoreBusy(store.name, file.sha256)

        async def end(connection: AsyncConnection) -> None:
            run = await _locked_run(connection, namespace, uid)
            await connection.execute(
                update(blobs).where(blobs.c.sha256 == file.sha256).values(bytes=size, stored=True, touched_time=now())
            )
            sent = and_(run_files.c.run_id == run.id, run_files.c.sha256 == file.sha256)
            await connection.execute(update(run_files).where(sent).values(held=True))
            await settle(connection, run, actor=actor)

        async with turn(self._uploads, UPLOADS_AT_ONCE):
            await self._database.write(begin)
            await store.put(file.sha256, blocks, size=size)
            await self._database.write(end)

    async def collect_garbage(self, *, dry_run: bool, older_than: timedelta = GARBAGE_AFTER) -> Garbage:
        """Remove the blobs that nothing needs, and what cut uploads left; with `dry_run` only count them.

        Ended runs without an adapter give up what they have sent. Raises the errors of the store: what is removed by
        then stays removed, the rest is for the next time.
        """
        before = now() - older_than
        if dry_run:
            async with self._database.reading() as connection:
                query = select(func.count(), func.coalesce(func.sum(blobs.c.bytes), 0)).where(_removable(before))
                count, size = (await connection.execute(query)).one()
            return Garbage(blobs=count, bytes=int(size))
        await self._database.write(lambda connection: _give_up(connection, before))
        count = size = 0
        while True:
            until = monotonic() + CLAIM.total_seconds() / 2
            claim = now()
            marked = await self._database.write(partial(_mark, before=before, claim=claim))
            if not marked:
                break
            for row in marked:
                if monotonic() > until:
                    break  # the rest of a store that is so slow is for the next time
                await self.store.delete(row.sha256)
                await self._database.write(partial(_forget, sha256=row.sha256, claim=claim))
                count, size = count + 1, size + row.bytes
        leftovers = await self.store.sweep(now() - LEFTOVERS_AFTER)
        return Garbage(blobs=count, bytes=size, leftovers=leftovers)


async def settle(connection: AsyncConnection, run: Any, *, actor: str) -> bool:
    """Note that the store has all files of a run's adapter, once that is so; returns whether it is.

    Called in the transaction that registers the adapter, and in those that take a file: whichever is last.
    """
    query = select(adapter_versions).where(adapter_versions.c.run_id == run.id)
    version = (await connection.execute(query)).first()
    if version is None or version.stored_time is not None:
        return version is not None
    held = exists().where(
        run_files.c.run_id == run.id,
        run_files.c.path == adapter_files.c.path,
        run_files.c.sha256 == adapter_files.c.sha256,
        run_files.c.held.is_(True),
    )
    missing = select(adapter_files.c.path).where(adapter_files.c.adapter_version_id == version.id, ~held).limit(1)
    if (await connection.execute(missing)).first() is not None:
        return False
    change = update(adapter_versions).where(adapter_versions.c.id == version.id)
    await connection.execute(change.values(stored_time=now()))
    await record(
        connection,
        actor=actor,
        action="StoreAdapter",
        namespace=run.namespace,
        subject=run.name,
        details={"runUid": run.uid, "sha256": version.sha256},
    )
    return True


async def _locked_run(connection: AsyncConnection, namespace: str, uid: str) -> Any:
    query = select(runs.c.id, runs.c.uid, runs.c.name, runs.c.namespace)
    query = query.where(runs.c.uid == uid, runs.c.namespace == namespace).with_for_update(key_share=True)
    row = (await connection.execute(query)).first()
    if row is None:
        raise run_missing(namespace, uid)
    return row


async def _refuse_others(connection: AsyncConnection, run: Any, files: list[AdapterFile]) -> None:
    """What is registered is what may be sent."""
    query = select(adapter_files.c.path, adapter_files.c.bytes, adapter_files.c.sha256).join(adapter_versions)
    registered = (await connection.execute(query.where(adapter_versions.c.run_id == run.id))).all()
    deleted = exists().where(adapter_versions.c.run_id == run.id, adapter_versions.c.mark == "Deleted")
    if (await connection.execute(select(deleted))).scalar_one():
        raise Conflict(
            f"the adapter of run {run.name!r} was deleted", hint="create a new TrainingRun to train it again"
        )
    if registered and {tuple(row) for row in registered} != {(file.path, file.bytes, file.sha256) for file in files}:
        raise Conflict(
            f"the adapter of run {run.name!r} is registered with other files",
            hint="send the files that training_config.json lists",
        )


async def _held(connection: AsyncConnection, namespace: str, digests: set[str]) -> set[tuple[str, int]]:
    """Those blobs, with their sizes, that a run of the namespace has sent; touched, so that they stay."""
    sent = (
        select(run_files.c.sha256)
        .join(runs, runs.c.id == run_files.c.run_id)
        .where(runs.c.namespace == namespace, run_files.c.held.is_(True), run_files.c.sha256.in_(digests))
    )
    found = (await connection.execute(sent.distinct())).scalars().all()
    held = set()
    for digest in sorted(found):  # in this order by everybody, so that no two wait for each other
        there = and_(blobs.c.sha256 == digest, blobs.c.stored.is_(True), blobs.c.deleting.is_(False))
        query = update(blobs).where(there).values(touched_time=now()).returning(blobs.c.sha256, blobs.c.bytes)
        held |= {(row.sha256, row.bytes) for row in await connection.execute(query)}
    return held


def _garbage(before: datetime) -> ColumnElement[bool]:
    needed = exists().where(run_files.c.sha256 == blobs.c.sha256, ~_given_up(before))
    return and_(blobs.c.touched_time < before, ~needed)


def _given_up(before: datetime) -> ColumnElement[bool]:
    """Rows of `run_files` whose run has ended without an adapter."""
    registered = exists().where(adapter_versions.c.run_id == run_files.c.run_id)
    ended = exists().where(runs.c.id == run_files.c.run_id, runs.c.ended.is_(True), runs.c.created_time < before)
    return and_(~registered, ended)


async def _give_up(connection: AsyncConnection, before: datetime) -> None:
    await connection.execute(delete(run_files).where(_given_up(before)))


def _left(time: datetime) -> ColumnElement[bool]:
    """What a collector has marked and not removed for so long that it is not at it any more."""
    return and_(blobs.c.deleting.is_(True), blobs.c.touched_time < time - CLAIM)


def _removable(before: datetime) -> ColumnElement[bool]:
    return or_(_left(now()), and_(blobs.c.deleting.is_(False), _garbage(before)))


async def _mark(connection: AsyncConnection, *, before: datetime, claim: datetime) -> list[Any]:
    """Some garbage, marked so that nobody refers to it any more; also what an earlier time has marked and left."""
    wanted = _removable(before)
    some = select(blobs.c.sha256).where(wanted).order_by(blobs.c.sha256).limit(GARBAGE_BATCH)
    digests = (await connection.execute(some)).scalars().all()
    # Asked once more of each row: who was faster has touched it.
    query = update(blobs).where(blobs.c.sha256.in_(digests), wanted).values(deleting=True, touched_time=claim)
    return list((await connection.execute(query.returning(blobs.c.sha256, blobs.c.bytes))).all())


async def _forget(connection: AsyncConnection, *, sha256: str, claim: datetime) -> None:
    mine = and_(blobs.c.sha256 == sha256, blobs.c.deleting.is_(True), blobs.c.touched_time == claim)
    await connection.execute(delete(blobs).where(mine))

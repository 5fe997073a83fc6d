"""The bytes of adapters' files: announced by a run, sent once, held as long as a version needs them.

A run announces the adapter that it has made, and before that those of its evaluations (see `interim_rows`). A row in
`run_files` keeps its blob, see `garbage`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from typing import Any

from sqlalchemy import and_, delete, exists, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from finetune.api.files import ADAPTER_FILE_NAMES, InterimRequest, MissingFiles, RunFiles
from finetune.api.registry import AdapterFile
from finetune.logs import described
from finetune.registry.blobs import BlobStore
from finetune.registry.blobs.errors import BlobMissing, NoStore, StoreUnavailable, TooLarge
from finetune.registry.database import Database
from finetune.registry.errors import (
    AttemptOver,
    Conflict,
    DigestMismatch,
    Invalid,
    NotFound,
    RegistryFault,
    RunEnded,
)
from finetune.registry.jsonlines import MAX_LINE_BYTES, MAX_LINE_VALUES
from finetune.registry.schema import adapter_files, adapter_versions, blobs, run_files, runs

from . import garbage, interim_rows
from .common import now, record, run_missing
from .quota import Quota
from .turns import turn

log = logging.getLogger(__name__)

SIGNED_FOR = timedelta(minutes=5)
"""How long an address is good that a reader is sent to; a download that has begun goes on."""
UPLOADS_AT_ONCE = 8
"""Each holds a few blocks in memory; the next ones wait for their turn."""


@dataclass(frozen=True, kw_only=True)
class FileLimits:
    """What one file, and all files of one run, may have at most, in bytes; and what else an administrator decides."""

    file_bytes: int = 2 * 1024**3
    run_bytes: int = 4 * 1024**3
    namespace_bytes: int | None = None
    """Of a namespace's rows and files together; None: as much as there is room for."""
    namespace_quotas: Mapping[str, int] = field(default_factory=dict)
    """The same for some namespaces by name; 0: no limit."""
    presigned: bool = False
    """Whether readers are sent to the store, where it can sign addresses."""
    interim_after: timedelta = garbage.INTERIM_AFTER
    """How long the interim adapters of an ended run are kept, see `garbage`."""
    line_bytes: int = MAX_LINE_BYTES
    line_values: int = MAX_LINE_VALUES
    """Of one row of a dataset, and how many values may be in it."""


class FileStore:
    """Takes the files of runs and gives them back. `store` is None where none is configured: then it refuses both."""

    def __init__(self, database: Database, store: BlobStore | None, limits: FileLimits | None = None) -> None:
        self._database = database
        self._store = store
        self._limits = limits or FileLimits()
        self._uploads = asyncio.Semaphore(UPLOADS_AT_ONCE)
        self._quota = Quota(database, self._limits.namespace_bytes, self._limits.namespace_quotas)

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

    async def elsewhere(self, sha256: str) -> str | None:
        """Where a reader is to get these bytes, instead of from here; None: from here. Raises `BlobMissing`."""
        if not self._limits.presigned:
            return None
        try:
            return await self.store.signed_url(sha256, lasting=SIGNED_FOR)
        except BlobMissing:
            raise
        except StoreUnavailable as error:  # such as an account that may read, and may not sign
            log.warning(
                "no address in %s can be signed, so that its files are read here: %s; may the registry's account sign?",
                self.store.name,
                described(error),
            )
            return None

    async def close(self) -> None:
        """Close the store."""
        if self._store is not None:
            await self._store.close()

    async def announce(self, namespace: str, uid: str, request: RunFiles, *, actor: str) -> MissingFiles:
        """Take note of the files that a run has made; returns which of them are to be sent.

        Idempotent; other files take the place of those that were announced before. What a run of the same namespace
        has sent is not sent again, unless the store has lost it. Raises `NotFound`, `Invalid`, `TooLarge`,
        `QuotaExceeded`, and `Conflict` when the run's adapter is registered with other files.
        """
        self._check(self.store, request.files)
        await garbage.note_lost(self._database, self.store, [file.sha256 for file in request.files])

        async def transaction(connection: AsyncConnection) -> MissingFiles:
            run = await _locked_run(connection, namespace, uid)
            await _refuse_others(connection, run, request.files)
            held = await _held(connection, namespace, {file.sha256 for file in request.files})
            wanted = {(file.sha256, file.bytes) for file in request.files} - held
            finished = and_(run_files.c.run_id == run.id, ~interim_rows.is_interim)
            await connection.execute(delete(run_files).where(finished))
            rows = [
                {**file.model_dump(), "run_id": run.id, "held": (file.sha256, file.bytes) in held}
                for file in request.files
            ]
            await connection.execute(insert(run_files), rows)
            # By now: what the run had announced before needs no room any more, and its interim adapters soon do not.
            await self._quota.check(connection, namespace, sum(size for _, size in wanted), finishing=run.id)
            stored = await settle(connection, run, actor=actor)
            return MissingFiles(missing=sorted({row["sha256"] for row in rows if not row["held"]}), stored=stored)

        return await self._database.write(transaction)

    async def announce_interim(self, namespace: str, uid: str, step: int, request: InterimRequest) -> MissingFiles:
        """Take note of a run's adapter as it is after a step; returns which of its files are to be sent.

        Idempotent; a step that is made again takes the place of what there was. Raises what `announce` raises, and
        `RunEnded`, `AttemptOver`.
        """
        self._check(self.store, request.files)
        await garbage.note_lost(self._database, self.store, [file.sha256 for file in request.files])

        async def transaction(connection: AsyncConnection) -> tuple[MissingFiles, list[str]]:
            run = await _locked_run(connection, namespace, uid)
            finished = select(exists().where(adapter_versions.c.run_id == run.id))
            if run.ended or (await connection.execute(finished)).scalar_one():
                raise RunEnded(f"run {run.name!r} has ended: it takes no more adapters", hint="stop its trainer")
            if request.attempt < (latest := await interim_rows.latest_attempt(connection, run.id)):
                raise AttemptOver(
                    f"attempt {request.attempt} of run {run.name!r} is over: attempt {latest} has begun",
                    hint="stop the earlier trainer",
                )
            held = await _held(connection, namespace, {file.sha256 for file in request.files})
            gone = await interim_rows.add(connection, run.id, step, request, held=held, time=now())
            wanted = {(file.sha256, file.bytes) for file in request.files} - held
            await self._quota.check(connection, namespace, sum(size for _, size in wanted))
            gone += await interim_rows.settle_interim(connection, run.id)
            missing = sorted({file.sha256 for file in request.files if (file.sha256, file.bytes) in wanted})
            return MissingFiles(missing=missing, stored=not missing), gone

        answer, gone = await self._database.write(transaction)
        await self._give_up(gone)
        return answer

    async def _give_up(self, digests: Sequence[str]) -> None:
        """Remove what interim adapters had that were replaced; what fails is left for the next garbage."""
        try:
            await garbage.release(self._database, self.store, digests)
        except RegistryFault as error:
            log.warning("replaced adapters are still in the store %s: %s", self.store.name, described(error))

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

        async def end(connection: AsyncConnection) -> list[str]:
            run = await _locked_run(connection, namespace, uid)
            await garbage.note_stored(connection, file.sha256, size=size, store=store)
            sent = and_(run_files.c.run_id == run.id, run_files.c.sha256 == file.sha256)
            await connection.execute(update(run_files).where(sent).values(held=True))
            gone = await interim_rows.settle_interim(connection, run.id)
            await settle(connection, run, actor=actor)
            return gone

        async with turn(self._uploads, UPLOADS_AT_ONCE):
            await self._database.write(partial(garbage.claim, sha256=file.sha256, size=size, store=store))
            await store.put(file.sha256, blocks, size=size)
            gone = await self._database.write(end)
        await self._give_up(gone)

    async def collect_garbage(self, *, dry_run: bool, older_than: timedelta = garbage.GARBAGE_AFTER) -> garbage.Garbage:
        """See `garbage.collect`. Raises `NoStore`."""
        return await garbage.collect(
            self._database,
            self.store,
            dry_run=dry_run,
            older_than=older_than,
            interim_after=self._limits.interim_after,
        )

    async def release(self, files: Iterable[AdapterFile]) -> None:
        """Remove the bytes of files that were deleted, unless others need them. Raises the errors of the store."""
        if self._store is not None:
            await garbage.release(self._database, self._store, [file.sha256 for file in files])


async def settle(connection: AsyncConnection, run: Any, *, actor: str) -> bool:
    """Note that the store has all files of a run's adapter, once that is so; returns whether it is.

    Called in the transaction that registers the adapter, and in those that take a file: whichever is last. The interim
    adapters have served then.
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
    await interim_rows.give_up(connection, run.id)
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
    query = select(runs.c.id, runs.c.uid, runs.c.name, runs.c.namespace, runs.c.ended)
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
